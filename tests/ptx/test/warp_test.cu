// Shuffles, votes, matches, reductions, barriers and atomics against a model of a warp.
#include "support.cuh"

namespace {

using u32 = std::uint32_t;
constexpr u32 everyone = 0xffffffff;

struct Warp : ptx_test::Ptx {};

template <class Kernel>
std::vector<u32> run(Kernel kernel, std::size_t per_lane, const std::vector<u32>& input) {
  ptx_test::buffer<u32> in(input), out(32 * per_lane);
  kernel<<<1, 32>>>(in.get(), out.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(out.undefined(), 0U);
  return out.read();
}

std::vector<u32> some_values() {
  std::vector<u32> v(32);
  for (u32 i = 0; i < 32; ++i) v[i] = (i * 2654435761U) >> (i % 7);
  return v;
}

__global__ void shuffles(const u32* in, u32* out) {
  const u32 i = threadIdx.x;
  out[i] = __shfl_sync(everyone, in[i], 5);
  out[32 + i] = __shfl_sync(everyone, in[i], int(i * 3));
  out[64 + i] = __shfl_up_sync(everyone, in[i], 3);
  out[96 + i] = __shfl_down_sync(everyone, in[i], 7);
  out[128 + i] = __shfl_xor_sync(everyone, in[i], 9);
  out[160 + i] = __shfl_sync(everyone, in[i], 2, 8);
  out[192 + i] = __shfl_up_sync(everyone, in[i], 1, 4);
  out[224 + i] = __shfl_down_sync(everyone, in[i], 2, 16);
  out[256 + i] = __shfl_xor_sync(everyone, in[i], 5, 8);
}

__global__ void half_warps(const u32* in, u32* out) {
  // Each half shuffles with its own mask, at the same instruction and at different ones.
  const u32 i = threadIdx.x;
  const u32 mask = i < 16 ? 0xffff : 0xffff0000;
  out[i] = __shfl_xor_sync(mask, in[i], 1);
  if (i < 16) {
    out[32 + i] = __shfl_xor_sync(0xffff, in[i], 2);
  } else {
    out[32 + i] = __shfl_xor_sync(0xffff0000, in[i], 4);
  }
}

__global__ void votes(const u32* in, u32* out) {
  const u32 i = threadIdx.x;
  out[i] = __ballot_sync(everyone, in[i] & 1);
  out[32 + i] = u32(__any_sync(everyone, in[i] == 12345)) * 2 + u32(__all_sync(everyone, i < 32));
  out[64 + i] = __match_any_sync(everyone, in[i] % 4);
  int all = 0;
  out[96 + i] = __match_all_sync(everyone, 7, &all);
  out[96 + i] += u32(all);
  out[128 + i] = __activemask();
  out[160 + i] = 0;
  if (i % 3 == 0) out[160 + i] = __ballot_sync(0x49249249, i > 10);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__global__ void reductions(const u32* in, u32* out) {
  const u32 i = threadIdx.x;
  out[i] = __reduce_add_sync(everyone, in[i]);
  out[32 + i] = u32(__reduce_min_sync(everyone, int(in[i])));
  out[64 + i] = __reduce_max_sync(everyone, in[i]);
  out[96 + i] = __reduce_and_sync(everyone, in[i] | 1);
  out[128 + i] = __reduce_or_sync(everyone, in[i]);
  out[160 + i] = __reduce_xor_sync(everyone, in[i]);
}
#else
__global__ void reductions(const u32*, u32*) {}
#endif

__global__ void block_votes(int* out) {
  const int i = int(threadIdx.x);
  out[i] = __syncthreads_count(i % 3 == 0);
  out[blockDim.x + i] = __syncthreads_and(i < 200) * 2 + __syncthreads_or(i == 77);
}

__global__ void named_barriers(int* out) {
  // Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2; warp 0 signals barrier 3.
  __shared__ int box[4];
  const int warp = int(threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) box[warp] = 10 + warp;
  if (warp < 2) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync 2, 64;" ::: "memory");
  }
  out[threadIdx.x] = box[warp ^ 1];
  if (warp == 0) {
    asm volatile("bar.arrive 3, 64;" ::: "memory");
  } else if (warp == 3) {
    asm volatile("bar.sync 3, 64;" ::: "memory");
  }
}

template <class T>
__global__ void atomics(T* cell) {
  const T i = T(threadIdx.x);
  atomicAdd(&cell[0], i);
  atomicMin(&cell[1], i);
  atomicMax(&cell[2], i);
  atomicAnd(&cell[3], ~(T(1) << (threadIdx.x % 8)));
  atomicOr(&cell[4], T(1) << (threadIdx.x % 8));
  atomicXor(&cell[5], i);
  T seen = cell[6 + blockDim.x];
  while (true) {  // a counter by compare-and-swap
    const T old = atomicCAS(&cell[6], seen, seen + 1);
    if (old == seen) break;
    seen = old;
  }
}

__global__ void inc_dec_exch(u32* cell, u32* out) {
  out[threadIdx.x] = atomicInc(&cell[0], 9);
  out[32 + threadIdx.x] = atomicDec(&cell[1], 9);
  out[64 + threadIdx.x] = atomicExch(&cell[2], threadIdx.x);
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncwarp();
  atomicAdd(&sum, 0.5F);
  __syncwarp();
  if (threadIdx.x == 0) out[96] = u32(sum);
  double* wide = reinterpret_cast<double*>(cell + 4);
  atomicAdd(wide, 0.25);
}

}  // namespace

TEST_F(Warp, shuffles) {
  const std::vector<u32> v = some_values();
  const std::vector<u32> got = run(shuffles, 9, v);
  for (u32 i = 0; i < 32; ++i) {
    EXPECT_EQ(got[i], v[5]);
    EXPECT_EQ(got[32 + i], v[i * 3 % 32]);
    EXPECT_EQ(got[64 + i], v[i < 3 ? i : i - 3]);
    EXPECT_EQ(got[96 + i], v[i + 7 > 31 ? i : i + 7]);
    EXPECT_EQ(got[128 + i], v[i ^ 9]);
    EXPECT_EQ(got[160 + i], v[(i & ~7U) + 2]);
    EXPECT_EQ(got[192 + i], v[i % 4 == 0 ? i : i - 1]);
    EXPECT_EQ(got[224 + i], v[i % 16 + 2 > 15 ? i : i + 2]);
    EXPECT_EQ(got[256 + i], v[(i & ~7U) | ((i & 7) ^ 5)]);
  }
}

TEST_F(Warp, lanes_wait_for_their_own_mask) {
  const std::vector<u32> v = some_values();
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    ptx::set_seed(seed);
    const std::vector<u32> got = run(half_warps, 2, v);
    for (u32 i = 0; i < 32; ++i) {
      EXPECT_EQ(got[i], v[i ^ 1]);
      EXPECT_EQ(got[32 + i], v[i < 16 ? i ^ 2 : i ^ 4]);
    }
  }
}

