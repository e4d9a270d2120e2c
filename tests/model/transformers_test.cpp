// Models of every kind that the engine runs against what transformers recorded of them, at every K.
#include <gtest/gtest.h>
#include <moe_engine/loss.hpp>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "model/fixture_models.hpp"

namespace {

using fixture_models::fixture;

constexpr double tolerance = 1e-4;  // nats, and logits

class transformers : public testing::TestWithParam<const char*> {};

TEST_P(transformers, losses_are_the_recorded_ones_at_every_k) {
  fixture model(GetParam());
  const int top_k = model.engine.config().gating.top_k;
  const auto nats = model.expected.read("nats", {top_k, 2, model.length - 1});
  for (int k = 1; k <= top_k; ++k) {
    const auto losses = moe_engine::window_losses(model.engine, model.tokens.data(), 2,
                                                  model.length, model.fixed_k(k));
    const std::size_t first = static_cast<std::size_t>(k - 1) * losses.size();
    for (std::size_t i = 0; i < losses.size(); ++i)
      ASSERT_NEAR(losses[i], static_cast<double>(nats[first + i]), tolerance)
          << "K = " << k << ", prediction " << i;
  }
}

TEST_P(transformers, logits_are_the_recorded_ones_layer_by_layer) {
  fixture model(GetParam());
  const moe_engine::model_config& config = model.engine.config();
  const auto expected = model.expected.read("logits");
  const auto rows = static_cast<std::int64_t>(expected.size() / model.vocab);
  std::set<int> layers;
  const adaptive_k::router router(config.gating, adaptive_k::k_policy::full());
  const auto route = [&](int layer, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& output,
                         const adaptive_k::routing_extras& extras) {
    const auto wanted = model.expected.read("router." + std::to_string(layer),
                                            {logits.num_tokens, logits.num_experts});
    for (std::size_t i = 0; i < wanted.size(); ++i)
      EXPECT_NEAR(logits.data[i], wanted[i], tolerance) << "layer " << layer << ", value " << i;
    EXPECT_EQ(extras.routing_bias != nullptr, config.gating.selection_bias);
    layers.insert(layer);
    return router.route(layer, logits, output, nullptr, extras);
  };
  std::vector<float> logits(expected.size());
  model.engine.forward(model.tokens.data(), 1, static_cast<int>(rows), route, logits.data());
  EXPECT_EQ(layers.size(), static_cast<std::size_t>(config.num_moe_layers));
  EXPECT_EQ(*layers.rbegin() + 1, config.num_moe_layers);
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(logits[i], expected[i], tolerance) << "value " << i;
}

// The calibrator adds the routed experts' outputs to what it is shown: the next layer's input.
TEST_P(transformers, what_is_observed_adds_up_to_the_layers_output) {
  fixture model(GetParam());
  const moe_engine::model_config& config = model.engine.config();
  const auto hidden = static_cast<std::size_t>(config.hidden_size);
  const auto top_k = static_cast<std::size_t>(config.gating.top_k);
  if (config.is_dense.back() != 0) GTEST_SKIP() << "no MoE layer at the end";
  const adaptive_k::router router(config.gating, adaptive_k::k_policy::full());
  std::vector<float> last;  // [T, H], after the last layer
  const auto observe = [&](const moe_engine::expert_outputs& block) {
    if (block.layer + 1 != config.num_moe_layers) return;
    adaptive_k::routing_extras extras;
    extras.routing_bias = block.routing_bias;
    const auto routed = router.route(
        block.layer,
        adaptive_k::logits_view<float>{block.logits, block.num_tokens, config.gating.num_experts},
        nullptr, extras);
    ASSERT_TRUE(routed.result.ok());
    for (std::size_t t = 0; t < static_cast<std::size_t>(block.num_tokens); ++t)
      for (std::size_t i = 0; i < hidden; ++i) {
        float sum = block.residual[t * hidden + i];
        for (std::size_t j = 0; j < top_k; ++j)
          sum += routed.topk_weights[t * top_k + j] * block.outputs[(t * top_k + j) * hidden + i];
        last.push_back(sum);
      }
  };
  std::vector<float> logits(static_cast<std::size_t>(model.length) * model.vocab);
  model.engine.forward(model.tokens.data(), 1, model.length, moe_engine::route_with(router),
                       logits.data(), nullptr, observe);
  ASSERT_EQ(last.size(), static_cast<std::size_t>(model.length) * hidden);
  // The final norm and the head, from the file.
  const moe_engine::safetensors_file weights(fixture_models::folder_of(GetParam()) /
                                             "model.safetensors");
  const auto norm = weights.read("model.norm.weight");
  const auto head =
      weights.read(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  for (std::size_t t = 0; t < static_cast<std::size_t>(model.length); ++t) {
    double square = 0.0;
    for (std::size_t i = 0; i < hidden; ++i)
      square +=
          static_cast<double>(last[t * hidden + i]) * static_cast<double>(last[t * hidden + i]);
    const double scale = 1.0 / std::sqrt(square / static_cast<double>(hidden) +
                                         static_cast<double>(config.rms_norm_eps));
    for (std::size_t v = 0; v < model.vocab; ++v) {
      double logit = 0.0;
      for (std::size_t i = 0; i < hidden; ++i)
        logit += static_cast<double>(head[v * hidden + i]) * static_cast<double>(norm[i]) * scale *
                 static_cast<double>(last[t * hidden + i]);
      ASSERT_NEAR(logits[t * model.vocab + v], logit, tolerance);
    }
  }
}

TEST_P(transformers, early_exit_and_merging_that_do_nothing_change_no_bit) {
  fixture model(GetParam());
  const auto route = model.fixed_k(2);
  std::vector<float> plain(model.tokens.size() * model.vocab);
  model.engine.forward(model.tokens.data(), 2, model.length, route, plain.data());
  std::vector<float> stacked(plain.size());
  moe_engine::work_count work;
  model.engine.forward_stacked(model.tokens.data(), 2, model.length, route, {}, stacked.data(),
                               &work);
  EXPECT_EQ(stacked, plain);
  const moe_engine::model_config& c = model.engine.config();
  const std::uint64_t t = model.tokens.size();
  const auto hidden = static_cast<std::uint64_t>(c.hidden_size);
  const auto moe = static_cast<std::uint64_t>(c.num_moe_layers);
  const auto dense = static_cast<std::uint64_t>(c.num_layers) - moe;
  EXPECT_EQ(work.expert_calls, t * moe * 2);
  EXPECT_EQ(work.experts,
            work.expert_calls * 3 * hidden * static_cast<std::uint64_t>(c.intermediate_size));
  EXPECT_EQ(work.unrouted_mlps,
            t * hidden *
                (dense * 3 * static_cast<std::uint64_t>(c.dense_intermediate_size) +
                 moe * (3 * static_cast<std::uint64_t>(c.shared_intermediate_size) +
                        (c.shared_expert_gate ? 1u : 0u))));
}

INSTANTIATE_TEST_SUITE_P(, transformers, testing::ValuesIn(fixture_models::names),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
