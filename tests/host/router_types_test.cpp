// Storage types, fills, strides, optional outputs, and what full K must reproduce.
#include <type_traits>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

template <class Logit>
class LogitTypes : public ::testing::Test {};
using logit_types = ::testing::Types<float, float16, bfloat16>;
TYPED_TEST_SUITE(LogitTypes, logit_types);

TYPED_TEST(LogitTypes, MatchTheOracle) {
  inputs::sequence from(101);
  tally seen;
  for (int num_experts : {2, 8, 60, 64, 255}) {
    const int top_k = std::min(8, num_experts);
    const gating g = make_gating(gating_kind::softmax, num_experts, top_k);
    const inputs::distortion_tables tables(from, num_experts, top_k);
    for (const named_policy& named : all_policies(from, g, tables)) {
      SCOPED_TRACE("E " + std::to_string(num_experts) + ", policy " + named.name);
      route_and_compare<std::int32_t>(
          g, named.policy, grid_batch<TypeParam>(from, 20, num_experts, 96, 5), {}, seen);
      if (this->HasFailure()) return;
    }
  }
  EXPECT_GT(seen.tokens, 1000);
  EXPECT_LE(seen.close_rank + seen.close_k, 3);
}

template <class Id>
class IdTypes : public ::testing::Test {};
using id_types = ::testing::Types<std::int32_t, std::int64_t, std::int16_t, std::uint16_t>;
TYPED_TEST_SUITE(IdTypes, id_types);

TYPED_TEST(IdTypes, EveryFillMatchesTheOracle) {
  inputs::sequence from(102);
  tally seen;
  for (fill_id fill : {fill_id::minus_one, fill_id::num_experts, fill_id::first_expert})
    for (int num_experts : {8, 100, 1024}) {
      const gating g = make_gating(gating_kind::softmax, num_experts, 6);
      SCOPED_TRACE("fill " + std::to_string(static_cast<int>(fill)) + ", E " +
                   std::to_string(num_experts));
      route_and_compare<TypeParam>(g, k_policy::top_p(0.6123f, 6),
                                   grid_batch(from, 40, num_experts, 200), {}, seen, fill);
      route_and_compare<TypeParam>(g, k_policy::fixed(1), grid_batch(from, 5, num_experts), {},
                                   seen, fill);
    }
  EXPECT_EQ(seen.tokens, 3 * 3 * 45);
  EXPECT_LE(seen.close_k, 2);
  EXPECT_GT(seen.by_k[1], 45);
  EXPECT_GT(seen.by_k[2], 0);
  EXPECT_GT(seen.by_k[4], 0);
}

template <class Weight>
class WeightTypes : public ::testing::Test {};
using narrow_types = ::testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(WeightTypes, narrow_types);

/// Whether no other 16-bit pattern is nearer, and the even one wins a tie.
template <class Weight>
bool is_nearest(Weight stored, double exact) {
  const double error = std::abs(inputs::number(stored) - exact);
  for (int step : {-1, 1}) {
    const Weight other = {static_cast<std::uint16_t>(stored.bits + step)};
    const double other_error = std::abs(inputs::number(other) - exact);
    if (other_error < error || (other_error == error && (stored.bits & 1u) != 0)) return false;
  }
  return true;
}

TYPED_TEST(WeightTypes, AreTheFloatWeightsRoundedOnce) {
  inputs::sequence from(103);
  const int num_experts = 60, top_k = 6, num_tokens = 200;
  const auto input = grid_batch(from, num_tokens, num_experts, 200);
  for (bool renormalize : {true, false}) {
    const gating g = make_gating(gating_kind::softmax, num_experts, top_k, renormalize);
    k_policy policy = k_policy::top_p(0.8123f, top_k);
    policy.mass_exponent = 0.5f;
    const router under_test(g, policy);
    const routed_batch wide = under_test.route(0, input.view());
    std::vector<std::int64_t> ids(num_tokens * top_k);
    std::vector<TypeParam> weights(num_tokens * top_k, TypeParam{0x7777});
    const routing_output<std::int64_t, TypeParam> output = {ids.data(), weights.data()};
    ASSERT_TRUE(under_test.route(0, input.view(), output).ok());
    int positive = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      ASSERT_EQ(ids[i], wide.topk_ids[i]);
      const double exact = static_cast<double>(wide.topk_weights[i]);
      if (exact > 0.0) {
        ASSERT_TRUE(is_nearest(weights[i], exact)) << weights[i].bits << " for " << exact;
        ++positive;
      } else {
        ASSERT_EQ(weights[i].bits, 0);
      }
    }
    EXPECT_GT(positive, num_tokens);
  }
}

