// `calibrate` on several domains, and `matrix`, as a user runs them, on few and short windows.
#include <gtest/gtest.h>

#include <adaptive_k/calibration/preset.hpp>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cli/program.hpp"

namespace {

using nlohmann::json;

const command_line few_tokens = {"--context", "32", "--tokens", "768"};

/// Two texts of a kind each, of 200 windows of 32 bytes.
class Domains : public ::testing::Test {
 protected:
  Domains() {
    std::string prose, code;
    for (int i = 0; prose.size() < 6400; ++i)
      prose += "She had been " + std::to_string(i * i % 97) + " times to Bath, and liked it well. ";
    for (int i = 0; code.size() < 6400; ++i)
      code += "    if x[" + std::to_string(i) +
              "] != None:\n        return f(x, y=" + std::to_string(i * i % 89) + ")\n";
    prose_ = folder_.write("prose.txt", prose).string();
    code_ = folder_.write("code.txt", code).string();
  }

  std::string file(const std::string& name) const { return (folder_.path() / name).string(); }

  outcome calibrate(const std::string& output, const command_line& more) {
    return run_program(command_line{"calibrate", "--target-savings", "0.4", "--date", "2026-01-02",
                                    "-o", file(output), "--test-windows", "8"} +
                       few_tokens + more);
  }
  outcome matrix(const command_line& more) {
    return run_program(command_line{"matrix", "--test-windows", "8", "--text", "prose=" + prose_,
                                    "--text", "code=" + code_, "--test", "prose=" + code_, "--test",
                                    "code=" + prose_, "--journal", file("j")} +
                       few_tokens + more);
  }

  scratch_folder folder_;
  std::string prose_, code_;
};

TEST_F(Domains, AreNamedInThePresetWhichComesOutTheSameAgain) {
  const command_line texts = {"--text", "prose=" + prose_, "--text", "code=" + code_};
  const outcome first = calibrate("p.json", texts);
  ASSERT_EQ(first.status, 0) << first.err;
  const std::string written = content_of(file("p.json"));
  ASSERT_FALSE(written.empty());
  ASSERT_EQ(calibrate("p.json", texts).status, 0) << "over itself";
  EXPECT_EQ(content_of(file("p.json")), written);
  std::filesystem::remove(file("p.json"));
  ASSERT_EQ(calibrate("p.json", texts).status, 0) << "anew";
  EXPECT_EQ(content_of(file("p.json")), written);

  const json policy = json::parse(written)["policies"][0];
  const json& measured = policy["measured"];
  EXPECT_TRUE(contains(measured["command"].get<std::string>(),
                       "--text prose=prose.txt --text code=code.txt"))
      << measured["command"];
  ASSERT_EQ(measured["calibrated_on"].size(), 2u);
  EXPECT_EQ(measured["calibrated_on"][0]["name"], "prose");
  EXPECT_EQ(measured["calibrated_on"][1]["name"], "code");
  EXPECT_EQ(measured["calibrated_on"][1]["tokens"], 384 + 192);
  EXPECT_EQ(measured["tokens"], 2 * 8 * 32) << "of both second halves";
  EXPECT_TRUE(contains(policy["notes"].get<std::string>(), "Mean KL on the code text"));
  // What the library reads of it.
  const adaptive_k::preset read = adaptive_k::load_preset_file(file("p.json"));
  ASSERT_TRUE(read.policy().measured.has_value());
  ASSERT_EQ(read.policy().measured->calibrated_on.size(), 2u);
  EXPECT_EQ(read.policy().measured->calibrated_on[0].name, "prose");
  ASSERT_TRUE(read.policy().measured->sensitivity_exponent.has_value());
  const outcome shown = run_program({"presets", file("p.json")});
  EXPECT_TRUE(contains(shown.out, "calibrated on  code: code.txt, sha256 ")) << shown.out;

  // The exponent is that of the trials, which are shown: the least geometric mean over domains.
  EXPECT_TRUE(contains(first.out, "mean KL on the one left out")) << first.out;
  EXPECT_TRUE(contains(first.out, "The prose text m")) << first.out;
  EXPECT_TRUE(contains(first.out, "The code text m")) << first.out;
}

TEST_F(Domains, AreTakenByNameFromTheProjectsTexts) {
  const outcome run = calibrate("named.json", {"--text", "code", "--text", "prose=novels", "--test",
                                               "code", "--test", "technical"});
  ASSERT_EQ(run.status, 0) << run.err;
  const json listed = json::parse(content_of(std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) /
                                             "bench/models/texts.json"))["domains"];
  const json measured = json::parse(content_of(file("named.json")))["policies"][0]["measured"];
  const auto data = [&](const char* domain, const char* part, const char* name) {
    const std::string hash = listed[domain][part]["sha256"];
    return std::string(name) + ", sha256 " + hash.substr(0, 16);
  };
  ASSERT_EQ(measured["calibrated_on"].size(), 2u);
  EXPECT_EQ(measured["calibrated_on"][0]["name"], "code");
  EXPECT_EQ(measured["calibrated_on"][0]["data"],
            data("code", "calibration", "code_calibration.txt"));
  EXPECT_EQ(measured["calibrated_on"][1]["name"], "prose");
  EXPECT_EQ(measured["calibrated_on"][1]["data"],
            data("novels", "calibration", "heldout_calibration.txt"));
  EXPECT_EQ(measured["data"], data("code", "test", "code_test.txt") + "; " +
                                  data("technical", "test", "technical_test.txt"));
  EXPECT_TRUE(contains(measured["command"].get<std::string>(),
                       "--text code --text prose=novels --test code --test technical"))
      << measured["command"];
  EXPECT_TRUE(contains(run.out, "The technical text m")) << run.out;
}

