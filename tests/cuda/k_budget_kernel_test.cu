// The budget's kernels against the host's functions, bit for bit.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "adaptive_k/control/expert_budget.hpp"
#include "adaptive_k/cuda/k_budget_launch.cuh"
#include "control/k_budgets.hpp"
#include "device_buffer.hpp"
#include "report.hpp"
#include "schedules.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

void expect_equal(const budgets::batch& input, std::int64_t budget) {
  SCOPED_TRACE("T " + std::to_string(input.tokens) + ", K0 " + std::to_string(input.top_k) +
               ", budget " + std::to_string(budget));
  const std::size_t room = at(input.tokens * (input.top_k - 1));
  std::vector<std::uint8_t> host_k(at(input.tokens));
  std::vector<std::uint32_t> host_gains(room);
  std::int64_t host_sum = -1;
  const std::uint8_t* mask = input.padding.empty() ? nullptr : input.padding.data();
  ASSERT_TRUE(assign_k_by_budget(input.costs.data(), input.tokens, input.top_k, budget, mask,
                                 host_gains.data(), host_k.data(), &host_sum)
                  .ok());
  const device::buffer<float> costs(input.costs);
  const device::buffer<std::int64_t> limit(std::vector<std::int64_t>{budget});
  const device::optional_copy<std::uint8_t> padding(input.padding);
  const device::buffer<std::uint32_t> gains(room);
  const device::buffer<std::uint8_t> assigned(at(input.tokens));
  const device::buffer<std::int64_t> sum(std::vector<std::int64_t>{-1});
  const status result =
      cuda::assign_k_by_budget(costs.get(), input.tokens, input.top_k, limit.get(), padding.get(),
                               gains.get(), assigned.get(), sum.get(), false, nullptr);
  ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
  EXPECT_EQ(assigned.read(), host_k);
  EXPECT_EQ(gains.read(), host_gains);
  EXPECT_EQ(sum.read()[0], host_sum);
  report::comparisons() += input.tokens * input.top_k + 1;
}

TEST(k_budget_kernel, assigns_what_the_host_assigns) {
  inputs::sequence from(321);
  const budgets::curve shapes[] = {budgets::curve::convex, budgets::curve::any,
                                   budgets::curve::flat, budgets::curve::forbidding};
  for (int round = 0; round < 60; ++round) {
    schedules::choose(static_cast<std::uint64_t>(round));
    const std::int64_t tokens =
        from.pick(std::vector<std::int64_t>{0, 1, 2, 31, 64, 511, 513, 700});
    const int top_k = from.pick(std::vector<int>{1, 2, 6, 8, 32});
    if (tokens > 100 && top_k == 32) continue;
    const auto input = budgets::make(from, tokens, top_k, shapes[round % 4], from.chance(3));
    const auto most = static_cast<int>(tokens * top_k);
    for (const int budget : {0, from.between(0, most), from.between(0, most), most / 2, most})
      expect_equal(input, budget);
    if (HasFailure()) return;
  }
}

TEST(k_budget_kernel, masses_cost_what_the_host_says) {
  inputs::sequence from(322);
  for (const std::int64_t tokens : {0, 1, 127, 128, 300})
    for (const int top_k : {1, 2, 8, 32}) {
      std::vector<float> weights;
      for (std::int64_t i = 0; i < tokens * top_k; ++i)
        weights.push_back(from.chance(9) ? 0.0f : inputs::from_bits(from.bits() >> 4));
      std::vector<float> host(weights.size());
      ASSERT_TRUE(mass_costs(weights.data(), tokens, top_k, host.data()).ok());
      const device::buffer<float> both(weights);  // in place
      ASSERT_TRUE(cuda::mass_costs(both.get(), tokens, top_k, both.get(), false, nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
      const std::vector<float> got = both.read();
      ASSERT_EQ(std::memcmp(got.data(), host.data(), host.size() * sizeof(float)), 0) << tokens;
      report::comparisons() += tokens * top_k;
    }
}

TEST(k_budget_kernel, refuses_by_name) {
  const device::buffer<float> costs(2);
  const device::buffer<std::uint8_t> k(1);
  const device::buffer<std::uint32_t> gains(1);
  EXPECT_STREQ(cuda::assign_k_by_budget(costs.get(), 1, 2, nullptr, nullptr, gains.get(), k.get(),
                                        nullptr, false, nullptr)
                   .message(),
               "budget is null");
  EXPECT_STREQ(cuda::assign_k_by_budget(costs.get(), 1, 33, nullptr, nullptr, gains.get(), k.get(),
                                        nullptr, false, nullptr)
                   .message(),
               "top_k is 33, expected 1..32");
  EXPECT_STREQ(cuda::mass_costs(nullptr, 1, 2, nullptr, false, nullptr).message(),
               "weights or costs is null");
}

}  // namespace
