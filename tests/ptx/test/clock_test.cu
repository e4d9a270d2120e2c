// Modelled times of kernels that can be worked out by hand. The kernels are inline PTX, so that no
// compiler decides what they execute; the figures come from clock/timing.cpp, so that a better
// measurement there changes no test.
#include <stdexcept>

#include "support.cuh"

namespace {

using kind = ptx::op_kind;

struct Clock : ptx_test::Ptx {
  void SetUp() override {
    Ptx::SetUp();
    for (const int sm : {80, 90}) machines.push_back(ptx::machine_of(sm));
  }
  void TearDown() override {
    ptx::set_clock({});
    Ptx::TearDown();
  }
  std::vector<ptx::machine> machines;
};

/// The only warp of a launch of one.
template <class Launch>
ptx::warp_time time_of(const ptx::machine& m, Launch launch) {
  ptx::set_clock({m.sm, m.memory});
  ptx::reset_counters();
  launch();
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::modelled_times().size(), 1U);
  EXPECT_EQ(ptx::modelled_times().at(0).blocks.at(0).size(), 1U);
  return ptx::modelled_times().at(0).blocks.at(0).at(0);
}

__global__ void dependent_chain() {
  asm volatile(
      "{ .reg .f32 f; mov.f32 f, 0f3f800000;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; }");
}

__global__ void independent() {
  asm volatile(
      "{ .reg .f32 a, b, c, d, e, f, g; mov.f32 a, 0f3f800000;"
      " fma.rn.f32 b, a, a, a; fma.rn.f32 c, a, a, a; fma.rn.f32 d, a, a, a;"
      " fma.rn.f32 e, a, a, a; fma.rn.f32 f, a, a, a; fma.rn.f32 g, a, a, a; }");
}

__global__ void independent_loop() {
  // Ten turns; the two sums wait for nothing but themselves.
  asm volatile(
      "{ .reg .u32 i, a; .reg .f32 b; .reg .pred p;"
      " mov.u32 i, 0; mov.u32 a, 0; mov.f32 b, 0f00000000;"
      " AGAIN: xor.b32 a, a, i; add.rn.f32 b, b, b; add.u32 i, i, 1;"
      " setp.lt.u32 p, i, 10; @p bra AGAIN; }");
}

__global__ void shuffle_tree() {
  asm volatile(
      "{ .reg .f32 f, g; mov.f32 f, 0f3f800000;"
      " shfl.sync.bfly.b32 g, f, 16, 31, -1; add.rn.f32 f, f, g;"
      " shfl.sync.bfly.b32 g, f, 8, 31, -1; add.rn.f32 f, f, g;"
      " shfl.sync.bfly.b32 g, f, 4, 31, -1; add.rn.f32 f, f, g;"
      " shfl.sync.bfly.b32 g, f, 2, 31, -1; add.rn.f32 f, f, g;"
      " shfl.sync.bfly.b32 g, f, 1, 31, -1; add.rn.f32 f, f, g; }");
}

__global__ void guarded() {
  asm volatile(
      "{ .reg .u32 a; .reg .pred p; mov.u32 a, 1; setp.eq.u32 p, a, 1;"
      " @p xor.b32 a, a, 7; @!p xor.b32 a, a, 9; }");
}

__global__ void crosses_units() {  // fp32 to integer and back
  asm volatile(
      "{ .reg .f32 f; .reg .b32 a; mov.f32 f, 0f3f800000; fma.rn.f32 f, f, f, f; min.f32 f, f, f;"
      " fma.rn.f32 f, f, f, f; }");
}

__global__ void diverges() {
  // Half the lanes take six steps, the others six other ones.
  asm volatile(
      "{ .reg .u32 t, a; .reg .f32 f; .reg .pred p; mov.u32 t, %tid.x; mov.u32 a, 1;"
      " mov.f32 f, 0f3f800000; setp.lt.u32 p, t, 16; @p bra LOW;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; bra JOIN;"
      " LOW: xor.b32 a, a, 7; xor.b32 a, a, 7; xor.b32 a, a, 7; xor.b32 a, a, 7; xor.b32 a, a, 7;"
      " xor.b32 a, a, 7; JOIN: }");
}

__global__ void diverges_on_one_register() {
  // Twelve steps for half the lanes, one for the others.
  asm volatile(
      "{ .reg .u32 t; .reg .f32 f; .reg .pred p; mov.u32 t, %tid.x; mov.f32 f, 0f3f800000;"
      " setp.lt.u32 p, t, 16; @p bra LOW;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; bra JOIN;"
      " LOW: fma.rn.f32 f, f, f, f; JOIN: }");
}

