// The controls keep what they must keep, and fixed K meets the policy at equal mean K.
#include "bench/adaptive_k/measure/controls.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/adaptive_k/benchmark/analysis.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/measure/variant.hpp"

namespace {

constexpr int num_experts = 32;
constexpr int top_k = 8;
constexpr int num_tokens = 300;

adaptive_k::gating gating() {
  adaptive_k::gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  return g;
}

std::vector<float> random_logits(std::uint64_t seed) {
  adaptive_k::integer_rng rng(seed);
  std::vector<float> logits(static_cast<std::size_t>(num_tokens * num_experts));
  for (float& logit : logits) logit = static_cast<float>(rng.below(6000)) / 1000.0f;
  return logits;
}

/// A call's outputs and its counters.
struct routed {
  bench::variant routing;
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(num_tokens * top_k);
  std::vector<float> weights = std::vector<float>(num_tokens * top_k);
  std::vector<std::int32_t> counts = std::vector<std::int32_t>(num_tokens);

  explicit routed(bench::variant way) : routing(std::move(way)) {
    routing.prepare(1, num_tokens);
    const std::vector<float> logits = random_logits(7);
    const adaptive_k::status result =
        routing.route(0, {logits.data(), num_tokens, num_experts, 0},
                      {ids.data(), weights.data(), counts.data(), nullptr});
    EXPECT_TRUE(result.ok()) << result.message();
    routing.count_distinct(1);
  }
};

routed route(adaptive_k::k_assignment assignment, const adaptive_k::k_policy& policy,
             std::uint64_t seed = 1) {
  const std::vector<adaptive_k::k_policy> policies = {policy};
  return routed(bench::variant("test", adaptive_k::router(gating(), policies),
                               adaptive_k::router(gating(), adaptive_k::full_like(policies)),
                               assignment, seed));
}

TEST(Controls, DealtOutKsAreTheSameKs) {
  const adaptive_k::k_policy policy = adaptive_k::k_policy::top_p(0.8f, top_k);
  const routed own = route(adaptive_k::k_assignment::chosen, policy);
  std::vector<std::int32_t> expected = own.counts;
  std::sort(expected.begin(), expected.end());
  ASSERT_NE(expected.front(), expected.back()) << "the policy must give different K's";
  for (const auto assignment :
       {adaptive_k::k_assignment::shuffled, adaptive_k::k_assignment::inverted}) {
    const routed control = route(assignment, policy);
    EXPECT_NE(control.counts, own.counts);
    std::vector<std::int32_t> counts = control.counts;
    std::sort(counts.begin(), counts.end());
    EXPECT_EQ(counts, expected);
    EXPECT_EQ(control.routing.total().mean_k(), own.routing.total().mean_k());
    // The order of experts is the model's own: only how many are taken differs.
    for (std::size_t t = 0; t < num_tokens; ++t) {
      const auto kept = static_cast<std::size_t>(std::min(control.counts[t], own.counts[t]));
      for (std::size_t j = 0; j < kept; ++j)
        EXPECT_EQ(control.ids[t * top_k + j], own.ids[t * top_k + j]);
    }
  }
}

TEST(Controls, TheSeedDecidesTheShuffle) {
  const adaptive_k::k_policy policy = adaptive_k::k_policy::top_p(0.8f, top_k);
  const auto shuffled = adaptive_k::k_assignment::shuffled;
  EXPECT_EQ(route(shuffled, policy, 5).counts, route(shuffled, policy, 5).counts);
  EXPECT_NE(route(shuffled, policy, 5).counts, route(shuffled, policy, 6).counts);
}

TEST(Controls, FixedKHasThePolicysMassExponentAndLayers) {
  adaptive_k::k_policy policy = adaptive_k::k_policy::top_p(0.8f, top_k);
  policy.mass_exponent = 0.5f;
  const auto fixed = bench::fixed_like({policy, policy, policy}, {true, false, true}, 3);
  EXPECT_EQ(fixed[0].rule, adaptive_k::k_rule::fixed);
  EXPECT_EQ(fixed[0].k_values[0], 3);
  EXPECT_EQ(fixed[1].rule, adaptive_k::k_rule::full);
  for (const adaptive_k::k_policy& each : fixed) EXPECT_EQ(each.mass_exponent, 0.5f);
  const auto restricted = bench::restrict_to({policy, policy}, {false, true});
  EXPECT_EQ(restricted[0].rule, adaptive_k::k_rule::full);
  EXPECT_EQ(restricted[1].rule, adaptive_k::k_rule::thresholds);
}

TEST(Controls, ARouterThatRefusesIsNamed) {
  const adaptive_k::router bad(gating(), adaptive_k::k_policy::fixed(9));
  try {
    const bench::variant accepted("my policy", bad, bad);
    FAIL() << "accepted";
  } catch (const bench::failure& error) {
    EXPECT_NE(std::string(error.what()).find("my policy: fixed k is 9"), std::string::npos);
  }
}

/// Fixed K from 1 to K0, KL falling by halves, the same in both windows but for a shift.
std::vector<bench::evaluated> fixed_runs() {
  std::vector<bench::evaluated> runs;
  for (int k = 1; k <= top_k; ++k) {
    runs.emplace_back(
        route(adaptive_k::k_assignment::chosen, adaptive_k::k_policy::fixed(k)).routing);
    const double kl = k == top_k ? 0.0 : std::pow(0.5, k);
    runs.back().result.windows = {{10.0 + kl, kl, 1, 1}, {20.0 + kl, 2.0 * kl, 1, 1}};
  }
  return runs;
}

std::vector<const bench::evaluated*> pointers(const std::vector<bench::evaluated>& runs) {
  std::vector<const bench::evaluated*> result;
  for (const bench::evaluated& run : runs) result.push_back(&run);
  return result;
}

TEST(FixedAtEqualMeanK, InterpolatesBetweenNeighbours) {
  const auto runs = fixed_runs();
  const bench::fixed_at_mean_k fixed = bench::interpolate_fixed(pointers(runs), 3.25);
  EXPECT_EQ(fixed.low_k, 3);
  EXPECT_EQ(fixed.high_k, 4);
  EXPECT_DOUBLE_EQ(fixed.share_of_high, 0.25);
  EXPECT_DOUBLE_EQ(fixed.mean_k, 3.25);
  const double kl = 0.75 * 0.125 + 0.25 * 0.0625;
  EXPECT_NEAR(fixed.quality.mean_kl.value, 1.5 * kl, 1e-12);
  EXPECT_NEAR(fixed.quality.mean_nll, 15.0 + kl, 1e-12);
  ASSERT_TRUE(fixed.distinct_experts[0].has_value());
  EXPECT_NEAR(*fixed.distinct_experts[0], 3.25, 1e-12);  // one token: its K
}

TEST(FixedAtEqualMeanK, WholeKIsThatRunExactly) {
  const auto runs = fixed_runs();
  for (int k = 1; k <= top_k; ++k) {
    const auto fixed = bench::interpolate_fixed(pointers(runs), k);
    const auto own = bench::window_kl(runs[static_cast<std::size_t>(k) - 1].result);
    EXPECT_EQ(fixed.kl_of_windows, own) << k;
    EXPECT_EQ(fixed.mean_k, k);
  }
}

bench::comparison_with_fixed compare(double first_kl, double second_kl, bool is_adaptive = true) {
  const auto runs = fixed_runs();
  bench::evaluated policy(
      route(adaptive_k::k_assignment::chosen, adaptive_k::k_policy::top_p(0.8f, top_k)).routing);
  const double mean_k = policy.routing.total().mean_k();
  const auto fixed = bench::interpolate_fixed(pointers(runs), mean_k);
  policy.result.windows = {{1.0, fixed.kl_of_windows[0] + first_kl, 1, 1},
                           {1.0, fixed.kl_of_windows[1] + second_kl, 1, 1}};
  return bench::compare_with_fixed(policy, fixed, top_k, is_adaptive);
}

TEST(BeatsFixedK, TwoStandardErrorsDecide) {
  // Differences -0.010 and -0.011: mean -0.0105, standard error 0.0005.
  EXPECT_EQ(compare(-0.010, -0.011).outcome, bench::verdict::beats);
  EXPECT_NEAR(compare(-0.010, -0.011).delta_mean_kl.value, -0.0105, 1e-12);
  EXPECT_NEAR(compare(-0.010, -0.011).delta_mean_kl.se, 0.0005, 1e-12);
  EXPECT_EQ(compare(0.010, 0.011).outcome, bench::verdict::does_not_beat);
  EXPECT_EQ(compare(-0.010, 0.002).outcome, bench::verdict::cannot_tell);
  EXPECT_EQ(compare(-0.010, -0.011, false).outcome, bench::verdict::nothing_to_compare);
}

TEST(Layers, ListsAndRanges) {
  EXPECT_EQ(bench::parse_layers("", 3), (std::vector<bool>{true, true, true}));
  EXPECT_EQ(bench::parse_layers("0,2-3", 5), (std::vector<bool>{true, false, true, true, false}));
  for (const char* bad : {"5", "3-1", "a", "1,,2", "-1", "1-", ",", "999999999999"})
    EXPECT_THROW(bench::parse_layers(bad, 5), bench::failure) << bad;
}

}  // namespace
