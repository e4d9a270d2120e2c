// What the tests of the interpreter share: device buffers, edge values, and a way to run one
// instruction over all of them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "ptx_device.hpp"

namespace ptx_test {

template <class T>
class buffer {
 public:
  explicit buffer(std::size_t size) : size_(size) {
    if (size != 0) EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess);
  }
  explicit buffer(const std::vector<T>& values) : buffer(values.size()) {
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { cudaFree(data_); }

  T* get() const { return data_; }
  std::size_t size() const { return size_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }
  std::size_t undefined() const { return ptx::undefined_bytes(data_, size_ * sizeof(T)); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Starts every test from the plain order, without faults and with counters at zero.
class Ptx : public testing::Test {
 protected:
  void SetUp() override {
    ptx::set_schedule({});
    ptx::set_checks({});
    ptx::clear_fault();
    ptx::reset_counters();
    ptx::clear_call_log();
  }
  void TearDown() override { ptx::clear_fault(); }
};

inline void expect_no_fault() {
  EXPECT_EQ(ptx::last_fault().kind, ptx::fault_kind::none) << ptx::last_fault().text();
}

template <class T>
std::vector<T> edge_values() {
  if constexpr (std::is_floating_point_v<T>) {
    using L = std::numeric_limits<T>;
    std::vector<T> v = {T(0),
                        T(1),
                        T(0.5),
                        T(1.5),
                        T(2.5),
                        T(3),
                        T(1) / T(3),
                        T(1e-3),
                        T(123456.75),
                        T(1e10),
                        L::max(),
                        L::min(),
                        L::denorm_min(),
                        L::min() / 4,
                        L::epsilon(),
                        L::infinity(),
                        L::quiet_NaN(),
                        T(1) + L::epsilon(),
                        T(2147483648.0),
                        T(4294967296.0),
                        T(65504),
                        T(65520),
                        T(0.1),
                        L::max() / 2,
                        T(9223372036854775808.0),
                        T(16777217),
                        T(33554435)};
    const std::size_t positive = v.size();
    for (std::size_t i = 0; i < positive; ++i) v.push_back(-v[i]);
    return v;
  } else {
    using L = std::numeric_limits<T>;
    std::vector<T> v = {T(0),
                        T(1),
                        T(2),
                        T(3),
                        T(7),
                        T(31),
                        T(32),
                        T(33),
                        T(63),
                        T(64),
                        T(100),
                        L::max(),
                        L::min(),
                        static_cast<T>(L::max() - 1),
                        static_cast<T>(L::min() + 1),
                        static_cast<T>(~T(0)),
                        static_cast<T>(0x55),
                        static_cast<T>(0xaaaaaaaaaaaaaaaaULL),
                        static_cast<T>(0x123456789abcdef0ULL),
                        static_cast<T>(0x8000),
                        static_cast<T>(0x7fff)};
    return v;
  }
}

template <class T>
std::string bits_of(T value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return ptx::hex(bits);
}

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class Op, class A, class R>
__global__ void run1(const A* a, R* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = Op::run(a[i]);
}
template <class Op, class A, class B, class R>
__global__ void run2(const A* a, const B* b, R* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = Op::run(a[i], b[i]);
}
template <class Op, class A, class B, class C, class R>
__global__ void run3(const A* a, const B* b, const C* c, R* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = Op::run(a[i], b[i], c[i]);
}

constexpr int threads = 128;
inline int blocks_for(std::size_t n) {
  return static_cast<int>((n + threads - 1) / threads);
}

/// Runs Op on the device over every combination of edge values and compares with Op::expect.
template <class Op, class R, class A>
void check1(const std::vector<A>& as = edge_values<A>()) {
  buffer<A> a(as);
  buffer<R> out(as.size());
  run1<Op, A, R>
      <<<blocks_for(as.size()), threads>>>(a.get(), out.get(), static_cast<int>(as.size()));
  expect_no_fault();
  const std::vector<R> got = out.read();
  int shown = 0;
  for (std::size_t i = 0; i < as.size() && shown < 5; ++i) {
    const R want = Op::expect(as[i]);
    if (same_bits(want, got[i])) continue;
    ++shown;
    ADD_FAILURE() << bits_of(as[i]) << " gives " << bits_of(got[i]) << ", not " << bits_of(want);
  }
}

template <class Op, class R, class A, class B>
void check2(const std::vector<A>& as = edge_values<A>(),
            const std::vector<B>& bs = edge_values<B>()) {
  std::vector<A> x;
  std::vector<B> y;
  for (const A i : as)
    for (const B j : bs) {
      x.push_back(i);
      y.push_back(j);
    }
  buffer<A> a(x);
  buffer<B> b(y);
  buffer<R> out(x.size());
  run2<Op, A, B, R>
      <<<blocks_for(x.size()), threads>>>(a.get(), b.get(), out.get(), static_cast<int>(x.size()));
  expect_no_fault();
  const std::vector<R> got = out.read();
  int shown = 0;
  for (std::size_t i = 0; i < x.size() && shown < 5; ++i) {
    const R want = Op::expect(x[i], y[i]);
    if (same_bits(want, got[i])) continue;
    ++shown;
    ADD_FAILURE() << bits_of(x[i]) << ", " << bits_of(y[i]) << " gives " << bits_of(got[i])
                  << ", not " << bits_of(want);
  }
}

template <class Op, class R, class A, class B, class C>
void check3(const std::vector<A>& as = edge_values<A>(),
            const std::vector<B>& bs = edge_values<B>(),
            const std::vector<C>& cs = edge_values<C>()) {
  std::vector<A> x;
  std::vector<B> y;
  std::vector<C> z;
  for (const A i : as)
    for (const B j : bs)
      for (const C k : cs) {
        x.push_back(i);
        y.push_back(j);
        z.push_back(k);
      }
  buffer<A> a(x);
  buffer<B> b(y);
  buffer<C> c(z);
  buffer<R> out(x.size());
  run3<Op, A, B, C, R><<<blocks_for(x.size()), threads>>>(a.get(), b.get(), c.get(), out.get(),
                                                          static_cast<int>(x.size()));
  expect_no_fault();
  const std::vector<R> got = out.read();
  int shown = 0;
  for (std::size_t i = 0; i < x.size() && shown < 5; ++i) {
    const R want = Op::expect(x[i], y[i], z[i]);
    if (same_bits(want, got[i])) continue;
    ++shown;
    ADD_FAILURE() << bits_of(x[i]) << ", " << bits_of(y[i]) << ", " << bits_of(z[i]) << " gives "
                  << bits_of(got[i]) << ", not " << bits_of(want);
  }
}

}  // namespace ptx_test

// A test of one instruction: its text with operands %0 (result), %1, ..., their types and
// register classes, and the same in C++.
#define PTX_TEST1(suite, name, R, rr, A, ra, text, expression) \
  struct suite##_##name {                                      \
    static __device__ R run(A a) {                             \
      R d;                                                     \
      asm volatile(text : "=" rr(d) : ra(a));                  \
      return d;                                                \
    }                                                          \
    static R expect(A a) { return expression; }                \
  };                                                           \
  TEST(suite, name) {                                          \
    ptx_test::check1<suite##_##name, R, A>();                  \
  }

#define PTX_TEST2(suite, name, R, rr, A, ra, B, rb, text, expression) \
  struct suite##_##name {                                             \
    static __device__ R run(A a, B b) {                               \
      R d;                                                            \
      asm volatile(text : "=" rr(d) : ra(a), rb(b));                  \
      return d;                                                       \
    }                                                                 \
    static R expect(A a, B b) { return expression; }                  \
  };                                                                  \
  TEST(suite, name) {                                                 \
    ptx_test::check2<suite##_##name, R, A, B>();                      \
  }

#define PTX_TEST3(suite, name, R, rr, A, ra, B, rb, C, rc, text, expression) \
  struct suite##_##name {                                                    \
    static __device__ R run(A a, B b, C c) {                                 \
      R d;                                                                   \
      asm volatile(text : "=" rr(d) : ra(a), rb(b), rc(c));                  \
      return d;                                                              \
    }                                                                        \
    static R expect(A a, B b, C c) { return expression; }                    \
  };                                                                         \
  TEST(suite, name) {                                                        \
    ptx_test::check3<suite##_##name, R, A, B, C>();                          \
  }
