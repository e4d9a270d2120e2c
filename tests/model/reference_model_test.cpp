// The committed model against the figures that PyTorch recorded for it.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>
#include <moe_engine/loss.hpp>
#include <moe_engine/safetensors.hpp>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

namespace {

const std::filesystem::path folder =
    std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "model";

std::vector<std::int32_t> bytes_of(const std::string& file) {
  std::ifstream stream(folder / file, std::ios::binary);
  EXPECT_TRUE(stream) << folder / file;
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  std::vector<std::int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

class reference_model : public ::testing::Test {
 protected:
  reference_model()
      : engine(moe_engine::engine::load(folder)),
        router(engine.config().gating, adaptive_k::k_policy::full()) {}

  moe_engine::engine engine;
  adaptive_k::router router;
};

TEST_F(reference_model, has_the_recorded_loss) {
  std::ifstream stream(folder / "expected_loss.json");
  ASSERT_TRUE(stream) << folder / "expected_loss.json";
  const auto expected = nlohmann::json::parse(stream).at("texts");
  ASSERT_FALSE(expected.empty());
  for (const auto& [file, figures] : expected.items()) {
    const auto tokens = bytes_of(file);
    const int window = figures.at("window").get<int>();
    const auto windows = static_cast<std::int64_t>(tokens.size()) / window;
    const auto losses = moe_engine::window_losses(engine, tokens.data(), windows, window,
                                                  moe_engine::route_with(router));
    ASSERT_EQ(losses.size(), figures.at("predictions").get<std::size_t>());
    const double mean =
        std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
    EXPECT_NEAR(mean, figures.at("nats_per_byte").get<double>(), 1e-5) << file;
  }
}

TEST_F(reference_model, has_the_recorded_logits) {
  const moe_engine::safetensors_file recorded(folder / "reference_logits.safetensors");
  const auto& config = engine.config();
  const auto expected = recorded.read("logits");
  const auto length = static_cast<int>(expected.size()) / config.vocab_size;
  const auto tokens = bytes_of(recorded.metadata().at("text"));
  ASSERT_GE(tokens.size(), static_cast<std::size_t>(length));
  int layers_seen = 0;
  const auto route = [&](int layer, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& output) {
    const auto wanted =
        recorded.read("router." + std::to_string(layer), {logits.num_tokens, logits.num_experts});
    for (std::size_t i = 0; i < wanted.size(); ++i)
      EXPECT_NEAR(logits.data[i], wanted[i], 1e-4) << "layer " << layer << ", value " << i;
    ++layers_seen;
    return router.route(layer, logits, output);
  };
  std::vector<float> logits(expected.size());
  engine.forward(tokens.data(), 1, length, route, logits.data());
  EXPECT_EQ(layers_seen, config.num_layers);
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(logits[i], expected[i], 2e-4) << "value " << i;
}

}  // namespace
