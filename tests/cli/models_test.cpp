// `adaptive-k` on every committed model that has a tokenizer: text by domain, policy and controls.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path models = fs::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models";

std::vector<std::string> with_weights() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(models))
    if (fs::exists(entry.path() / "model.safetensors") &&
        fs::exists(entry.path() / "tokenizer.json"))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class Models : public testing::TestWithParam<std::string> {
 protected:
  std::string folder() const { return (models / GetParam()).string(); }
  json config() const { return json::parse(content_of(models / GetParam() / "config.json")); }

  json report(const command_line& more) const {
    const outcome run = run_program(
        command_line{"benchmark", "--model", folder(), "--policy", "top_p:0.8", "--json", "-"} +
        more);
    EXPECT_EQ(run.status, 0) << run.err;
    return json::parse(run.out);
  }
};

TEST_P(Models, AreMeasuredOnAllDomainsInTurnBesideTheirControls) {
  const json found = report({"--windows", "6", "--prompts", "3"});
  EXPECT_EQ(found["dataset"]["path"], "code_test, novels_test, technical_test");
  EXPECT_EQ(found["dataset"]["unit"], "tokens");
  EXPECT_EQ(found["dataset"]["windows"], 6);
  const int own_k = config()["num_experts_per_tok"];
  EXPECT_EQ(found["model"]["top_k"], own_k);
  EXPECT_EQ(found["baseline"]["mean_k"], own_k);
  EXPECT_LT(found["policy"]["mean_k"], own_k);
  EXPECT_GT(found["policy"]["mean_kl"], 0.0);
  EXPECT_EQ(found["controls"]["fixed_k"].size(), static_cast<std::size_t>(own_k));
  // Trained: 2,048 tokens are far from all alike.
  EXPECT_LT(found["baseline"]["perplexity"], 100.0);
  const json& continuation = found["continuation"];
  EXPECT_EQ(continuation["prompts"], 3);
  ASSERT_EQ(continuation["routings"].size(), static_cast<std::size_t>(own_k) + 1);
  EXPECT_EQ(continuation["routings"][0]["name"], "full K");
  EXPECT_EQ(continuation["routings"][0]["mean_k"], own_k);
  for (const json& routing : continuation["routings"])
    for (const json& tokens : routing["tokens"]) {
      EXPECT_GE(tokens, 0);
      EXPECT_LE(tokens, 128);
    }
}

TEST_P(Models, ReadADomainByName) {
  const json domains = json::parse(content_of(models / "texts.json"))["domains"];
  for (const auto& [domain, texts] : domains.items()) {
    const json found = report({"--windows", "1", "--prompts", "0", "--dataset", domain});
    EXPECT_EQ(found["dataset"]["sha256"], texts["test"]["sha256"]) << domain;
    EXPECT_TRUE(found["continuation"].is_null());
  }
}

TEST_P(Models, ShowTheirTokensAsText) {
  const outcome run =
      run_program({"inspect", "--model", folder(), "--text", "def f(x):", "--policy", "top_p:0.8"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_TRUE(contains(run.out, "Token 0 'def'")) << run.out;
}

INSTANTIATE_TEST_SUITE_P(, Models, testing::ValuesIn(with_weights()), [](const auto& tested) {
  std::string name = tested.param;
  std::replace_if(
      name.begin(), name.end(),
      [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
});

}  // namespace
