// What users of other routing kernels complain of, case by case.
#include <algorithm>
#include <set>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

const std::vector<gating_kind>& every_kind() {
  static const std::vector<gating_kind> kinds = {
      gating_kind::softmax, gating_kind::sigmoid, gating_kind::top_k_softmax,
      gating_kind::sqrt_softplus, gating_kind::sparsemixer};
  return kinds;
}

gating gating_of(gating_kind kind, int num_experts, int top_k) {
  return make_gating(kind, num_experts, kind == gating_kind::sparsemixer ? 2 : top_k,
                     kind != gating_kind::sparsemixer);
}

/// Valid, different ids with finite weights that are not negative.
void expect_sound(const gating& g, const routed_batch& routed) {
  ASSERT_TRUE(routed.result.ok()) << routed.result.message();
  for (std::int64_t t = 0; t < routed.num_tokens; ++t) {
    std::set<int> ids;
    const auto index = static_cast<std::size_t>(t);
    const int count = routed.topk_counts[index];
    ASSERT_GE(count, 1);
    ASSERT_LE(count, g.top_k);
    for (int j = 0; j < count; ++j) {
      const std::size_t slot = index * at(g.top_k) + at(j);
      const int id = routed.topk_ids[slot];
      ASSERT_GE(id, 0) << "token " << t;
      ASSERT_LT(id, g.num_experts) << "token " << t;
      ASSERT_TRUE(ids.insert(id).second) << "token " << t << ": id " << id << " twice";
      ASSERT_TRUE(std::isfinite(routed.topk_weights[slot])) << "token " << t;
      ASSERT_GE(routed.topk_weights[slot], 0.0f) << "token " << t;
    }
    ASSERT_TRUE(std::isfinite(routed.signal[index])) << "token " << t;
  }
}

routed_batch route_row(const gating& g, const std::vector<float>& logits,
                       const k_policy& policy = k_policy::full(),
                       routing_metrics* metrics = nullptr) {
  return router(g, policy).route(
      0, logits_view<float>{logits.data(), 1, static_cast<int>(logits.size())}, metrics);
}

// vllm#39391: NaN rows gave duplicate ids and illegal accesses.
TEST(Complaints, NanLogitsGiveValidDifferentIds) {
  inputs::sequence from(501);
  for (gating_kind kind : every_kind())
    for (int num_experts : {2, 8, 60, 128, 256, 1000}) {
      gating g = gating_of(kind, num_experts, std::min(8, num_experts));
      const inputs::distortion_tables tables(from, num_experts, g.top_k);
      for (const named_policy& named : all_policies(from, g, tables)) {
        auto input = grid_batch(from, 24, num_experts);
        for (std::size_t i = 0; i < input.logits.size(); ++i) {
          const int row = static_cast<int>(i) / num_experts;
          if (row % 3 == 0 || from.below(24) < row)  // every third row is nothing but these
            input.logits[i] = from.pick<float>({nan, -nan, infinity, -infinity, -infinity});
        }
        routing_metrics metrics;
        SCOPED_TRACE(named.name + ", E " + std::to_string(num_experts) + ", gating " +
                     std::to_string(static_cast<int>(kind)));
        expect_sound(g, router(g, named.policy).route(0, input.view(), &metrics));
        EXPECT_GE(metrics.nonfinite_rows, 8u);
        if (HasFailure()) return;
      }
    }
}

// vllm#39391: a NaN ranks below everything, -inf too, and its expert weighs nothing.
TEST(Complaints, NanRanksBelowEverything) {
  inputs::sequence from(502);
  tally seen;
  for (gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid, gating_kind::top_k_softmax,
                           gating_kind::sqrt_softplus})
    for (bool grouped : {false, true})
      for (int one_in : {2, 8, 64}) {
        gating g = make_gating(kind, 64, 8);
        if (grouped) {
          g.n_group = 8;
          g.topk_group = 4;
        }
        auto input = grid_batch(from, 40, 64);
        for (std::size_t i = 0; i < input.logits.size(); ++i)
          if (i % 64 != 63 && from.chance(one_in))
            input.logits[i] = from.chance(3) ? -infinity : nan;
        for (const k_policy& policy : {k_policy::full(), k_policy::top_p(0.7123f, 8)})
          route_and_compare<std::int32_t>(g, policy, input, {}, seen);
        if (HasFailure()) return;
      }
  EXPECT_GT(seen.tokens, 1500);
  EXPECT_LE(seen.close_rank + seen.close_k, 20);

  const routed_batch routed =
      route_row(make_gating(gating_kind::softmax, 6, 6), {nan, -infinity, 1, nan, 2, -infinity});
  EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{4, 2, 1, 5, 0, 3}));
  for (std::size_t j = 2; j < 6; ++j) EXPECT_EQ(routed.topk_weights[j], 0.0f);
  EXPECT_NEAR(routed.topk_weights[0] + routed.topk_weights[1], 1.0f, 1e-6f);
}

