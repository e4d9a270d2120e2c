// CUB's algorithms, unmodified, against the host: block, warp and device, several sizes and orders.
#include <algorithm>
#include <cub/cub.cuh>
#include <numeric>
#include <random>

#include "support.cuh"

namespace {

using ptx_test::buffer;

struct Cub : ptx_test::Ptx {};

std::vector<int> random_values(std::size_t n, int low, int high) {
  std::mt19937 engine(static_cast<unsigned>(n));
  std::vector<int> v(n);
  for (int& x : v) x = static_cast<int>(engine() % static_cast<unsigned>(high - low)) + low;
  return v;
}

/// CUB's two-step call: ask for the workspace, then run.
template <class F>
void two_phase(F call) {
  std::size_t bytes = 0;
  ASSERT_EQ(call(nullptr, bytes), cudaSuccess);
  buffer<char> workspace(std::max<std::size_t>(bytes, 1));
  ASSERT_EQ(call(static_cast<void*>(workspace.get()), bytes), cudaSuccess)
      << ptx::last_fault().text();
  ptx_test::expect_no_fault();
}

const std::vector<std::size_t> sizes = {1, 31, 1000, 5000, 20000};

template <int Threads>
__global__ void block_scan(const int* in, int* out, int* total) {
  using scan = cub::BlockScan<int, Threads>;
  __shared__ typename scan::TempStorage storage;
  int value, sum;
  scan(storage).ExclusiveSum(in[threadIdx.x], value, sum);
  out[threadIdx.x] = value;
  if (threadIdx.x == 0) *total = sum;
}

template <class Key, int Threads, int Items>
__global__ void block_sort(const Key* in, Key* out, int* index) {
  using sort = cub::BlockRadixSort<Key, Threads, Items, int>;
  __shared__ typename sort::TempStorage storage;
  Key keys[Items];
  int values[Items];
  for (int i = 0; i < Items; ++i) {
    values[i] = static_cast<int>(threadIdx.x) * Items + i;
    keys[i] = in[values[i]];
  }
  sort(storage).SortDescending(keys, values);
  for (int i = 0; i < Items; ++i) {
    out[threadIdx.x * Items + i] = keys[i];
    index[threadIdx.x * Items + i] = values[i];
  }
}

__global__ void warp_level(const int* in, int* out) {
  using reduce = cub::WarpReduce<int>;
  using scan = cub::WarpScan<int, 16>;
  __shared__ typename reduce::TempStorage for_reduce;
  __shared__ typename scan::TempStorage for_scan[2];
  const int sum = reduce(for_reduce).Sum(in[threadIdx.x]);
  if (threadIdx.x == 0) out[0] = sum;
  int prefix;
  scan(for_scan[threadIdx.x / 16]).InclusiveSum(in[threadIdx.x], prefix);
  out[1 + threadIdx.x] = prefix;
}

template <int Threads>
void check_block_scan() {
  const std::vector<int> v = random_values(Threads, -50, 50);
  buffer<int> in(v), out(Threads), total(1);
  block_scan<Threads><<<1, Threads>>>(in.get(), out.get(), total.get());
  ptx_test::expect_no_fault();
  std::vector<int> want(v.size());
  std::exclusive_scan(v.begin(), v.end(), want.begin(), 0);
  EXPECT_EQ(out.read(), want);
  EXPECT_EQ(total.read()[0], std::accumulate(v.begin(), v.end(), 0));
}

}  // namespace

TEST_F(Cub, block_scan) {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    ptx::set_seed(seed);
    check_block_scan<32>();
    check_block_scan<96>();
    check_block_scan<256>();
  }
}

TEST_F(Cub, block_radix_sort) {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    ptx::set_seed(seed);
    std::vector<float> v(128 * 4);
    const std::vector<int> r = random_values(v.size(), -100, 100);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(r[i]) * 0.25F;
    buffer<float> in(v), out(v.size());
    buffer<int> index(v.size());
    block_sort<float, 128, 4><<<1, 128>>>(in.get(), out.get(), index.get());
    ptx_test::expect_no_fault();
    std::vector<int> want(v.size());
    std::iota(want.begin(), want.end(), 0);
    std::stable_sort(want.begin(), want.end(), [&](int a, int b) {
      return v[static_cast<std::size_t>(a)] > v[static_cast<std::size_t>(b)];
    });
    EXPECT_EQ(index.read(), want);
  }
}

