// `calibrate`, `frontier` and `budget` as a user runs them, on few and short windows.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

using nlohmann::json;

const std::vector<std::string> small = {"--context",      "32", "--tokens", "512",
                                        "--test-windows", "8"};

outcome calibrate(const scratch_folder& folder, const std::string& file,
                  std::vector<std::string> more) {
  more.insert(more.begin(),
              {"calibrate", "-o", (folder.path() / file).string(), "--date", "2026-01-02"});
  more.insert(more.end(), small.begin(), small.end());
  return run_program(more);
}

TEST(Calibrate, WritesAPresetThatBenchmarkTakesAndWritesItAgain) {
  const scratch_folder folder;
  const outcome first = calibrate(folder, "a.json", {"--target-savings", "0.4"});
  ASSERT_EQ(first.status, 0) << first.err;
  ASSERT_EQ(calibrate(folder, "b.json", {"--target-savings", "0.4"}).status, 0);
  std::string a = content_of(folder.path() / "a.json");
  const std::string b = content_of(folder.path() / "b.json");
  ASSERT_FALSE(a.empty());
  const std::size_t name = a.find("-o a.json");  // the command names its output
  ASSERT_NE(name, std::string::npos);
  EXPECT_EQ(a.replace(name, 9, "-o b.json"), b);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "a.json.journal"));

  const json preset = json::parse(b);
  EXPECT_EQ(preset["default_policy"], "calibrated");
  const json& policy = preset["policies"][0];
  EXPECT_EQ(policy["provenance"], "measured");
  EXPECT_NEAR(policy["measured"]["expert_savings"].get<double>(), 0.4, 0.04);
  ASSERT_EQ(policy["layers"].size(), 4u);
  const scratch_folder own;
  const auto file = own.write("policy.json", policy.dump());
  const json report = benchmark_report({"--policy", file.string()});
  EXPECT_NEAR(report["policy"]["expert_savings"].get<double>(), 0.4, 0.06);
  for (const char* control : {"fixed", "static_per_layer", "entropy", "score_ratio", "top_p",
                              "random_mix", "inverted", "oracle"})
    EXPECT_TRUE(contains(first.out, control)) << control;
}

TEST(Calibrate, GoesOnFromItsJournal) {
  const scratch_folder folder;
  const std::string journal = (folder.path() / "j").string();
  ASSERT_EQ(calibrate(folder, "whole.json", {"--max-kl", "0.02", "--signal", "top_p"}).status, 0);
  // Ends within the run when it cannot write its result; the journal stays.
  const outcome cut = calibrate(folder, "no/such/folder.json",
                                {"--max-kl", "0.02", "--signal", "top_p", "--journal", journal});
  EXPECT_EQ(cut.status, 2);
  const std::string kept = content_of(journal);
  ASSERT_GT(kept.size(), 1000u);
  folder.write("j", kept.substr(0, kept.size() - 100));  // cut off within its last line
  ASSERT_EQ(calibrate(folder, "whole.json",
                      {"--max-kl", "0.02", "--signal", "top_p", "--journal", journal})
                .status,
            0);
  const std::string resumed = content_of(folder.path() / "whole.json");
  ASSERT_EQ(calibrate(folder, "whole.json", {"--max-kl", "0.02", "--signal", "top_p"}).status, 0);
  EXPECT_EQ(content_of(folder.path() / "whole.json"), resumed);
  // Another work's journal is refused.
  folder.write("j", kept);
  const outcome other =
      calibrate(folder, "x.json", {"--max-kl", "0.02", "--seed", "2", "--journal", journal});
  EXPECT_EQ(other.status, 2);
  EXPECT_TRUE(contains(other.err, "of other work")) << other.err;
}

TEST(Calibrate, OnATraceSaysThatQualityIsUnknown) {
  const scratch_folder folder;
  const std::string trace = (folder.path() / "t.safetensors").string();
  ASSERT_EQ(run_program({"record", "-o", trace, "--windows", "4", "--context", "64"}).status, 0);
  const std::string file = (folder.path() / "p.json").string();
  const outcome result =
      run_program({"calibrate", "--trace", trace, "--target-savings", "0.25", "-o", file});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "quality unknown"));
  const outcome used =
      run_program({"benchmark", "--trace", trace, "--policy", file, "--json", "-"});
  ASSERT_EQ(used.status, 0) << used.err;
  EXPECT_NEAR(json::parse(used.out)["policy"]["expert_savings"].get<double>(), 0.25, 0.005);
  EXPECT_EQ(run_program({"calibrate", "--trace", trace, "--max-kl", "0.1", "-o", file}).status, 2);
}

TEST(Calibrate, NamesWhatIsWrong) {
  const scratch_folder folder;
  const outcome none = calibrate(folder, "a.json", {});
  EXPECT_EQ(none.status, 2);
  EXPECT_TRUE(contains(none.err, "--target-savings")) << none.err;
  EXPECT_EQ(calibrate(folder, "a.json", {"--target-savings", "1.5"}).status, 2);
  const outcome signal =
      calibrate(folder, "a.json", {"--target-savings", "0.5", "--signal", "oracle"});
  EXPECT_EQ(signal.status, 2);
  EXPECT_TRUE(contains(signal.err, "'oracle'")) << signal.err;
}

TEST(Frontier, JsonHasEveryRuleOnEverySplit) {
  const scratch_folder folder;
  std::vector<std::string> arguments = {
      "frontier", "--json", "-", "--mean-k", "3,5", "--journal", (folder.path() / "j").string()};
  arguments.insert(arguments.end(), small.begin(), small.end());
  const outcome result = run_program(arguments);
  ASSERT_EQ(result.status, 0) << result.err;
  const json rows = json::parse(result.out);
  std::set<std::string> rules;
  for (const json& row : rows) {
    rules.insert(row["rule"].get<std::string>());
    for (const char* key :
         {"mean_k", "mean_kl", "mean_kl_se", "perplexity", "top1_agreement", "mass_exponent"})
      EXPECT_TRUE(row[key].is_number()) << key;
    EXPECT_EQ(row["split"], "test");
    EXPECT_NEAR(row["mean_k"].get<double>(), row["target_mean_k"].get<double>(), 0.35);
  }
  EXPECT_EQ(rules.size(), 9u);
  EXPECT_EQ(rows.size(), 18u);
}

TEST(Budget, HoldsABatchToItsExperts) {
  const outcome result = run_program({"budget", "--json", "-", "--windows", "4", "--context", "32",
                                      "--batch", "1,4", "--budget", "12", "--policy", "full"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json rows = json::parse(result.out);
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[0]["distinct_experts"], 8.0);  // one token at full K
  EXPECT_LT(rows[0]["mean_kl"].get<double>(), 1e-9);
  EXPECT_GT(rows[3]["distinct_experts"].get<double>(), 12.0);
  EXPECT_EQ(rows[4]["distinct_experts"], 12.0);
  EXPECT_LT(rows[4]["mean_kl"].get<double>(), rows[5]["mean_kl"].get<double>());
}

}  // namespace
