// Policies in one word, as --policy takes them.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"

namespace {

using adaptive_k::k_policy;
using adaptive_k::k_rule;
using adaptive_k::parse_policy;
using adaptive_k::signal_kind;
using adaptive_k::to_spec;
using calibration_test::error_of;

adaptive_k::gating model_16_4() {
  adaptive_k::gating model;
  model.num_experts = 16;
  model.top_k = 4;
  return model;
}

k_policy parsed(const std::string& spec) {
  return parse_policy(spec, model_16_4()).layers.at(0);
}

TEST(PolicySpec, ReadsEachForm) {
  EXPECT_EQ(parsed("full").rule, k_rule::full);
  EXPECT_EQ(parsed("fixed:3").rule, k_rule::fixed);
  EXPECT_EQ(parsed("fixed:3").k_values[0], 3);

  const k_policy entropy = parsed("entropy:1,2,4@0.6,1.2");
  EXPECT_EQ(entropy.rule, k_rule::thresholds);
  EXPECT_EQ(entropy.signal, signal_kind::softmax_entropy);
  EXPECT_EQ(entropy.num_k_values, 3);
  EXPECT_EQ(entropy.k_values[2], 4);
  EXPECT_EQ(entropy.thresholds[1], 1.2f);
  EXPECT_EQ(entropy.mass_exponent, k_policy::mass_exponent_of_model);

  EXPECT_EQ(parsed("softmax_entropy:1,4@1").signal, signal_kind::softmax_entropy);
  EXPECT_EQ(parsed("normalized_entropy:1,4@0.8").signal, signal_kind::normalized_entropy);
  EXPECT_EQ(parsed("topk_entropy:1,4@1").signal, signal_kind::topk_entropy);
  EXPECT_EQ(parsed("margin:1,2,4@0.5,0.25").signal, signal_kind::margin);
  EXPECT_EQ(parsed("topk_mass:2,4@0.75").thresholds[0], 0.75f);

  const k_policy top_p = parsed("top_p:0.9");
  EXPECT_EQ(top_p.signal, signal_kind::topk_mass);
  EXPECT_EQ(top_p.num_k_values, 4);
  EXPECT_EQ(top_p.thresholds[2], 0.9f);
  EXPECT_EQ(parsed("score_ratio:0.2").signal, signal_kind::score_ratio);
}

TEST(PolicySpec, ReadsSettings) {
  const k_policy policy = parsed("top_p:0.9,a=0.5,k_min=2,k_max=3");
  EXPECT_EQ(policy.mass_exponent, 0.5f);
  EXPECT_EQ(policy.k_min, 2);
  EXPECT_EQ(policy.k_max, 3);
  EXPECT_EQ(parsed("entropy:1,4@1,a=0").mass_exponent, 0.0f);
  EXPECT_EQ(parsed("full,k_max=2").k_max, 2);
}

TEST(PolicySpec, TellsWhereItComesFrom) {
  EXPECT_EQ(parse_policy("full", model_16_4()).provenance, "the model's own routing");
  EXPECT_EQ(parse_policy("full,k_max=2", model_16_4()).provenance, "hand-set");
  EXPECT_EQ(parse_policy("fixed:2", model_16_4()).provenance, "hand-set");
  EXPECT_EQ(parse_policy("fixed:2", model_16_4()).name, "fixed:2");
}

TEST(PolicySpec, SurvivesTheRoundTrip) {
  for (const char* spec :
       {"full", "fixed:3", "softmax_entropy:1,2,4@0.6,1.275", "margin:1,4@0.5",
        "topk_mass:1,2,3,4@0.9,0.9,0.9", "score_ratio:1,2,4@0.2,0.1,a=0.25",
        "topk_entropy:2,4@1.1,a=1,k_min=2,k_max=3", "fixed:1,a=0", "fixed:1,super_experts=15+0"})
    EXPECT_EQ(to_spec(parsed(spec)), spec);
  const k_policy third = parsed("entropy:1,4@0.333333343");
  EXPECT_EQ(parsed(to_spec(third)).thresholds[0], third.thresholds[0]);
  EXPECT_EQ(to_spec(parsed("top_p:.9"), 4), "top_p:0.9");
  EXPECT_EQ(to_spec(parsed("score_ratio:0.2,a=0.5"), 4), "score_ratio:0.2,a=0.5");
  EXPECT_EQ(to_spec(parsed("topk_mass:1,2,3@0.9,0.9"), 4), "topk_mass:1,2,3@0.9,0.9");
  EXPECT_EQ(to_spec(parsed("top_p:0.9")), "topk_mass:1,2,3,4@0.9,0.9,0.9");
}

TEST(PolicySpec, RefusesWithTheReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"fast", "unknown policy, expected full, fixed:K, top_p:P"},
      {"", "unknown policy"},
      {"none:1,2@3", "unknown policy"},
      {"Full", "unknown policy"},
      {"fixed:", "'', expected an integer in 1..32"},
      {"fixed:2.5", "'2.5', expected an integer in 1..32"},
      {"fixed:-1", "'-1', expected an integer in 1..32"},
      {"fixed:5", "fixed k is 5, expected 1..top_k = 4"},
      {"top_p:", "'', expected a finite number"},
      {"top_p:nan", "'nan', expected a finite number"},
      {"top_p:inf", "'inf', expected a finite number"},
      {"top_p:0,9", "'0,9', expected a finite number"},
      {"top_p:true", "'true', expected a finite number"},
      {"top_p:0x1", "'0x1', expected a finite number"},
      {"top_p:1e99", "'1e99', expected a finite number"},
      {"top_p:1.5", "thresholds[0] is 1.5, expected 0..1"},
      {"entropy:1,2,4", "no '@', expected softmax_entropy:K,...@THRESHOLD,..."},
      {"entropy:1,2,4@0.5", "1 thresholds for 3 values of K, expected one fewer"},
      {"entropy:1,2@", "0 thresholds for 2 values of K, expected one fewer"},
      {"entropy:1,2,4@1.2,0.6", "thresholds[1] is 0.6 after 1.2, expected strictly ascending"},
      {"margin:1,2,4@0.1,0.2", "expected strictly descending"},
      {"entropy:1,5@1", "k_values[1] is 5, expected 2..4"},
      {"entropy:1,,4@1,2", "'', expected an integer in 1..32"},
      {"full,b=1", "b: unknown setting, expected one of a, k_min, k_max, lambda, super_experts"},
      {"fixed:2,super_experts=16", "super_experts[0] is 16, expected 0..15"},
      {"fixed:2,super_experts=1+1", "super_experts[1] is 1, expected another than [0]"},
      {"fixed:2,super_experts=", "super_experts: '', expected the id of an expert"},
      {"fixed:2,super_experts=1+-1", "super_experts: '-1', expected the id of an expert"},
      {"fixed:2,super_experts=1+2x", "super_experts: '2x', expected the id of an expert"},
      {"fixed:2,super_experts=0+1+2+3+4+5+6+7+8", "9 experts, expected at most 8"},
      {"fixed:2,a=2", "mass_exponent is 2, expected 0..1"},
      {"fixed:2,a=-1", "a: -1, expected 0..1"},
      {"fixed:2,a=1,a=0", "a: the setting comes twice"},
      {"fixed:2,k_min=9", "k_min is 9, expected 1..top_k = 4"},
      {"fixed:2,lambda=1", "lambda: the rule is fixed, expected a distortion policy"},
      {"no/such/file.json", "no/such/file.json: cannot be read (no such file), expected a file"},
  };
  for (const auto& [spec, reason] : cases) {
    const std::string text = spec;
    const std::string message = error_of([&] { (void)parsed(text); });
    EXPECT_NE(message.find(reason), std::string::npos) << spec << " gives: " << message;
    EXPECT_NE(message.find(text), std::string::npos) << message;
  }
}

