// Tokens that do not look like those that a policy was calibrated on are counted, by every path,
// and routed as all others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

const instruction_set every_set[] = {instruction_set::best, instruction_set::scalar,
                                     instruction_set::generic, instruction_set::avx2,
                                     instruction_set::avx512};

/// The middle half of what a batch shows, by the oracle: between two values, so that rounding
/// hardly ever decides.
domain_bounds middle_of(std::vector<double> signals, std::vector<double> shares) {
  std::sort(signals.begin(), signals.end());
  std::sort(shares.begin(), shares.end());
  const auto quarter = signals.size() / 4;
  const auto at_part = [&](const std::vector<double>& of, bool upper) {
    const std::size_t first = upper ? of.size() - 1 - quarter : quarter;
    const std::size_t next = upper ? std::min(first + 1, of.size() - 1) : first - (first != 0);
    const double apart = of[first] != of[next] ? 0.0 : upper ? 1e-3 : -1e-3;
    return static_cast<float>((of[first] + of[next]) / 2.0 + apart);
  };
  return {true, at_part(signals, false), at_part(signals, true),
          std::max(at_part(shares, false), 0.0f), std::min(at_part(shares, true), 1.0f)};
}

TEST(domain, tokens_outside_are_counted_by_every_policy_gating_and_instruction_set) {
  inputs::sequence from(291);
  std::uint64_t outside = 0, tokens_seen = 0, close = 0;
  for (const gating& g : all_gatings()) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    const std::vector<float> bias = grid_bias(from, g.num_experts);
    for (named_policy named : all_policies(from, g, tables)) {
      SCOPED_TRACE(std::string(to_string(g.kind)) + ", " + named.name);
      const std::int64_t tokens = from.pick<std::int64_t>({1, 16, 37, 70});
      const auto input = grid_batch(from, tokens, g.num_experts, 64);
      std::vector<std::uint8_t> padding;
      for (std::int64_t t = 0; t < tokens; ++t) padding.push_back(from.chance(5) ? 1 : 0);
      routing_extras extras;
      if (g.selection_bias) extras.routing_bias = bias.data();
      if (tokens > 1 && from.chance(2)) extras.padding_mask = padding.data();
      std::vector<double> signals, shares;
      std::vector<bool> counts;
      for (std::int64_t t = 0; t < tokens; ++t) {
        oracle::token token;
        token.logits = input.row(t);
        token.bias = extras.routing_bias;
        const oracle::answer answer = oracle::route(g, named.policy, token);
        signals.push_back(answer.signal);
        shares.push_back(answer.shares[0]);
        counts.push_back(extras.padding_mask == nullptr || padding[at(static_cast<int>(t))] == 0);
      }
      const router without(g, named.policy);
      routing_metrics plain;
      const routed_batch expected = without.route(0, input.view(), &plain, extras);
      named.policy.domain = middle_of(signals, shares);
      std::uint64_t least = 0, most = 0;
      const domain_bounds& d = named.policy.domain;
      for (std::size_t t = 0; t < signals.size(); ++t) {
        if (!counts[t]) continue;
        const auto beyond = [&](double margin) {
          return signals[t] < static_cast<double>(d.signal_least) - margin ||
                 signals[t] > static_cast<double>(d.signal_most) + margin ||
                 shares[t] < static_cast<double>(d.first_share_least) - margin ||
                 shares[t] > static_cast<double>(d.first_share_most) + margin;
        };
        least += beyond(3e-6) ? 1 : 0;
        most += beyond(-3e-6) ? 1 : 0;
        ++tokens_seen;
      }
      std::uint64_t first_count = 0;
      for (const instruction_set set : every_set) {
        if (!is_available(set)) continue;
        router_options options;
        options.instructions = set;
        routing_metrics metrics;
        const routed_batch got =
            router(g, named.policy, options).route(0, input.view(), &metrics, extras);
        ASSERT_TRUE(got.result.ok()) << got.result.message();
        ASSERT_GE(metrics.out_of_domain, least) << name_of(set);
        ASSERT_LE(metrics.out_of_domain, most) << name_of(set);
        if (set == instruction_set::best) first_count = metrics.out_of_domain;
        ASSERT_EQ(metrics.out_of_domain, first_count) << name_of(set);
        ASSERT_EQ(got.topk_ids, expected.topk_ids);
        ASSERT_EQ(got.topk_counts, expected.topk_counts);
        ASSERT_EQ(std::memcmp(got.topk_weights.data(), expected.topk_weights.data(),
                              got.topk_weights.size() * sizeof(float)),
                  0);
        metrics.out_of_domain = 0;
        ASSERT_EQ(std::memcmp(&metrics, &plain, sizeof metrics), 0) << name_of(set);
      }
      outside += first_count;
      close += most - least;
    }
  }
  EXPECT_GT(outside, tokens_seen / 3);
  EXPECT_LT(outside, tokens_seen * 9 / 10);
  EXPECT_LE(close, tokens_seen / 20) << "bounds are values of the batch itself";
}

