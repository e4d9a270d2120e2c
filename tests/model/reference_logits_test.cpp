// The committed model's logits, layer by layer, against those that PyTorch recorded.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>
#include <moe_engine/safetensors.hpp>

#include "model/reference_files.hpp"

namespace {

TEST(reference_model, has_the_recorded_logits) {
  moe_engine::engine engine = moe_engine::engine::load(reference::folder());
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  const moe_engine::safetensors_file recorded(reference::folder() / "reference_logits.tensors");
  const auto& config = engine.config();
  const auto expected = recorded.read("logits");
  const auto length = static_cast<int>(expected.size()) / config.vocab_size;
  const auto tokens = reference::bytes_of(recorded.metadata().at("text"));
  ASSERT_GE(tokens.size(), static_cast<std::size_t>(length));
  int layers_seen = 0;
  const auto route = [&](int layer, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& output,
                         const adaptive_k::routing_extras& extras) {
    const auto wanted =
        recorded.read("router." + std::to_string(layer), {logits.num_tokens, logits.num_experts});
    for (std::size_t i = 0; i < wanted.size(); ++i)
      EXPECT_NEAR(logits.data[i], wanted[i], 1e-4) << "layer " << layer << ", value " << i;
    ++layers_seen;
    return router.route(layer, logits, output, nullptr, extras);
  };
  std::vector<float> logits(expected.size());
  engine.forward(tokens.data(), 1, length, route, logits.data());
  EXPECT_EQ(layers_seen, config.num_layers);
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(logits[i], expected[i], 2e-4) << "value " << i;
}

}  // namespace