TEST_F(Domains, TheExponentIsReportedAndCanBeSet) {
  const outcome usual = calibrate("a.json", {"--dataset", prose_});
  ASSERT_EQ(usual.status, 0) << usual.err;
  EXPECT_TRUE(contains(usual.out, "sensitivity ^ 0.5")) << usual.out;
  const outcome set = calibrate("b.json", {"--dataset", prose_, "--sensitivity-exponent", "0"});
  ASSERT_EQ(set.status, 0) << set.err;
  const json policy = json::parse(content_of(file("b.json")))["policies"][0];
  EXPECT_TRUE(
      contains(policy["measured"]["command"].get<std::string>(), "--sensitivity-exponent 0"));
  if (policy["measured"].contains("sensitivity_exponent")) {
    EXPECT_EQ(policy["measured"]["sensitivity_exponent"], 0.0);
    for (const json& layer : policy["layers"]) EXPECT_EQ(layer["distortion"]["sensitivity"], 1.0);
  }
  for (const char* wrong : {"1.5", "-0.5", "nan", "half"}) {
    const outcome refused =
        calibrate("c.json", {"--dataset", prose_, "--sensitivity-exponent", wrong});
    EXPECT_EQ(refused.status, 2) << wrong;
    EXPECT_TRUE(contains(refused.err, "--sensitivity-exponent")) << refused.err;
  }
}

TEST_F(Domains, NamesAreChecked) {
  const std::pair<command_line, const char*> cases[] = {
      {{"--text", "a=" + prose_, "--text", "a=" + code_}, "--text: the name 'a' twice"},
      {{"--text", "test=" + prose_}, "--text: the name 'test' means something else"},
      {{"--text", "a="}, "--text: 'a=', expected a file behind the name"},
      {{"--text", "=" + prose_}, "--text: the name ''"},
      {{"--text", "a=" + prose_, "--dataset", prose_}, "--dataset"},
      {{"--text", "a=/no/such"}, "/no/such"},
      {{"--test", prose_, "--test", prose_}, "--test: the name 'prose' twice"},
      {{"--text", "verse"}, "verse: is neither a file nor a domain of texts.json: code, novels"},
  };
  for (const auto& [more, words] : cases) {
    const outcome refused = calibrate("x.json", more);
    EXPECT_EQ(refused.status, 2) << words;
    EXPECT_TRUE(contains(refused.err, words)) << refused.err;
    EXPECT_FALSE(std::filesystem::exists(file("x.json")));
  }
}

