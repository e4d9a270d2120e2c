// `adaptive-k benchmark` on a slice of the reference model's text.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

using nlohmann::json;

constexpr int num_layers = 4;
constexpr int top_k = 8;

const json& default_report() {
  static const json report = benchmark_report();
  return report;
}

/// The report without what differs from run to run: times.
json without_times(json report) {
  for (auto item = report.begin(); item != report.end();) {
    const bool is_time = item->is_number() && report.is_object() &&
                         (contains(item.key(), "seconds") || contains(item.key(), "speedup"));
    if (is_time) {
      item = report.erase(item);
      continue;
    }
    if (item->is_structured()) *item = without_times(*item);
    ++item;
  }
  return report;
}

void expect_keys(const json& object, const std::vector<std::string>& keys) {
  for (const std::string& key : keys) EXPECT_TRUE(object.contains(key)) << key;
}

TEST(Benchmark, ReportHasEveryKey) {
  const json& report = default_report();
  ASSERT_TRUE(report.is_object());
  expect_keys(report, {"format", "schema_version", "version", "model", "dataset", "baseline",
                       "policy", "layers", "controls", "beats_fixed_k", "continuation"});
  expect_keys(report["model"], {"name", "num_layers", "num_experts", "top_k"});
  expect_keys(report["dataset"], {"path", "sha256", "tokens", "windows", "window", "predictions"});
  expect_keys(report["baseline"], {"perplexity", "copy_accuracy", "mean_k", "distinct_experts"});
  const std::vector<std::string> figures = {"perplexity",
                                            "perplexity_ratio",
                                            "perplexity_ratio_se",
                                            "perplexity_difference",
                                            "mean_kl",
                                            "mean_kl_se",
                                            "copy_accuracy",
                                            "kl_p99",
                                            "top1_agreement",
                                            "mean_k",
                                            "expert_savings",
                                            "distinct_experts",
                                            "expert_bytes_per_step",
                                            "moe_seconds",
                                            "total_seconds"};
  expect_keys(report["policy"], figures);
  expect_keys(report["policy"], {"name", "origin", "provenance", "layers", "k_histogram",
                                 "moe_speedup", "total_speedup", "adaptive_layers"});
  expect_keys(report["policy"]["layers"][0], {"rule", "spec", "signal", "mass_exponent"});
  for (const char* batch : {"1", "16", "64"})
    EXPECT_TRUE(report["policy"]["distinct_experts"].contains(batch));
  expect_keys(report["controls"], {"fixed_k", "fixed_at_equal_mean_k", "random_mix", "inverted"});
  expect_keys(report["controls"]["random_mix"], figures);
  expect_keys(report["controls"]["random_mix"], {"seed"});
  expect_keys(report["controls"]["inverted"], figures);
  expect_keys(report["controls"]["fixed_at_equal_mean_k"], {"mean_kl", "perplexity", "mean_k"});
  ASSERT_EQ(report["controls"]["fixed_k"].size(), static_cast<std::size_t>(top_k));
  for (int k = 1; k <= top_k; ++k) {
    const json& fixed = report["controls"]["fixed_k"][static_cast<std::size_t>(k) - 1];
    expect_keys(fixed, figures);
    EXPECT_EQ(fixed["k"], k);
    EXPECT_EQ(fixed["mean_k"], k);
  }
  expect_keys(report["beats_fixed_k"], {"delta_mean_kl", "se", "delta_perplexity",
                                        "delta_perplexity_se", "verdict", "sentence"});
}

