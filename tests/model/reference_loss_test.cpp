// The committed model's loss on its held-out test text against the one that PyTorch recorded.
#include <gtest/gtest.h>
#include <moe_engine/loss.hpp>

#include <nlohmann/json.hpp>
#include <numeric>

#include "model/reference_files.hpp"

namespace {

TEST(reference_model, has_the_recorded_loss) {
  const std::string text = "heldout_test.txt";
  std::ifstream stream(reference::folder() / "expected_loss.json");
  ASSERT_TRUE(stream) << reference::folder() / "expected_loss.json";
  const auto expected = nlohmann::json::parse(stream).at("texts").at(text);
  const auto tokens = reference::bytes_of(text);
  const int window = expected.at("window").get<int>();
  const auto windows = static_cast<std::int64_t>(tokens.size()) / window;
  moe_engine::engine engine = moe_engine::engine::load(reference::folder());
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  const auto losses = moe_engine::window_losses(engine, tokens.data(), windows, window,
                                                moe_engine::route_with(router));
  ASSERT_EQ(losses.size(), expected.at("predictions").get<std::size_t>());
  const double mean =
      std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  EXPECT_NEAR(mean, expected.at("nats_per_byte").get<double>(), 1e-5);
}

}  // namespace
