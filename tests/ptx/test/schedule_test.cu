// Orders of execution: correct kernels give the same bits in all of them, others show themselves,
// and code that waits for other threads gets there.
#include <set>

#include "support.cuh"

namespace {

struct Schedule : ptx_test::Ptx {};

__device__ __noinline__ int triangle(int n) {
  int sum = 0;
  for (int i = 1; i <= n; ++i) sum += i;
  return sum;
}

__global__ void block_sum(const int* in, int* out, unsigned* ticket, int* total, int n) {
  // The classic two-step sum: blocks reduce, the last one to finish adds up their sums.
  __shared__ int box[128];
  __shared__ bool last;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  box[threadIdx.x] = static_cast<int>(i) < n ? in[i] : 0;
  __syncthreads();
  for (unsigned step = 64; step > 0; step /= 2) {
    if (threadIdx.x < step) box[threadIdx.x] += box[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    out[blockIdx.x] = box[0];
    __threadfence();
    last = atomicAdd(ticket, 1U) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b];
    *total = sum;
  }
}

__global__ void order_of_arrival(unsigned* next, unsigned* order) {
  if (threadIdx.x % 32 == 0) order[atomicAdd(next, 1U)] = blockIdx.x * 4 + threadIdx.x / 32;
}

__global__ void lock(int* mutex, int* value) {
  // Lanes of one warp fight for a lock: every thread has to make progress of its own.
  bool done = false;
  while (!done) {
    if (atomicCAS(mutex, 0, 1) == 0) {
      __threadfence();
      *value += 1;
      __threadfence();
      atomicExch(mutex, 0);
      done = true;
    }
  }
}

__global__ void spin_within_a_warp(volatile int* flag, int* out) {
  if (threadIdx.x == 0) {
    while (*flag == 0) {
    }
    out[0] = 1;
  } else if (threadIdx.x == 31) {
    *flag = 1;
  }
}

__global__ void chain(volatile int* flags, int* out) {
  // Each block waits for the one before it.
  if (threadIdx.x == 0) {
    if (blockIdx.x > 0)
      while (flags[blockIdx.x - 1] == 0) {
      }
    __threadfence();
    out[blockIdx.x] = blockIdx.x == 0 ? 1 : out[blockIdx.x - 1] + 1;
    __threadfence();
    flags[blockIdx.x] = 1;
  }
}

__global__ void divergent_calls(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = i % 2 ? triangle(i) : triangle(2 * i) + 1;
}

__global__ void switches(const int* in, int* out) {
  int v = in[threadIdx.x];
  switch (v % 7) {
    case 0:
      v += 3;
      break;
    case 1:
      v *= 5;
      break;
    case 2:
      v -= 11;
      break;
    case 3:
      v ^= 0x55;
      break;
    case 4:
      v = triangle(v & 15);
      break;
    case 5:
      v <<= 2;
      break;
    default:
      v = -v;
  }
  out[threadIdx.x] = v;
}

}  // namespace

TEST_F(Schedule, the_same_bits_in_every_order) {
  constexpr int n = 3000;
  std::vector<int> values(n);
  int expected = 0;
  for (int i = 0; i < n; ++i) expected += values[i] = i * i % 1001 - 300;
  ptx_test::buffer<int> in(values);
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    ptx::schedule order;
    order.seed = seed;
    order.resident_blocks = 1 + static_cast<unsigned>(seed) % 9;
    order.shuffle_all_blocks = seed % 2 == 1;
    ptx::set_schedule(order);
    constexpr int blocks = (n + 127) / 128;
    ptx_test::buffer<int> sums(blocks), total(1);
    ptx_test::buffer<unsigned> ticket(std::vector<unsigned>(1, 0));
    block_sum<<<blocks, 128>>>(in.get(), sums.get(), ticket.get(), total.get(), n);
    ptx_test::expect_no_fault();
    EXPECT_EQ(total.read()[0], expected) << seed;
    EXPECT_EQ(total.undefined(), 0U);
  }
}

TEST_F(Schedule, seeds_change_the_order_and_repeat_it) {
  const auto arrival = [](std::uint64_t seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<unsigned> next(std::vector<unsigned>(1, 0)), order(64);
    order_of_arrival<<<16, 128>>>(next.get(), order.get());
    ptx_test::expect_no_fault();
    return order.read();
  };
  std::set<std::vector<unsigned>> orders;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    orders.insert(arrival(seed));
    EXPECT_EQ(arrival(seed), arrival(seed));
  }
  EXPECT_EQ(orders.size(), 8U);
}

TEST_F(Schedule, locks_within_a_warp_make_progress) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<int> mutex(std::vector<int>(1, 0)), value(std::vector<int>(1, 0));
    lock<<<2, 64>>>(mutex.get(), value.get());
    ptx_test::expect_no_fault();
    EXPECT_EQ(value.read()[0], 128);
  }
}

TEST_F(Schedule, a_lane_may_wait_for_another) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<int> flag(std::vector<int>(1, 0)), out(std::vector<int>(1, 0));
    spin_within_a_warp<<<1, 32>>>(flag.get(), out.get());
    ptx_test::expect_no_fault();
    EXPECT_EQ(out.read()[0], 1);
  }
}

TEST_F(Schedule, a_block_may_wait_for_the_one_before) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<int> flags(std::vector<int>(40, 0)), out(40);
    chain<<<40, 32>>>(flags.get(), out.get());
    ptx_test::expect_no_fault();
    EXPECT_EQ(out.read()[39], 40);
  }
}

TEST_F(Schedule, calls_and_switches) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    ptx::set_seed(seed);
    ptx_test::buffer<int> out(64);
    divergent_calls<<<1, 64>>>(out.get());
    ptx_test::expect_no_fault();
    const std::vector<int> got = out.read();
    for (int i = 0; i < 64; ++i)
      EXPECT_EQ(got[static_cast<std::size_t>(i)], i % 2 ? i * (i + 1) / 2 : i * (2 * i + 1) + 1);
    std::vector<int> values(64);
    for (int i = 0; i < 64; ++i) values[static_cast<std::size_t>(i)] = i * 3 + 1;
    ptx_test::buffer<int> in(values);
    switches<<<1, 64>>>(in.get(), out.get());
    ptx_test::expect_no_fault();
    const std::vector<int> switched = out.read();
    for (std::size_t i = 0; i < 64; ++i) {
      const int v = values[i];
      const int t = (v & 15) * ((v & 15) + 1) / 2;
      const int want[] = {v + 3, v * 5, v - 11, v ^ 0x55, t, v << 2, -v};
      EXPECT_EQ(switched[i], want[v % 7]);
    }
  }
}