TEST(RouterOutput, RowStrideSkipsTheGap) {
  inputs::sequence from(104);
  const gating g = make_gating(gating_kind::softmax, 33, 4);
  const auto gapped = grid_batch(from, 50, 33, 96, 7);  // the gaps hold NaN
  batch<float> dense;
  dense.num_tokens = 50;
  dense.num_experts = 33;
  for (int t = 0; t < 50; ++t)
    dense.logits.insert(dense.logits.end(), gapped.logits.begin() + t * 40,
                        gapped.logits.begin() + t * 40 + 33);
  const router under_test(g, k_policy::top_p(0.7f, 4));
  routing_metrics metrics;
  const routed_batch a = under_test.route(0, gapped.view(), &metrics);
  const routed_batch b = under_test.route(0, dense.view());
  EXPECT_EQ(a.topk_ids, b.topk_ids);
  EXPECT_EQ(a.topk_weights, b.topk_weights);
  EXPECT_EQ(a.topk_counts, b.topk_counts);
  EXPECT_EQ(a.signal, b.signal);
  EXPECT_EQ(metrics.nonfinite_rows, 0u);
  auto explicit_stride = dense.view();
  explicit_stride.row_stride = 33;
  EXPECT_EQ(under_test.route(0, explicit_stride).topk_ids, b.topk_ids);
}

TEST(RouterOutput, CountsAndSignalAreOptional) {
  inputs::sequence from(105);
  const gating g = make_gating(gating_kind::sigmoid, 16, 4);
  const auto input = grid_batch(from, 9, 16);
  const router under_test(g, k_policy::top_p(0.7f, 4));
  const routed_batch all = under_test.route(0, input.view());
  std::vector<std::int32_t> ids(36), counts(9);
  std::vector<float> weights(36), signal(9);
  ASSERT_TRUE(under_test.route(0, input.view(), routing_output<>{ids.data(), weights.data()}).ok());
  EXPECT_EQ(ids, all.topk_ids);
  EXPECT_EQ(weights, all.topk_weights);
  ASSERT_TRUE(under_test
                  .route(0, input.view(),
                         routing_output<>{ids.data(), weights.data(), nullptr, signal.data()})
                  .ok());
  EXPECT_EQ(signal, all.signal);
  ASSERT_TRUE(under_test
                  .route(0, input.view(),
                         routing_output<>{ids.data(), weights.data(), counts.data(), nullptr})
                  .ok());
  EXPECT_EQ(counts, all.topk_counts);
}

TEST(RouterOutput, NoTokensNeedNoBuffers) {
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const router under_test(g, k_policy::full());
  const logits_view<float> nothing = {nullptr, 0, 8};
  routing_metrics metrics;
  EXPECT_TRUE(under_test.route(3, nothing, routing_output<>{}, &metrics).ok());
  const routed_batch empty = under_test.route(3, nothing, &metrics);
  EXPECT_TRUE(empty.result.ok());
  EXPECT_EQ(empty.num_tokens, 0);
  EXPECT_TRUE(empty.topk_ids.empty());
  EXPECT_EQ(metrics.calls, 0u);
  EXPECT_EQ(metrics.expert_savings(), 0.0);
}

TEST(RouterOutput, ConvenienceCallTellsItsShape) {
  inputs::sequence from(106);
  const gating g = make_gating(gating_kind::softmax, 60, 4, false);
  const routed_batch routed = router(g, k_policy::full()).route(0, grid_batch(from, 7, 60).view());
  ASSERT_TRUE(routed.result.ok());
  EXPECT_EQ(routed.num_tokens, 7);
  EXPECT_EQ(routed.top_k, 4);
  EXPECT_EQ(routed.topk_ids.size(), 28u);
  EXPECT_EQ(routed.topk_weights.size(), 28u);
  EXPECT_EQ(routed.topk_counts, std::vector<std::int32_t>(7, 4));
  EXPECT_EQ(routed.signal.size(), 7u);
}