__global__ void follows_pointers(void* first) {
  asm volatile(
      "{ .reg .u64 p; ld.global.u64 p, [%0]; ld.global.u64 p, [p]; ld.global.u64 p, [p]; }" ::"l"(
          first));
}

__global__ void loads_at(const int* in, unsigned stride) {
  const int* p = in + threadIdx.x * stride;
  asm volatile("{ .reg .u32 x; ld.global.u32 x, [%0]; }" ::"l"(p));
}

__global__ void hands_over() {
  // Warp 0 is late with what warp 1 reads.
  __shared__ float box;
  asm volatile(
      "{ .reg .u32 t; .reg .pred p; .reg .f32 f, g; .reg .u64 a; mov.u32 t, %%tid.x;"
      " cvta.to.shared.u64 a, %0; setp.ne.u32 p, t, 0; mov.f32 f, 0f3f800000; @p bra WAIT;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f; fma.rn.f32 f, f, f, f;"
      " st.shared.f32 [a], f; WAIT: bar.sync 0; ld.shared.f32 g, [a]; add.rn.f32 g, g, g; }" ::"l"(
          &box));
}

__global__ void nothing() {}

std::uint64_t latency(const ptx::machine& m, kind k) {
  return m.of(k).latency;
}
std::uint64_t interval(const ptx::machine& m, kind k) {
  return m.of(k).interval;
}

/// `count` warps that all take so long.
ptx::launch_time launch_of(std::size_t blocks, std::size_t warps, const ptx::warp_time& each) {
  ptx::launch_time made;
  made.kernel = "made up";
  made.blocks.assign(blocks, std::vector<ptx::warp_time>(warps, each));
  return made;
}

}  // namespace

TEST_F(Clock, is_off_unless_asked_for) {
  nothing<<<1, 32>>>();
  EXPECT_TRUE(ptx::modelled_times().empty());
  EXPECT_THROW(ptx::set_clock({75}), std::invalid_argument);
  EXPECT_THROW(ptx::machine_of(70), std::invalid_argument);
  ptx::set_clock({90});
  nothing<<<3, 64>>>();
  ASSERT_EQ(ptx::modelled_times().size(), 1U);
  EXPECT_EQ(ptx::modelled_times()[0].blocks.size(), 3U);
  EXPECT_EQ(ptx::modelled_times()[0].blocks[2].size(), 2U);
  EXPECT_EQ(ptx::modelled_times()[0].threads, 64U);
  ptx::reset_counters();
  EXPECT_TRUE(ptx::modelled_times().empty());
}

TEST_F(Clock, dependent_chain) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { dependent_chain<<<1, 32>>>(); });
    const std::uint64_t step = latency(m, kind::float32);
    EXPECT_EQ(t.data_flow, 6 * step);
    EXPECT_EQ(t.busy.dispatch, 6U + 1U);  // and ret
    EXPECT_EQ(t.issue_slots(m), std::max<std::uint64_t>(7, 6 * interval(m, kind::float32)));
    // In order, the mov is an instruction, and its result comes from any unit.
    EXPECT_EQ(t.ptx_order, latency(m, kind::integer_add) + m.crossing + 6 * step);
    EXPECT_EQ(t.lower(m), 6 * step);
  }
}

TEST_F(Clock, independent_instructions) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { independent<<<1, 32>>>(); });
    const std::uint64_t each = interval(m, kind::float32);
    EXPECT_EQ(t.data_flow, latency(m, kind::float32));
    EXPECT_EQ(t.issue_slots(m), std::max<std::uint64_t>(7, 6 * each));
    // In order they follow one another at the unit's rate.
    EXPECT_EQ(t.ptx_order,
              latency(m, kind::integer_add) + m.crossing + 5 * each + latency(m, kind::float32));
    EXPECT_EQ(t.lower(m), t.issue_slots(m));
  }
}

TEST_F(Clock, independent_loop) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { independent_loop<<<1, 32>>>(); });
    // a's chain waits for i's: ten exclusive ors after one another, the last for the tenth i.
    const std::uint64_t add = latency(m, kind::integer_add);
    EXPECT_EQ(t.data_flow, 10 * add + latency(m, kind::integer));
    EXPECT_EQ(t.busy.dispatch, 10U * 5 + 1);
    // Per turn, in two cycles each: a comparison and an exclusive or by one unit, an addition by
    // either.
    const std::uint64_t integers = 20 * 2, either = 10 * 2,
                        floats = 10 * interval(m, kind::float32);
    const std::uint64_t width = interval(m, kind::float32);
    EXPECT_EQ(t.issue_slots(m),
              std::max<std::uint64_t>(
                  51, (width * integers + 2 * floats + width * either) / (2 + width)));
    // In order a turn is add, comparison, guard, branch.
    const std::uint64_t turn = t.ptx_order / 10;
    EXPECT_GE(turn, 2 + add + m.guard + m.taken);
    EXPECT_LE(turn, 2 + add + m.guard + m.taken + 4);
  }
}

