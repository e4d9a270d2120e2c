// Policies in files of their own: layers, and distortion tables that must outlive the file.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"

namespace {

using adaptive_k::k_rule;
using adaptive_k::parse_policy;
using adaptive_k::preset_policy;
using calibration_test::error_of;
using calibration_test::json;
using calibration_test::temporary_folder;

/// 4 experts of which 3: two rows of coefficients.
adaptive_k::gating model_4_3() {
  adaptive_k::gating model;
  model.num_experts = 4;
  model.top_k = 3;
  return model;
}

json distortion_policy() {
  return json::parse(R"({
    "schema_version": 1,
    "name": "calibrated", "provenance": "measured", "rule": "distortion", "mass_exponent": 0.5,
    "measured": {"model": "m", "data": "d", "tokens": 4096, "date": "2026-01-01", "command": "c",
                 "mean_k": 1.5, "mean_kl": 0.005, "fixed_k_mean_kl": 0.01},
    "distortion": {"lambda": 0.25,
                   "coefficients": [[0, 1, 0, 0, 0], [-1, 1, 0.5, 0, 0]],
                   "next_expert": [[0, 0, 0, 0.5], [0, 0, 0, 0]]},
    "layers": [
      {},
      {"distortion": {"sensitivity": 2, "first_expert": [[1, 2, 3, 4], [5, 6, 7, 8]]}},
      {"rule": "full"}
    ]
  })");
}

class PolicyFile : public ::testing::Test {
 protected:
  preset_policy read(const json& value, int num_layers = 3) const {
    const auto file = folder_.write("policy.json", value);
    return parse_policy(file.string(), model_4_3(), num_layers);
  }
  std::string refusal(const json& value) const {
    const std::string message = error_of([&] { read(value); });
    const std::string file = (folder_.path() / "policy.json").string() + ": ";
    EXPECT_EQ(message.rfind(file, 0), 0u) << message;
    return message.size() > file.size() ? message.substr(file.size()) : "";
  }

  temporary_folder folder_;
};

TEST_F(PolicyFile, GivesEveryLayerWhatItDoesNotHave) {
  const preset_policy policy = read(distortion_policy());
  EXPECT_EQ(policy.name, "calibrated");
  EXPECT_EQ(policy.measured->tokens, 4096);
  EXPECT_EQ(policy.measured->fixed_k_mean_kl, 0.01);
  ASSERT_EQ(policy.layers.size(), 3u);
  const adaptive_k::distortion_ref& first = policy.layers[0].distortion;
  const adaptive_k::distortion_ref& second = policy.layers[1].distortion;
  EXPECT_EQ(policy.layers[0].rule, k_rule::distortion);
  EXPECT_EQ(policy.layers[2].rule, k_rule::full);
  EXPECT_EQ(policy.layers[1].mass_exponent, 0.5f);
  EXPECT_EQ(first.sensitivity, 1.0f);
  EXPECT_EQ(second.sensitivity, 2.0f);
  EXPECT_EQ(second.lambda, 0.25f);
  EXPECT_EQ(first.coefficients[5], -1.0f);
  EXPECT_EQ(first.coefficients[7], 0.5f);
  EXPECT_EQ(first.first_expert, nullptr);
  EXPECT_EQ(second.first_expert[7], 8.0f);
  EXPECT_EQ(first.next_expert[3], 0.5f);
  EXPECT_EQ(first.coefficients, second.coefficients) << "one table, stored once";
}

TEST_F(PolicyFile, RoutersKeepTheTablesAlive) {
  const float logits[4] = {4, 1, 0, 0};
  const adaptive_k::logits_view<> view{logits, 1, 4};
  auto policy = std::make_unique<preset_policy>(read(distortion_policy()));
  const adaptive_k::router router = adaptive_k::make_router(model_4_3(), *policy, 3);
  const auto before = router.route(0, view);
  ASSERT_TRUE(before.result.ok()) << before.result.message();
  policy.reset();
  EXPECT_EQ(router.route(0, view).topk_counts, before.topk_counts);
  EXPECT_EQ(router.route(2, view).topk_counts[0], 3);
  EXPECT_EQ(before.topk_counts[0], 1) << "lambda outweighs the distortion of a sure token";
}

TEST_F(PolicyFile, ASinglePolicyWithTablesServesEveryLayer) {
  json value = distortion_policy();
  value.erase("layers");
  auto policy = std::make_unique<preset_policy>(read(value));
  ASSERT_EQ(policy->layers.size(), 1u);
  const adaptive_k::router router = adaptive_k::make_router(model_4_3(), *policy, 3);
  policy.reset();
  const float logits[4] = {4, 1, 0, 0};
  EXPECT_TRUE(router.route(2, adaptive_k::logits_view<>{logits, 1, 4}).result.ok());
  EXPECT_EQ(router.num_layers(), 3);
}

