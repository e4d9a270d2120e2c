// Bounds on k, per policy and per token; padding; a policy for each layer.
#include <algorithm>
#include <cmath>
#include <memory>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

TEST(Limits, OfThePolicyApplyToEveryRule) {
  inputs::sequence from(201);
  const gating g = make_gating(gating_kind::softmax, 64, 8);
  const auto input = grid_batch(from, 40, 64, 160);
  const inputs::distortion_tables tables(from, 64, 8);
  tally seen;
  for (named_policy named : all_policies(from, g, tables))
    for (int low = 1; low <= 8; ++low)
      for (int high : {low, 8, 32}) {
        if (high < low) continue;
        named.policy.k_min = static_cast<std::uint8_t>(low);
        named.policy.k_max = static_cast<std::uint8_t>(high);
        SCOPED_TRACE(named.name + ", k " + std::to_string(low) + ".." + std::to_string(high));
        route_and_compare<std::int32_t>(g, named.policy, input, {}, seen);
        const routed_batch routed = router(g, named.policy).route(0, input.view());
        for (std::int32_t count : routed.topk_counts) {
          ASSERT_GE(count, low);
          ASSERT_LE(count, std::min(high, 8));
        }
        if (HasFailure()) return;
      }
  EXPECT_LE(seen.close_k, seen.tokens / 500);
}

TEST(Limits, OfATokenWinOverThePolicys) {
  inputs::sequence from(202);
  const gating g = make_gating(gating_kind::sigmoid, 60, 6);
  const inputs::distortion_tables tables(from, 60, 6);
  tally seen;
  for (named_policy named : all_policies(from, g, tables))
    for (int round = 0; round < 6; ++round) {
      named.policy.k_min = static_cast<std::uint8_t>(from.between(1, 6));
      named.policy.k_max = static_cast<std::uint8_t>(from.between(named.policy.k_min, 8));
      const auto input = grid_batch(from, 30, 60, 160);
      std::vector<std::uint8_t> k_min, k_max;
      for (int t = 0; t < 30; ++t) {
        k_min.push_back(static_cast<std::uint8_t>(from.between(1, 6)));
        k_max.push_back(static_cast<std::uint8_t>(from.between(k_min.back(), 6)));
      }
      SCOPED_TRACE(named.name);
      routing_extras extras;
      if (round != 1) extras.k_min = k_min.data();
      if (round != 2) extras.k_max = k_max.data();
      route_and_compare<std::int32_t>(g, named.policy, input, extras, seen);
      const routed_batch routed = router(g, named.policy).route(0, input.view(), nullptr, extras);
      for (std::size_t t = 0; t < 30; ++t) {
        ASSERT_GE(routed.topk_counts[t], round != 1 ? k_min[t] : 1);
        ASSERT_LE(routed.topk_counts[t], round != 2 ? k_max[t] : 6);
      }
      if (HasFailure()) return;
    }
  EXPECT_LE(seen.close_k, seen.tokens / 500);
}

TEST(Limits, ATokenMayForceItsK) {
  inputs::sequence from(203);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const auto input = grid_batch(from, 4, 16);
  const std::vector<std::uint8_t> forced = {1, 2, 3, 4};
  routing_extras extras;
  extras.k_min = extras.k_max = forced.data();
  for (const k_policy& policy : {k_policy::full(), k_policy::fixed(2), k_policy::top_p(0.5f, 4)}) {
    const routed_batch routed = router(g, policy).route(0, input.view(), nullptr, extras);
    EXPECT_EQ(routed.topk_counts, (std::vector<std::int32_t>{1, 2, 3, 4}));
  }
}

