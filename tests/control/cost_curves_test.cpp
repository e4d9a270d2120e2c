// A router's own costs: its policy chooses the k of least cost and price, by each price; and a
// budget spent on them, routed, is kept.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/cost_curves.hpp>
#include <adaptive_k/control/expert_budget.hpp>

#include <cmath>
#include <vector>

#include "host/policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

TEST(cost_curves, of_a_distortion_are_what_its_rule_minimises) {
  inputs::sequence from(331);
  long decided = 0, close = 0;
  int turn = 0;
  for (const gating& g : all_gatings()) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    const std::vector<float> bias = grid_bias(from, g.num_experts);
    routing_extras extras;
    if (g.selection_bias) extras.routing_bias = bias.data();
    for (named_policy named : all_policies(from, g, tables)) {
      if (named.policy.rule != k_rule::distortion) continue;
      k_policy& policy = named.policy;
      policy.mass_exponent = mass_exponent_number(turn++);
      if (from.chance(2)) policy.k_min = static_cast<std::uint8_t>(from.between(1, g.top_k));
      const auto input = grid_batch(from, 40, g.num_experts, 64);
      std::vector<float> costs(static_cast<std::size_t>(40 * g.top_k));
      for (const float price : {0.0f, 0.01f, 0.1f, 0.5f, 3.0f}) {
        policy.distortion.lambda = price;
        const router own(g, policy);
        const routed_batch routed = own.route(0, input.view(), nullptr, extras);
        ASSERT_TRUE(routed.result.ok()) << routed.result.message();
        ASSERT_TRUE(router_costs(own, 0, input.view(), costs.data(), extras).ok());
        for (std::int64_t t = 0; t < 40; ++t) {
          double best = 1e300, second = 1e300;
          int best_k = 0;
          for (int k = g.top_k; k >= 1; --k) {
            const double cost =
                static_cast<double>(costs[static_cast<std::size_t>(t * g.top_k + k - 1)]) +
                static_cast<double>(price) * k;
            if (cost < best) {
              second = best;
              best = cost;
              best_k = k;
            } else if (cost < second) {
              second = cost;
            }
          }
          if (second - best < 1e-5 * std::abs(best) + 1e-30) {
            ++close;
            continue;
          }
          ++decided;
          ASSERT_EQ(routed.topk_counts[static_cast<std::size_t>(t)], best_k)
              << named.name << ", price " << price << ", token " << t;
        }
      }
    }
  }
  EXPECT_GT(decided, 3000);
  EXPECT_LT(close, decided / 10);
}

TEST(cost_curves, of_a_router_head_follow_its_columns) {
  inputs::sequence from(334);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const float coefficients[3 * 5] = {-1, 1, 0, 0, 0, -2, 1, 0, 0, 0, -3, 1, 0, 0, 0};
  const float weights[3 * 2] = {1, 0, 0, 1, 1, 1};  // u: what an engine multiplies x by
  distortion_ref model;
  model.coefficients = coefficients;
  model.head = weights;
  model.hidden_size = 2;
  model.sensitivity = 0.5f;
  const router own(g, k_policy::min_distortion(model));
  ASSERT_TRUE(own.validity().ok()) << own.validity().message();
  const auto input = grid_batch(from, 9, 16, 64);
  std::vector<float> head;
  for (int i = 0; i < 9 * 3; ++i) head.push_back(inputs::grid_logit(from, 32));
  head[4] = std::numeric_limits<float>::quiet_NaN();  // token 1
  logits_view<> view = input.view();
  std::vector<float> costs(9 * 4);
  EXPECT_FALSE(router_costs(own, 0, view, costs.data()).ok()) << "no columns";
  view.head = head.data();
  ASSERT_TRUE(router_costs(own, 0, view, costs.data()).ok());
  for (std::int64_t t = 0; t < 9; ++t) {
    const float* of_token = costs.data() + t * 4;
    EXPECT_EQ(of_token[3], 0.0f);
    oracle::token token;
    token.logits = input.row(t);
    const std::vector<double> mass =
        oracle::running_mass(oracle::route(g, k_policy::full(), token).shares);
    for (int k = 1; k < 4; ++k) {
      if (t == 1) {
        EXPECT_EQ(of_token[k - 1], math::infinity);
        continue;
      }
      const double expected =
          0.5 * std::exp(static_cast<double>(coefficients[(k - 1) * 5]) +
                         std::log(1.0 - mass[at(k - 1)]) +
                         static_cast<double>(head[static_cast<std::size_t>(t * 3 + k - 1)]));
      EXPECT_NEAR(static_cast<double>(of_token[k - 1]), expected, 2e-5 * expected);
    }
  }
}

