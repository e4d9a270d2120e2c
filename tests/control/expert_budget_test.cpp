// The batch stage against a direct, slower reading of its rules.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/expert_budget.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "inputs.hpp"

namespace {

constexpr int num_experts = 37;
constexpr int top_k = 5;

struct batch {
  std::int64_t tokens = 0;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<std::int32_t> counts;

  std::set<int> experts(int first_ranks = top_k) const {
    std::set<int> result;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int j = 0; j < std::min(counts[static_cast<std::size_t>(t)], first_ranks); ++j)
        result.insert(ids[static_cast<std::size_t>(t * top_k + j)]);
    return result;
  }
};

batch routed(std::int64_t tokens, std::uint64_t seed) {
  adaptive_k::gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  inputs::sequence numbers(seed);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < tokens * num_experts; ++i)
    logits.push_back(static_cast<float>(numbers.below(4096)) / 1024.0f);
  const auto out =
      adaptive_k::router(g, adaptive_k::k_policy::top_p(0.8f, top_k))
          .route(0, adaptive_k::logits_view<float>{logits.data(), tokens, num_experts});
  return {tokens, out.topk_ids, out.topk_weights, out.topk_counts};
}

int limit(batch& b, int k_min, int budget,
          adaptive_k::admission order = adaptive_k::admission::gate_mass) {
  std::vector<std::uint64_t> mass(num_experts);
  std::vector<std::uint8_t> admitted(num_experts);
  int distinct = -1;
  const auto result = adaptive_k::restrict_to_budget(
      b.ids.data(), b.weights.data(), b.counts.data(), b.tokens, top_k, num_experts, k_min, budget,
      {mass.data(), admitted.data()}, order, &distinct);
  EXPECT_TRUE(result.ok()) << result.message();
  return distinct;
}

TEST(expert_budget, a_budget_that_is_no_limit_changes_nothing) {
  for (const std::int64_t tokens : {0, 1, 7, 64}) {
    const batch before = routed(tokens, 3);
    batch after = before;
    EXPECT_EQ(limit(after, 1, num_experts), static_cast<int>(before.experts().size()));
    EXPECT_EQ(after.ids, before.ids);
    EXPECT_EQ(after.weights, before.weights);
    EXPECT_EQ(after.counts, before.counts);
  }
}

TEST(expert_budget, keeps_the_core_and_admits_by_summed_weight) {
  for (const int k_min : {1, 2}) {
    for (const int budget : {0, 12, 20, 26}) {
      const batch before = routed(33, 11);
      batch after = before;
      const int distinct = limit(after, k_min, budget);
      const std::set<int> core = before.experts(k_min);
      EXPECT_EQ(distinct, std::max(budget, static_cast<int>(core.size())));

      // By hand: the core, then the heaviest.
      std::map<int, double> mass;
      for (std::int64_t t = 0; t < before.tokens; ++t)
        for (int j = 0; j < before.counts[static_cast<std::size_t>(t)]; ++j) {
          const auto at = static_cast<std::size_t>(t * top_k + j);
          mass[before.ids[at]] += static_cast<double>(before.weights[at]);
        }
      std::set<int> expected = core;
      while (static_cast<int>(expected.size()) < budget && expected.size() < mass.size()) {
        int best = -1;
        for (const auto& [expert, sum] : mass)
          if (expected.count(expert) == 0 && (best < 0 || sum > mass[best])) best = expert;
        expected.insert(best);
      }
      for (std::int64_t t = 0; t < before.tokens; ++t) {
        const auto at = static_cast<std::size_t>(t * top_k);
        std::vector<std::int32_t> ids;
        double sum_before = 0.0, sum_kept = 0.0;
        for (int j = 0; j < before.counts[static_cast<std::size_t>(t)]; ++j) {
          const auto slot = at + static_cast<std::size_t>(j);
          sum_before += static_cast<double>(before.weights[slot]);
          if (expected.count(before.ids[slot]) == 0) continue;
          ids.push_back(before.ids[slot]);
          sum_kept += static_cast<double>(before.weights[slot]);
        }
        ASSERT_EQ(after.counts[static_cast<std::size_t>(t)], static_cast<int>(ids.size()));
        EXPECT_GE(static_cast<int>(ids.size()),
                  std::min(k_min, before.counts[static_cast<std::size_t>(t)]));
        double sum_after = 0.0;
        for (int j = 0; j < top_k; ++j) {
          const auto slot = at + static_cast<std::size_t>(j);
          const bool used = j < static_cast<int>(ids.size());
          EXPECT_EQ(after.ids[slot], used ? ids[static_cast<std::size_t>(j)] : -1);
          if (!used) {
            EXPECT_EQ(after.weights[slot], 0.0f);
          }
          sum_after += static_cast<double>(after.weights[slot]);
        }
        EXPECT_NEAR(sum_after, sum_before, 1e-6);
        EXPECT_GT(sum_kept, 0.0);
      }
    }
  }
}