// A cost that overflows, or coefficients that are NaN, must not let k leave its bounds.
TEST(Limits, HoldWhateverTheDistortionPredicts) {
  inputs::sequence from(204);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const auto input = grid_batch(from, 20, 16);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (float constant : {nan, 200.0f, -200.0f, 1e30f, -1e30f})
    for (float sensitivity : {1e-20f, 1.0f, 1e20f})
      for (float lambda : {0.0f, 1.0f, 1e29f}) {
        float coefficients[15] = {};
        for (int k = 0; k < 3; ++k) coefficients[5 * k] = constant;
        distortion_ref model;
        model.coefficients = coefficients;
        model.sensitivity = sensitivity;
        model.lambda = lambda;
        k_policy policy = k_policy::min_distortion(model);
        policy.k_min = 2;
        policy.k_max = 3;
        const routed_batch routed = router(g, policy).route(0, input.view());
        ASSERT_TRUE(routed.result.ok()) << routed.result.message();
        for (std::int32_t count : routed.topk_counts) {
          EXPECT_GE(count, 2) << constant << ' ' << sensitivity << ' ' << lambda;
          EXPECT_LE(count, 3) << constant << ' ' << sensitivity << ' ' << lambda;
        }
      }
}

// The price of an expert moves k one way only: nothing for free, K0 at no price.
TEST(Distortion, LambdaMovesAlongTheFrontier) {
  inputs::sequence from(205);
  const gating g = make_gating(gating_kind::softmax, 32, 8);
  const auto input = grid_batch(from, 300, 32);
  const inputs::distortion_tables tables(from, 32, 8);
  distortion_ref model;
  model.coefficients = tables.coefficients.data();
  model.first_expert = tables.first_expert.data();
  model.next_expert = tables.next_expert.data();
  std::vector<std::int32_t> before(300, 8);
  std::vector<double> mean_k;
  for (float lambda : {0.0f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f, 100.0f}) {
    model.lambda = lambda;
    routing_metrics metrics;
    const routed_batch routed =
        router(g, k_policy::min_distortion(model)).route(0, input.view(), &metrics);
    for (std::size_t t = 0; t < 300; ++t) ASSERT_LE(routed.topk_counts[t], before[t]);
    before = routed.topk_counts;
    mean_k.push_back(metrics.mean_k());
  }
  EXPECT_EQ(mean_k.front(), 8.0);
  EXPECT_EQ(mean_k.back(), 1.0);
  EXPECT_GT(mean_k[3], 1.5);
  EXPECT_LT(mean_k[3], 7.5);
}

// A bias may choose experts whose scores are next to nothing, and a policy drop those that weigh.
TEST(Limits, AChoiceThatKeepsNextToNothingHasFiniteWeights) {
  struct row {
    float first, second;  ///< logits of the two that the bias chooses
    float scale;
  };
  for (const gating_kind kind : {gating_kind::sigmoid, gating_kind::softmax}) {
    for (const row r :
         {row{-86.5f, -46.0f, 10.0f}, row{-75.0f, 0.0f, 1.0f}, row{-70.0f, 0.0f, 9e5f},
          row{-86.9f, -86.9f, 9e5f}, row{-60.0f, -1.0f, 2.5f}, row{-20.0f, 3.0f, 1.0f},
          row{-87.3f, 0.0f, 1.0f}, row{-88.0f, -86.0f, 1.0f}, row{-88.0f, -65.0f, 9e5f}}) {
      gating g = make_gating(kind, 8, 2);
      g.selection_bias = true;
      g.routed_scaling_factor = r.scale;
      const float background = kind == gating_kind::softmax ? 0.0f : -50.0f;
      const float logits[8] = {r.first,    r.second,   background, background,
                               background, background, background, background};
      const float bias[8] = {9.0f, 5.0f};
      routing_extras extras;
      extras.routing_bias = bias;
      const auto score = [&](float x) {
        if (x < -86.99f) return 0.0;  // as the scores are defined
        return kind == gating_kind::softmax ? std::exp(double{x} - std::max(r.second, background))
                                            : 1.0 / (1.0 + std::exp(-double{x}));
      };
      const double kept = score(r.first);
      const double total = kept + score(r.second);
      for (const float exponent : {1.0f, 0.999999f, 0.75f, 0.5f, 0.0f}) {
        k_policy policy = k_policy::fixed(1);
        policy.mass_exponent = exponent;
        const routed_batch routed =
            router(g, policy).route(0, logits_view<float>{logits, 1, 8, 0}, nullptr, extras);
        ASSERT_TRUE(routed.result.ok()) << routed.result.message();
        ASSERT_EQ(routed.topk_ids[0], 0);
        const double share = std::max(kept / total, std::exp2(-100.0));
        const double expected = kept / total * std::pow(share, -double{exponent}) * double{r.scale};
        EXPECT_NEAR(routed.topk_weights[0], expected, 1e-4 * expected + 1e-37)
            << static_cast<int>(kind) << ": " << r.first << ", " << r.second << ", mass_exponent "
            << exponent;
      }
    }
  }
}

