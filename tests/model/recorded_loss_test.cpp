// Every committed model's losses on its held-out test texts, and the outputs of their first
// windows, against those that transformers recorded. A folder without weights is a configuration
// whose training has not ended.
#include <gtest/gtest.h>
#include <moe_engine/loss.hpp>
#include <moe_engine/safetensors.hpp>
#include <moe_engine/tokenizer.hpp>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path models = fs::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models";

std::string bytes_of(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error(file.string() + ": cannot be opened");
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<std::string> folders() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(models))
    if (fs::exists(entry.path() / "config.json")) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::int32_t> tokens_of(const fs::path& folder, const fs::path& text) {
  const std::string bytes = bytes_of(text);
  if (fs::exists(folder / "tokenizer.json"))
    return moe_engine::tokenizer(folder / "tokenizer.json").encode(bytes);
  std::vector<std::int32_t> tokens;
  for (const char c : bytes) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

/// A loss as it was recorded: of a file in the model's own folder, or of a domain of texts.json.
struct recorded_loss {
  std::string name;
  fs::path file;
  std::size_t tokens;  // 0: not recorded
  int window;
  std::size_t predictions;
  double nats;
  double tolerance;
};

std::vector<recorded_loss> losses_of(const fs::path& folder) {
  const json recorded = json::parse(bytes_of(folder / "expected_loss.json"));
  const json domains = json::parse(bytes_of(models / "texts.json")).at("domains");
  std::vector<recorded_loss> losses;
  for (const auto& [name, text] : recorded.at("texts").items()) {
    const auto predictions = text.at("predictions").get<std::size_t>();
    if (name == "heldout_test.txt")
      losses.push_back(
          {name, folder / name, 0, text.at("window"), predictions, text.at("nats_per_byte"), 1e-5});
    const std::size_t end = name.rfind("_test");
    if (end != std::string::npos && end + 5 == name.size())
      losses.push_back(
          {name, models / domains.at(name.substr(0, end)).at("test").at("file").get<std::string>(),
           text.at("tokens"), recorded.at("window"), predictions, text.at("nats_per_token"), 1e-4});
  }
  return losses;
}

class RecordedLoss : public testing::TestWithParam<std::string> {
 protected:
  fs::path folder() const { return models / GetParam(); }
  bool trained() const { return fs::exists(folder() / "model.safetensors"); }
};

TEST_P(RecordedLoss, IsTheEnginesLoss) {
  if (!trained()) GTEST_SKIP() << GetParam() << " has no weights yet";
  moe_engine::engine engine = moe_engine::engine::load(folder());
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  const auto losses = losses_of(folder());
  EXPECT_FALSE(losses.empty());
  for (const recorded_loss& expected : losses) {
    const auto tokens = tokens_of(folder(), expected.file);
    if (expected.tokens != 0) {
      EXPECT_EQ(tokens.size(), expected.tokens) << expected.name;
    }
    const auto windows = static_cast<std::int64_t>(tokens.size()) / expected.window;
    const auto nats = moe_engine::window_losses(engine, tokens.data(), windows, expected.window,
                                                moe_engine::route_with(router));
    ASSERT_EQ(nats.size(), expected.predictions) << expected.name;
    const double mean =
        std::accumulate(nats.begin(), nats.end(), 0.0) / static_cast<double>(nats.size());
    EXPECT_NEAR(mean, expected.nats, expected.tolerance) << expected.name;
    std::printf("%s, %s: %.7f nats, recorded %.7f\n", GetParam().c_str(), expected.name.c_str(),
                mean, expected.nats);
  }
}

// The first window of each domain, token by token; the reference model has a test of its own.
TEST_P(RecordedLoss, HoldsForEveryTokenAndRouter) {
  if (!trained()) GTEST_SKIP() << GetParam() << " has no weights yet";
  if (!fs::exists(folder() / "reference_outputs.tensors"))
    GTEST_SKIP() << GetParam() << " has no reference_outputs.tensors";
  moe_engine::engine engine = moe_engine::engine::load(folder());
  const int num_experts = engine.config().gating.num_experts;
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  const moe_engine::safetensors_file recorded(folder() / "reference_outputs.tensors");
  for (const auto& [domain, texts] :
       json::parse(bytes_of(models / "texts.json")).at("domains").items()) {
    std::vector<std::int32_t> tokens;
    for (const std::int64_t token : recorded.read_integers(domain + ".tokens"))
      tokens.push_back(static_cast<std::int32_t>(token));
    const auto text = tokens_of(folder(), models / texts.at("test").at("file").get<std::string>());
    ASSERT_GE(text.size(), tokens.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), text.begin())) << domain;
    int layers = 0;
    const auto route = [&, &domain = domain](int layer,
                                             const adaptive_k::logits_view<float>& logits,
                                             const adaptive_k::routing_output<>& output,
                                             const adaptive_k::routing_extras& extras) {
      const auto wanted = recorded.read(domain + ".router." + std::to_string(layer));
      EXPECT_EQ(wanted.size() % static_cast<std::size_t>(num_experts), 0u);
      for (std::size_t i = 0; i < wanted.size(); ++i)
        EXPECT_NEAR(logits.data[i], wanted[i], 1e-4) << domain << ", layer " << layer;
      ++layers;
      return router.route(layer, logits, output, nullptr, extras);
    };
    const auto length = static_cast<int>(tokens.size());
    const auto nats = moe_engine::window_losses(engine, tokens.data(), 1, length, route);
    EXPECT_EQ(layers, engine.config().num_moe_layers);
    const auto expected = recorded.read(domain + ".nats", {length - 1});
    for (std::size_t i = 0; i < nats.size(); ++i)
      EXPECT_NEAR(nats[i], static_cast<double>(expected[i]), 2e-4) << domain << ", token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, RecordedLoss, testing::ValuesIn(folders()), [](const auto& tested) {
  std::string name = tested.param;
  std::replace_if(
      name.begin(), name.end(),
      [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
});

}  // namespace
