// Metrics: every counter recounted from the outputs, and that they add up in any order.
#include <set>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

void expect_same(const routing_metrics& a, const routing_metrics& b) {
  EXPECT_EQ(a.calls, b.calls);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.padding_tokens, b.padding_tokens);
  EXPECT_EQ(a.expert_calls, b.expert_calls);
  EXPECT_EQ(a.full_expert_calls, b.full_expert_calls);
  EXPECT_EQ(a.nonfinite_rows, b.nonfinite_rows);
  EXPECT_EQ(a.distinct_experts, b.distinct_experts);
  EXPECT_EQ(a.signal_sum_fixed, b.signal_sum_fixed);
  EXPECT_EQ(a.signal_lowest, b.signal_lowest);
  EXPECT_EQ(a.signal_highest, b.signal_highest);
  for (int k = 0; k <= max_top_k; ++k) EXPECT_EQ(a.k_histogram[k], b.k_histogram[k]) << k;
  for (int e = 0; e < max_experts; ++e) EXPECT_EQ(a.expert_counts[e], b.expert_counts[e]) << e;
}

/// The metrics of one call, from what it wrote.
routing_metrics recount(const batch<float>& input, const routed_batch& routed,
                        const std::uint8_t* padding) {
  routing_metrics m;
  std::set<int> touched;
  for (std::int64_t t = 0; t < routed.num_tokens; ++t) {
    const auto index = static_cast<std::size_t>(t);
    if (padding != nullptr && padding[t] != 0) {
      m.padding_tokens += 1;
      continue;
    }
    const int count = routed.topk_counts[index];
    for (int j = 0; j < count; ++j) {
      const int expert = routed.topk_ids[index * at(routed.top_k) + at(j)];
      m.expert_counts[expert] += 1;
      touched.insert(expert);
    }
    bool nonfinite = false;
    for (double x : input.row(t)) nonfinite = nonfinite || !std::isfinite(x);
    const float signal = routed.signal[index];
    m.signal_lowest = m.tokens == 0 ? signal : std::min(m.signal_lowest, signal);
    m.signal_highest = m.tokens == 0 ? signal : std::max(m.signal_highest, signal);
    m.tokens += 1;
    m.expert_calls += static_cast<std::uint64_t>(count);
    m.full_expert_calls += static_cast<std::uint64_t>(routed.top_k);
    m.nonfinite_rows += nonfinite ? 1 : 0;
    m.k_histogram[count] += 1;
  }
  m.calls = m.tokens != 0 ? 1 : 0;
  m.distinct_experts = touched.size();
  return m;
}

TEST(Metrics, AreWhatTheOutputsSay) {
  inputs::sequence from(301);
  for (int num_experts : {1, 8, 60, 65, 1000, 1024}) {
    const int top_k = std::min(num_experts, 6);
    const gating g = make_gating(gating_kind::softmax, num_experts, top_k);
    const inputs::distortion_tables tables(from, num_experts, top_k);
    for (const named_policy& named : all_policies(from, g, tables)) {
      SCOPED_TRACE("E " + std::to_string(num_experts) + ", " + named.name);
      auto input = grid_batch(from, 70, num_experts);
      for (int i = 0; i < 9; ++i)
        input.logits[at(from.below(70 * num_experts))] = static_cast<float>(
            from.chance(2) ? oracle::infinity : std::numeric_limits<double>::quiet_NaN());
      std::vector<std::uint8_t> padding(70);
      for (auto& flag : padding) flag = from.chance(4) ? 1 : 0;
      routing_extras extras;
      extras.padding_mask = padding.data();
      routing_metrics metrics;
      const routed_batch routed = router(g, named.policy).route(0, input.view(), &metrics, extras);
      ASSERT_TRUE(routed.result);
      routing_metrics expected = recount(input, routed, padding.data());
      // The sum: each signal to within one step of 2^-24.
      double sum = 0.0;
      for (float signal : routed.signal) sum += static_cast<double>(signal) * 16777216.0;
      EXPECT_NEAR(static_cast<double>(metrics.signal_sum_fixed), sum, 70.0);
      EXPECT_NEAR(metrics.mean_signal(), sum / 16777216.0 / static_cast<double>(metrics.tokens),
                  1e-7);
      expected.signal_sum_fixed = metrics.signal_sum_fixed;
      expect_same(metrics, expected);
      EXPECT_GT(metrics.nonfinite_rows, 0u);
      EXPECT_GT(metrics.padding_tokens, 0u);
    }
  }
}