// "0 keeps K0", also where nearly nothing is dropped: 7 of 8 experts here weigh next to nothing.
TEST(Distortion, NoPriceKeepsAllExperts) {
  inputs::sequence from(206);
  const gating g = make_gating(gating_kind::softmax, 32, 8);
  auto input = grid_batch(from, 10, 32);
  for (std::size_t t = 0; t < 10; ++t) input.logits[t * 32 + t] = 300.0f;
  const std::vector<float> coefficients = {0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1,
                                           0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0};
  distortion_ref model;
  model.coefficients = coefficients.data();
  model.lambda = 0.0f;
  const routed_batch routed = router(g, k_policy::min_distortion(model)).route(0, input.view());
  EXPECT_EQ(routed.topk_counts, std::vector<std::int32_t>(10, 8));
}

// Tables belong to the caller and are read at every call: a budget controller may move them.
TEST(Distortion, TablesAreReadAtEveryCall) {
  inputs::sequence from(207);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const auto input = grid_batch(from, 5, 8);
  auto coefficients = std::make_shared<std::vector<float>>(5, 0.0f);
  distortion_ref model;
  model.coefficients = coefficients->data();
  model.lambda = 1.0f;
  std::vector<k_policy> layers = {k_policy::min_distortion(model)};
  const std::weak_ptr<std::vector<float>> watched = coefficients;
  {
    const router owner(g, layers, {}, coefficients);
    (*coefficients)[0] = 3.0f;  // e^3 for dropping one, against a price of 1
    EXPECT_EQ(owner.route(0, input.view()).topk_counts, std::vector<std::int32_t>(5, 2));
    (*coefficients)[0] = -3.0f;
    coefficients.reset();  // the router keeps the tables alive, and so do its copies
    const router copy = owner;
    EXPECT_EQ(copy.route(0, input.view()).topk_counts, std::vector<std::int32_t>(5, 1));
    EXPECT_FALSE(watched.expired());
  }
  EXPECT_TRUE(watched.expired());
}

