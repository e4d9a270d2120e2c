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
  EXPECT_EQ(a.signal_sum_high, b.signal_sum_high);
  EXPECT_EQ(a.shadow_expert_calls, b.shadow_expert_calls);
  EXPECT_EQ(a.shadow_full_expert_calls, b.shadow_full_expert_calls);
  EXPECT_EQ(a.super_expert_tokens, b.super_expert_tokens);
  EXPECT_EQ(a.out_of_domain, b.out_of_domain);
  EXPECT_EQ(a.signal_lowest, b.signal_lowest);
  EXPECT_EQ(a.signal_highest, b.signal_highest);
  for (int k = 0; k <= max_top_k; ++k) EXPECT_EQ(a.k_histogram[k], b.k_histogram[k]) << k;
  for (int e = 0; e < max_experts; ++e)
    EXPECT_EQ(a.touched_experts.contains(e), b.touched_experts.contains(e)) << e;
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
      m.touched_experts.add(expert);
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
      ASSERT_TRUE(routed.result.ok());
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
      EXPECT_TRUE(under_test.route(0, part(piece.first, piece.second), &forwards).result.ok());
    for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
      routing_metrics own;
      EXPECT_TRUE(under_test.route(0, part(piece->first, piece->second), &own).result.ok());
      backwards += own;
    }
    expect_same(forwards, backwards);
    EXPECT_TRUE(under_test.route(0, part(0, num_tokens), &once).result.ok());
    EXPECT_EQ(once.calls, 1u);
    EXPECT_GT(forwards.calls, 4u);
    EXPECT_GE(forwards.distinct_experts, once.distinct_experts);
    forwards.calls = once.calls;  // these two count calls; all else is the same
    forwards.distinct_experts = once.distinct_experts;
    expect_same(forwards, once);
  }
}

__extension__ using wide = __int128;

wide sum_of(const routing_metrics& m) {
  return static_cast<wide>(m.signal_sum_high) * (static_cast<wide>(1) << 64) +
         static_cast<wide>(static_cast<std::uint64_t>(m.signal_sum_fixed));
}

routing_metrics with_sum(wide sum) {
  routing_metrics m;
  m.signal_sum_fixed = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum));
  m.signal_sum_high = static_cast<std::int64_t>(sum >> 64);
  return m;
}

/// Years at a million token-layers a second: the sum goes on where one word of it is full.
TEST(Metrics, SumsOfSignalsGoOnPastOneWord) {
  inputs::sequence from(305);
  const wide word = static_cast<wide>(1) << 64;
  const wide starts[] = {0,        5,    -5,    word / 2 - 5,  word / 2,
                         word - 5, word, -word, -word / 2 - 5, 7 * word - 3};
  // Entropies of one token and of many, by the usual call's code and by the general one; margins
  // below zero, where a bias chooses other experts than the scores would.
  gating biased = make_gating(gating_kind::sigmoid, 16, 4);
  biased.selection_bias = true;
  k_policy margin = k_policy::fixed(2);
  margin.signal = signal_kind::margin;
  std::vector<float> bias(16, 0.0f);
  std::vector<float> odd_ones(16 * 40);
  for (std::size_t i = 0; i < odd_ones.size(); ++i) odd_ones[i] = i % 16 == 3 ? 0.5f : 2.0f;
  bias[3] = 1.0f;  // expert 3 comes first, with the lowest score
  routing_extras extras;
  extras.routing_bias = bias.data();
  const auto usual = grid_batch(from, 40, 16);
  bool some_negative = false;
  for (const std::int64_t tokens : {1, 40}) {
    const auto count = [&](routing_metrics& metrics, bool by_margin) {
      const float* logits = by_margin ? odd_ones.data() : usual.logits.data();
      const logits_view<float> view = {logits, tokens, 16};
      std::vector<std::int32_t> ids(160);
      std::vector<float> weights(160);
      const routing_output<> output = {ids.data(), weights.data()};
      const status result = by_margin
                                ? router(biased, margin).route(0, view, output, &metrics, extras)
                                : router(make_gating(gating_kind::softmax, 16, 4), k_policy::full())
                                      .route(0, view, output, &metrics);
      ASSERT_TRUE(result.ok()) << result.message();
    };
    for (const bool by_margin : {false, true}) {
      routing_metrics one;
      count(one, by_margin);
      const wide added = sum_of(one);
      EXPECT_NE(added, 0);
      some_negative = some_negative || added < 0;
      for (const wide start : starts) {
        routing_metrics metrics = with_sum(start);
        count(metrics, by_margin);
        EXPECT_TRUE(sum_of(metrics) == start + added);
        routing_metrics added_up = with_sum(start);
        added_up += one;
        EXPECT_TRUE(sum_of(added_up) == start + added);
        routing_metrics parts[] = {one, with_sum(3), one};
        routing_metrics of_parts = with_sum(start);
        add_parts_of_call(parts, 3, &of_parts);
        EXPECT_TRUE(sum_of(of_parts) == start + added + 3 + added);
      }
    }
  }
  EXPECT_TRUE(some_negative);
  for (const wide start : starts)
    EXPECT_DOUBLE_EQ(with_sum(start).signal_sum(), static_cast<double>(start) / 16777216.0);
}