TEST(expert_budget, equal_sums_go_to_the_lower_index_and_the_control_ignores_sums) {
  // One token's core is expert 0; 9, 8 and 7 follow, 9 the heaviest, 8 and 7 alike.
  const auto make = [] {
    batch b;
    b.tokens = 1;
    b.ids = {0, 9, 8, 7, -1};
    b.weights = {0.4f, 0.3f, 0.15f, 0.15f, 0.0f};
    b.counts = {4};
    return b;
  };
  batch by_mass = make();
  EXPECT_EQ(limit(by_mass, 1, 3), 3);
  EXPECT_EQ(by_mass.ids, (std::vector<std::int32_t>{0, 9, 7, -1, -1}));
  batch by_index = make();
  EXPECT_EQ(limit(by_index, 1, 2, adaptive_k::admission::index), 2);
  EXPECT_EQ(by_index.ids, (std::vector<std::int32_t>{0, 7, -1, -1, -1}));
}

/// The order is that of the sums at every scale of the weights: small ones and very large ones.
TEST(expert_budget, weights_of_every_size_are_in_order) {
  for (const float scale : {1e-8f, 1.0f, 999.0f, 1001.0f, 1e6f, 1e12f, 9e29f}) {
    SCOPED_TRACE(scale);
    // Core 0; then 9 by two tokens' small weights, 8 by one large, 7 by the largest.
    batch b;
    b.tokens = 2;
    b.ids = {0, 9, 8, -1, -1, 0, 9, 7, -1, -1};
    b.weights = {1.0f, 0.2f, 0.5f, 0.0f, 0.0f, 1.0f, 0.2f, 0.7f, 0.0f, 0.0f};
    for (float& weight : b.weights) weight *= scale;
    b.counts = {3, 3};
    batch two = b, three = b;
    EXPECT_EQ(limit(two, 1, 2), 2);
    EXPECT_EQ(two.ids, (std::vector<std::int32_t>{0, -1, -1, -1, -1, 0, 7, -1, -1, -1}));
    EXPECT_EQ(limit(three, 1, 3), 3);
    EXPECT_EQ(three.ids, (std::vector<std::int32_t>{0, 8, -1, -1, -1, 0, 7, -1, -1, -1}));
    EXPECT_NEAR(three.weights[0] + three.weights[1], 1.7f * scale, 1e-5f * scale);
  }
}

TEST(expert_budget, sums_of_many_large_weights_do_not_wrap) {
  // 7's sum in steps of 2^-32 would be over 2^64, and little is left of it past that.
  constexpr int tokens = 5000;
  batch b;
  b.tokens = tokens;
  for (int t = 0; t < tokens; ++t) {
    b.ids.insert(b.ids.end(), {0, 7, 8, -1, -1});
    b.weights.insert(b.weights.end(), {1e6f, 859000.0f, 500.0f, 0.0f, 0.0f});
    b.counts.push_back(3);
  }
  EXPECT_EQ(limit(b, 1, 2), 2);
  EXPECT_EQ(b.ids[1], 7);
}

TEST(expert_budget, refuses_weights_that_are_none_and_leaves_the_batch) {
  const float nan = std::nanf(""), inf = HUGE_VALF;
  for (const float wrong : {nan, inf, -inf, -1e-30f, 1e30f}) {
    batch b = routed(3, 5);
    const std::size_t slot = 2 * top_k;  // token 2's first
    b.weights[slot] = wrong;
    const batch before = b;
    std::vector<std::uint64_t> mass(num_experts);
    std::vector<std::uint8_t> admitted(num_experts);
    const auto result =
        adaptive_k::restrict_to_budget(b.ids.data(), b.weights.data(), b.counts.data(), 3, top_k,
                                       num_experts, 1, 4, {mass.data(), admitted.data()});
    EXPECT_FALSE(result.ok());
    EXPECT_EQ(result.field(), "topk_weights[2, 0]") << result.message();
    EXPECT_EQ(b.ids, before.ids);
    EXPECT_EQ(b.counts, before.counts);
    EXPECT_EQ(std::memcmp(b.weights.data(), before.weights.data(), 4 * b.weights.size()), 0);
  }
  // Past a token's count nothing is read.
  batch b = routed(3, 5);
  b.counts[0] = 1;
  b.weights[1] = nan;
  EXPECT_GT(limit(b, 1, 8), 0);
}

TEST(expert_budget, refuses_what_does_not_fit) {
  batch b = routed(3, 5);
  std::vector<std::uint64_t> mass(num_experts);
  std::vector<std::uint8_t> admitted(num_experts);
  const auto call = [&](int k_min, const adaptive_k::expert_budget_workspace& work) {
    return adaptive_k::restrict_to_budget(b.ids.data(), b.weights.data(), b.counts.data(), 3, top_k,
                                          num_experts, k_min, 8, work);
  };
  EXPECT_FALSE(call(0, {mass.data(), admitted.data()}).ok());
  EXPECT_FALSE(call(top_k + 1, {mass.data(), admitted.data()}).ok());
  EXPECT_FALSE(call(1, {nullptr, admitted.data()}).ok());
  b.ids[0] = num_experts;
  EXPECT_FALSE(call(1, {mass.data(), admitted.data()}).ok());
}

}  // namespace