// Shadow mode: full K in every output and in the metrics, and beside it the k of the policy.
TEST(Shadow, RoutesFullKAndRecordsTheChoice) {
  inputs::sequence from(211);
  const gating g = make_gating(gating_kind::sigmoid, 60, 6);
  const auto input = grid_batch(from, 80, 60, 160);
  const inputs::distortion_tables tables(from, 60, 6);
  const std::vector<std::uint8_t> padding = [&from] {
    std::vector<std::uint8_t> flags(80);
    for (auto& flag : flags) flag = from.chance(5) ? 1 : 0;
    return flags;
  }();
  routing_extras extras;
  extras.padding_mask = padding.data();
  bool some_saved = false;
  for (named_policy named : all_policies(from, g, tables)) {
    SCOPED_TRACE(named.name);
    k_policy full = k_policy::full();
    full.signal = named.policy.signal;
    routing_metrics own_metrics, shadow_metrics, applied_metrics;
    const routed_batch own = router(g, full).route(0, input.view(), &own_metrics, extras);
    const routed_batch applied =
        router(g, named.policy).route(0, input.view(), &applied_metrics, extras);
    std::vector<std::int32_t> ids(480), counts(80), chosen(81, -9);
    std::vector<float> weights(480), signal(80);
    routing_output<> output = {ids.data(), weights.data(), counts.data(), signal.data()};
    output.chosen_counts = chosen.data();
    ASSERT_TRUE(
        router(g, named.policy).route(0, input.view(), output, &shadow_metrics, extras).ok());
    EXPECT_EQ(ids, own.topk_ids);
    EXPECT_EQ(weights, own.topk_weights);
    EXPECT_EQ(counts, own.topk_counts);
    EXPECT_EQ(signal, applied.signal);
    EXPECT_EQ(chosen.back(), -9);
    chosen.pop_back();
    EXPECT_EQ(chosen, applied.topk_counts);
    // The metrics are those of full K, and beside them what the policy would have run.
    EXPECT_EQ(shadow_metrics.expert_savings(), 0.0);
    EXPECT_EQ(own_metrics.shadow_expert_savings(), 0.0);
    EXPECT_EQ(shadow_metrics.shadow_expert_calls, applied_metrics.expert_calls);
    EXPECT_EQ(shadow_metrics.shadow_full_expert_calls, applied_metrics.full_expert_calls);
    EXPECT_EQ(shadow_metrics.shadow_expert_savings(), applied_metrics.expert_savings());
    some_saved = some_saved || shadow_metrics.shadow_expert_savings() > 0.1;
    shadow_metrics.shadow_expert_calls = shadow_metrics.shadow_full_expert_calls = 0;
    EXPECT_EQ(std::memcmp(&own_metrics, &shadow_metrics, sizeof own_metrics), 0);
  }
  EXPECT_TRUE(some_saved);
}

TEST(Shadow, SavingsAreOfTheCallsInShadowModeAlone) {
  inputs::sequence from(212);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const router halves(g, k_policy::fixed(2));
  routing_metrics metrics;
  std::vector<std::int32_t> ids(12), chosen(3);
  std::vector<float> weights(12);
  routing_output<> output = {ids.data(), weights.data()};
  const auto input = grid_batch(from, 3, 16);
  ASSERT_TRUE(halves.route(0, input.view(), output, &metrics).ok());
  EXPECT_EQ(metrics.shadow_full_expert_calls, 0u);
  output.chosen_counts = chosen.data();
  ASSERT_TRUE(halves.route(0, input.view(), output, &metrics).ok());
  ASSERT_TRUE(halves.route_range(0, input.view(), output, 1, 2, &metrics));  // a single token
  EXPECT_EQ(metrics.full_expert_calls, 28u);
  EXPECT_EQ(metrics.expert_calls, 22u);
  EXPECT_EQ(metrics.shadow_full_expert_calls, 16u);
  EXPECT_EQ(metrics.shadow_expert_calls, 8u);
  EXPECT_EQ(metrics.shadow_expert_savings(), 0.5);
  routing_metrics twice = metrics;
  twice += metrics;
  EXPECT_EQ(twice.shadow_full_expert_calls, 32u);
  EXPECT_EQ(twice.shadow_expert_calls, 16u);
}

TEST(Layers, HaveTheirOwnPolicies) {
  inputs::sequence from(208);
  const gating g = make_gating(gating_kind::softmax, 16, 4);
  const auto input = grid_batch(from, 6, 16);
  std::vector<k_policy> layers;
  for (int k = 1; k <= 4; ++k) layers.push_back(k_policy::fixed(k));
  const router per_layer(g, layers);
  EXPECT_EQ(per_layer.num_layers(), 4);
  for (int layer = 0; layer < 4; ++layer) {
    EXPECT_EQ(per_layer.policy(layer).k_values[0], layer + 1);
    EXPECT_EQ(per_layer.route(layer, input.view()).topk_counts,
              std::vector<std::int32_t>(6, layer + 1));
  }
  const router everywhere(g, k_policy::fixed(3));
  EXPECT_EQ(everywhere.num_layers(), 0);
  for (int layer : {0, 7, 1000000})
    EXPECT_EQ(everywhere.route(layer, input.view()).topk_counts, std::vector<std::int32_t>(6, 3));
}