TEST_F(Cub, warp_reduce_and_scan) {
  const std::vector<int> v = random_values(32, -50, 50);
  buffer<int> in(v), out(33);
  warp_level<<<1, 32>>>(in.get(), out.get());
  ptx_test::expect_no_fault();
  const std::vector<int> got = out.read();
  EXPECT_EQ(got[0], std::accumulate(v.begin(), v.end(), 0));
  for (std::ptrdiff_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[static_cast<std::size_t>(1 + i)],
              std::accumulate(v.begin() + i / 16 * 16, v.begin() + i + 1, 0));
}

TEST_F(Cub, device_scan) {
  for (const std::size_t n : sizes)
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      ptx::set_seed(seed);
      const std::vector<int> v = random_values(n, -500, 500);
      buffer<int> in(v), out(n);
      two_phase([&](void* w, std::size_t& bytes) {
        return cub::DeviceScan::ExclusiveSum(w, bytes, in.get(), out.get(), static_cast<int>(n));
      });
      std::vector<int> want(n);
      std::exclusive_scan(v.begin(), v.end(), want.begin(), 0);
      EXPECT_EQ(out.read(), want) << n << " seed " << seed;
      EXPECT_EQ(out.undefined(), 0U);
    }
}

TEST_F(Cub, device_radix_sort) {
  for (const std::size_t n : sizes) {
    ptx::set_seed(n % 4);
    const std::vector<int> v = random_values(n, -300, 300);
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    buffer<int> keys(v), values(order), keys_out(n), values_out(n);
    two_phase([&](void* w, std::size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(w, bytes, keys.get(), keys_out.get(), values.get(),
                                             values_out.get(), static_cast<int>(n));
    });
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return v[static_cast<std::size_t>(a)] < v[static_cast<std::size_t>(b)];
    });
    EXPECT_EQ(values_out.read(), order) << n;
    EXPECT_EQ(values_out.undefined(), 0U);
    EXPECT_EQ(keys_out.undefined(), 0U);
  }
}

TEST_F(Cub, device_histogram) {
  for (const std::size_t n : sizes)
    for (std::uint64_t seed = 0; seed < 2; ++seed) {
      ptx::set_seed(seed);
      const std::vector<int> v = random_values(n, 0, 64);
      buffer<int> in(v), out(64);
      two_phase([&](void* w, std::size_t& bytes) {
        return cub::DeviceHistogram::HistogramEven(w, bytes, in.get(), out.get(), 65, 0, 64,
                                                   static_cast<int>(n));
      });
      std::vector<int> want(64, 0);
      for (const int x : v) ++want[static_cast<std::size_t>(x)];
      EXPECT_EQ(out.read(), want) << n;
    }
}

TEST_F(Cub, device_select_and_reduce) {
  for (const std::size_t n : sizes)
    for (std::uint64_t seed = 0; seed < 2; ++seed) {
      ptx::set_seed(seed);
      const std::vector<int> v = random_values(n, -10, 10);
      std::vector<char> flags(n);
      for (std::size_t i = 0; i < n; ++i) flags[i] = v[i] > 3;
      buffer<int> in(v), out(n), count(1), sum(1);
      buffer<char> wanted(flags);
      two_phase([&](void* w, std::size_t& bytes) {
        return cub::DeviceSelect::Flagged(w, bytes, in.get(), wanted.get(), out.get(), count.get(),
                                          static_cast<int>(n));
      });
      std::vector<int> want;
      std::copy_if(v.begin(), v.end(), std::back_inserter(want), [](int x) { return x > 3; });
      ASSERT_EQ(count.read()[0], static_cast<int>(want.size()));
      std::vector<int> got = out.read();
      got.resize(want.size());
      EXPECT_EQ(got, want);
      two_phase([&](void* w, std::size_t& bytes) {
        return cub::DeviceReduce::Sum(w, bytes, in.get(), sum.get(), static_cast<int>(n));
      });
      EXPECT_EQ(sum.read()[0], std::accumulate(v.begin(), v.end(), 0));
    }
}
