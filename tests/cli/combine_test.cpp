// `adaptive-k combine`: the figures against those of `benchmark`, against one another, and the
// table's words.
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bench/adaptive_k/combine/run.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "cli/program.hpp"

namespace {

using nlohmann::json;

constexpr std::size_t adapt = 1, leave = 2, merge = 4;

std::vector<std::string> small_combine(std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"combine", "--windows", "4", "--context", "64"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

json combine_report(std::vector<std::string> more = {}) {
  more.insert(more.end(), {"--json", "-"});
  const outcome result = run_program(small_combine(more));
  EXPECT_EQ(result.status, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

double number(const json& entry, const char* key) {
  return entry.at(key).get<double>();
}

TEST(Combine, AllEightMeasuredAndTheProductOnlyPredicted) {
  const json report = combine_report({"--exit", "entropy:1", "--merge-similarity", "0.7"});
  const json& all = report.at("combinations");
  ASSERT_EQ(all.size(), 8u);
  const auto left = [&](std::size_t c) { return number(all[c], "expert_calls_left"); };
  const auto arithmetic = [&](std::size_t c) { return number(all[c], "multiply_adds_left"); };
  bool differs = false;
  for (std::size_t c = 0; c < 8; ++c) {
    EXPECT_EQ(all[c].at("adaptive_k"), (c & adapt) != 0);
    EXPECT_EQ(all[c].at("early_exit"), (c & leave) != 0);
    EXPECT_EQ(all[c].at("token_merging"), (c & merge) != 0);
    // Measured: of what was counted in this very run.
    EXPECT_DOUBLE_EQ(left(c), number(all[c], "expert_calls") / number(all[0], "expert_calls"));
    EXPECT_DOUBLE_EQ(number(all[c], "mean_k"), 8.0 * left(c));
    double sum = 0.0;
    for (const char* part :
         {"projections", "attention", "router", "experts", "head", "exit_heads", "matching"})
      sum += number(all[c].at("multiply_adds"), part);
    EXPECT_EQ(sum, number(all[c].at("multiply_adds"), "total"));
    EXPECT_EQ(number(all[c].at("multiply_adds"), "exit_heads") > 0.0, (c & leave) != 0);
    EXPECT_EQ(number(all[c].at("multiply_adds"), "matching") > 0.0, (c & merge) != 0);
    if (c != 0) {
      EXPECT_LT(left(c), 1.0) << c;
      EXPECT_GT(number(all[c], "mean_kl"), 0.0) << c;
      EXPECT_GT(number(all[c], "mean_kl_se"), 0.0) << c;
    }
    if (c == 0 || c == adapt || c == leave || c == merge) {
      EXPECT_TRUE(all[c].at("predicted_expert_calls_left").is_null());
      EXPECT_TRUE(all[c].at("predicted_multiply_adds_left").is_null());
      continue;
    }
    double calls = 1.0, work = 1.0;
    for (const std::size_t bit : {adapt, leave, merge}) {
      if ((c & bit) == 0) continue;
      calls *= left(bit);
      work *= arithmetic(bit);
    }
    EXPECT_DOUBLE_EQ(number(all[c], "predicted_expert_calls_left"), calls);
    EXPECT_DOUBLE_EQ(number(all[c], "predicted_multiply_adds_left"), work);
    differs = differs || calls != left(c);
  }
  EXPECT_TRUE(differs) << "a product that is always right was not measured apart";
  EXPECT_EQ(left(0), 1.0);
  EXPECT_EQ(number(all[0], "mean_kl"), 0.0);
}

TEST(Combine, AdaptiveKAloneIsWhatBenchmarkMeasures) {
  const json combined = combine_report({"--policy", "top_p:0.8"});
  const json& alone = combined.at("combinations")[adapt];
  const json report = benchmark_report({"--policy", "top_p:0.8"});
  const json& policy = report.at("policy");
  for (const char* key : {"mean_k", "mean_kl", "mean_kl_se", "perplexity", "top1_agreement"})
    EXPECT_DOUBLE_EQ(number(alone, key), number(policy, key)) << key;
  const json& fixed = alone.at("fixed_k_at_equal_mean_k");
  const json& expected = report.at("controls").at("fixed_at_equal_mean_k");
  for (const char* key : {"mean_kl", "mean_kl_se", "perplexity"})
    EXPECT_NEAR(number(fixed, key), number(expected, key), 1e-12) << key;
  EXPECT_NEAR(number(fixed, "kl_difference"), number(report.at("beats_fixed_k"), "delta_mean_kl"),
              1e-12);
}

TEST(Combine, AMethodThatNeverActsChangesNothing) {
  const json report = combine_report({"--exit", "entropy:0", "--merge-similarity", "0.7"});
  const json& all = report.at("combinations");
  for (const std::size_t c : {std::size_t{0}, adapt, merge, adapt | merge}) {
    EXPECT_EQ(all[c].at("expert_calls"), all[c | leave].at("expert_calls")) << c;
    // Not to the bit: a pass that may leave tokens behind sums attention row by row.
    for (const char* key : {"mean_nll", "mean_kl"})
      EXPECT_NEAR(number(all[c], key), number(all[c | leave], key), 1e-6) << c << " " << key;
  }
}

TEST(Combine, RandomControlsActAsOftenAndCostMore) {
  const json report = combine_report({"--exit", "entropy:1", "--merge-similarity", "0.7"});
  const json& all = report.at("combinations");
  const json& exits = report.at("controls")[0];
  const json& merges = report.at("controls")[1];
  EXPECT_NEAR(number(exits, "expert_calls_left"), number(all[leave], "expert_calls_left"), 0.03);
  EXPECT_NEAR(number(merges, "merged_share"), number(all[merge], "merged_share"), 0.02);
  for (std::size_t layer = 0; layer < merges.at("merged_share_by_layer").size(); ++layer)
    EXPECT_NEAR(merges.at("merged_share_by_layer")[layer].get<double>(),
                all[merge].at("merged_share_by_layer")[layer].get<double>(), 0.04)
        << layer;
  EXPECT_EQ(merges.at("merged_share_by_layer").size(), 4u);
  EXPECT_GT(number(merges, "mean_kl"), 2.0 * number(all[merge], "mean_kl"));
  EXPECT_EQ(combine_report({"--exit", "entropy:1", "--merge-similarity", "0.7"}), report)
      << "the same seed, the same report";
}

TEST(Combine, FixedKBelowOneIsNotMadeUp) {
  const json report = combine_report({"--exit", "entropy:100"});  // all leave behind layer 0
  const json& last = report.at("combinations")[adapt | leave | merge];
  EXPECT_LT(number(last, "mean_k"), 2.0);
  EXPECT_EQ(last.at("exit_rate_by_layer"), (json{1.0, 0.0, 0.0}));
  EXPECT_EQ(last.at("fixed_k_at_equal_mean_k").is_null(), number(last, "mean_k") < 1.0);
  const json fewest = combine_report({"--exit", "entropy:100", "--policy", "fixed:1"});
  EXPECT_TRUE(fewest.at("combinations")[adapt | leave].at("fixed_k_at_equal_mean_k").is_null());
}

TEST(Combine, TableSaysWhatIsPredicted) {
  const outcome result = run_program(small_combine());
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* words :
       {"All measured but the columns \"predicted\"", "full model",
        "  adaptive K + early exit + "
        "token merging",
        "  adaptive K + token merging", "random exits, the same rates",
        "random merging, the same shares", "Exit     entropy below 0.5, 0.5, 0.5"})
    EXPECT_TRUE(contains(result.out, words)) << words << "\n" << result.out;
}

std::string exit_refusal(const std::string& text) {
  try {
    bench::parse_exit(text, 4);
  } catch (const bench::failure& error) {
    return error.what();
  }
  return "none";
}

TEST(Combine, ExitSpecs) {
  const auto policy = bench::parse_exit("max_probability:0.9,0.95,1", 4);
  EXPECT_EQ(policy.signal, adaptive_k::exit_signal::max_probability);
  EXPECT_EQ(policy.num_layers, 3);
  EXPECT_EQ(policy.thresholds[1], 0.95f);
  EXPECT_EQ(bench::parse_exit("entropy:0.5", 4).thresholds[2], 0.5f);
  EXPECT_EQ(bench::parse_exit("entropy:0.5", 1).num_layers, 0);
  const std::string kinds = ", expected entropy:THRESHOLDS or max_probability:THRESHOLDS";
  EXPECT_EQ(exit_refusal(""), "--exit: ''" + kinds);
  EXPECT_EQ(exit_refusal("0.5"), "--exit: '0.5'" + kinds);
  EXPECT_EQ(exit_refusal("margin:0.5"), "--exit: 'margin:0.5'" + kinds);
  EXPECT_EQ(exit_refusal("entropy:"), "--exit: '' in 'entropy:', expected a number");
  EXPECT_EQ(exit_refusal("entropy:1,,2"), "--exit: '' in 'entropy:1,,2', expected a number");
  EXPECT_EQ(exit_refusal("entropy:1,x,2"), "--exit: 'x' in 'entropy:1,x,2', expected a number");
  EXPECT_EQ(exit_refusal("entropy:1,2"),
            "--exit: 2 thresholds, expected 1, or 3: one for each layer but the last");
  EXPECT_EQ(exit_refusal("entropy:-1"),
            "--exit: thresholds[0] is -1, expected 0 nats or more and finite");
  EXPECT_EQ(exit_refusal("entropy:1,nan,1"),
            "--exit: thresholds[1] is nan, expected 0 nats or more and finite");
  EXPECT_EQ(exit_refusal("max_probability:1.5"), "--exit: thresholds[0] is 1.5, expected 0..1");
}

}  // namespace