/// A head of the size of an input of 2.
json head_policy() {
  json value = distortion_policy();
  value["distortion"] = {{"lambda", 0.25},
                         {"coefficients", {{0, 1, 0, 0, 0}, {-1, 1, 0, 0, 0}}},
                         {"head", {{0.5, -1}, {2, 0.25}}}};
  value["layers"][1] = {{"distortion", {{"sensitivity", 2}}}};
  return value;
}

TEST_F(PolicyFile, MayHaveARouterHead) {
  auto policy = std::make_unique<preset_policy>(read(head_policy()));
  for (const int layer : {0, 1}) {
    const adaptive_k::distortion_ref& d =
        policy->layers[static_cast<std::size_t>(layer)].distortion;
    ASSERT_EQ(d.hidden_size, 2);
    EXPECT_EQ(d.head[1], -1.0f);
    EXPECT_EQ(d.head[2], 2.0f);
  }
  const adaptive_k::router router = adaptive_k::make_router(model_4_3(), *policy, 3);
  policy.reset();
  EXPECT_TRUE(router.reads_head(1));
  EXPECT_FALSE(router.reads_head(2));
  const float logits[4] = {4, 1, 0, 0}, columns[2] = {};
  EXPECT_EQ(router.route(0, adaptive_k::logits_view<>{logits, 1, 4}).result.field(), "logits.head");
  EXPECT_TRUE(router.route(0, adaptive_k::logits_view<>{logits, 1, 4, 0, columns}).result.ok());
}

TEST_F(PolicyFile, ARouterHeadIsRefusedByItsPlace) {
  const auto of = [&](const auto& spoil) {
    json value = head_policy();
    spoil(value);
    return refusal(value);
  };
  EXPECT_EQ(of([](json& v) { v["distortion"]["head"].erase(1); }),
            "distortion.head: 1 rows, expected [2, 2] numbers (top_k - 1 rows)");
  EXPECT_EQ(of([](json& v) {
              v["distortion"]["head"][1] = {1, 2, 3};
            }),
            "distortion.head[1]: 3 columns, expected [2, 2] numbers (top_k - 1 rows)");
  EXPECT_EQ(of([](json& v) {
              v["distortion"]["head"] = {json::array(), json::array()};
            }),
            "distortion.head: [[],[]], expected top_k - 1 rows of one number or more");
  EXPECT_EQ(of([](json& v) {
              v["distortion"]["next_expert"] = {{0, 0, 0, 1}, {0, 0, 0, 0}};
            }),
            "distortion.next_expert: given beside distortion.head, expected one of them");
  EXPECT_EQ(of([](json& v) { v["distortion"]["coefficients"][1][2] = 0.5; }),
            "distortion.coefficients[1, 2]: 0.5, expected 0 with a head");
}

TEST_F(PolicyFile, LambdaCanBeSetBehindThePath) {
  folder_.write("policy.json", distortion_policy());
  const std::string path = (folder_.path() / "policy.json").string();
  json no_full_layer = distortion_policy();
  no_full_layer["layers"][2] = json::object();
  folder_.write("policy.json", no_full_layer);
  const preset_policy policy = parse_policy(path + ",lambda=0", model_4_3(), 3);
  for (const adaptive_k::k_policy& layer : policy.layers) EXPECT_EQ(layer.distortion.lambda, 0.0f);
  const float logits[4] = {4, 1, 0, 0};
  const adaptive_k::router router = adaptive_k::make_router(model_4_3(), policy, 3);
  EXPECT_EQ(router.route(0, adaptive_k::logits_view<>{logits, 1, 4}).topk_counts[0], 3);
  EXPECT_EQ(policy.provenance, "hand-set");
  EXPECT_FALSE(policy.measured.has_value());
}

TEST_F(PolicyFile, LayersMayHaveThresholdsOfTheirOwn) {
  const preset_policy policy = read(json::parse(R"({
    "name": "per layer", "provenance": "hand-set", "rule": "thresholds",
    "signal": "normalized_entropy", "k_values": [1, 3],
    "layers": [{"thresholds": [0.5]}, {"thresholds": [0.7]}, {"rule": "fixed", "k": 2}]
  })"));
  EXPECT_EQ(policy.layers[0].thresholds[0], 0.5f);
  EXPECT_EQ(policy.layers[1].thresholds[0], 0.7f);
  EXPECT_EQ(policy.layers[2].rule, k_rule::fixed);
  EXPECT_EQ(policy.layers[2].k_values[0], 2);
}