TEST_F(Clock, shuffle_tree) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { shuffle_tree<<<1, 32>>>(); });
    const std::uint64_t round = latency(m, kind::shuffle) + latency(m, kind::float32);
    EXPECT_EQ(t.data_flow, 5 * round);
    EXPECT_EQ(t.busy.dispatch, 11U);
    EXPECT_EQ(t.busy.shared, 5 * m.of(kind::shuffle).shared);
    // Sums cross from the fp32 unit to the shuffle.
    EXPECT_EQ(t.ptx_order, latency(m, kind::integer_add) + m.crossing + 5 * round + 4 * m.crossing);
  }
}

TEST_F(Clock, guards_wait_longer_than_operands) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { guarded<<<1, 32>>>(); });
    EXPECT_EQ(t.data_flow, m.guard + latency(m, kind::integer));
    // What no lane does takes a slot, and no unit.
    EXPECT_EQ(t.busy.dispatch, 4U);
    EXPECT_EQ(t.busy.of_unit[static_cast<std::size_t>(ptx::unit::integer)],
              2 * interval(m, kind::integer));
  }
}

TEST_F(Clock, other_units_are_further) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { crosses_units<<<1, 32>>>(); });
    EXPECT_EQ(t.data_flow, 2 * latency(m, kind::float32) + latency(m, kind::integer));
    EXPECT_EQ(t.ptx_order, latency(m, kind::integer_add) + t.data_flow + 3 * m.crossing);
  }
}

TEST_F(Clock, diverged_lanes) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { diverges<<<1, 32>>>(); });
    EXPECT_EQ(t.data_flow, std::max(latency(m, kind::special) + latency(m, kind::integer),
                                    6 * latency(m, kind::float32)));
    // In order: tid, comparison, branch; one side, whose branch follows its last step; the other.
    EXPECT_EQ(t.ptx_order, latency(m, kind::special) + m.guard + m.taken +
                               5 * latency(m, kind::float32) + 1 + m.taken +
                               6 * latency(m, kind::integer));
    EXPECT_EQ(t.busy.dispatch, 1U + 1 + 1 + 6 + 1 + 6 + 1);  // tid, setp, bra, side, bra, side, ret
  }
}

TEST_F(Clock, diverged_lanes_have_registers_of_their_own) {
  for (const ptx::machine& m : machines) {
    const ptx::warp_time t = time_of(m, [] { diverges_on_one_register<<<1, 32>>>(); });
    EXPECT_EQ(t.data_flow, 12 * latency(m, kind::float32));
  }
}

TEST_F(Clock, memory_levels) {
  std::uint64_t host[1] = {0};
  ptx_test::buffer<std::uint64_t> cell(1);
  host[0] = reinterpret_cast<std::uint64_t>(cell.get());
  cudaMemcpy(cell.get(), host, sizeof host, cudaMemcpyHostToDevice);
  std::uint64_t before = 0;
  for (const int sm : {80, 90})
    for (const ptx::memory_level level :
         {ptx::memory_level::l1, ptx::memory_level::l2, ptx::memory_level::dram}) {
      const ptx::machine m = ptx::machine_of(sm, level);
      const ptx::warp_time t = time_of(m, [&] { follows_pointers<<<1, 32>>>(cell.get()); });
      EXPECT_EQ(t.data_flow, 3 * m.load_latency());
      if (level != ptx::memory_level::l1) EXPECT_GT(t.data_flow, before);
      before = t.data_flow;
    }
}

TEST_F(Clock, scattered_loads_take_passes) {
  ptx_test::buffer<int> cells{std::vector<int>(4096, 1)};
  for (const ptx::machine& m : machines) {
    const auto load = [&](unsigned stride) {
      return time_of(m, [&] { loads_at<<<1, 32>>>(cells.get(), stride); });
    };
    const ptx::warp_time together = load(1), apart = load(8), further = load(32);
    // 4, 32 and 32 sectors: one pass of 128 bytes, eight, eight.
    EXPECT_EQ(apart.data_flow, together.data_flow + 7);
    EXPECT_EQ(further.data_flow, apart.data_flow);
    EXPECT_EQ(apart.busy.shared, 8 * together.busy.shared);
  }
}