TEST(Metrics, AddUpOverAnySplitAndOrder) {
  inputs::sequence from(302);
  const int num_experts = 64, num_tokens = 200;
  const gating g = make_gating(gating_kind::softmax, num_experts, 8);
  const auto input = grid_batch(from, num_tokens, num_experts, 160);
  for (signal_kind kind : {signal_kind::softmax_entropy, signal_kind::margin}) {
    k_policy policy = k_policy::top_p(0.7f, 8);
    policy.signal = kind;
    policy.rule = k_rule::fixed;
    policy.num_k_values = 1;
    policy.k_values[0] = 3;
    const router under_test(g, policy);
    const auto part = [&](int first, int count) {
      return logits_view<float>{input.logits.data() + first * num_experts, count, num_experts};
    };
    // The same pieces, forwards into one struct and backwards into structs of their own.
    std::vector<std::pair<int, int>> pieces;
    for (int first = 0; first < num_tokens;) {
      const int count = std::min(from.between(0, 40), num_tokens - first);
      pieces.emplace_back(first, count);
      first += count;
    }
    routing_metrics forwards, backwards, once;
    for (const auto& piece : pieces)
      under_test.route(0, part(piece.first, piece.second), &forwards);
    for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
      routing_metrics own;
      under_test.route(0, part(piece->first, piece->second), &own);
      backwards += own;
    }
    expect_same(forwards, backwards);
    under_test.route(0, part(0, num_tokens), &once);
    EXPECT_EQ(once.calls, 1u);
    EXPECT_GT(forwards.calls, 4u);
    EXPECT_GE(forwards.distinct_experts, once.distinct_experts);
    forwards.calls = once.calls;  // these two count calls; all else is the same
    forwards.distinct_experts = once.distinct_experts;
    expect_same(forwards, once);
  }
}

TEST(Metrics, NothingAddsNothing) {
  inputs::sequence from(303);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const router under_test(g, k_policy::full());
  routing_metrics metrics, before;
  under_test.route(0, grid_batch(from, 9, 8).view(), &metrics);
  before = metrics;
  metrics += routing_metrics{};
  expect_same(metrics, before);
  routing_metrics sum;
  sum += metrics;
  expect_same(sum, before);
}

TEST(Metrics, SavingsAreAgainstTheModelsOwnTopK) {
  inputs::sequence from(304);
  const gating g = make_gating(gating_kind::softmax, 64, 8);
  const auto input = grid_batch(from, 100, 64);
  for (int k = 1; k <= 8; ++k) {
    routing_metrics metrics;
    router(g, k_policy::fixed(k)).route(0, input.view(), &metrics);
    EXPECT_DOUBLE_EQ(metrics.expert_savings(), 1.0 - k / 8.0);
    EXPECT_DOUBLE_EQ(metrics.mean_k(), k);
    EXPECT_EQ(metrics.full_expert_calls, 800u);
    const expert_sizes sizes = {2048, 1024, 3, 2.0};
    EXPECT_DOUBLE_EQ(sizes.expert_bytes(), 2048.0 * 1024.0 * 3.0 * 2.0);
    EXPECT_DOUBLE_EQ(sizes.flops_per_expert_call(), 2.0 * 2048.0 * 1024.0 * 3.0);
    EXPECT_DOUBLE_EQ(metrics.flops_saved(sizes), (8 - k) * 100 * 2.0 * 2048 * 1024 * 3);
    EXPECT_DOUBLE_EQ(metrics.expert_bytes_read(sizes),
                     static_cast<double>(metrics.distinct_experts) * sizes.expert_bytes());
  }
}

TEST(Metrics, DistinctExpertsAreCountedPerCall) {
  const gating g = make_gating(gating_kind::softmax, 130, 1);
  const router under_test(g, k_policy::full());
  std::vector<float> logits(3 * 130, 0.0f);
  logits[0 * 130 + 129] = logits[1 * 130 + 129] = logits[2 * 130 + 64] = 1.0f;
  routing_metrics metrics;
  under_test.route(0, logits_view<float>{logits.data(), 3, 130}, &metrics);
  EXPECT_EQ(metrics.distinct_experts, 2u);
  under_test.route(0, logits_view<float>{logits.data(), 1, 130}, &metrics);
  EXPECT_EQ(metrics.distinct_experts, 3u);
  EXPECT_DOUBLE_EQ(metrics.mean_distinct_experts(), 1.5);
  EXPECT_EQ(metrics.expert_counts[129], 3u);
  EXPECT_EQ(metrics.expert_counts[64], 1u);
}

TEST(Metrics, OfNothingAreZero) {
  const routing_metrics nothing;
  EXPECT_EQ(nothing.expert_savings(), 0.0);
  EXPECT_EQ(nothing.mean_k(), 0.0);
  EXPECT_EQ(nothing.mean_signal(), 0.0);
  EXPECT_EQ(nothing.mean_distinct_experts(), 0.0);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const std::vector<float> logits(16, 0.5f);
  const std::vector<std::uint8_t> all_padding = {1, 1};
  routing_extras extras;
  extras.padding_mask = all_padding.data();
  routing_metrics metrics;
  router(g, k_policy::full()).route(0, logits_view<float>{logits.data(), 2, 8}, &metrics, extras);
  EXPECT_EQ(metrics.padding_tokens, 2u);
  metrics.padding_tokens = 0;
  expect_same(metrics, nothing);
}

}  // namespace
