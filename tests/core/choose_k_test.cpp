// When a threshold is met and which k costs least, at equality too.
#include "adaptive_k/core/choose_k.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "adaptive_k/core/host_warp.hpp"

namespace {

namespace detail = adaptive_k::detail;
using adaptive_k::k_limits;

constexpr int top_k = 4;

using ranks = detail::loop_count<true, top_k>;

adaptive_k::ranked_token<top_k, float, ranks> token_of(const detail::ranked_experts<top_k>& ranked,
                                                       float signal, k_limits limits) {
  return {ranked, ranks{top_k}, top_k, 8, limits, signal, 1.0f};
}

template <class Plan>
int chosen(const Plan& plan, float signal, int k_min, int k_max) {
  const detail::ranked_experts<top_k> ranked = {};
  const k_limits limits = detail::narrow_limits(plan.limits, k_min, k_max);
  return detail::choose_k(plan, token_of(ranked, signal, limits));
}

template <class F>
void for_each_limits(F f) {
  for (int low = 1; low <= top_k; ++low)
    for (int high = low; high <= top_k; ++high) f(k_limits{low, high});
}

detail::ranked_experts<top_k> ranked_by(const float (&scores)[top_k]) {
  detail::ranked_experts<top_k> ranked = {};
  for (int j = 0; j < top_k; ++j) {
    ranked.expert[j] = j;
    ranked.score[j] = scores[j];
    ranked.mass[j] = ranked.total += scores[j];
  }
  return ranked;
}

TEST(choose_k, a_signal_at_its_threshold_is_sure_where_high_is_and_else_not) {
  using adaptive_k::signal_kind;
  // Masses 0.5, 0.75, 0.875, 1; ratios to the first 0.5, 0.25, 0.25.
  const auto ranked = ranked_by({0.5f, 0.25f, 0.125f, 0.125f});
  const auto enough = [&](signal_kind kind, float threshold, float signal, int rank) {
    detail::k_plan plan;
    plan.signal = kind;
    plan.threshold[rank] = threshold;
    return detail::is_enough(plan, token_of(ranked, signal, {1, top_k}), rank);
  };
  EXPECT_TRUE(enough(signal_kind::topk_mass, 0.75f, 0.0f, 1));
  EXPECT_FALSE(enough(signal_kind::topk_mass, 0.75f, 0.0f, 0));
  EXPECT_FALSE(enough(signal_kind::score_ratio, 0.25f, 0.0f, 1));
  EXPECT_TRUE(enough(signal_kind::score_ratio, 0.2500001f, 0.0f, 1));
  EXPECT_TRUE(enough(signal_kind::margin, 0.25f, 0.25f, 0));
  EXPECT_FALSE(enough(signal_kind::margin, 0.25f, 0.2499999f, 0));
  for (const auto kind :
       {signal_kind::softmax_entropy, signal_kind::normalized_entropy, signal_kind::topk_entropy}) {
    EXPECT_FALSE(enough(kind, 0.25f, 0.25f, 0));
    EXPECT_TRUE(enough(kind, 0.25f, 0.2499999f, 0));
  }
}

TEST(choose_k, a_tokens_limits_win_where_those_of_the_plan_lie_beside_them) {
  const auto narrowed = [](k_limits plan, int k_min, int k_max) {
    const k_limits both = detail::narrow_limits(plan, k_min, k_max);
    return both.k_min * 10 + both.k_max;
  };
  EXPECT_EQ(narrowed({1, 2}, 3, 4), 33);
  EXPECT_EQ(narrowed({3, 4}, 1, 2), 22);
  EXPECT_EQ(narrowed({1, 4}, 2, 3), 23);
  EXPECT_EQ(narrowed({2, 3}, 1, 4), 23);
}

/// A plan of a user's own, which says anything.
struct any_plan : adaptive_k::plan_base {
  int k;
  template <class Token>
  typename Token::integers choose_k(const Token&) const noexcept {
    return k;
  }
};

TEST(choose_k, what_a_plan_of_ones_own_says_is_brought_within_the_limits) {
  any_plan plan;
  for (plan.k = -2; plan.k <= top_k + 2; ++plan.k)
    for_each_limits([&](const k_limits& limits) {
      const int expected = std::min(std::max(plan.k, limits.k_min), limits.k_max);
      EXPECT_EQ(chosen(plan, 0.0f, limits.k_min, limits.k_max), expected) << plan.k;
    });
}

TEST(choose_k, of_equal_costs_the_larger_k_is_taken) {
  const float coefficients[top_k * adaptive_k::distortion_ref::num_features] = {};
  detail::k_plan plan;
  plan.distortion.coefficients = coefficients;
  plan.distortion.sensitivity = 0.0f;
  plan.distortion.lambda = 0.0f;
  const auto ranked = ranked_by({0.5f, 0.25f, 0.125f, 0.125f});
  const auto chosen_of = [&](k_limits limits) {
    return detail::least_cost_k(plan.distortion, 1.0f, token_of(ranked, 0.0f, limits));
  };
  const auto with_head = [&](k_limits limits) {
    return detail::least_head_cost_k(plan.distortion, token_of(ranked, 0.0f, limits));
  };
  for_each_limits([&](k_limits limits) {
    EXPECT_EQ(chosen_of(limits), limits.k_max);
    EXPECT_EQ(with_head(limits), limits.k_max);
  });
  plan.distortion.lambda = 1.0f;  // now every expert costs
  for_each_limits([&](k_limits limits) {
    EXPECT_EQ(chosen_of(limits), limits.k_min);
    EXPECT_EQ(with_head(limits), limits.k_min);
  });
}

}  // namespace
