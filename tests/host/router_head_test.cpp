// Distortion predicted with a router head: its columns, where they lie, and what they decide.
#include <cstring>
#include <limits>

#include "checked_batch.hpp"
#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// A policy with a head. Routing looks whether there is one, and reads none of its numbers.
k_policy head_policy(const inputs::distortion_tables& tables) {
  distortion_ref model;
  model.coefficients = tables.head_coefficients.data();
  model.sensitivity = 1.75f;
  model.lambda = 0.03125f;
  model.head = tables.head_coefficients.data();
  model.hidden_size = 1;
  return k_policy::min_distortion(model);
}

std::string name_of(const gating& g) {
  return std::string(to_string(g.kind)) + ", E " + std::to_string(g.num_experts) + ", K0 " +
         std::to_string(g.top_k);
}

/// Logits with a head: columns behind them in one matrix, or in a matrix of their own.
template <class Logit>
struct head_batch {
  batch<Logit> logits;
  int top_k = 0;
  bool appended = false;
  std::int64_t stride = 0;
  std::vector<Logit> own;  ///< [T, stride] where not appended

  head_batch(inputs::sequence& from, std::int64_t num_tokens, int num_experts, int of_top_k)
      : top_k(of_top_k), appended(from.chance(2)) {
    const int columns = top_k - 1;
    const int gap = from.chance(2) ? from.between(1, 5) : 0;
    logits = grid_batch<Logit>(from, num_tokens, num_experts, 96, appended ? columns + gap : gap);
    stride = appended ? logits.stride() : columns + (from.chance(2) ? from.between(1, 5) : 0);
    if (!appended) own.assign(at(static_cast<int>(num_tokens * stride)), from_float<Logit>(nan));
    for (std::int64_t t = 0; t < num_tokens; ++t)
      for (int j = 0; j < columns; ++j)
        column(t, j) = from_float<Logit>(inputs::grid_logit(from, 48));
  }

  Logit& column(std::int64_t t, int j) {
    if (appended)
      return logits.logits[static_cast<std::size_t>(t * stride + logits.num_experts + j)];
    return own[static_cast<std::size_t>(t * stride + j)];
  }
  logits_view<Logit> view() const {
    logits_view<Logit> made = logits.view();
    made.head = appended ? made.data + made.num_experts : own.data();
    made.head_stride = !appended && stride == top_k - 1 ? 0 : stride;
    return made;
  }
  std::vector<double> columns(std::int64_t t) {
    std::vector<double> numbers;
    for (int j = 0; j < top_k - 1; ++j) numbers.push_back(inputs::number(column(t, j)));
    return numbers;
  }
};

struct outputs {
  std::vector<std::int32_t> ids, counts;
  std::vector<float> weights, signal;
  routing_metrics metrics;

  template <class Logit>
  outputs(const router& by, const head_batch<Logit>& input, const routing_extras& extras = {}) {
    const auto tokens = static_cast<std::size_t>(input.logits.num_tokens);
    ids.assign(tokens * at(input.top_k), 77);
    weights.assign(ids.size(), 7.0f);
    counts.assign(tokens, 77);
    signal.assign(tokens, 7.0f);
    const status result = by.route(
        0, input.view(), routing_output<>{ids.data(), weights.data(), counts.data(), signal.data()},
        &metrics, extras);
    EXPECT_TRUE(result.ok()) << result.message();
  }
  bool operator==(const outputs& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
    };
    return same(ids, other.ids) && same(counts, other.counts) && same(weights, other.weights) &&
           same(signal, other.signal) && std::memcmp(&metrics, &other.metrics, sizeof metrics) == 0;
  }
};

