// Counters of small kernels, against numbers worked out by hand. The kernels are inline PTX where
// the instruction count matters, so that no compiler decides it.
#include "support.cuh"

namespace {

using c = ptx::instruction_class;
struct Counters : ptx_test::Ptx {
  ptx_test::buffer<int> cells{std::vector<int>(4096, 1)};
};

__global__ void loads(const int* in, int stride) {
  const int* p = in + threadIdx.x * static_cast<unsigned>(stride);
  asm volatile("{ .reg .u32 x; ld.global.u32 x, [%0]; }" ::"l"(p));
}

__global__ void wide_loads(const int4* in) {
  asm volatile(
      "{ .reg .u32 a, b, c, d; ld.global.v4.u32 {a, b, c, d}, [%0]; }" ::"l"(in + threadIdx.x));
}

__global__ void stores(int* out, int stride) {
  asm volatile("st.global.u32 [%0], 1;" ::"l"(out + threadIdx.x * static_cast<unsigned>(stride)));
}

__global__ void shared_loads(int stride) {
  __shared__ int box[32 * 33];
  for (unsigned i = threadIdx.x; i < 32 * 33; i += 32) box[i] = 0;
  __syncwarp();
  asm volatile(
      "{ .reg .u32 x; .reg .u64 a; cvta.to.shared.u64 a, %0; ld.shared.u32 x, [a]; }" ::"l"(
          box + threadIdx.x * static_cast<unsigned>(stride)));
}

__global__ void arithmetic() {
  asm volatile(
      "{ .reg .u32 a; .reg .f32 f; .reg .f64 d; .reg .pred p; .reg .b16 h;"
      " mov.u32 a, 1; add.u32 a, a, 2; mul.lo.u32 a, a, 3;"  // move 1, integer 2
      " cvt.rn.f32.u32 f, a; fma.rn.f32 f, f, f, f;"         // conversion 1, float32 1
      " cvt.f64.f32 d, f; add.f64 d, d, d;"                  // conversion 2, float64 1
      " setp.gt.f32 p, f, 0f00000000; cvt.rn.f16.f32 h, f;"  // compare 1, conversion 3
      " add.f16 h, h, h; @!p mov.u32 a, 9; @!p bra DONE;"    // half 1, move 2, control 1
      " bar.warp.sync -1; membar.gl; DONE: }");              // warp 1, fence 1, then ret
}

__global__ void diverges(int* out) {
  // 8 lanes store, then 24 others, then all 32 do.
  asm volatile(
      "{ .reg .pred p; setp.lt.u32 p, %1, 8; @p bra LOW; st.global.u32 [%0], 1; bra JOIN;"
      " LOW: st.global.u32 [%0], 2; JOIN: st.global.u32 [%0+4096], 3; }" ::"l"(out + threadIdx.x),
      "r"(threadIdx.x));
}

__global__ void synchronises() {
  __syncthreads();
  __syncthreads();
}

}  // namespace

TEST_F(Counters, sectors_of_loads) {
  // 32 lanes of four bytes: 128 bytes in a row are four sectors; each on its own is 32.
  for (const auto& [stride, sectors] : {std::pair(1, 4), {2, 8}, {8, 32}, {32, 32}, {0, 1}}) {
    loads<<<1, 32>>>(cells.get(), stride);
    ptx_test::expect_no_fault();
    EXPECT_EQ(ptx::last_launch().global_load_requests, 1U);
    EXPECT_EQ(ptx::last_launch().global_load_sectors, static_cast<std::uint64_t>(sectors))
        << stride;
  }
  wide_loads<<<2, 64>>>(reinterpret_cast<const int4*>(cells.get()));
  EXPECT_EQ(ptx::last_launch().global_load_requests, 4U);
  EXPECT_EQ(ptx::last_launch().global_load_sectors, 64U);
  loads<<<1, 32>>>(cells.get() + 1, 1);
  EXPECT_EQ(ptx::last_launch().global_load_sectors, 5U);
}

TEST_F(Counters, sectors_of_stores) {
  stores<<<3, 32>>>(cells.get(), 8);
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::last_launch().global_store_requests, 3U);
  EXPECT_EQ(ptx::last_launch().global_store_sectors, 96U);
  EXPECT_EQ(ptx::last_launch().global_load_requests, 0U);
}

TEST_F(Counters, bank_conflicts) {
  for (const auto& [stride, conflicts] : {std::pair(1, 0), {2, 1}, {32, 31}, {33, 0}, {0, 0}}) {
    shared_loads<<<1, 32>>>(stride);
    ptx_test::expect_no_fault();
    EXPECT_EQ(ptx::last_launch().shared_load_requests, 1U);
    EXPECT_EQ(ptx::last_launch().shared_store_requests, 33U);
    EXPECT_EQ(ptx::last_launch().shared_bank_conflicts, static_cast<std::uint64_t>(conflicts))
        << stride;
  }
}

TEST_F(Counters, instructions_by_class) {
  arithmetic<<<1, 32>>>();
  ptx_test::expect_no_fault();
  const ptx::counters n = ptx::last_launch();
  EXPECT_EQ(n.warp_of(c::move), 2U);
  EXPECT_EQ(n.thread_of(c::move), 32U);  // the guard stops the second
  EXPECT_EQ(n.warp_of(c::integer), 2U);
  EXPECT_EQ(n.warp_of(c::conversion), 3U);
  EXPECT_EQ(n.warp_of(c::float32), 1U);
  EXPECT_EQ(n.warp_of(c::float64), 1U);
  EXPECT_EQ(n.warp_of(c::half), 1U);
  EXPECT_EQ(n.warp_of(c::compare), 1U);
  EXPECT_EQ(n.warp_of(c::warp), 1U);
  EXPECT_EQ(n.warp_of(c::fence), 1U);
  EXPECT_EQ(n.warp_of(c::control), 2U);
  EXPECT_EQ(n.thread_of(c::control), 32U);
  EXPECT_EQ(n.warp_instructions, 15U);
  EXPECT_EQ(n.thread_instructions, 13U * 32);
  EXPECT_EQ(n.approximate_operations, 0U);
  arithmetic<<<3, 40>>>();  // three blocks of a full warp and one of eight lanes
  EXPECT_EQ(ptx::last_launch().warp_instructions, 6 * 15U);
  EXPECT_EQ(ptx::last_launch().thread_instructions, 3 * 13U * 40);
}

TEST_F(Counters, divergence) {
  diverges<<<1, 32>>>(cells.get());
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::last_launch().warp_of(c::store), 3U);
  EXPECT_EQ(ptx::last_launch().thread_of(c::store), 64U);
  EXPECT_EQ(ptx::last_launch().global_store_sectors, 1U + 3U + 4U);
}

TEST_F(Counters, sums_and_kernels) {
  synchronises<<<4, 96>>>();
  synchronises<<<1, 32>>>();
  loads<<<1, 32>>>(cells.get(), 1);
  const ptx::counters sum = ptx::total_counters();
  EXPECT_EQ(sum.launches, 3U);
  EXPECT_EQ(sum.blocks, 6U);
  EXPECT_EQ(sum.block_barriers, 10U);
  EXPECT_EQ(sum.warp_of(c::barrier), 4U * 3 * 2 + 2);
  std::size_t found = 0;
  for (const auto& [name, n] : ptx::kernel_counters())
    if (name.find("synchronises") != std::string::npos) {
      EXPECT_EQ(n.launches, 2U);
      ++found;
    }
  EXPECT_EQ(found, 1U);
  ptx::reset_counters();
  EXPECT_EQ(ptx::total_counters().launches, 0U);
}
