// Exact budgets of expert calls, against a dynamic programme over all k_t and against a greedy that
// takes one step of a hull at a time.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/expert_budget.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "k_budgets.hpp"

namespace {

using budgets::batch;
using budgets::curve;

constexpr double infinity = std::numeric_limits<double>::infinity();

struct assignment {
  std::vector<std::uint8_t> k;
  std::int64_t sum = -1;
};

assignment assign(const batch& input, std::int64_t budget) {
  assignment made;
  made.k.assign(static_cast<std::size_t>(input.tokens) + 1, 99);
  std::vector<std::uint32_t> gains(static_cast<std::size_t>(input.tokens * (input.top_k - 1)) + 1,
                                   0xABCDABCDu);
  const auto result =
      adaptive_k::assign_k_by_budget(input.costs.data(), input.tokens, input.top_k, budget,
                                     input.padding.empty() ? nullptr : input.padding.data(),
                                     gains.data(), made.k.data(), &made.sum);
  EXPECT_TRUE(result.ok()) << result.message();
  EXPECT_EQ(made.k.back(), 99);
  EXPECT_EQ(gains.back(), 0xABCDABCDu);
  made.k.pop_back();
  return made;
}

double cost_of(const batch& input, std::int64_t token, int k) {
  const auto cost = static_cast<double>(input.of(token)[k - 1]);
  return std::isfinite(cost) ? cost : infinity;
}

/// Of all tokens but padding.
double cost_of(const batch& input, const std::vector<std::uint8_t>& k) {
  double sum = 0.0;
  for (std::int64_t t = 0; t < input.tokens; ++t)
    if (!input.is_padding(t)) sum += cost_of(input, t, k[static_cast<std::size_t>(t)]);
  return sum;
}

/// The least summed cost of any k_t by each budget 0..tokens * K0; infinite where none fits.
std::vector<double> least_costs(const batch& input) {
  const auto most = static_cast<std::size_t>(input.tokens * input.top_k);
  std::vector<double> best(most + 1, 0.0);
  for (std::int64_t t = 0; t < input.tokens; ++t) {
    if (input.is_padding(t)) continue;
    std::vector<double> next(most + 1, infinity);
    for (std::size_t b = 0; b <= most; ++b)
      for (int k = 1; k <= input.top_k && static_cast<std::size_t>(k) <= b; ++k)
        next[b] = std::min(next[b], best[b - static_cast<std::size_t>(k)] + cost_of(input, t, k));
    best = std::move(next);
  }
  return best;
}

TEST(k_budget, of_convex_costs_no_assignment_is_better) {
  inputs::sequence from(311);
  int compared = 0;
  for (int round = 0; round < 400; ++round) {
    const curve shape = from.chance(3) ? curve::flat : curve::convex;
    const batch input =
        budgets::make(from, from.between(1, 7), from.between(1, 6), shape, from.chance(3));
    const std::vector<double> least = least_costs(input);
    for (std::size_t b = 0; b < least.size(); ++b) {
      if (least[b] == infinity) continue;
      const assignment made = assign(input, static_cast<std::int64_t>(b));
      ASSERT_LE(made.sum, static_cast<std::int64_t>(b));
      ASSERT_EQ(cost_of(input, made.k), least[b]) << "round " << round << ", budget " << b;
      ++compared;
    }
  }
  EXPECT_GT(compared, 4000);
}

struct edge {
  double gain;
  std::int64_t token;
  int first, last;
};

/// The edges of a token's lower hull that save something, by Andrew's chain.
std::vector<edge> hull_of(const batch& input, std::int64_t token) {
  std::vector<int> corners;
  const auto gain = [&](int a, int b) {
    return (cost_of(input, token, a) - cost_of(input, token, b)) / (b - a);
  };
  for (int k = 1; k <= input.top_k; ++k) {
    if (cost_of(input, token, k) == infinity) continue;
    while (corners.size() > 1 &&
           gain(corners[corners.size() - 2], corners.back()) < gain(corners.back(), k))
      corners.pop_back();
    corners.push_back(k);
  }
  std::vector<edge> edges;
  for (std::size_t i = 1; i < corners.size(); ++i)
    if (gain(corners[i - 1], corners[i]) > 0.0)
      edges.push_back({gain(corners[i - 1], corners[i]), token, corners[i - 1], corners[i]});
  return edges;
}

/// The rule as the documentation says it, one edge after the other.
struct greedy {
  std::vector<std::uint8_t> k;
  std::int64_t sum = 0;
  double next_saving = 0.0;  ///< of the first edge that was not taken, or 0