TEST_F(Warp, votes) {
  const std::vector<u32> v = some_values();
  const std::vector<u32> got = run(votes, 6, v);
  u32 odd = 0, thirds = 0;
  for (u32 i = 0; i < 32; ++i) odd |= (v[i] & 1) << i;
  for (u32 i = 12; i < 32; i += 3) thirds |= 1U << i;
  for (u32 i = 0; i < 32; ++i) {
    u32 same = 0;
    for (u32 k = 0; k < 32; ++k) same |= u32(v[k] % 4 == v[i] % 4) << k;
    EXPECT_EQ(got[i], odd);
    EXPECT_EQ(got[32 + i], 1U);
    EXPECT_EQ(got[64 + i], same);
    EXPECT_EQ(got[96 + i], everyone + 1);
    EXPECT_EQ(got[128 + i], everyone);
    EXPECT_EQ(got[160 + i], i % 3 == 0 ? thirds : 0);
  }
}

TEST_F(Warp, reductions) {
  if (ptx::compute_capability() < 80) GTEST_SKIP() << "not on this target";
  std::vector<u32> v = some_values();
  v[9] = 0x80000000;
  const std::vector<u32> got = run(reductions, 6, v);
  u32 sum = 0, top = 0, all = everyone, any = 0, odd = 0;
  int low = 0x7fffffff;
  for (const u32 x : v) {
    sum += x;
    top = std::max(top, x);
    low = std::min(low, int(x));
    all &= x | 1;
    any |= x;
    odd ^= x;
  }
  for (u32 i = 0; i < 32; ++i) {
    EXPECT_EQ(got[i], sum);
    EXPECT_EQ(got[32 + i], u32(low));
    EXPECT_EQ(got[64 + i], top);
    EXPECT_EQ(got[96 + i], all);
    EXPECT_EQ(got[128 + i], any);
    EXPECT_EQ(got[160 + i], odd);
  }
}

TEST_F(Warp, barriers_that_reduce) {
  ptx_test::buffer<int> out(400);
  block_votes<<<1, 200>>>(out.get());
  ptx_test::expect_no_fault();
  const std::vector<int> got = out.read();
  for (std::size_t i = 0; i < 200; ++i) {
    EXPECT_EQ(got[i], 67);
    EXPECT_EQ(got[200 + i], 3);
  }
}

TEST_F(Warp, named_barriers) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<int> out(128);
    named_barriers<<<1, 128>>>(out.get());
    ptx_test::expect_no_fault();
    const std::vector<int> got = out.read();
    for (std::size_t i = 0; i < 128; ++i) EXPECT_EQ(got[i], 10 + int((i / 32) ^ 1));
  }
}

TEST_F(Warp, atomics) {
  constexpr unsigned n = 96;
  const auto check = [](auto zero) {
    using T = decltype(zero);
    std::vector<T> start(7 + n, T(0));
    start[1] = T(1000);
    start[3] = T(0xff);
    ptx_test::buffer<T> cell(start);
    atomics<<<1, n>>>(cell.get());
    ptx_test::expect_no_fault();
    const std::vector<T> got = cell.read();
    T folded = 0;
    for (T i = 0; i < T(n); ++i) folded ^= i;
    EXPECT_EQ(got[0], T(n * (n - 1) / 2));
    EXPECT_EQ(got[1], T(0));
    EXPECT_EQ(got[2], T(n - 1));
    EXPECT_EQ(got[3], T(0));
    EXPECT_EQ(got[4], T(0xff));
    EXPECT_EQ(got[5], folded);
    EXPECT_EQ(got[6], T(n));
  };
  check(int{});
  check(u32{});
  check(static_cast<unsigned long long>(0));
}

TEST_F(Warp, inc_dec_exch_and_float_atomics) {
  ptx_test::buffer<u32> cell(std::vector<u32>(6, 0)), out(97);
  inc_dec_exch<<<1, 32>>>(cell.get(), out.get());
  ptx_test::expect_no_fault();
  const std::vector<u32> got = out.read();
  for (u32 i = 0; i < 32; ++i) {
    EXPECT_EQ(got[i], i % 10);
    EXPECT_EQ(got[32 + i], (10 - i % 10) % 10);
    EXPECT_EQ(got[64 + i], i == 0 ? 0 : i - 1);
  }
  EXPECT_EQ(got[96], 16U);
  const std::vector<u32> cells = cell.read();
  double wide;
  std::memcpy(&wide, &cells[4], sizeof wide);
  EXPECT_EQ(wide, 8.0);
}