TEST(Benchmark, FiguresHangTogether) {
  const json& report = default_report();
  const json& policy = report["policy"];
  const double mean_k = policy["mean_k"];
  EXPECT_GT(mean_k, 1.0);
  EXPECT_LT(mean_k, top_k);
  EXPECT_NEAR(policy["expert_savings"], 1.0 - mean_k / top_k, 1e-12);
  EXPECT_EQ(report["dataset"]["tokens"], 4 * 64);
  EXPECT_EQ(report["dataset"]["predictions"], 4 * 63);
  EXPECT_EQ(report["baseline"]["mean_k"], top_k);

  double tokens = 0.0;
  double sum_k = 0.0;
  for (const auto& [k, count] : policy["k_histogram"].items()) {
    tokens += count.get<double>();
    sum_k += std::stod(k) * count.get<double>();
  }
  EXPECT_EQ(tokens, 4.0 * 64 * num_layers);
  EXPECT_NEAR(sum_k / tokens, mean_k, 1e-12);

  const double baseline = report["baseline"]["perplexity"];
  const double perplexity = policy["perplexity"];
  EXPECT_GT(baseline, 1.0);
  EXPECT_LT(baseline, 256.0);
  EXPECT_NEAR(policy["perplexity_ratio"], perplexity / baseline, 1e-9);
  EXPECT_NEAR(policy["perplexity_difference"], perplexity - baseline, 1e-9);
  EXPECT_GT(policy["mean_kl"].get<double>(), 0.0);
  EXPECT_GE(policy["kl_p99"].get<double>(), policy["mean_kl"].get<double>());
  EXPECT_NEAR(policy["distinct_experts"]["1"], mean_k, 1e-9);
  EXPECT_TRUE(policy["distinct_experts"]["16"].is_null());  // four windows make no such batch

  const json& controls = report["controls"];
  EXPECT_NEAR(controls["fixed_at_equal_mean_k"]["mean_k"], mean_k, 1e-9);
  EXPECT_NEAR(
      report["beats_fixed_k"]["delta_mean_kl"],
      policy["mean_kl"].get<double>() - controls["fixed_at_equal_mean_k"]["mean_kl"].get<double>(),
      1e-12);
  EXPECT_NEAR(report["beats_fixed_k"]["delta_perplexity"],
              perplexity - controls["fixed_at_equal_mean_k"]["perplexity"].get<double>(), 1e-9);
  // Their K's come from logits that their own errors have moved: near the policy's, not equal.
  EXPECT_NEAR(controls["random_mix"]["mean_k"], mean_k, 0.3);
  EXPECT_NEAR(controls["inverted"]["mean_k"], mean_k, 0.5);
  EXPECT_EQ(controls["fixed_k"][top_k - 1]["mean_kl"], 0.0);
}

TEST(Benchmark, SameRunSameFigures) {
  EXPECT_EQ(without_times(benchmark_report()), without_times(default_report()));
}

TEST(Benchmark, AnotherDataSetOrPolicyChangesTheFigures) {
  const scratch_folder folder;
  std::string text;
  for (int i = 0; i < 40; ++i) text += "Another text, number " + std::to_string(i) + ", quite. ";
  const json other = benchmark_report({"--dataset", folder.write("text.txt", text).string()});
  const json& report = default_report();
  EXPECT_NE(other["dataset"]["sha256"], report["dataset"]["sha256"]);
  EXPECT_NE(other["baseline"]["perplexity"], report["baseline"]["perplexity"]);
  EXPECT_NE(other["policy"]["mean_k"], report["policy"]["mean_k"]);
  EXPECT_NE(other["policy"]["mean_kl"], report["policy"]["mean_kl"]);

  const json entropy = benchmark_report({"--policy", "entropy:2,5,8@1.5,2.5"});
  EXPECT_EQ(entropy["baseline"]["perplexity"], report["baseline"]["perplexity"]);
  EXPECT_NE(entropy["policy"]["mean_k"], report["policy"]["mean_k"]);
  EXPECT_NE(entropy["policy"]["mean_kl"], report["policy"]["mean_kl"]);
  EXPECT_NE(entropy["layers"][0]["mean_k"], report["layers"][0]["mean_k"]);
}

TEST(Benchmark, AnotherSeedChangesOnlyTheRandomControl) {
  json one = without_times(benchmark_report({"--policy", "top_p:0.8"}));
  json two = without_times(benchmark_report({"--policy", "top_p:0.8", "--seed", "2"}));
  EXPECT_NE(one["controls"]["random_mix"]["mean_kl"], two["controls"]["random_mix"]["mean_kl"]);
  one["controls"].erase("random_mix");
  two["controls"].erase("random_mix");
  EXPECT_EQ(one, two);
}

TEST(Benchmark, FullKIsTheModelItself) {
  const json report = benchmark_report({"--policy", "full"});
  const json& policy = report["policy"];
  EXPECT_EQ(policy["mean_kl"], 0.0);
  EXPECT_EQ(policy["kl_p99"], 0.0);
  EXPECT_EQ(policy["perplexity_ratio"], 1.0);
  EXPECT_EQ(policy["perplexity"], report["baseline"]["perplexity"]);
  EXPECT_EQ(policy["top1_agreement"], 1.0);
  EXPECT_EQ(policy["expert_savings"], 0.0);
  EXPECT_EQ(report["controls"]["random_mix"]["mean_kl"], 0.0);
  EXPECT_EQ(report["beats_fixed_k"]["verdict"], "nothing to compare");
  EXPECT_TRUE(contains(report["beats_fixed_k"]["sentence"], "saves nothing"));
}