TEST(cost_curves, of_other_rules_are_the_mass_dropped) {
  inputs::sequence from(332);
  const gating g = make_gating(gating_kind::softmax, 48, 6);
  k_policy policy = k_policy::top_p(0.8f, 6);
  policy.k_max = 5;
  const auto input = grid_batch(from, 30, 48, 64);
  std::vector<float> costs(30 * 6);
  std::vector<std::uint8_t> padding(30), k_min(30, 2);
  padding[7] = 1;
  routing_extras extras;
  extras.padding_mask = padding.data();
  extras.k_min = k_min.data();
  ASSERT_TRUE(router_costs(router(g, policy), 0, input.view(), costs.data(), extras).ok());
  for (std::int64_t t = 0; t < 30; ++t) {
    const float* of_token = costs.data() + t * 6;
    if (t == 7) {
      for (int j = 0; j < 6; ++j) EXPECT_EQ(of_token[j], 0.0f);
      continue;
    }
    oracle::token token;
    token.logits = input.row(t);
    const std::vector<double> mass = oracle::running_mass(oracle::route(g, policy, token).shares);
    for (int k = 2; k <= 5; ++k)
      EXPECT_NEAR(static_cast<double>(of_token[k - 1]), 1.0 - mass[at(k - 1)], 1e-6);
    EXPECT_EQ(of_token[0], math::infinity);
    EXPECT_EQ(of_token[5], math::infinity);
  }
}

// The whole step: price, assign, route. The weights are those of any policy at that k.
TEST(cost_curves, a_budget_spent_on_them_is_kept_and_super_experts_with_it) {
  inputs::sequence from(333);
  const gating g = make_gating(gating_kind::softmax, 32, 8);
  const inputs::distortion_tables tables(from, 32, 8);
  distortion_ref model;
  model.coefficients = tables.coefficients.data();
  k_policy policy = k_policy::min_distortion(model);
  pick_super_experts(from, 32, policy);
  const router own(g, policy);
  const std::int64_t tokens = 60;
  const auto input = grid_batch(from, tokens, 32, 64);
  std::vector<float> costs(static_cast<std::size_t>(tokens * 8));
  ASSERT_TRUE(router_costs(own, 0, input.view(), costs.data()).ok());
  std::vector<std::uint32_t> gains(static_cast<std::size_t>(tokens * 7));
  std::vector<std::uint8_t> k(static_cast<std::size_t>(tokens));
  double before = 1e300;
  for (const std::int64_t budget : {0, 150, 240, 300, 400, 480}) {
    std::int64_t sum = 0;
    ASSERT_TRUE(
        assign_k_by_budget(costs.data(), tokens, 8, budget, nullptr, gains.data(), k.data(), &sum)
            .ok());
    routing_extras extras;
    extras.k_min = extras.k_max = k.data();
    routing_metrics metrics;
    const routed_batch routed = own.route(0, input.view(), &metrics, extras);
    ASSERT_TRUE(routed.result.ok()) << routed.result.message();
    EXPECT_EQ(metrics.expert_calls, static_cast<std::uint64_t>(sum));
    EXPECT_EQ(metrics.super_expert_tokens, 0u) << "the budget has paid for them";
    if (budget >= 300) {  // above the least k of all tokens
      EXPECT_LE(sum, budget);
    }
    double cost = 0.0;
    for (std::int64_t t = 0; t < tokens; ++t)
      cost += static_cast<double>(
          costs[static_cast<std::size_t>(t * 8 + k[static_cast<std::size_t>(t)] - 1)]);
    EXPECT_LE(cost, before);
    before = cost;
  }
  EXPECT_EQ(before, 0.0);  // everything is bought, and full K costs nothing
}

TEST(cost_curves, refuse_by_name) {
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const float logits[8] = {};
  const router own(g, k_policy::fixed(1));
  EXPECT_STREQ(router_costs(own, 0, logits_view<>{logits, 1, 8}, nullptr).message(),
               "costs is null");
  float costs[2];
  EXPECT_STREQ(router_costs(own, 0, logits_view<>{nullptr, 1, 8}, costs).message(),
               "logits.data is null");
}

}  // namespace