  greedy(const batch& input, std::int64_t budget) {
    std::vector<edge> edges;
    for (std::int64_t t = 0; t < input.tokens; ++t) {
      int least = 1;
      if (!input.is_padding(t)) {
        while (least < input.top_k && cost_of(input, t, least) == infinity) ++least;
        sum += least;
        const std::vector<edge> own = hull_of(input, t);
        edges.insert(edges.end(), own.begin(), own.end());
      }
      k.push_back(static_cast<std::uint8_t>(least));
    }
    std::stable_sort(edges.begin(), edges.end(),
                     [](const edge& a, const edge& b) { return a.gain > b.gain; });
    for (const edge& each : edges) {
      const int experts = each.last - each.first;
      if (sum + experts > budget) {
        next_saving = each.gain * experts;
        return;
      }
      sum += experts;
      k[static_cast<std::size_t>(each.token)] = static_cast<std::uint8_t>(each.last);
    }
  }
};

TEST(k_budget, of_any_costs_the_distance_to_the_best_is_less_than_a_step) {
  inputs::sequence from(312);
  int compared = 0, worse = 0;
  for (int round = 0; round < 400; ++round) {
    const curve shape = from.chance(2) ? curve::any : curve::forbidding;
    const batch input =
        budgets::make(from, from.between(1, 6), from.between(2, 6), shape, from.chance(3));
    const std::vector<double> least = least_costs(input);
    double before = infinity;
    for (std::size_t b = 0; b < least.size(); ++b) {
      const auto budget = static_cast<std::int64_t>(b);
      const assignment made = assign(input, budget);
      const greedy expected(input, budget);
      ASSERT_EQ(made.k, expected.k) << "round " << round << ", budget " << b;
      ASSERT_EQ(made.sum, expected.sum);
      const double cost = cost_of(input, made.k);
      if (least[b] == infinity || cost == infinity) continue;  // some token may have no k at all
      ASSERT_LE(made.sum, budget);
      ASSERT_GE(cost, least[b]);
      ASSERT_LE(cost, before) << "a larger budget costs no more";
      if (cost != least[b]) {
        ASSERT_LT(cost - least[b], expected.next_saving);
      }
      before = cost;
      worse += cost > least[b] ? 1 : 0;
      ++compared;
    }
    // With room for everything each token has what is best for it.
    ASSERT_EQ(cost_of(input, assign(input, input.tokens * input.top_k).k), least.back());
  }
  EXPECT_GT(compared, 3000);
  EXPECT_GT(worse, 50);  // the claim is tried
  EXPECT_LT(worse, compared / 2);
}

TEST(k_budget, equal_savings_go_to_the_tokens_that_come_first) {
  batch input;
  input.tokens = 3;
  input.top_k = 3;
  input.costs = {4, 2, 1, 4, 2, 1, 4, 2, 1};
  EXPECT_EQ(assign(input, 3).k, (std::vector<std::uint8_t>{1, 1, 1}));
  EXPECT_EQ(assign(input, 4).k, (std::vector<std::uint8_t>{2, 1, 1}));
  EXPECT_EQ(assign(input, 5).k, (std::vector<std::uint8_t>{2, 2, 1}));
  EXPECT_EQ(assign(input, 7).k, (std::vector<std::uint8_t>{3, 2, 2}));
  EXPECT_EQ(assign(input, 8).k, (std::vector<std::uint8_t>{3, 3, 2}));
  EXPECT_EQ(assign(input, 100).k, (std::vector<std::uint8_t>{3, 3, 3}));
  EXPECT_EQ(assign(input, 100).sum, 9);
}

TEST(k_budget, an_edge_is_bought_whole_or_not_at_all) {
  batch input;
  input.tokens = 2;
  input.top_k = 4;
  input.costs = {9, 9, 9, 0, 4, 3, 3, 3};  // 3 an expert from 1 to 4; 1 from 1 to 2
  EXPECT_EQ(assign(input, 4).k, (std::vector<std::uint8_t>{1, 1}));
  EXPECT_EQ(assign(input, 5).k, (std::vector<std::uint8_t>{4, 1}));
  EXPECT_EQ(assign(input, 6).k, (std::vector<std::uint8_t>{4, 2}));
  EXPECT_EQ(assign(input, 8).k, (std::vector<std::uint8_t>{4, 2}));  // the rest saves nothing
}

TEST(k_budget, below_the_least_that_is_allowed_every_token_has_that) {
  const float inf = std::numeric_limits<float>::infinity();
  batch input;
  input.tokens = 3;
  input.top_k = 3;
  input.costs = {inf, 2, 1, 5, 4, 3, inf, inf, inf};
  for (const std::int64_t budget : {0, 1, 5, 6}) {
    const assignment made = assign(input, budget);
    EXPECT_EQ(made.k, (std::vector<std::uint8_t>{2, 1, 3})) << budget;
    EXPECT_EQ(made.sum, 6);
  }
  EXPECT_EQ(assign(input, 7).k, (std::vector<std::uint8_t>{3, 1, 3}));
  input.padding = {0, 0, 1};
  EXPECT_EQ(assign(input, 4).k, (std::vector<std::uint8_t>{3, 1, 1}));
  EXPECT_EQ(assign(input, 4).sum, 4);
}

TEST(k_budget, costs_of_any_size_are_ranked) {
  batch input;
  input.tokens = 3;
  input.top_k = 2;
  input.costs = {3e38f, -3e38f, 1e-44f, 0.0f, 1.0f, 0.0f};
  EXPECT_EQ(assign(input, 4).k, (std::vector<std::uint8_t>{2, 1, 1}));
  EXPECT_EQ(assign(input, 5).k, (std::vector<std::uint8_t>{2, 1, 2}));
  EXPECT_EQ(assign(input, 6).k, (std::vector<std::uint8_t>{2, 2, 2}));
}

TEST(k_budget, refuses_by_name) {
  float costs[2] = {};
  std::uint32_t gains[1];
  std::uint8_t k[1];
  using adaptive_k::assign_k_by_budget;
  const auto text = [](const adaptive_k::status& s) { return std::string(s.message()); };
  EXPECT_EQ(text(assign_k_by_budget(costs, -1, 2, 1, nullptr, gains, k)),
            "num_tokens is -1, expected 0.." + std::to_string(adaptive_k::max_tokens));
  EXPECT_EQ(text(assign_k_by_budget(costs, 1, 33, 1, nullptr, gains, k)),
            "top_k is 33, expected 1..32");
  EXPECT_EQ(text(assign_k_by_budget(costs, 1, 2, -1, nullptr, gains, k)),
            "budget is -1, expected 0 or more");
  EXPECT_EQ(text(assign_k_by_budget(nullptr, 1, 2, 1, nullptr, gains, k)),
            "costs or assigned_k is null");
  EXPECT_EQ(text(assign_k_by_budget(costs, 1, 2, 1, nullptr, nullptr, k)),
            "gains is null, expected room for [num_tokens, 1]");
  EXPECT_TRUE(assign_k_by_budget(costs, 1, 1, 1, nullptr, nullptr, k).ok());
  EXPECT_TRUE(assign_k_by_budget(nullptr, 0, 2, 1, nullptr, nullptr, nullptr).ok());
}

}  // namespace