template <class Logit>
void expect_the_oracles_answers(std::uint64_t seed, tally& seen) {
  inputs::sequence from(seed);
  std::list<gating> gatings = all_gatings();
  for (const auto& [num_experts, top_k] : std::vector<std::pair<int, int>>{
           {2, 2}, {8, 2}, {16, 3}, {60, 4}, {33, 5}, {128, 8}, {256, 16}, {300, 17}, {1024, 32}})
    gatings.push_back(make_gating(gating_kind::softmax, num_experts, top_k, from.chance(2)));
  for (const gating& g : gatings) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    const std::vector<float> bias = grid_bias(from, g.num_experts);
    for (const std::int64_t num_tokens : {1, 3, 40}) {
      SCOPED_TRACE(name_of(g) + ", T " + std::to_string(num_tokens));
      head_batch<Logit> input(from, num_tokens, g.num_experts, g.top_k);
      k_policy policy = head_policy(tables);
      policy.mass_exponent = mass_exponent_number(from.below(6));
      policy.signal = static_cast<signal_kind>(from.below(num_values(signal_kind{})));
      routing_extras extras;
      if (g.selection_bias) extras.routing_bias = bias.data();
      std::vector<std::uint8_t> k_min(at(static_cast<int>(num_tokens))), k_max = k_min;
      for (std::size_t t = 0; t < k_min.size(); ++t) {
        k_min[t] = static_cast<std::uint8_t>(from.between(1, g.top_k));
        k_max[t] = static_cast<std::uint8_t>(from.between(k_min[t], g.top_k));
      }
      if (from.chance(3)) extras.k_min = k_min.data(), extras.k_max = k_max.data();
      const outputs got(router(g, policy), input, extras);
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        oracle::token token;
        token.logits = input.logits.row(t);
        token.bias = extras.routing_bias;
        token.head = input.columns(t);
        token.k_min = extras.k_min != nullptr ? extras.k_min[t] : 0;
        token.k_max = extras.k_max != nullptr ? extras.k_max[t] : 0;
        const auto index = static_cast<std::size_t>(t);
        compare<std::int32_t>(g, fill_id::minus_one, oracle::route(g, policy, token),
                              &got.ids[index * at(g.top_k)], &got.weights[index * at(g.top_k)],
                              got.counts[index], got.signal[index], seen);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(RouterHead, DecidesAsTheOracleDoes) {
  tally seen;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    expect_the_oracles_answers<float>(seed, seen);
    expect_the_oracles_answers<float16>(seed + 100, seen);
    expect_the_oracles_answers<bfloat16>(seed + 200, seen);
  }
  EXPECT_LT(seen.close_k, seen.tokens / 100);
  EXPECT_LT(seen.close_rank, seen.tokens / 20);
  for (int k = 1; k <= 8; ++k) EXPECT_GT(seen.by_k[k], 50) << k;
}

template <class Logit>
void expect_the_same_bits(std::uint64_t seed) {
  inputs::sequence from(seed);
  int sets = 0;
  for (const instruction_set set :
       {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
    if (!is_available(set)) continue;
    ++sets;
    for (const gating& g : all_gatings())
      for (const std::int64_t num_tokens : {1, 7, 16, 37}) {
        SCOPED_TRACE(name_of(g) + ", T " + std::to_string(num_tokens));
        const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
        const std::vector<float> bias = grid_bias(from, g.num_experts);
        head_batch<Logit> input(from, num_tokens, g.num_experts, g.top_k);
        for (std::int64_t t = 0; t < num_tokens; ++t)
          if (from.chance(5))
            input.column(t, from.below(g.top_k - 1)) =
                from_float<Logit>(from.chance(2)   ? nan
                                  : from.chance(2) ? math::infinity
                                                   : -3e38f);
        const k_policy policy = head_policy(tables);
        routing_extras extras;
        if (g.selection_bias) extras.routing_bias = bias.data();
        const outputs expected(router(g, policy, {fill_id::minus_one, instruction_set::scalar}),
                               input, extras);
        const outputs got(router(g, policy, {fill_id::minus_one, set}), input, extras);
        ASSERT_TRUE(expected == got) << name_of(set);
      }
  }
  EXPECT_GE(sets, 1);
}

TEST(RouterHead, EveryInstructionSetGivesTheSameBits) {
  expect_the_same_bits<float>(11);
  expect_the_same_bits<float16>(12);
  expect_the_same_bits<bfloat16>(13);
}

TEST(RouterHead, AColumnThatIsNotFiniteKeepsTheMostExperts) {
  inputs::sequence from(21);
  const gating g = make_gating(gating_kind::softmax, 64, 6);
  const inputs::distortion_tables tables(from, 64, 6);
  k_policy policy = head_policy(tables);
  policy.k_max = 5;
  for (const float odd : {nan, math::infinity, -math::infinity}) {
    head_batch<float> input(from, 40, 64, 6);
    const outputs before(router(g, policy), input);
    EXPECT_EQ(before.metrics.nonfinite_rows, 0u);
    for (int t = 0; t < 40; t += 2) input.column(t, t / 2 % 5) = odd;
    const outputs after(router(g, policy), input);
    EXPECT_EQ(after.metrics.nonfinite_rows, 20u);
    for (std::size_t t = 0; t < 40; ++t)
      EXPECT_EQ(after.counts[t], t % 2 == 0 ? 5 : before.counts[t]) << t;
  }
}

TEST(RouterHead, IsReadByThePoliciesThatHaveOne) {
  inputs::sequence from(31);
  const gating g = make_gating(gating_kind::softmax, 32, 4);
  const inputs::distortion_tables tables(from, 32, 4);
  head_batch<float> input(from, 40, 32, 4);
  for (int t = 0; t < 40; ++t) input.column(t, 1) = nan;
  EXPECT_TRUE(router(g, head_policy(tables)).reads_head(0));
  for (const named_policy& named : all_policies(from, g, tables)) {
    EXPECT_FALSE(router(g, named.policy).reads_head(0)) << named.name;
    const outputs with(router(g, named.policy), input);
    head_batch<float> other = input;
    for (int t = 0; t < 40; ++t) other.column(t, 1) = 0.5f;
    EXPECT_TRUE(with == outputs(router(g, named.policy), other)) << named.name;
    EXPECT_EQ(with.metrics.nonfinite_rows, 0u) << named.name;
  }
  // In shadow mode it is read for what would have been chosen.
  const outputs own(router(g, head_policy(tables)), head_batch<float>(from, 40, 32, 4));
  head_batch<float> again(from, 40, 32, 4);
  std::vector<std::int32_t> chosen(40), ids(160), counts(40);
  std::vector<float> weights(160);
  routing_output<> shadow = {ids.data(), weights.data(), counts.data()};
  shadow.chosen_counts = chosen.data();
  const router by(g, head_policy(tables));
  ASSERT_TRUE(by.route(0, again.view(), shadow).ok());
  EXPECT_EQ(counts, std::vector<std::int32_t>(40, 4));
  EXPECT_EQ(chosen, outputs(by, again).counts);
  EXPECT_NE(own.counts, std::vector<std::int32_t>(40, 4));
}

TEST(RouterHead, OneExpertNeedsNoColumns) {
  inputs::sequence from(41);
  const gating g = make_gating(gating_kind::softmax, 16, 1);
  const inputs::distortion_tables tables(from, 16, 2);
  const batch<float> input = grid_batch(from, 33, 16);
  const routed_batch routed = router(g, head_policy(tables)).route(0, input.view());
  ASSERT_TRUE(routed.result.ok()) << routed.result.message();
  EXPECT_EQ(routed.topk_counts, std::vector<std::int32_t>(33, 1));
}

TEST(RouterHead, IsRefusedByName) {
  inputs::sequence from(51);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const inputs::distortion_tables tables(from, 16, 4);
  const batch<float> input = grid_batch(from, 3, 16);
  const auto refusal = [&](auto spoil) {
    k_policy policy = head_policy(tables);
    logits_view<float> view = input.view();
    view.head = tables.coefficients.data();
    spoil(policy.distortion, view);
    const routed_batch routed = router(g, policy).route(0, view);
    EXPECT_FALSE(routed.result.ok());
    return std::string(routed.result.field()) + ": " + routed.result.message();
  };
  EXPECT_EQ(
      refusal([](auto&, auto& view) { view.head = nullptr; }),
      "logits.head: logits.head is null, but the policy of layer 0 has a router head, expected "
      "[num_tokens, 3]");
  EXPECT_EQ(refusal([](auto&, auto& view) { view.head_stride = 2; }),
            "head_stride: logits have head_stride = 2, expected 0 or at least top_k - 1 = 3");
  EXPECT_EQ(refusal([](auto& model, auto&) { model.hidden_size = 0; }),
            "distortion.hidden_size: distortion.hidden_size is 0, expected 1 or more with a head");
  EXPECT_EQ(refusal([&](auto& model, auto&) { model.next_expert = tables.next_expert.data(); }),
            "distortion.next_expert: distortion.next_expert is given beside distortion.head, "
            "expected one of them");
  std::vector<float> five = tables.head_coefficients;
  five[7] = 0.25f;
  EXPECT_EQ(
      refusal([&](auto& model, auto&) { model.coefficients = five.data(); }),
      "distortion.coefficients[1, 2]: distortion.coefficients[1, 2] is 0.25, expected 0 with a "
      "head");
}

}  // namespace
