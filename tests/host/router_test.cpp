// The router against the double-precision oracle: every gating, policy and odd shape.
#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

/// Little may be left out as too close to call, and the errors stay within the bounds.
void expect_thorough(const tally& seen, double allowed_close = 0.002) {
  EXPECT_GT(seen.tokens, 1000);
  EXPECT_LE(static_cast<double>(seen.close_rank + seen.close_k),
            allowed_close * static_cast<double>(seen.tokens));
  EXPECT_LE(seen.worst_weight, 0.3);  // roundings never all point one way
  EXPECT_LE(seen.worst_signal, 0.4);
  int different = 0;
  for (long tokens : seen.by_k) different += tokens > 0 ? 1 : 0;
  EXPECT_GE(different, 2) << "every token got the same k";
  ::testing::Test::RecordProperty("tokens", std::to_string(seen.tokens));
  ::testing::Test::RecordProperty("close_rank", std::to_string(seen.close_rank));
  ::testing::Test::RecordProperty("close_k", std::to_string(seen.close_k));
  ::testing::Test::RecordProperty("worst_weight", std::to_string(seen.worst_weight));
  ::testing::Test::RecordProperty("worst_signal", std::to_string(seen.worst_signal));
}

struct sweep {
  gating_kind kind;
  bool renormalize;
  int n_group = 1;  ///< above 1: tried where it divides E
  group_score group_rank = group_score::top2_sum;
  bool selection_bias = false;
};

