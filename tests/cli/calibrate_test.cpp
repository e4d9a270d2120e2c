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
  const json whole = benchmark_report({"--policy", (folder.path() / "b.json").string()});
  EXPECT_EQ(whole["policy"]["layers"], report["policy"]["layers"]) << "preset or policy alone";
  for (const char* control : {"fixed", "static_per_layer", "entropy", "score_ratio", "top_p",
                              "random_mix", "inverted", "oracle"})
    EXPECT_TRUE(contains(first.out, control)) << control;
}

TEST(Calibrate, GoesOnFromItsJournal) {
  const scratch_folder folder;
  const std::string journal = (folder.path() / "j").string();
  ASSERT_EQ(calibrate(folder, "whole.json", {"--max-kl", "0.02", "--signal", "top_p"}).status, 0);
  // Where not all that was found could be written, the journal stays.
  const outcome cut = calibrate(
      folder, "cut.json",
      {"--max-kl", "0.02", "--signal", "top_p", "--journal", journal, "--json", "/dev/full"});
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
  for (const char* words : {"mass_exponent 0.5", "r^-0.5", "parse_policy(\"", "--trace"})
    EXPECT_TRUE(contains(result.out, words)) << words << result.out;
  EXPECT_TRUE(contains(json::parse(content_of(file))["notes"].get<std::string>(), "r^-0.5"));

  // What a trace does not have is refused, not ignored.
  for (const char* rule : {"entropy", "distortion", "score_ratio", "fixed", "static_per_layer"}) {
    const outcome other = run_program(
        {"calibrate", "--trace", trace, "--target-savings", "0.25", "-o", file, "--signal", rule});
    EXPECT_EQ(other.status, 2) << rule;
    EXPECT_TRUE(contains(other.err, std::string("--signal: '") + rule + "', expected top_p"))
        << other.err;
  }
  for (const char* option :
       {"--model", "--dataset", "--text", "--test", "--other-domain", "--context", "--test-windows",
        "--seed", "--sensitivity-exponent", "--journal", "--json", "--date"}) {
    const outcome ignored = run_program(
        {"calibrate", "--trace", trace, "--target-savings", "0.25", "-o", file, option, "1"});
    EXPECT_EQ(ignored.status, 2) << option;
    EXPECT_TRUE(contains(ignored.err, option)) << ignored.err;
  }
  EXPECT_EQ(run_program({"benchmark", "--trace", trace, "--seed", "2"}).status, 2);

  // The same file where a preset is expected.
  const outcome shown = run_program({"presets", file});
  EXPECT_EQ(shown.status, 0) << shown.err;
  EXPECT_TRUE(contains(shown.out, "from_trace: hand-set")) << shown.out;
  const outcome shape = run_program({"speed", "--shape", file});
  EXPECT_EQ(shape.status, 2);
  EXPECT_TRUE(contains(shape.err, "is a policy, expected a preset")) << shape.err;
}

TEST(Calibrate, TakesADayThatIsInTheCalendar) {
  const scratch_folder folder;
  const std::string file = (folder.path() / "p.json").string();
  for (const char* date : {"yesterday", "2026-13-01", "2026-02-29", "2026-1-2", "2026-01-32",
                           "2026-01-02x", "2026-+1-02"}) {
    const outcome result =
        run_program({"calibrate", "--target-savings", "0.25", "-o", file, "--date", date});
    EXPECT_EQ(result.status, 2) << date;
    EXPECT_TRUE(
        contains(result.err, "--date: '" + std::string(date) + "', expected a day as 2026-01-31"))
        << result.err;
  }
}

/// What stands behind `name` in the lines to use a result by.
std::string line_of(const std::string& text, const std::string& name) {
  const std::size_t at = text.find("  " + name + "  ");
  if (at == std::string::npos) return "";
  const std::size_t start = text.find_first_not_of(' ', at + 2 + name.size());
  return text.substr(start, text.find('\n', start) - start);
}