TEST_F(Clock, barriers_wait_for_the_last_warp) {
  for (const ptx::machine& m : machines) {
    ptx::set_clock({m.sm, m.memory});
    ptx::reset_counters();
    hands_over<<<1, 64>>>();
    ptx_test::expect_no_fault();
    const std::vector<ptx::warp_time>& warps = ptx::modelled_times().at(0).blocks.at(0);
    const std::uint64_t after =
        latency(m, kind::barrier) + latency(m, kind::load_shared) + latency(m, kind::float32);
    const std::uint64_t stored = 8 * latency(m, kind::float32) + interval(m, kind::store_shared);
    EXPECT_EQ(warps[0].data_flow, stored + after);
    EXPECT_EQ(warps[1].data_flow, stored + after);  // though it computes nothing before
    EXPECT_GE(warps[1].ptx_order, warps[0].ptx_order - 2 * m.taken);
    EXPECT_LT(warps[1].busy.dispatch, warps[0].busy.dispatch);
  }
}

TEST_F(Clock, kinds_by_text) {
  const std::pair<const char*, kind> rows[] = {
      {"mov.u32 %r1, 7", kind::named},
      {"mov.u32 %r1, %tid.x", kind::special},
      {"@%p1 add.s32 %r1, %r2, %r3", kind::integer_add},
      {"@!%p1 sub.u32 %r1, %r2, %r3", kind::integer_add},
      {"add.s64 %rd1, %rd2, 8", kind::add64},
      {"and.b32 %r1, %r2, 1", kind::integer},
      {"and.pred %p1, %p2, %p3", kind::integer},
      {"shl.b64 %rd1, %rd2, 3", kind::shift64},
      {"mul.wide.u32 %rd1, %r1, 4", kind::multiply_wide},
      {"mad.lo.s32 %r1, %r2, %r3, %r4", kind::multiply},
      {"mul.lo.s64 %rd1, %rd2, %rd3", kind::multiply64},
      {"rem.u32 %r1, %r2, %r3", kind::divide},
      {"setp.lt.u64 %p1, %rd1, %rd2", kind::compare64},
      {"setp.gt.f32 %p1, %f1, %f2", kind::integer},
      {"max.f32 %f1, %f2, %f3", kind::integer},
      {"max.u64 %rd1, %rd2, %rd3", kind::minimum64},
      {"selp.b64 %rd1, %rd2, %rd3, %p1", kind::logic64},
      {"fma.rn.f32 %f1, %f2, %f3, %f4", kind::float32},
      {"div.rn.f32 %f1, %f2, %f3", kind::divide_float},
      {"ex2.approx.ftz.f32 %f1, %f2", kind::special_function},
      {"fma.rn.f64 %fd1, %fd2, %fd3, %fd4", kind::float64},
      {"fma.rn.bf16x2 %r1, %r2, %r3, %r4", kind::half},
      {"cvt.rn.f32.s32 %f1, %r1", kind::convert},
      {"cvt.rn.bf16.f32 %rs1, %f1", kind::convert_half},
      {"cvt.u64.u32 %rd1, %r1", kind::named},
      {"cvt.s64.s32 %rd1, %r1", kind::integer},
      {"popc.b32 %r1, %r2", kind::count_bits},
      {"bfe.u32 %r1, %r2, 3, 4", kind::bit_field},
      {"shfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1", kind::shuffle},
      {"redux.sync.max.u32 %r1, %r2, %r3", kind::reduce},
      {"vote.sync.ballot.b32 %r1, %p1, -1", kind::vote},
      {"bar.warp.sync -1", kind::sync_warp},
      {"bar.sync 0", kind::barrier},
      {"ld.param.u64 %rd1, [p]", kind::named},
      {"ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]", kind::load_global},
      {"ld.shared.u32 %r1, [%r2]", kind::load_shared},
      {"st.global.u32 [%rd1], %r1", kind::store_global},
      {"atom.global.add.u32 %r1, [%rd1], 1", kind::atomic_global},
      {"red.global.add.u64 [%rd1], %rd2", kind::reduce_global},
      {"membar.gl", kind::fence_device},
      {"membar.cta", kind::fence},
      {"@%p1 bra $L1", kind::branch},
      {"ret", kind::exit}};
  for (const auto& [text, expected] : rows)
    EXPECT_STREQ(ptx::name_of(ptx::kind_of(text)), ptx::name_of(expected)) << text;
}