TEST(PolicySpec, NamesOfThePresetComeFirst) {
  const adaptive_k::preset mixtral = adaptive_k::load_preset("mixtral");
  EXPECT_EQ(parse_policy("", mixtral).name, "published");
  EXPECT_EQ(parse_policy("published", mixtral).provenance, "published, not reproduced");
  EXPECT_EQ(parse_policy("top_p:0.8", mixtral).layers[0].num_k_values, 2);

  const adaptive_k::preset_policy changed = parse_policy("published,a=0.5", mixtral);
  EXPECT_EQ(changed.name, "published,a=0.5");
  EXPECT_EQ(changed.layers[0].mass_exponent, 0.5f);
  EXPECT_EQ(changed.layers[0].thresholds[0], 1.275f);
  EXPECT_EQ(changed.provenance, "hand-set") << "no claim covers what will run now";
  EXPECT_FALSE(changed.published.has_value());
  EXPECT_NE(changed.notes.find("published, not reproduced"), std::string::npos);
}

TEST(PolicySpec, AFilesPathIsAPathWhateverIsInIt) {
  const calibration_test::temporary_folder folder;
  const std::string policy = R"({"name": "p", "provenance": "hand-set", "rule": "fixed", "k": 2})";
  for (const char* sub : {"lr=0.1,seed=3", "a=1,k_min=2", "fixed:3,a=0", "x.json,y", ","}) {
    std::filesystem::create_directory(folder.path() / sub);
    const std::string file = folder.write(std::string(sub) + "/pol.json", policy).string();
    EXPECT_EQ(parsed(file).k_values[0], 2) << file;
    EXPECT_EQ(parsed(file + ",a=0.5,k_min=1").mass_exponent, 0.5f) << file;
  }
  const std::string missing = error_of([] { (void)parsed("no/a=1,such/file.json"); });
  EXPECT_EQ(missing.rfind("no/a=1,such/file.json: cannot be read", 0), 0u) << missing;
  const std::string file = folder.write("pol.json", policy).string();
  const std::string behind = error_of([&] { (void)parsed(file + ",fast"); });
  EXPECT_NE(behind.find("'fast' behind the file"), std::string::npos) << behind;
}

