// The combine kernel against the host's combine step, bit for bit.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "adaptive_k/cuda/combine_launch.cuh"
#include "adaptive_k/host/expert_combine.hpp"
#include "combine_cases.hpp"
#include "device_buffer.hpp"
#include "report.hpp"
#include "schedules.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// `shift`: elements by which the experts' outputs lie off their alignment.
template <class Value, class Weight>
void expect_equal(const combines::test_case<Value, Weight>& input, int shift, bool in_place) {
  SCOPED_TRACE(combines::describe(input) + ", shift " + std::to_string(shift));
  const auto cells = static_cast<std::size_t>(input.shape.num_tokens * input.shape.hidden_size);
  std::vector<Value> host(cells);
  ASSERT_TRUE(combine_experts(input.shape, combines::view_of(input), host.data()).ok());

  std::vector<Value> shifted(static_cast<std::size_t>(shift), from_float<Value>(0.0f));
  shifted.insert(shifted.end(), input.expert_outputs.begin(), input.expert_outputs.end());
  const device::buffer<Value> outputs(shifted);
  const device::optional_copy<std::int32_t> rows(input.rows), counts(input.counts);
  const device::optional_copy<Weight> weights(input.weights);
  device::buffer<Value> made(std::vector<Value>(cells, from_float<Value>(-77.0f)));
  const device::optional_copy<Value> addend(input.addend);
  combine_input<Value, Weight> view = {outputs.get() + shift, rows.get(), counts.get(),
                                       weights.get(), addend.get()};
  if (in_place && !input.addend.empty()) {
    made.write(input.addend);
    view.addend = made.get();
  }
  const status result = cuda::combine_experts(input.shape, view, made.get(), false, nullptr);
  ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
  const std::vector<Value> device = made.read();
  for (std::size_t i = 0; i < cells; ++i) {
    ++report::comparisons();
    ASSERT_EQ(std::memcmp(&device[i], &host[i], sizeof(Value)), 0)
        << "cell " << i << ": " << to_float(device[i]) << " against " << to_float(host[i]);
  }
}

template <class Value, class Weight>
void run(std::uint64_t seed) {
  inputs::sequence from(seed);
  for (int i = 0; i < 30; ++i) {
    const int hidden = from.pick(std::vector<int>{1, 8, 36, 64, 250, 256, 1000});
    const auto input =
        combines::random_case<Value, Weight>(from, from.below(20), hidden, i % 2 == 1);
    expect_equal(input, i % 3 == 2 ? from.below(8) : 0, i % 4 == 0);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(combine_kernel, floats_equal_host) {
  run<float, float>(1);
  run<float, bfloat16>(2);
}
TEST(combine_kernel, halves_equal_host) {
  run<float16, float>(3);
  run<float16, float16>(4);
}
TEST(combine_kernel, bfloats_equal_host) {
  run<bfloat16, float>(5);
  run<bfloat16, bfloat16>(6);
}

TEST(combine_kernel, the_same_bits_in_every_order) {
  inputs::sequence from(7);
  const auto input = combines::random_case<bfloat16, float>(from, 40, 512, false);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    schedules::choose(seed);
    expect_equal(input, 0, false);
  }
}

}  // namespace