// vllm#39391: a row with nothing finite is routed by index with equal weights, without bias and
// groups, and its signal says that the router knows nothing.
TEST(Complaints, RowsWithNothingFinite) {
  for (gating_kind kind : every_kind())
    for (float value : {nan, infinity, -infinity})
      for (bool mixed : {false, true}) {
        gating g = gating_of(kind, 60, 4);
        const std::vector<float> bias = [] {
          std::vector<float> rising;
          for (int e = 0; e < 60; ++e) rising.push_back(static_cast<float>(e));
          return rising;
        }();
        routing_extras extras;
        if (kind != gating_kind::sparsemixer) {
          g.selection_bias = true;
          g.n_group = 6;
          g.topk_group = 2;
          extras.routing_bias = bias.data();
        }
        std::vector<float> logits(60, value);
        if (mixed) logits[30] = logits[17] = nan;
        routing_metrics metrics;
        const routed_batch routed =
            router(g, k_policy::full())
                .route(0, logits_view<float>{logits.data(), 1, 60}, &metrics, extras);
        ASSERT_TRUE(routed.result.ok());
        EXPECT_EQ(metrics.nonfinite_rows, 1u);
        for (int j = 0; j < g.top_k; ++j) {
          EXPECT_EQ(routed.topk_ids[at(j)], j);
          const float share =
              kind == gating_kind::sparsemixer ? 1.0f / static_cast<float>(60 - j) : 0.25f;
          EXPECT_NEAR(routed.topk_weights[at(j)], share, 1e-6f);
        }
        EXPECT_NEAR(routed.signal[0], std::log(60.0), 1e-5);
      }
}

// vllm#39391: +inf ties with +inf and takes all the weight.
TEST(Complaints, InfiniteLogitsShareTheWeight) {
  for (gating_kind kind :
       {gating_kind::softmax, gating_kind::top_k_softmax, gating_kind::sqrt_softplus}) {
    const routed_batch routed =
        route_row(make_gating(kind, 8, 4), {1, 2, infinity, 80, 3, infinity, nan, -infinity});
    EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{2, 5, 3, 4}));
    EXPECT_NEAR(routed.topk_weights[0], 0.5f, 1e-6f);
    EXPECT_EQ(routed.topk_weights[0], routed.topk_weights[1]);
    EXPECT_LT(routed.topk_weights[2], 1e-6f);
  }
  const routed_batch sigmoid =
      route_row(make_gating(gating_kind::sigmoid, 4, 2, false), {0, infinity, -infinity, infinity});
  EXPECT_EQ(sigmoid.topk_ids, (std::vector<std::int32_t>{1, 3}));
  EXPECT_EQ(sigmoid.topk_weights, (std::vector<float>{1.0f, 1.0f}));
  for (gating_kind kind : every_kind()) {
    gating g = gating_of(kind, 8, 4);
    g.renormalize = false;
    expect_sound(g, route_row(g, {1, infinity, 3e38f, -3e38f, 0, infinity, nan, -infinity}));
  }
}

// An expert whose logit is -inf or NaN weighs nothing, in Phi-3.5's gating too, whatever E is.
TEST(Complaints, MinusInfinityAndNanWeighNothing) {
  for (gating_kind kind : every_kind())
    for (float nothing : {-infinity, nan, -nan})
      for (int num_experts : {4, 16, 32, 40}) {
        const gating g = gating_of(kind, num_experts, 2);
        std::vector<float> logits(at(num_experts), nothing);
        logits[1] = 0.5f;
        const routed_batch routed = route_row(g, logits);
        EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{1, 0}));
        EXPECT_NEAR(routed.topk_weights[0], 1.0f, 1e-6f);
        EXPECT_EQ(routed.topk_weights[1], 0.0f)
            << "gating " << static_cast<int>(kind) << ", E " << num_experts << ", " << nothing;
      }
}

// flashinfer#2822: rows of negative logits were misrouted.
TEST(Complaints, AllNegativeLogits) {
  inputs::sequence from(505);
  tally seen;
  for (gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid, gating_kind::top_k_softmax,
                           gating_kind::sqrt_softplus})
    for (bool renormalize : {true, false})
      for (float offset : {-8.0f, -30.0f, -70.0f, -1000.0f, -60000.0f}) {
        if (kind != gating_kind::softmax && kind != gating_kind::top_k_softmax && offset < -70.0f)
          continue;  // in the next test
        const gating g = make_gating(kind, 60, 4, renormalize);
        auto input = grid_batch(from, 30, 60, 60);
        for (float& logit : input.logits) logit += offset;
        for (const k_policy& policy : {k_policy::full(), k_policy::top_p(0.6123f, 4)})
          route_and_compare<std::int32_t>(g, policy, input, {}, seen);
        if (HasFailure()) return;
      }
  EXPECT_GT(seen.tokens, 1500);
  EXPECT_LE(seen.close_k, 3);
}