TEST(Copies, ShareAndOutliveTheOriginal) {
  inputs::sequence from(209);
  const gating g = make_gating(gating_kind::sigmoid, 40, 8);
  const auto input = grid_batch(from, 20, 40);
  auto original =
      std::make_unique<router>(g, k_policy::top_p(0.7f, 8), router_options{fill_id::num_experts});
  const router copy = *original;
  const routed_batch a = original->route(0, input.view());
  original.reset();
  const routed_batch b = copy.route(0, input.view());
  EXPECT_EQ(a.topk_ids, b.topk_ids);
  EXPECT_EQ(a.topk_weights, b.topk_weights);
  EXPECT_EQ(copy.options().fill, fill_id::num_experts);
  EXPECT_EQ(copy.model().num_experts, 40);
  EXPECT_TRUE(copy.validity().ok());
}

TEST(Padding, IsSkippedAndCountedOnlyAsPadding) {
  inputs::sequence from(210);
  const int num_experts = 32, top_k = 4, num_tokens = 50;
  const gating g = make_gating(gating_kind::softmax, num_experts, top_k);
  auto input = grid_batch(from, num_tokens, num_experts);
  std::vector<std::uint8_t> mask(num_tokens);
  batch<float> kept;
  kept.num_experts = num_experts;
  for (std::size_t t = 0; t < mask.size(); ++t) {
    mask[t] = static_cast<std::uint8_t>(from.chance(3) ? from.between(1, 255) : 0);
    const auto row = input.logits.begin() + static_cast<std::ptrdiff_t>(t) * num_experts;
    if (mask[t] != 0) {  // what padding holds must not matter
      std::fill(row, row + num_experts, std::numeric_limits<float>::quiet_NaN());
    } else {
      kept.logits.insert(kept.logits.end(), row, row + num_experts);
      kept.num_tokens += 1;
    }
  }
  ASSERT_GT(kept.num_tokens, 20);
  ASSERT_LT(kept.num_tokens, 45);
  routing_extras extras;
  extras.padding_mask = mask.data();
  for (fill_id fill : {fill_id::minus_one, fill_id::num_experts, fill_id::first_expert}) {
    const router under_test(g, k_policy::top_p(0.7f, top_k), {fill});
    routing_metrics with_padding, without;
    const routed_batch padded = under_test.route(0, input.view(), &with_padding, extras);
    const routed_batch dense = under_test.route(0, kept.view(), &without);
    std::size_t next = 0;
    for (std::size_t t = 0; t < mask.size(); ++t)
      for (std::size_t j = 0; j < 4; ++j) {
        if (mask[t] != 0) {
          const std::int32_t id = padded.topk_ids[t * 4 + j];
          if (fill == fill_id::minus_one) {
            EXPECT_EQ(id, -1);
          } else if (fill == fill_id::num_experts) {
            EXPECT_EQ(id, num_experts);
          } else {
            EXPECT_TRUE(id >= 0 && id < num_experts);
          }
          EXPECT_EQ(padded.topk_weights[t * 4 + j], 0.0f);
          EXPECT_EQ(padded.topk_counts[t], 0);
          EXPECT_EQ(padded.signal[t], 0.0f);
        } else {
          EXPECT_EQ(padded.topk_ids[t * 4 + j], dense.topk_ids[next * 4 + j]);
          EXPECT_EQ(padded.topk_weights[t * 4 + j], dense.topk_weights[next * 4 + j]);
          next += j == 3 ? 1 : 0;
        }
      }
    EXPECT_EQ(with_padding.padding_tokens,
              static_cast<std::uint64_t>(num_tokens - kept.num_tokens));
    with_padding.padding_tokens = 0;  // and nothing else differs
    EXPECT_EQ(std::memcmp(&with_padding, &without, sizeof without), 0);
  }
}

}  // namespace
