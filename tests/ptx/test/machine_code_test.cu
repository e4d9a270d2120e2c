// What ptxas made of kernels, beside the PTX that runs: clock/machine_code.hpp.
#include <stdexcept>

#include "support.cuh"

namespace {

// These store what they compute, or ptxas would leave nothing of them.
template <int Steps>
__global__ void stored_chain(const float* in, float* out) {
  float f = in[threadIdx.x];
#pragma unroll
  for (int i = 0; i < Steps; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(f));
  out[threadIdx.x] = f;
}

__global__ void stored_loop(float* out, int turns) {
  float f = 1.0f;
#pragma unroll 1
  for (int i = 0; i < turns; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(f));
  out[threadIdx.x] = f;
}

__global__ void divides(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x] / in[threadIdx.x + 32];
}

__global__ void rarely_long(float* out, int rare) {
  float f = 1.0f;
  if (rare != 0) {
#pragma unroll
    for (int i = 0; i < 100; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(f));
    out[threadIdx.x + 32] = f;
  }
  out[threadIdx.x] = f;
}

struct MachineCode : ptx_test::Ptx {
  void SetUp() override {
    Ptx::SetUp();
    sm = ptx::compute_capability();
    if (sm != 80 && sm != 90) GTEST_SKIP() << "no timings for sm_" << sm;
    ptx::set_clock({sm});
    ptx::reset_counters();
  }
  void TearDown() override {
    ptx::set_clock({});
    Ptx::TearDown();
  }
  template <class Launch>
  ptx::machine_schedule schedule_of(Launch launch, double most_unexplained = 0.0) {
    ptx::reset_counters();
    launch();
    ptx_test::expect_no_fault();
    const ptx::machine_schedule made = ptx::modelled_times().at(0).schedule;
    EXPECT_TRUE(made.known);
    EXPECT_LE(made.unexplained, most_unexplained);
    return made;
  }
  int sm = 0;
  ptx_test::buffer<float> in{std::vector<float>(64, 1.0f)}, out{64};
};

}  // namespace

TEST_F(MachineCode, stalls_of_a_chain) {
  const auto few = schedule_of([&] { stored_chain<16><<<1, 32>>>(in.get(), out.get()); });
  const auto more = schedule_of([&] { stored_chain<48><<<1, 32>>>(in.get(), out.get()); });
  EXPECT_EQ(more.instructions - few.instructions, 32U);
  // Around the chain, ptxas interleaves a little differently.
  EXPECT_NEAR(static_cast<double>(more.stalls - few.stalls),
              32.0 * ptx::machine_of(sm).of(ptx::op_kind::float32).latency, 8.0);
  EXPECT_EQ(more.waits, few.waits);  // for what was loaded
  EXPECT_GE(few.waits, 1U);
  EXPECT_GT(few.agreement, 0.9);
}

TEST_F(MachineCode, loops_run_as_often_as_their_lines) {
  const auto ten = schedule_of([&] { stored_loop<<<1, 32>>>(out.get(), 10); });
  const auto thirty = schedule_of([&] { stored_loop<<<1, 32>>>(out.get(), 30); });
  const std::uint64_t more = thirty.instructions - ten.instructions;
  EXPECT_EQ(more % 20, 0U);
  EXPECT_GE(more / 20, 3U);  // a product, a count, a branch
  EXPECT_LE(more / 20, 6U);
  EXPECT_GE((thirty.stalls - ten.stalls) / 20, more / 20);
}

TEST_F(MachineCode, what_is_not_run_is_not_counted) {
  const auto without = schedule_of([&] { rarely_long<<<1, 32>>>(out.get(), 0); });
  const auto with = schedule_of([&] { rarely_long<<<1, 32>>>(out.get(), 1); });
  EXPECT_LT(without.instructions, 40U);
  EXPECT_GE(with.instructions, without.instructions + 100);
}

TEST_F(MachineCode, divisions_take_their_fast_path) {
  // What follows the slow path has the line of the division too.
  const auto s = schedule_of([&] { divides<<<1, 32>>>(in.get(), out.get()); }, 0.1);
  EXPECT_LT(s.instructions, 40U);  // the slow path has 60 more
}

TEST_F(MachineCode, by_hand) {
  // Two instructions, a branch over the third, an exit; then the branch's other side, a turn of
  // three.
  constexpr std::uint16_t bra = 0x947, leave = 0x94d, any = 0x223;
  ptx::machine_code code;
  code.sm = 80;
  code.code = {{any, false, 4, 7, 0, -1, false, 1},   {any, false, 2, 0, 0, -1, false, 2},
               {bra, true, 5, 7, 0, 5, false, 3},     {any, false, 9, 7, 1, -1, false, 4},
               {leave, false, 5, 7, 0, -1, false, 5}, {any, false, 1, 7, 1, -1, false, 6},
               {any, false, 0, 7, 0, -1, false, 7},   {bra, true, 5, 7, 0, 5, false, 8},
               {leave, false, 5, 7, 0, -1, false, 9}};
  // Lines 6 to 8 ran four times, and line 7 once: it was in front of the loop.
  const ptx::machine_schedule s = ptx::schedule_of(code, {0, 1, 1, 1, 0, 0, 4, 1, 4, 1});
  EXPECT_TRUE(s.known);
  EXPECT_EQ(s.instructions, 3U + 4 * 3 + 1);
  EXPECT_EQ(s.stalls, 4U + 2 + 5 + 4 * (1 + 1 + 5) + 5);  // a stall of 0 is still a cycle
  EXPECT_EQ(s.waits, 4U);
  EXPECT_DOUBLE_EQ(s.agreement, 12.0 / 16.0);
  EXPECT_DOUBLE_EQ(s.unexplained, 0.0);
  // Nothing leads to line 4, as the branch was taken for good.
  const ptx::machine_schedule odd = ptx::schedule_of(code, {0, 0, 0, 0, 1, 1, 0, 0, 0, 0});
  EXPECT_DOUBLE_EQ(odd.unexplained, 1.0);
  // Of even sides the one that ran oftener; marks of where lanes meet do not vote.
  code.code[3].line = 2;
  code.code[4].line = 4;
  code.code[5].opcode = 0x941;
  const ptx::machine_schedule even = ptx::schedule_of(code, {0, 1, 1, 0, 0, 0, 9, 0, 0, 0});
  EXPECT_EQ(even.instructions, 3U + 2);
  EXPECT_DOUBLE_EQ(even.agreement, (2.0 + 1.0) / 5.0);
  for (ptx::machine_instruction& i : code.code) i.line = 0;
  EXPECT_FALSE(ptx::schedule_of(code, {0, 1}).known);
}

TEST_F(MachineCode, what_is_no_cubin_is_refused) {
  EXPECT_THROW(ptx::add_cubin("/dev/null"), std::runtime_error);
  EXPECT_THROW(ptx::add_cubin("/nowhere/a.cubin"), std::runtime_error);
  EXPECT_THROW(ptx::machine_code_of({80, "\177ELF and no more"}, "kernel"), std::runtime_error);
}