// Four experts at shares 1/2, 1/4, 1/8, 1/8: a bound is within.
TEST(domain, bounds_are_within_and_each_is_looked_at) {
  const float ln2 = 0.693147182f;
  const float logits[] = {0.0f, 2 * ln2, ln2, 0.0f};
  const auto is_outside = [&](domain_bounds domain) {
    k_policy policy = k_policy::top_p(0.7f, 4);  // whose signal is the first share too
    domain.given = true;
    policy.domain = domain;
    routing_metrics metrics;
    EXPECT_TRUE(router(make_gating(gating_kind::softmax, 4, 4), policy)
                    .route(0, logits_view<>{logits, 1, 4}, &metrics)
                    .result.ok());
    EXPECT_EQ(metrics.out_of_domain_share(), static_cast<double>(metrics.out_of_domain));
    return metrics.out_of_domain == 1;
  };
  EXPECT_FALSE(is_outside({true, 0.4f, 0.6f, 0.4f, 0.6f}));
  EXPECT_TRUE(is_outside({true, 0.51f, 0.6f, 0.4f, 0.6f}));
  EXPECT_TRUE(is_outside({true, 0.4f, 0.49f, 0.4f, 0.6f}));
  EXPECT_TRUE(is_outside({true, 0.4f, 0.6f, 0.51f, 0.6f}));
  EXPECT_TRUE(is_outside({true, 0.4f, 0.6f, 0.4f, 0.49f}));
  // Uniform: shares of exactly a quarter.
  const float flat[] = {1.0f, 1.0f, 1.0f, 1.0f};
  k_policy policy = k_policy::top_p(0.7f, 4);
  policy.domain = {true, 0.25f, 0.25f, 0.25f, 0.25f};
  routing_metrics metrics;
  EXPECT_TRUE(router(make_gating(gating_kind::softmax, 4, 4), policy)
                  .route(0, logits_view<>{flat, 1, 4}, &metrics)
                  .result.ok());
  EXPECT_EQ(metrics.out_of_domain, 0u);
}

TEST(domain, counts_add_up) {
  routing_metrics one;
  one.tokens = 10;
  one.out_of_domain = 3;
  routing_metrics sum = one;
  sum += one;
  EXPECT_EQ(sum.out_of_domain, 6u);
  EXPECT_DOUBLE_EQ(sum.out_of_domain_share(), 0.3);
  EXPECT_EQ(routing_metrics().out_of_domain_share(), 0.0);
}

TEST(domain, bounds_that_are_none_are_refused_by_name) {
  const gating g = make_gating(gating_kind::softmax, 8, 4);
  const auto refusal = [&](domain_bounds domain) {
    k_policy policy = k_policy::fixed(2);
    policy.domain = domain;
    return std::string(validate(policy, g).message());
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(refusal({true, nan, 1.0f, 0.0f, 1.0f}),
            "domain.signal_least is nan, expected more than -1e30, below 1e30");
  EXPECT_EQ(refusal({true, 1.0f, 0.5f, 0.0f, 1.0f}),
            "domain.signal_most is 0.5, expected signal_least = 1 or more, below 1e30");
  EXPECT_EQ(refusal({true, 0.0f, nan, 0.0f, 1.0f}),
            "domain.signal_most is nan, expected signal_least = 0 or more, below 1e30");
  EXPECT_EQ(refusal({true, 0.0f, 1.0f, -0.5f, 1.0f}),
            "domain.first_share_least is -0.5, expected 0..1");
  EXPECT_EQ(refusal({true, 0.0f, 1.0f, 0.5f, 0.25f}),
            "domain.first_share_most is 0.25, expected first_share_least = 0.5 to 1");
  EXPECT_EQ(refusal({true, 0.0f, 1.0f, 0.5f, 1.5f}),
            "domain.first_share_most is 1.5, expected first_share_least = 0.5 to 1");
  EXPECT_EQ(refusal({true, 1.0f, 1.0f, 0.5f, 0.5f}), "");
  EXPECT_EQ(refusal({false, nan, nan, nan, nan}), "");
}

}  // namespace