// k = K0 changes nothing, whichever rule arrives there and whatever the mass exponent.
TEST(FullK, EveryWayThereGivesTheSameBits) {
  inputs::sequence from(107);
  for (gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid, gating_kind::top_k_softmax,
                           gating_kind::sqrt_softplus})
    for (bool renormalize : {true, false})
      for (int top_k : {1, 3, 8, 32}) {
        gating g = make_gating(kind, 100, top_k, renormalize);
        g.routed_scaling_factor = 2.5f;
        const auto input = grid_batch(from, 40, 100);
        const routed_batch own = router(g, k_policy::full()).route(0, input.view());
        ASSERT_TRUE(own.result.ok());
        tally seen;
        route_and_compare<std::int32_t>(g, k_policy::full(), input, {}, seen);
        EXPECT_EQ(seen.by_k[top_k], 40);

        const inputs::distortion_tables tables(from, 100, top_k);
        distortion_ref model;
        model.coefficients = tables.coefficients.data();
        model.lambda = 0.0f;
        std::vector<k_policy> others = {k_policy::fixed(top_k), k_policy::entropy({top_k}, {}),
                                        k_policy::min_distortion(model)};
        for (signal_kind signal : {signal_kind::topk_mass, signal_kind::margin})
          others.push_back(k_policy::with_thresholds(signal, {top_k}, {}));
        if (top_k > 1) {  // thresholds that nothing meets
          others.push_back(k_policy::entropy({1, top_k}, {-1.0f}));
          others.push_back(k_policy::score_ratio(0.0f, top_k));
        }
        k_policy raised = k_policy::fixed(1);
        raised.k_min = static_cast<std::uint8_t>(top_k);
        others.push_back(raised);
        for (k_policy policy : others)
          for (float exponent : {k_policy::mass_exponent_of_model, 0.0f, 0.3f, 0.5f, 1.0f}) {
            policy.mass_exponent = exponent;
            const routed_batch same = router(g, policy).route(0, input.view());
            ASSERT_TRUE(same.result.ok()) << same.result.message();
            ASSERT_EQ(same.topk_ids, own.topk_ids);
            ASSERT_EQ(same.topk_weights, own.topk_weights);
            ASSERT_EQ(same.topk_counts, own.topk_counts);
          }
      }
}

// Fewer experts are the first ones of the full choice, whatever picked their number.
TEST(FullK, FewerExpertsAreItsPrefix) {
  inputs::sequence from(108);
  const gating g = make_gating(gating_kind::softmax, 128, 8);
  const auto input = grid_batch(from, 100, 128, 160);
  const routed_batch own = router(g, k_policy::full()).route(0, input.view());
  const inputs::distortion_tables tables(from, 128, 8);
  for (const named_policy& named : all_policies(from, g, tables)) {
    const routed_batch fewer = router(g, named.policy).route(0, input.view());
    ASSERT_TRUE(fewer.result.ok());
    for (int t = 0; t < 100; ++t)
      for (int j = 0; j < fewer.topk_counts[at(t)]; ++j)
        ASSERT_EQ(fewer.topk_ids[at(t * 8 + j)], own.topk_ids[at(t * 8 + j)]) << named.name;
  }
}

// a = 1 restores what the weights of all K0 add up to, a = 0 leaves each one alone.
TEST(MassExponent, BetweenLeavingAndRestoringTheWeights) {
  inputs::sequence from(109);
  const auto input = grid_batch(from, 60, 64);
  for (bool renormalize : {true, false}) {
    const gating g = make_gating(gating_kind::softmax, 64, 8, renormalize);
    const routed_batch own = router(g, k_policy::full()).route(0, input.view());
    for (int k = 1; k < 8; ++k)
      for (float exponent : {0.0f, 0.3f, 0.5f, 1.0f, k_policy::mass_exponent_of_model}) {
        k_policy policy = k_policy::fixed(k);
        policy.mass_exponent = exponent;
        const routed_batch fewer = router(g, policy).route(0, input.view());
        const double a = exponent >= 0.0f ? static_cast<double>(exponent) : (renormalize ? 1 : 0);
        for (int t = 0; t < 60; ++t) {
          double all = 0.0, kept = 0.0;
          for (int j = 0; j < 8; ++j) {
            all += own.topk_weights[at(t * 8 + j)];
            if (j < k) kept += own.topk_weights[at(t * 8 + j)];
          }
          for (int j = 0; j < k; ++j) {
            const double before = own.topk_weights[at(t * 8 + j)];
            const double after = fewer.topk_weights[at(t * 8 + j)];
            if (a == 0.0) {
              ASSERT_EQ(after, before);
            }
            ASSERT_NEAR(after, before * std::pow(kept / all, -a), 2e-6 * after);
          }
        }
      }
  }
}

}  // namespace