TEST(Benchmark, FixedPolicyIsItsOwnControl) {
  const json report = benchmark_report({"--policy", "fixed:4"});
  json control = without_times(report["controls"]["fixed_k"][3]);
  control.erase("k");
  for (const auto& [key, value] : control.items()) EXPECT_EQ(report["policy"][key], value) << key;
  EXPECT_EQ(report["beats_fixed_k"]["delta_mean_kl"], 0.0);
  EXPECT_EQ(report["beats_fixed_k"]["verdict"], "nothing to compare");
  EXPECT_EQ(report["controls"]["fixed_at_equal_mean_k"]["mean_kl"], report["policy"]["mean_kl"]);
  for (const char* name : {"random_mix", "inverted"})
    EXPECT_EQ(report["controls"][name]["mean_kl"], report["policy"]["mean_kl"]) << name;
}

TEST(Benchmark, MassExponentReachesPolicyAndControls) {
  const json one = benchmark_report({"--policy", "fixed:4"});
  const json half = benchmark_report({"--policy", "fixed:4,a=0.5"});
  EXPECT_EQ(half["policy"]["layers"][0]["mass_exponent"], 0.5);
  EXPECT_NE(half["policy"]["mean_kl"], one["policy"]["mean_kl"]);
  EXPECT_NE(half["controls"]["fixed_k"][1]["mean_kl"], one["controls"]["fixed_k"][1]["mean_kl"]);
  EXPECT_EQ(half["controls"]["fixed_k"][3]["mean_kl"], half["policy"]["mean_kl"]);
}