TEST(Calibrate, EndsWithLinesThatWork) {
  const scratch_folder folder;
  const outcome result =
      calibrate(folder, "mine.json", {"--target-savings", "0.4", "--signal", "top_p"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::string command = line_of(result.out, "command line");
  ASSERT_EQ(command.rfind("adaptive-k benchmark --policy ", 0), 0u) << result.out;
  const std::string policy = command.substr(command.find("--policy ") + 9);
  const json report = benchmark_report({"--policy", policy});
  EXPECT_EQ(report["policy"]["name"], "calibrated");
  EXPECT_EQ(line_of(result.out, "C++"), "adaptive_k::router router = adaptive_k::from_preset(\"" +
                                            (folder.path() / "mine.json").string() + "\");");
  const std::string environment = line_of(result.out, "environment");
  EXPECT_EQ(environment, "ADAPTIVE_K_CALIBRATIONS=" + folder.path().string());
  const outcome by_name = run_program({"presets", "reference-32x8"}, environment);
  EXPECT_TRUE(contains(by_name.out, "mine.json")) << by_name.out << by_name.err;
  // A preset that is written can be the one that is read next.
  const outcome speed = run_program({"speed", "--shape", policy, "--batch", "1", "--repeats", "1",
                                     "--layers", "1", "--policy", policy});
  EXPECT_EQ(speed.status, 0) << speed.err;
  EXPECT_EQ(run_program({"inspect", "--text", "She", "--policy", policy}).status, 0);
  EXPECT_EQ(
      run_program({"combine", "--windows", "1", "--context", "16", "--policy", policy}).status, 0);
  EXPECT_EQ(run_program({"budget", "--windows", "1", "--context", "16", "--policy", policy}).status,
            0);
}

TEST(Calibrate, SaysWhetherTheTestTextMeetsTheTarget) {
  const scratch_folder folder;
  for (const auto& [option, value] : std::vector<std::pair<std::string, std::string>>{
           {"--max-kl", "0.02"}, {"--target-savings", "0.4"}, {"--max-ppl-increase", "0.01"}}) {
    const outcome result =
        calibrate(folder, "p.json", {option, value, "--signal", "fixed", "--json", "-"});
    ASSERT_EQ(result.status, 0) << result.err;
    const outcome told = calibrate(folder, "p.json", {option, value, "--signal", "fixed"});
    ASSERT_EQ(told.status, 0) << told.err;
    for (const json& row : json::parse(result.out)) {
      if (row["rule"] != "fixed" || row["split"] != "test" || option == "--max-ppl-increase")
        continue;
      const bool met = option == "--max-kl" ? row["mean_kl"].get<double>() <= 0.02
                                            : 1.0 - row["mean_k"].get<double>() / 8.0 >= 0.4;
      EXPECT_TRUE(contains(
          told.out, met ? "The test text meets the target" : "The test text misses the target"))
          << told.out;
    }
    EXPECT_TRUE(contains(told.out, "The test text m")) << told.out;
  }
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
  const outcome negative = calibrate(folder, "a.json", {"--max-kl", "-1"});
  EXPECT_EQ(negative.status, 2);
  EXPECT_TRUE(contains(negative.err, "--max-kl: -1, expected above 0")) << negative.err;
  const outcome name = calibrate(folder, "preset", {"--max-kl", "0.1"});
  EXPECT_EQ(name.status, 2);
  EXPECT_TRUE(contains(name.err, "expected a name that ends in .json")) << name.err;
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
    EXPECT_EQ(row["model"], "reference-32x8");
    EXPECT_EQ(row["top_k"], 8);
    EXPECT_NEAR(row["mean_k"].get<double>(), row["target_mean_k"].get<double>(), 0.35);
  }
  EXPECT_EQ(rules.size(), 11u);
  EXPECT_EQ(rows.size(), 22u);
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

TEST(Budget, LabelsNoBatchThatItDidNotMeasure) {
  const auto run = [](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"budget", "--context", "16", "--policy", "full"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  };
  const outcome more = run({"--windows", "8", "--batch", "64"});
  EXPECT_EQ(more.status, 2);
  EXPECT_TRUE(contains(more.err, "--batch: 64, expected at most 8, the number of windows"))
      << more.err;
  const outcome budget = run({"--windows", "2", "--batch", "1", "--budget", "33"});
  EXPECT_EQ(budget.status, 2);
  EXPECT_TRUE(contains(budget.err, "--budget: 33, expected 1..32")) << budget.err;
  const outcome core = run({"--windows", "2", "--batch", "1", "--k-min", "9"});
  EXPECT_EQ(core.status, 2);
  EXPECT_TRUE(contains(core.err, "--k-min: 9, expected 1..8")) << core.err;

  const outcome usual = run({"--windows", "8", "--json", "-"});
  ASSERT_EQ(usual.status, 0) << usual.err;
  for (const json& row : json::parse(usual.out)) EXPECT_EQ(row["batch"], 1) << "16 does not fit";
  // Whole batches alone: 3 of 8 windows twice, however many go through the model together.
  const outcome uneven = run({"--windows", "8", "--batch", "3,8", "--json", "-"});
  ASSERT_EQ(uneven.status, 0) << uneven.err;
  for (const json& row : json::parse(uneven.out))
    EXPECT_EQ(row["windows"], row["batch"] == 3 ? 6 : 8);
  // The same six windows as one batch of 6 and as two of 3 differ only by the batch.
  const outcome whole = run({"--windows", "6", "--batch", "3", "--json", "-"});
  ASSERT_EQ(whole.status, 0) << whole.err;
  EXPECT_EQ(json::parse(whole.out)[0]["distinct_experts"],
            json::parse(uneven.out)[0]["distinct_experts"]);
}

}  // namespace