TEST(PolicySpec, APresetsFileIsItsDefaultPolicy) {
  const calibration_test::temporary_folder folder;
  calibration_test::json preset = calibration_test::good_file();
  preset["default_policy"] = "entropy";
  const std::string file = folder.write("preset.json", preset).string();
  EXPECT_EQ(parse_policy(file, model_16_4()).name, "entropy");
  EXPECT_EQ(parsed(file).k_values[2], 4);
  EXPECT_EQ(parsed(file + ",k_min=2").k_min, 2);
  // Also behind the name of a preset, as from_preset("mixtral", "preset.json") does.
  const std::string other =
      error_of([&] { parse_policy(file, adaptive_k::load_preset("mixtral-8x7b")); });
  EXPECT_NE(other.find("gating: softmax, renormalised, 4 of 16 experts, expected softmax, "
                       "renormalised, 2 of 8 experts, the model that is routed"),
            std::string::npos)
      << other;
  preset["default_policy"] = "gone";
  const std::string gone = folder.write("gone.json", preset).string();
  EXPECT_NE(
      error_of([&] { (void)parsed(gone); }).find("default_policy: \"gone\", expected the name of"),
      std::string::npos);
}

TEST(PolicySpec, UnknownOnesListEachNameOnce) {
  const std::string message =
      error_of([] { parse_policy("fast", adaptive_k::load_preset("mixtral-8x7b")); });
  const std::size_t first = message.find("full,");
  EXPECT_NE(first, std::string::npos) << message;
  EXPECT_EQ(message.find("full", first + 1), std::string::npos) << message;
  EXPECT_NE(message.find("published, "), std::string::npos) << message;
}

}  // namespace