TEST(Benchmark, DistortionPolicyFromAFile) {
  // d(k) = 1 - r_k for every k: the dropped share of the top-K0 mass.
  std::string rows;
  for (int k = 1; k < top_k; ++k) rows += std::string(k == 1 ? "" : ", ") + "[0, 1, 0, 0, 0]";
  const scratch_folder folder;
  const auto file = folder.write("policy.json",
                                 R"({"name": "mass", "provenance": "hand-set", "rule": "distortion",
                         "mass_exponent": 0.5,
                         "distortion": {"lambda": 0.05, "coefficients": [)" +
                                     rows + "]}}");
  const json report = benchmark_report({"--policy", file.string()});
  EXPECT_EQ(report["policy"]["layers"][0]["rule"], "distortion");
  EXPECT_NEAR(report["policy"]["layers"][3]["lambda"], 0.05, 1e-7);
  EXPECT_LT(report["policy"]["mean_k"].get<double>(), top_k);
  EXPECT_GT(report["policy"]["mean_kl"].get<double>(), 0.0);
  const json dearer = benchmark_report({"--policy", file.string() + ",lambda=0.1"});
  EXPECT_LT(dearer["policy"]["mean_k"].get<double>(), report["policy"]["mean_k"].get<double>());
  EXPECT_GT(dearer["policy"]["mean_kl"].get<double>(), report["policy"]["mean_kl"].get<double>());
}

TEST(Benchmark, LayersHoldTheOthersAtFullK) {
  const json report = benchmark_report({"--policy", "top_p:0.8", "--layers", "0,2-3"});
  EXPECT_EQ(report["policy"]["adaptive_layers"], (json{0, 2, 3}));
  EXPECT_EQ(report["layers"][1]["mean_k"], top_k);
  EXPECT_EQ(report["layers"][1]["adaptive"], false);
  EXPECT_LT(report["layers"][0]["mean_k"].get<double>(), top_k);
  EXPECT_EQ(report["controls"]["fixed_k"][0]["mean_k"], (3.0 + top_k) / num_layers);
  EXPECT_NEAR(report["controls"]["fixed_at_equal_mean_k"]["mean_k"], report["policy"]["mean_k"],
              1e-9);
}

TEST(Benchmark, DecodeStepsShareExperts) {
  const outcome result = run_program(
      {"benchmark", "--windows", "65", "--context", "8", "--policy", "top_p:0.8", "--json", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json report = json::parse(result.out, nullptr, false);
  const json& full = report["baseline"]["distinct_experts"];
  const json& policy = report["policy"]["distinct_experts"];
  EXPECT_EQ(full["1"], top_k);
  EXPECT_GT(full["16"].get<double>(), top_k);
  EXPECT_LT(full["16"].get<double>(), full["64"].get<double>());
  EXPECT_LE(full["64"].get<double>(), 32.0);
  for (const char* batch : {"1", "16", "64"})
    EXPECT_LT(policy[batch].get<double>(), full[batch].get<double>());
  EXPECT_NEAR(
      report["policy"]["expert_bytes_per_step"]["16"],
      policy["16"].get<double>() * num_layers * report["model"]["expert_bytes"].get<double>(),
      1e-6);
}

TEST(Benchmark, TableSaysWhatMatters) {
  const outcome result = run_program(small_benchmark({"--policy", "top_p:0.8"}));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");  // no terminal, no progress
  for (const char* words :
       {"mean K", "mean KL", "fixed K at equal mean K", "random, the same K's", "inverted signal",
        "Tokens by K", "By layer", "Distinct experts", "too few windows for a batch of 16 and 64",
        "Time", "mass_exponent 1", "hand-set", "sha256"})
    EXPECT_TRUE(contains(result.out, words)) << words;
  const std::string last_line =
      result.out.substr(result.out.rfind('\n', result.out.size() - 2) + 1);
  EXPECT_TRUE(contains(last_line, "fixed K at equal mean K")) << last_line;
}

TEST(Benchmark, JsonFileStandsBesideTheTable) {
  const scratch_folder folder;
  const auto file = folder.path() / "report.json";
  const outcome result = run_program(small_benchmark({"--json", file.string()}));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "mean KL"));
  EXPECT_EQ(without_times(json::parse(content_of(file), nullptr, false)),
            without_times(default_report()));
}

TEST(Trace, GivesThePolicysSavingsButNoQuality) {
  const scratch_folder folder;
  const std::string file = (folder.path() / "trace.safetensors").string();
  const outcome recorded = run_program({"record", "--windows", "4", "--context", "64", "-o", file});
  ASSERT_EQ(recorded.status, 0) << recorded.err;
  EXPECT_TRUE(contains(recorded.out, "4 layers x 256 tokens x 32 experts"));

  const outcome result =
      run_program({"benchmark", "--trace", file, "--policy", "top_p:0.8", "--json", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json trace = json::parse(result.out, nullptr, false);
  const json model = benchmark_report({"--policy", "top_p:0.8"});
  EXPECT_EQ(trace["dataset"]["sha256"], model["dataset"]["sha256"]);
  // The first layer's logits do not depend on the policy; further down they drift a little.
  EXPECT_EQ(trace["layers"][0], model["layers"][0]);
  EXPECT_NEAR(trace["policy"]["mean_k"], model["policy"]["mean_k"], 0.2);
  EXPECT_EQ(trace["baseline"]["distinct_experts"]["1"], top_k);
  EXPECT_TRUE(trace["quality"].is_null());

  const outcome table = run_program({"benchmark", "--trace", file});
  EXPECT_EQ(table.status, 0) << table.err;
  EXPECT_TRUE(contains(table.out, "Quality is unknown"));
  EXPECT_TRUE(contains(table.out, "fixed K at equal mean K"));
}

TEST(Benchmark, FullKComesWithAHint) {
  const std::string hint = "saves nothing: another is `--policy top_p:0.9`";
  const outcome full = run_program(small_benchmark({"--policy", "full"}));
  EXPECT_TRUE(contains(full.out, hint)) << full.out;
  const outcome other = run_program(small_benchmark({"--policy", "fixed:4"}));
  EXPECT_FALSE(contains(other.out, hint)) << other.out;
  // A trace of a model whose preset keeps the model's own routing.
  const scratch_folder folder;
  const std::string trace = (folder.path() / "t").string();
  ASSERT_EQ(run_program({"record", "-o", trace, "--windows", "2", "--context", "16"}).status, 0);
  const outcome of_trace = run_program({"benchmark", "--trace", trace, "--policy", "full"});
  EXPECT_TRUE(contains(of_trace.out, hint)) << of_trace.out << of_trace.err;
}

}  // namespace
