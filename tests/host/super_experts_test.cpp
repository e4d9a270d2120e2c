// Experts that no token drops: by every path, policy and gating, and counted.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

struct routed {
  routed_batch out;
  routing_metrics metrics;
};

routed route(const gating& g, const k_policy& policy, const batch<float>& input,
             const routing_extras& extras, instruction_set set = instruction_set::best) {
  routed made;
  router_options options;
  options.instructions = set;
  made.out = router(g, policy, options).route(0, input.view(), &made.metrics, extras);
  EXPECT_TRUE(made.out.result.ok()) << made.out.result.message();
  return made;
}

bool is_super(const k_policy& policy, int expert) {
  for (int i = 0; i < policy.num_super_experts; ++i)
    if (policy.super_experts[i] == expert) return true;
  return false;
}

const instruction_set every_set[] = {instruction_set::scalar, instruction_set::generic,
                                     instruction_set::avx2, instruction_set::avx512};

/// What the documentation says, from routings without super experts: k is the policy's or reaches
/// the last super expert, and the rest is what any policy gives at that k.
void expect_kept(const gating& g, const k_policy& policy, const batch<float>& input,
                 routing_extras extras, std::uint64_t& raised) {
  k_policy without = policy;
  without.num_super_experts = 0;
  const routed plain = route(g, without, input, extras);
  k_policy all = k_policy::full();
  all.signal = policy.signal;
  const routing_extras no_limits = {extras.routing_bias, extras.padding_mask};
  const routed full = route(g, all, input, no_limits);
  std::vector<std::uint8_t> expected_k;
  std::uint64_t expected_raised = 0;
  for (std::int64_t t = 0; t < input.num_tokens; ++t) {
    const auto index = static_cast<std::size_t>(t);
    int k = plain.out.topk_counts[index];
    bool more = false;
    for (int j = k; k != 0 && j < g.top_k; ++j)
      if (is_super(policy, full.out.topk_ids[index * at(g.top_k) + at(j)])) {
        k = j + 1;
        more = true;
      }
    expected_raised += more ? 1 : 0;
    expected_k.push_back(static_cast<std::uint8_t>(k == 0 ? 1 : k));
  }
  raised += expected_raised;
  routing_extras at_that_k = no_limits;
  at_that_k.k_min = at_that_k.k_max = expected_k.data();
  const routed expected = route(g, without, input, at_that_k);
  for (const instruction_set set : every_set) {
    if (!is_available(set)) continue;
    const routed got = route(g, policy, input, extras, set);
    ASSERT_EQ(got.out.topk_counts, expected.out.topk_counts) << name_of(set);
    ASSERT_EQ(got.out.topk_ids, expected.out.topk_ids) << name_of(set);
    ASSERT_EQ(std::memcmp(got.out.topk_weights.data(), expected.out.topk_weights.data(),
                          got.out.topk_weights.size() * sizeof(float)),
              0)
        << name_of(set);
    ASSERT_EQ(got.out.signal, expected.out.signal) << name_of(set);
    ASSERT_EQ(got.metrics.super_expert_tokens, expected_raised) << name_of(set);
    routing_metrics counted = got.metrics;
    counted.super_expert_tokens = 0;
    ASSERT_EQ(std::memcmp(&counted, &expected.metrics, sizeof counted), 0) << name_of(set);
  }
}