// flashinfer#2822: logits so low that every score underflows are still told apart.
TEST(Complaints, ScoresThatAllUnderflow) {
  inputs::sequence from(506);
  for (gating_kind kind : {gating_kind::sigmoid, gating_kind::sqrt_softplus})
    for (float offset : {-92.0f, -200.0f, -10000.0f}) {
      auto input = grid_batch(from, 20, 60, 60);
      for (float& logit : input.logits) logit += offset;
      for (bool renormalize : {true, false}) {
        const gating g = make_gating(kind, 60, 4, renormalize);
        const routed_batch routed = router(g, k_policy::full()).route(0, input.view());
        expect_sound(g, routed);
        for (int t = 0; t < 20; ++t) {
          const std::vector<int> order = oracle::descending(input.row(t));
          for (int j = 0; j < 4; ++j) {
            EXPECT_EQ(routed.topk_ids[at(t * 4 + j)], order[at(j)]);
            EXPECT_EQ(routed.topk_weights[at(t * 4 + j)], renormalize ? 0.25f : 0.0f);
          }
        }
      }
    }
}

// A row that says nothing of its experts must not be taken for one that is sure: k falls on low
// entropy alone.
TEST(Complaints, UnderflowIsNotConfidence) {
  const std::vector<float> logits(60, -100.0f);
  const gating g = make_gating(gating_kind::sigmoid, 60, 4);
  for (const k_policy& policy :
       {k_policy::entropy({1, 4}, {1.0f}),
        k_policy::with_thresholds(signal_kind::normalized_entropy, {1, 4}, {0.5f}),
        k_policy::with_thresholds(signal_kind::topk_entropy, {1, 4}, {0.5f}),
        k_policy::top_p(0.9f, 4), k_policy::score_ratio(0.5f, 4),
        k_policy::with_thresholds(signal_kind::margin, {1, 4}, {0.5f})}) {
    const routed_batch routed = route_row(g, logits, policy);
    EXPECT_EQ(routed.topk_counts[0], 4)
        << "signal " << static_cast<int>(policy.signal) << ": " << routed.signal[0];
  }
}

// flashinfer#2469: fp32 logits unsupported. They are told apart to the last bit.
TEST(Complaints, Fp32LogitsToTheLastBit) {
  for (gating_kind kind : every_kind()) {
    const gating g = gating_of(kind, 16, 2);
    for (float base : {1.0f, -1.0f, 12.0f, -40.0f}) {
      std::vector<float> logits(16, base);
      logits[13] = std::nextafter(base, infinity);
      const routed_batch routed = route_row(g, logits);
      EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{13, 0})) << base;
    }
  }
}

// sglang#33631: weights truncated to bf16. Float weights carry more than 8 bits, and bf16 ones
// are rounded, not cut.
TEST(Complaints, WeightsAreNotTruncatedToBf16) {
  inputs::sequence from(508);
  const gating g = make_gating(gating_kind::softmax, 64, 8);
  const auto input = grid_batch<bfloat16>(from, 50, 64);
  const routed_batch routed = router(g, k_policy::full()).route(0, input.view());
  int fine = 0;
  for (float weight : routed.topk_weights) fine += (inputs::bits_of(weight) & 0xFFFFu) != 0;
  EXPECT_GT(fine, 390);
  for (int t = 0; t < 50; ++t) {
    double sum = 0.0;
    for (int j = 0; j < 8; ++j) sum += static_cast<double>(routed.topk_weights[at(t * 8 + j)]);
    EXPECT_NEAR(sum, 1.0, 1e-6);
  }
  std::vector<std::int32_t> ids(400);
  std::vector<bfloat16> narrow(400);
  ASSERT_TRUE(
      router(g, k_policy::full())
          .route(0, input.view(), routing_output<std::int32_t, bfloat16>{ids.data(), narrow.data()})
          .ok());
  int up = 0, down = 0;
  for (std::size_t i = 0; i < 400; ++i) {
    const double exact = static_cast<double>(routed.topk_weights[i]);
    up += inputs::number(narrow[i]) > exact ? 1 : 0;
    down += inputs::number(narrow[i]) < exact ? 1 : 0;
  }
  EXPECT_GT(up, 120);
  EXPECT_GT(down, 120);
}

}  // namespace