TEST_F(PolicyFile, LayersMayHaveSuperExpertsOfTheirOwn) {
  json value = distortion_policy();
  value["super_experts"] = {3};
  value["layers"][1]["super_experts"] = {2, 0};
  const preset_policy policy = read(value);
  const auto experts = [&](std::size_t layer) {
    const adaptive_k::k_policy& of = policy.layers[layer];
    return std::vector<int>(of.super_experts, of.super_experts + of.num_super_experts);
  };
  EXPECT_EQ(experts(0), (std::vector<int>{3}));
  EXPECT_EQ(experts(1), (std::vector<int>{2, 0}));
  value["layers"][1]["super_experts"] = json::array();
  EXPECT_EQ(read(value).layers[1].num_super_experts, 0);
  value["layers"][1]["super_experts"] = {4};
  EXPECT_EQ(refusal(value), "layers[1].super_experts[0]: 4, expected an integer in 0..3");
}

TEST_F(PolicyFile, LayersMayHaveADomain) {
  json value = distortion_policy();
  value["layers"][1]["domain"] = {{"signal", {0.25, 1.5}}, {"first_share", {0.125, 0.75}}};
  value["measured"]["out_of_domain"] = 0.021;
  const preset_policy policy = read(value);
  EXPECT_FALSE(policy.layers[0].domain.given);
  const adaptive_k::domain_bounds& domain = policy.layers[1].domain;
  EXPECT_TRUE(domain.given);
  EXPECT_EQ(domain.signal_least, 0.25f);
  EXPECT_EQ(domain.signal_most, 1.5f);
  EXPECT_EQ(domain.first_share_least, 0.125f);
  EXPECT_EQ(domain.first_share_most, 0.75f);
  EXPECT_EQ(policy.measured->out_of_domain, 0.021);
}

TEST_F(PolicyFile, RefusalsNameTheKey) {
  const auto spoil = [](const char* pointer, const json& value) {
    json policy = distortion_policy();
    policy[json::json_pointer(pointer)] = value;
    return policy;
  };
  const std::pair<json, const char*> cases[] = {
      {spoil("/distortion/coefficients", json::array({{0, 1, 0, 0, 0}})),
       "distortion.coefficients: 1 rows, expected [2, 5] numbers (top_k - 1 rows)"},
      {spoil("/distortion/coefficients/1", {0, 1, 0, 0}),
       "distortion.coefficients[1]: 4 columns, expected [2, 5] numbers"},
      {spoil("/distortion/coefficients/1/4", "x"),
       "distortion.coefficients[1][4]: \"x\", expected a number"},
      {spoil("/distortion/next_expert/0", {1, 2, 3}),
       "distortion.next_expert[0]: 3 columns, expected [2, 4] numbers"},
      {spoil("/layers/1/distortion/sensitivity", 0),
       "layers[1].distortion.sensitivity: 0, expected above 0, below 1e30"},
      {spoil("/distortion/lambda", -1), "distortion.lambda: -1, expected 0 or more, below 1e30"},
      {spoil("/layers/1/distortion/lamda", 1), "layers[1].distortion.lamda: unknown key"},
      {spoil("/distortion/lamda", 1), "distortion.lamda: unknown key"},
      {spoil("/layers/2/rule", "fixed"), "layers[2].k: missing, expected an integer"},
      {spoil("/layers/2/name", "x"), "layers[2].name: unknown key"},
      {spoil("/layers/2/distortion", json::object()),
       "layers[2].distortion: {}, expected no such key with the rule full"},
      {spoil("/layers/3", json::object()), "layers: 4 layers, expected 3"},
      {spoil("/layers", json::array()), "layers: 0 layers, expected 3"},
      {spoil("/layers/0", 7), "layers[0]: 7, expected an object"},
      {spoil("/schema_version", 9), "schema_version: 9, expected an integer in 1..1"},
      {spoil("/measured/tokens", 0), "measured.tokens: 0, expected an integer in 1.."},
  };
  for (const auto& [policy, message] : cases)
    EXPECT_EQ(refusal(policy).rfind(message, 0), 0u) << refusal(policy) << "\nnot: " << message;

  json no_lambda = distortion_policy();
  no_lambda["distortion"].erase("lambda");
  EXPECT_EQ(refusal(no_lambda), "distortion.lambda: missing, expected a number, 0 or more");
}

}  // namespace