/// All E, several K0, every policy.
void route_everything(const sweep& how, std::uint64_t seed, tally& seen) {
  inputs::sequence from(seed);
  int turn = 0;
  for (int num_experts : expert_counts_to_try()) {
    if (num_experts % how.n_group != 0 || num_experts / how.n_group < 2) continue;
    for (int top_k : top_k_to_try(from, num_experts)) {
      gating g = make_gating(how.kind, num_experts, top_k, how.renormalize);
      g.routed_scaling_factor = from.pick<float>({1.0f, 2.5f, 0.37f});
      g.selection_bias = how.selection_bias;
      if (how.n_group > 1) {
        const int size = num_experts / how.n_group;
        const int fewest = (top_k + size - 1) / size;
        g.n_group = how.n_group;
        g.topk_group = from.between(fewest, how.n_group);
        g.group_rank = how.group_rank;
      }
      const std::vector<float> bias = grid_bias(from, num_experts);
      routing_extras extras;
      if (g.selection_bias) extras.routing_bias = bias.data();
      const inputs::distortion_tables tables(from, num_experts, top_k);
      for (named_policy named : all_policies(from, g, tables)) {
        named.policy.mass_exponent = mass_exponent_number(turn++);
        if (from.chance(4)) named.policy.k_min = static_cast<std::uint8_t>(from.between(1, top_k));
        if (from.chance(4))
          named.policy.k_max = static_cast<std::uint8_t>(from.between(named.policy.k_min, 32));
        if (from.chance(4)) pick_super_experts(from, num_experts, named.policy);
        SCOPED_TRACE("E " + std::to_string(num_experts) + ", K0 " + std::to_string(top_k) +
                     ", policy " + named.name + ", mass_exponent " +
                     std::to_string(named.policy.mass_exponent));
        const int num_tokens = from.pick<int>({1, 5, 12});
        const int spread = from.pick<int>({16, 64, 160});
        const int gap = from.pick<int>({0, 0, 3});
        const auto input = grid_batch(from, num_tokens, num_experts, spread, gap);
        route_and_compare<std::int32_t>(g, named.policy, input, extras, seen);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(Router, SoftmaxRenormalised) {
  tally seen;
  route_everything({gating_kind::softmax, true}, 11, seen);
  expect_thorough(seen);
}

TEST(Router, SoftmaxNotRenormalised) {
  tally seen;
  route_everything({gating_kind::softmax, false}, 12, seen);
  expect_thorough(seen);
}

TEST(Router, SigmoidRenormalised) {
  tally seen;
  route_everything({gating_kind::sigmoid, true}, 13, seen);
  expect_thorough(seen);
}

TEST(Router, SigmoidNotRenormalised) {
  tally seen;
  route_everything({gating_kind::sigmoid, false}, 14, seen);
  expect_thorough(seen);
}

TEST(Router, TopKThenSoftmax) {
  tally seen;
  route_everything({gating_kind::top_k_softmax, true}, 15, seen);
  expect_thorough(seen);
}

TEST(Router, TopKThenSoftmaxRenormalisesWhateverTheFlagSays) {
  tally seen;
  route_everything({gating_kind::top_k_softmax, false}, 16, seen);
  expect_thorough(seen);
}

TEST(Router, SqrtSoftplusRenormalised) {
  tally seen;
  route_everything({gating_kind::sqrt_softplus, true}, 17, seen);
  expect_thorough(seen);
}

TEST(Router, SqrtSoftplusNotRenormalised) {
  tally seen;
  route_everything({gating_kind::sqrt_softplus, false}, 18, seen);
  expect_thorough(seen);
}

// Sums of a score and a bias can come within rounding of one another without being equal, the
// more experts the more often: that many tokens are left out.
TEST(Router, SelectionBiasOnEveryGating) {
  tally seen;
  route_everything({gating_kind::sigmoid, true, 1, group_score::top2_sum, true}, 21, seen);
  route_everything({gating_kind::sigmoid, false, 1, group_score::top2_sum, true}, 22, seen);
  route_everything({gating_kind::softmax, true, 1, group_score::top2_sum, true}, 23, seen);
  route_everything({gating_kind::softmax, false, 1, group_score::top2_sum, true}, 24, seen);
  route_everything({gating_kind::top_k_softmax, true, 1, group_score::top2_sum, true}, 25, seen);
  route_everything({gating_kind::sqrt_softplus, true, 1, group_score::top2_sum, true}, 26, seen);
  expect_thorough(seen, 0.03);
}

TEST(Router, GroupsByMaximum) {
  tally seen;
  for (int n_group : {2, 8, 32}) {
    route_everything({gating_kind::softmax, false, n_group, group_score::maximum}, 31, seen);
    route_everything({gating_kind::sigmoid, true, n_group, group_score::maximum}, 32, seen);
  }
  expect_thorough(seen);
}

TEST(Router, GroupsByTheirTwoBest) {
  tally seen;
  for (int n_group : {2, 8, 32}) {
    route_everything({gating_kind::softmax, true, n_group, group_score::top2_sum}, 33, seen);
    route_everything({gating_kind::sigmoid, true, n_group, group_score::top2_sum}, 34, seen);
  }
  expect_thorough(seen, 0.01);
}

TEST(Router, GroupsWithSelectionBias) {
  tally seen;
  for (int n_group : {2, 8}) {
    route_everything({gating_kind::sigmoid, true, n_group, group_score::top2_sum, true}, 35, seen);
    route_everything({gating_kind::softmax, true, n_group, group_score::maximum, true}, 36, seen);
  }
  expect_thorough(seen, 0.03);
}

TEST(Router, Sparsemixer) {
  tally seen;
  inputs::sequence from(41);
  int turn = 0;
  for (int num_experts : expert_counts_to_try())
    for (int top_k = 1; top_k <= std::min(2, num_experts); ++top_k)
      for (float epsilon : {0.0f, 0.0103f, 0.0731f, 0.3079f}) {
        gating g = make_gating(gating_kind::sparsemixer, num_experts, top_k, false);
        g.jitter_epsilon = epsilon;
        const inputs::distortion_tables tables(from, num_experts, top_k);
        for (named_policy named : all_policies(from, g, tables)) {
          named.policy.mass_exponent = mass_exponent_number(turn++);
          SCOPED_TRACE("E " + std::to_string(num_experts) + ", K0 " + std::to_string(top_k) +
                       ", epsilon " + std::to_string(epsilon) + ", policy " + named.name);
          route_and_compare<std::int32_t>(g, named.policy, grid_batch(from, 6, num_experts), {},
                                          seen);
          if (HasFailure()) return;
        }
      }
  expect_thorough(seen, 0.01);
}

// The shapes of the models that the presets describe, at a size where all K occur.
TEST(Router, ShapesOfRealModels) {
  struct shape {
    int num_experts, top_k, n_group, topk_group;
    gating_kind kind;
    bool renormalize, bias;
    float scale;
  };
  const shape shapes[] = {
      {8, 2, 1, 1, gating_kind::softmax, true, false, 1.0f},
      {60, 4, 1, 1, gating_kind::softmax, false, false, 1.0f},
      {64, 8, 1, 1, gating_kind::softmax, false, false, 1.0f},
      {128, 8, 1, 1, gating_kind::softmax, true, false, 1.0f},
      {128, 6, 1, 1, gating_kind::sigmoid, true, true, 2.5f},
      {256, 8, 8, 4, gating_kind::sigmoid, true, true, 2.5f},
      {384, 8, 1, 1, gating_kind::sigmoid, true, true, 2.827f},
      {32, 4, 1, 1, gating_kind::top_k_softmax, true, false, 1.0f},
      {16, 1, 1, 1, gating_kind::sigmoid, false, false, 1.0f},
      {40, 8, 1, 1, gating_kind::top_k_softmax, true, false, 1.0f},
      {512, 22, 1, 1, gating_kind::sigmoid, true, false, 1.0f},
      {896, 16, 1, 1, gating_kind::sqrt_softplus, true, false, 1.0f},
  };
  inputs::sequence from(51);
  tally seen;
  for (const shape& s : shapes) {
    gating g = make_gating(s.kind, s.num_experts, s.top_k, s.renormalize);
    g.n_group = s.n_group;
    g.topk_group = s.topk_group;
    g.selection_bias = s.bias;
    g.routed_scaling_factor = s.scale;
    const std::vector<float> bias = grid_bias(from, s.num_experts);
    routing_extras extras;
    if (s.bias) extras.routing_bias = bias.data();
    const auto input = grid_batch(from, 61, s.num_experts);
    const inputs::distortion_tables tables(from, s.num_experts, s.top_k);
    for (const named_policy& named : all_policies(from, g, tables)) {
      SCOPED_TRACE("E " + std::to_string(s.num_experts) + ", policy " + named.name);
      route_and_compare<std::int32_t>(g, named.policy, input, extras, seen);
      if (HasFailure()) return;
    }
  }
  expect_thorough(seen, 0.01);
}

TEST(Router, NumberOfTokens) {
  inputs::sequence from(61);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const k_policy policy = k_policy::entropy({1, 2}, {1.275f});
  for (int num_tokens : {0, 1, 2, 31, 4096}) {
    tally seen;
    route_and_compare<std::int32_t>(g, policy, grid_batch(from, num_tokens, 8), {}, seen);
    EXPECT_EQ(seen.tokens, num_tokens);
    EXPECT_LE(seen.close_k, num_tokens / 200);
    if (num_tokens == 4096) {
      EXPECT_GT(seen.by_k[1], 400);
      EXPECT_GT(seen.by_k[2], 400);
    }
  }
}

// Full-precision logits: the argument of exp is rounded too, so weights differ by a little more.
TEST(Router, FullPrecisionLogits) {
  inputs::sequence from(71);
  long tokens = 0;
  for (gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid, gating_kind::sqrt_softplus})
    for (int num_experts : {8, 60, 128, 1000}) {
      const gating g = make_gating(kind, num_experts, std::min(8, num_experts / 2));
      std::vector<float> logits;
      for (int i = 0; i < 64 * num_experts; ++i) logits.push_back(inputs::fine_logit(from));
      const logits_view<float> view = {logits.data(), 64, num_experts};
      const routed_batch routed = router(g, k_policy::full()).route(0, view);
      ASSERT_TRUE(routed.result.ok()) << routed.result.message();
      for (int t = 0; t < 64; ++t) {
        oracle::token token;
        token.logits.assign(logits.begin() + t * num_experts,
                            logits.begin() + (t + 1) * num_experts);
        const oracle::answer expected = oracle::route(g, k_policy::full(), token);
        for (int j = 0; j < g.top_k; ++j) {
          const std::size_t slot = at(t * g.top_k + j);
          ASSERT_EQ(routed.topk_ids[slot], expected.experts[at(j)]);
          ASSERT_NEAR(routed.topk_weights[slot], expected.weights[at(j)],
                      2e-6 * expected.weights[at(j)]);
        }
        ++tokens;
      }
    }
  EXPECT_EQ(tokens, 3 * 4 * 64);
}

}  // namespace