TEST_F(Clock, blocks_that_fit_a_multiprocessor) {
  const ptx::machine a100 = ptx::machine_of(80), h100 = ptx::machine_of(90);
  // Registers come by 256 a warp, from a quarter of 65,536 for each scheduler.
  for (const auto& [registers, blocks] : {std::pair(32U, 16U),
                                          {40, 12},
                                          {64, 8},
                                          {65, 7},
                                          {128, 4},
                                          {129, 3},
                                          {168, 3},
                                          {169, 2},
                                          {255, 2}})
    EXPECT_EQ(ptx::resident_blocks(h100, registers, 0, 128), blocks) << registers;
  // Shared memory, and 1 KiB a block besides.
  for (const auto& [kib, on_a100, on_h100] : {std::tuple(0U, 16U, 16U),
                                              {9U, 16U, 16U},
                                              {10U, 14U, 16U},
                                              {48U, 3U, 4U},
                                              {99U, 1U, 2U},
                                              {163U, 1U, 1U},
                                              {227U, 0U, 1U}}) {
    EXPECT_EQ(ptx::resident_blocks(a100, 32, kib * 1024, 128), on_a100) << kib;
    EXPECT_EQ(ptx::resident_blocks(h100, 32, kib * 1024, 128), on_h100) << kib;
  }
  EXPECT_EQ(ptx::resident_blocks(h100, 40, 0, 64), 24U);    // 12 warps a scheduler, not 51 in all
  EXPECT_EQ(ptx::resident_blocks(h100, 32, 0, 32), 32U);    // blocks
  EXPECT_EQ(ptx::resident_blocks(h100, 32, 0, 1024), 2U);   // threads
  EXPECT_EQ(ptx::resident_blocks(h100, 128, 0, 1024), 0U);  // 32 warps of 128 registers: 16 fit
}

TEST_F(Clock, grids) {
  for (const ptx::machine& m : machines) {
    ptx::warp_time warp;
    warp.data_flow = 1000;
    warp.ptx_order = 3000;
    warp.busy.dispatch = 400;
    const auto sms = static_cast<std::size_t>(m.multiprocessors);
    const auto grid = [&](std::size_t blocks, std::size_t warps, unsigned resident) {
      return ptx::model_grid(m, launch_of(blocks, warps, warp), resident);
    };
    for (const std::size_t blocks : {std::size_t{1}, sms}) {  // a scheduler for each warp
      const ptx::grid_time t = grid(blocks, 4, 8);
      EXPECT_EQ(t.lower, 1000U);
      EXPECT_EQ(t.upper, 3000U);
      EXPECT_EQ(t.busiest_scheduler, 400U);
      EXPECT_EQ(t.waves, 1U);
    }
    // Two on a scheduler fit into each other's waits; in the worst case one delays the other.
    EXPECT_EQ(grid(sms + 1, 4, 8).lower, 1000U);
    EXPECT_EQ(grid(sms + 1, 4, 8).upper, 3400U);
    // Four of them issue for longer than one alone takes.
    EXPECT_EQ(grid(4 * sms, 4, 8).lower, 1600U);
    EXPECT_EQ(grid(4 * sms, 4, 8).upper, 3000U + 3 * 400U);
    // Where one at a time fits, they come one after the other.
    EXPECT_EQ(grid(4 * sms, 4, 1).lower, 4000U);
    EXPECT_EQ(grid(4 * sms, 4, 1).upper, 12000U);
    EXPECT_EQ(grid(4 * sms, 4, 1).waves, 4U);
    // Blocks of one warp take the schedulers in turn.
    EXPECT_EQ(grid(4 * sms, 1, 8).busiest_scheduler, 400U);
    EXPECT_EQ(grid(5 * sms, 1, 8).busiest_scheduler, 800U);
    // What the partitions share is busy with all of them.
    ptx::launch_time shared = launch_of(sms, 4, warp);
    for (auto& block : shared.blocks)
      for (ptx::warp_time& w : block) w.busy.shared = 300;
    EXPECT_EQ(ptx::model_grid(m, shared, 8).lower, 1200U);
    // L2 gives so many bytes a cycle.
    ptx::launch_time moves = launch_of(1, 1, warp);
    moves.sectors = 2000ULL * m.l2_bytes / 32;
    EXPECT_EQ(ptx::model_grid(m, moves, 8).lower, 2000U);
    EXPECT_THROW(grid(1, 1, 0), std::invalid_argument);
    EXPECT_THROW(grid(3, 0, 1), std::invalid_argument);  // faulted: blocks without warps
  }
}