TEST_F(Domains, MatrixHasEveryRuleInEveryCellAndGoesOnFromItsJournal) {
  const command_line rules = {"--rules", "fixed,top_p,psi,distortion,oracle",
                              "--sensitivity-exponents", "0,1"};
  // Cut short by a report that cannot be written: the journal stays, and the rest is done from it.
  ASSERT_EQ(matrix(rules + command_line{"--json", "/dev/full"}).status, 2);
  const std::string kept = content_of(file("j"));
  ASSERT_GT(kept.size(), 5000u);
  const outcome whole = matrix(rules + command_line{"--json", "-"});
  ASSERT_EQ(whole.status, 0) << whole.err;
  EXPECT_FALSE(std::filesystem::exists(file("j")));
  const json report = json::parse(whole.out);
  ASSERT_EQ(report["models"].size(), 1u);
  const json& model = report["models"][0];
  EXPECT_EQ(model["mean_ks"], (std::vector<double>{3.0, 4.0, 5.0}));
  ASSERT_EQ(model["calibrations"].size(), 3u);
  EXPECT_EQ(model["calibrations"][0]["sensitivity_exponent"], 0.5);
  EXPECT_EQ(model["calibrations"][2]["calibrated_on"], "all");
  EXPECT_EQ(model["calibrations"][2]["exponent_trials"].size(), 10u);
  std::map<std::string, std::set<std::string>> cells;
  for (const json& point : model["points"]) {
    const double target = point["target_mean_k"].get<double>();
    EXPECT_NEAR(point["mean_k"].get<double>(), target, 0.2) << point;
    EXPECT_GT(point["mean_kl"].get<double>(), 0.0);
    if (target == 3.0 || target == 4.0 || target == 5.0 || target == 6.0)
      cells[point["calibrated_on"].get<std::string>() + point["tested_on"].get<std::string>() +
            std::to_string(target)]
          .insert(point["rule"].get<std::string>());
    if (point["rule"] != "fixed") {
      EXPECT_EQ(point["minus_fixed"].size(), 2u);
    }
  }
  EXPECT_EQ(cells.size(), 3u * 2u * 4u);
  for (const auto& [cell, names] : cells) EXPECT_EQ(names.size(), 7u) << cell;
  EXPECT_EQ(model["at_equal_kl"].size(), 3u * 2u * 7u);
  for (const json& cost : model["at_equal_kl"])
    if (cost["rule"] == "distortion") {
      EXPECT_TRUE(cost["expert_savings"].is_number()) << "points that enclose the KL were added";
    } else if (cost["rule"] == "fixed") {
      EXPECT_NEAR(cost["expert_savings"].get<double>(), 0.25, 1e-9);
    }

  const outcome restored = matrix(
      {"--rules", "fixed", "--calibrated-on", "code", "--mass-exponents", "1", "--json", "-"});
  ASSERT_EQ(restored.status, 0) << restored.err;
  for (const json& point : json::parse(restored.out)["models"][0]["points"])
    EXPECT_EQ(point["mass_exponent"], 1.0);

  folder_.write("j", kept);
  const outcome part =
      matrix({"--rules", "fixed,distortion", "--calibrated-on", "code", "--json", "-"});
  ASSERT_EQ(part.status, 0) << part.err;
  for (const json& point : json::parse(part.out)["models"][0]["points"]) {
    EXPECT_EQ(point["calibrated_on"], "code");
    json same;
    for (const json& other : model["points"])
      if (other["rule"] == point["rule"] && other["calibrated_on"] == "code" &&
          other["tested_on"] == point["tested_on"] &&
          other["target_mean_k"] == point["target_mean_k"])
        same = other;
    EXPECT_EQ(same["mean_kl"], point["mean_kl"]) << point;
  }

  // And where the end of the journal is lost, too.
  folder_.write("j", kept.substr(0, kept.size() / 2));
  const outcome resumed = matrix(rules + command_line{"--json", "-"});
  ASSERT_EQ(resumed.status, 0) << resumed.err;
  EXPECT_EQ(resumed.out, whole.out);
  folder_.write("j", kept);
  const outcome other = matrix(rules + command_line{"--seed", "2"});
  EXPECT_EQ(other.status, 2);
  EXPECT_TRUE(contains(other.err, "of other work: it differs in --seed")) << other.err;
}

TEST_F(Domains, MatrixNamesWhatIsWrong) {
  const std::pair<command_line, const char*> cases[] = {
      {{"--rules", "fixed,random_mix"}, "--rules: 'random_mix', expected some of fixed"},
      // By its name the project's text is found, or else that would be said first.
      {{"--text", "technical", "--test", "technical", "--mean-k", "8"}, "--mean-k: 8, expected"},
      {{"--mean-k", "8"}, "--mean-k: 8, expected 1 or more and below 8"},
      {{"--text", "third=" + prose_}, "--test: none of the domain 'third'"},
      {{"--text", "all=" + prose_}, "--text: the name 'all' means something else"},
      {{"--model", "/no/such"}, "--model"},
      {{"--sensitivity-exponents", "0,2"}, "--sensitivity-exponents"},
      {{"--calibrated-on", "code,verse"}, "--calibrated-on: 'verse', expected some of prose, code"},
  };
  for (const auto& [more, words] : cases) {
    const outcome refused = matrix(more);
    EXPECT_EQ(refused.status, 2) << words;
    EXPECT_TRUE(contains(refused.err, words)) << refused.err;
  }
  const outcome alone = run_program({"matrix", "--text", "a=" + prose_, "--journal", file("j")});
  EXPECT_EQ(alone.status, 2);
  EXPECT_TRUE(contains(alone.err, "--test: missing")) << alone.err;
}

}  // namespace