TEST(super_experts, are_kept_by_every_policy_gating_and_instruction_set) {
  inputs::sequence from(191);
  std::uint64_t raised = 0;
  for (const gating& g : all_gatings()) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    const std::vector<float> bias = grid_bias(from, g.num_experts);
    int turn = 0;
    for (named_policy named : all_policies(from, g, tables)) {
      SCOPED_TRACE(std::string(to_string(g.kind)) + ", " + named.name);
      pick_super_experts(from, g.num_experts, named.policy);
      named.policy.mass_exponent = mass_exponent_number(turn++);
      const std::int64_t tokens = from.pick<std::int64_t>({1, 3, 37, 70});
      const auto input = grid_batch(from, tokens, g.num_experts, 64);
      routing_extras extras;
      if (g.selection_bias) extras.routing_bias = bias.data();
      std::vector<std::uint8_t> padding, k_max;
      for (std::int64_t t = 0; t < tokens; ++t) {
        padding.push_back(from.chance(5) ? 1 : 0);
        k_max.push_back(static_cast<std::uint8_t>(from.between(1, g.top_k)));
      }
      if (from.chance(2)) extras.padding_mask = padding.data();
      if (from.chance(3)) extras.k_max = k_max.data();
      expect_kept(g, named.policy, input, extras, raised);
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(raised, 500u);
}

TEST(super_experts, agree_with_the_oracle) {
  inputs::sequence from(192);
  tally seen;
  for (int num_experts : {8, 32, 60, 128, 300}) {
    const int top_k = std::min(num_experts, from.between(2, 10));
    const gating g = make_gating(gating_kind::softmax, num_experts, top_k);
    const inputs::distortion_tables tables(from, num_experts, top_k);
    for (named_policy named : all_policies(from, g, tables)) {
      SCOPED_TRACE("E " + std::to_string(num_experts) + ", policy " + named.name);
      pick_super_experts(from, num_experts, named.policy);
      const auto input = grid_batch(from, 40, num_experts, 64);
      route_and_compare<std::int32_t>(g, named.policy, input, {}, seen);
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(seen.tokens, 2000);
  EXPECT_LE(seen.close_k + seen.close_rank, seen.tokens / 100);
}

// Four experts, best first 2, 0, 3, 1.
const float four_logits[] = {1.0f, -1.0f, 2.0f, 0.0f};

routed route_four(k_policy policy, std::initializer_list<int> super_experts, int top_k = 4,
                  int k_max = 4) {
  for (const int expert : super_experts)
    policy.super_experts[policy.num_super_experts++] = static_cast<std::uint16_t>(expert);
  batch<float> input;
  input.logits.assign(four_logits, four_logits + 4);
  input.num_tokens = 1;
  input.num_experts = 4;
  const auto most = static_cast<std::uint8_t>(k_max);
  routing_extras extras;
  extras.k_max = &most;
  return route(make_gating(gating_kind::softmax, 4, top_k), policy, input, extras);
}

TEST(super_experts, reach_past_every_limit_but_not_past_the_top_k) {
  k_policy one = k_policy::fixed(1);
  EXPECT_EQ(route_four(one, {3}).out.topk_counts[0], 3);
  EXPECT_EQ(route_four(one, {0, 3}).out.topk_counts[0], 3);
  EXPECT_EQ(route_four(one, {3, 0}).out.topk_counts[0], 3);
  EXPECT_EQ(route_four(one, {1}).out.topk_counts[0], 4);
  EXPECT_EQ(route_four(one, {3}, 4, 2).out.topk_counts[0], 3);
  EXPECT_EQ(route_four(one, {1}, 3, 3).out.topk_counts[0], 1);  // not among the top three
  one.k_max = 1;
  EXPECT_EQ(route_four(one, {0}).out.topk_counts[0], 2);
  EXPECT_EQ(route_four(one, {0}).metrics.super_expert_tokens, 1u);
  EXPECT_EQ(route_four(one, {2}).metrics.super_expert_tokens, 0u);  // first anyway
  EXPECT_EQ(route_four(k_policy::fixed(2), {0}).metrics.super_expert_tokens, 0u);
  EXPECT_EQ(route_four(k_policy::full(), {1}).metrics.super_expert_tokens, 0u);
}

TEST(super_experts, are_part_of_what_shadow_mode_records) {
  const gating g = make_gating(gating_kind::softmax, 4, 4);
  k_policy policy = k_policy::fixed(1);
  policy.super_experts[0] = 3;
  policy.num_super_experts = 1;
  std::int32_t ids[4], counts, chosen;
  float weights[4];
  routing_output<> output = {ids, weights, &counts};
  output.chosen_counts = &chosen;
  routing_metrics metrics;
  ASSERT_TRUE(router(g, policy).route(0, logits_view<>{four_logits, 1, 4}, output, &metrics).ok());
  EXPECT_EQ(counts, 4);
  EXPECT_EQ(chosen, 3);
  EXPECT_EQ(metrics.shadow_expert_calls, 3u);
  EXPECT_EQ(metrics.super_expert_tokens, 1u);
  routing_metrics twice = metrics;
  twice += metrics;
  EXPECT_EQ(twice.super_expert_tokens, 2u);
}

TEST(super_experts, that_are_none_are_refused_by_name) {
  const gating g = make_gating(gating_kind::softmax, 60, 4);
  k_policy policy = k_policy::fixed(1);
  policy.num_super_experts = 9;
  EXPECT_STREQ(validate(policy, g).message(), "num_super_experts is 9, expected 0..8");
  policy.num_super_experts = 3;
  policy.super_experts[0] = 59;
  policy.super_experts[2] = 60;
  EXPECT_STREQ(validate(policy, g).message(),
               "super_experts[2] is 60, expected 0..59 (num_experts - 1)");
  policy.super_experts[2] = 59;
  EXPECT_STREQ(validate(policy, g).message(), "super_experts[2] is 59, expected another than [0]");
  policy.super_experts[2] = 58;
  EXPECT_TRUE(validate(policy, g).ok());
  policy.super_experts[3] = 60;  // past their number: not read
  EXPECT_TRUE(validate(policy, g).ok());
}

}  // namespace