TEST(Metrics, WordsAddAsOneNumber) {
  inputs::sequence from(306);
  for (int i = 0; i < 100000; ++i) {
    const auto random_wide = [&] {
      wide value = 0;
      for (int part = 0; part < 4; ++part)
        value = value << 31 | static_cast<wide>(from.below(0x7FFFFFFF));
      return value >> from.below(120);
    };
    const wide a = from.chance(2) ? random_wide() : -random_wide();
    const wide b = from.chance(2) ? random_wide() : -random_wide();
    routing_metrics sum = with_sum(a);
    sum += with_sum(b);
    ASSERT_TRUE(sum_of(sum) == a + b);
    const auto one_word = static_cast<std::int64_t>(b);
    routing_metrics small = with_sum(a);
    detail::add_wide(small.signal_sum_fixed, small.signal_sum_high, one_word);
    ASSERT_TRUE(sum_of(small) == a + one_word);
  }
}

TEST(Metrics, NothingAddsNothing) {
  inputs::sequence from(303);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const router under_test(g, k_policy::full());
  routing_metrics metrics, before;
  EXPECT_TRUE(under_test.route(0, grid_batch(from, 9, 8).view(), &metrics).result.ok());
  before = metrics;
  metrics += routing_metrics{};
  expect_same(metrics, before);
  routing_metrics sum;
  sum += metrics;
  expect_same(sum, before);
}

TEST(Metrics, PartsWithoutATokenAreNoCall) {
  routing_metrics parts[2] = {}, total;
  parts[1].padding_tokens = 3;
  add_parts_of_call(parts, 2, &total);
  EXPECT_EQ(total.calls, 0u);
  EXPECT_EQ(total.padding_tokens, 3u);
}

TEST(Metrics, OfASingleTokenAreWhatItsOutputsSay) {
  inputs::sequence from(311);
  const gating g = make_gating(gating_kind::softmax, 60, 6);
  const router router(g, k_policy::top_p(0.6f, 6));
  bool fewer = false;
  for (int i = 0; i < 30; ++i) {
    const auto input = grid_batch(from, 1, 60);
    routing_metrics metrics;
    const routed_batch routed =
        router.route(0, logits_view<float>{input.logits.data(), 1, 60}, &metrics);
    ASSERT_TRUE(routed.result.ok()) << routed.result.message();
    routing_metrics expected = recount(input, routed, nullptr);
    expected.signal_sum_fixed = detail::signal_to_fixed(routed.signal[0]);
    expect_same(metrics, expected);
    fewer = fewer || metrics.expert_calls < 6;
  }
  EXPECT_TRUE(fewer);
}

TEST(Metrics, SavingsAreAgainstTheModelsOwnTopK) {
  inputs::sequence from(304);
  const gating g = make_gating(gating_kind::softmax, 64, 8);
  const auto input = grid_batch(from, 100, 64);
  for (int k = 1; k <= 8; ++k) {
    routing_metrics metrics;
    EXPECT_TRUE(router(g, k_policy::fixed(k)).route(0, input.view(), &metrics).result.ok());
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
  const auto three = under_test.route(0, logits_view<float>{logits.data(), 3, 130}, &metrics);
  EXPECT_EQ(metrics.distinct_experts, 2u);
  const auto one = under_test.route(0, logits_view<float>{logits.data(), 1, 130}, &metrics);
  EXPECT_EQ(metrics.distinct_experts, 3u);
  EXPECT_DOUBLE_EQ(metrics.mean_distinct_experts(), 1.5);
  EXPECT_EQ(metrics.touched_experts.size(), 2);
  EXPECT_TRUE(metrics.touched_experts.contains(64) && metrics.touched_experts.contains(129));
  EXPECT_EQ(three.expert_counts[129] + one.expert_counts[129], 3u);
  EXPECT_EQ(three.expert_counts[64] + one.expert_counts[64], 1u);
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
  EXPECT_TRUE(router(g, k_policy::full())
                  .route(0, logits_view<float>{logits.data(), 2, 8}, &metrics, extras)
                  .result.ok());
  EXPECT_EQ(metrics.padding_tokens, 2u);
  metrics.padding_tokens = 0;
  expect_same(metrics, nothing);
}

}  // namespace
