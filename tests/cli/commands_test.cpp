// The other commands as a user runs them.
#include <gtest/gtest.h>

#include <regex>
#include <sstream>
#include <string>

#include "cli/program.hpp"

namespace {

using nlohmann::json;

TEST(Program, VersionAndHelp) {
  const outcome version = run_program({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_TRUE(std::regex_match(version.out, std::regex("[0-9]+\\.[0-9]+\\.[0-9]+\n")))
      << version.out;
  const outcome help = run_program({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* command : {"benchmark", "speed", "inspect", "presets", "record", "calibrate",
                              "frontier", "matrix", "combine", "budget", "scale"}) {
    EXPECT_TRUE(contains(help.out, command)) << command;
    EXPECT_EQ(run_program({command, "--help"}).status, 0) << command;
  }
}

TEST(Presets, ListAndOne) {
  const outcome list = run_program({"presets"});
  ASSERT_EQ(list.status, 0) << list.err;
  EXPECT_TRUE(std::regex_search(list.out, std::regex("olmoe-1b-7b +64/8 +softmax")));
  EXPECT_TRUE(std::regex_search(list.out, std::regex("deepseek-v3 +256/8 +sigmoid \\+ bias")));
  const outcome one = run_program({"presets", "mixtral-8x7b"});
  ASSERT_EQ(one.status, 0) << one.err;
  for (const char* words : {"8 experts of which 2", "source:", "published, not reproduced",
                            "claimed, not reproduced here", "contradiction", "31.0%"})
    EXPECT_TRUE(contains(one.out, words)) << words;
}

TEST(Inspect, OneLineATokenAndLayer) {
  const outcome result =
      run_program({"inspect", "--text", "She was.", "--policy", "entropy:2,4,8@1.5,2.5"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::regex line("  Layer [0-3] \\| H=[0-9]\\.[0-9]{2} [#.]{24} \\| K=[248]");
  int lines = 0;
  std::istringstream stream(result.out);
  for (std::string text; std::getline(stream, text);) lines += std::regex_match(text, line) ? 1 : 0;
  EXPECT_EQ(lines, 8 * 4) << result.out;
  EXPECT_TRUE(contains(result.out, "Token 7 '.'"));
  EXPECT_TRUE(contains(result.out, "By layer"));
  EXPECT_TRUE(contains(result.out, "0..3.47 nats, low is sure"));
  EXPECT_FALSE(contains(result.out, "\033"));  // no terminal, no colour
}

TEST(Inspect, TimelineForPerfetto) {
  const scratch_folder folder;
  const std::string file = (folder.path() / "timeline.json").string();
  const outcome result = run_program(
      {"inspect", "--text", "She was.", "--policy", "entropy:2,4,8@1.5,2.5", "--perfetto", file});
  ASSERT_EQ(result.status, 0) << result.err;
  const json timeline = json::parse(content_of(file));
  double end = 0;
  int slices = 0, counters = 0;
  for (const json& event : timeline.at("traceEvents")) {
    counters += event["ph"] == "C" ? 1 : 0;
    if (event["ph"] != "X") continue;
    EXPECT_EQ(event["args"]["layer"], slices++) << "layers follow one another";
    EXPECT_EQ(event["args"]["tokens"], 8);
    EXPECT_GE(event["ts"].get<double>(), end);
    end = event["ts"].get<double>() + event["dur"].get<double>();
  }
  EXPECT_EQ(slices, 4);
  EXPECT_EQ(counters, 2 * 4 * 8) << "entropy and K of each token in each layer";
  const outcome margin = run_program({"inspect", "--policy", "top_p:0.9", "--perfetto", file});
  EXPECT_EQ(margin.status, 2);
  EXPECT_TRUE(contains(margin.err, "--perfetto: shows entropies")) << margin.err;
}

TEST(Inspect, DataSetOffsetAndTokens) {
  const outcome first = run_program({"inspect", "--tokens", "2"});
  const outcome later = run_program({"inspect", "--tokens", "2", "--offset", "1000"});
  ASSERT_EQ(first.status, 0) << first.err;
  ASSERT_EQ(later.status, 0) << later.err;
  EXPECT_NE(first.out, later.out);
  EXPECT_TRUE(contains(first.out, "Token 1 "));
  EXPECT_FALSE(contains(first.out, "Token 2 "));
}

TEST(Speed, ComparesSharesOfTheExperts) {
  const scratch_folder folder;
  const std::string shape = folder.write("tiny.json", tiny_shape).string();
  const std::string file = (folder.path() / "speed.json").string();
  const outcome result = run_program({"speed", "--shape", shape, "--batch", "1,16,512", "--repeats",
                                      "3", "--policy", "top_p:0.7", "--json", file});
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* words :
       {"speed only, random weights", "fixed K = 3", "fixed K = 2", "fixed K = 1", "top_p:0.7",
        "ideal by bytes", "ideal by rows", "realised", "Batch 512"})
    EXPECT_TRUE(contains(result.out, words)) << words;
  const json report = json::parse(content_of(file), nullptr, false);
  ASSERT_EQ(report["batches"].size(), 3u);
  for (const json& batch : report["batches"]) {
    ASSERT_EQ(batch["routings"].size(), 5u);
    const json& half = batch["routings"][2];
    EXPECT_EQ(half["name"], "fixed K = 2");
    EXPECT_EQ(half["ideal_rows"], 2.0);
    EXPECT_GT(half["seconds"].get<double>(), 0.0);
    EXPECT_GE(half["ideal_bytes"].get<double>(), 1.0);
    EXPECT_LE(half["ideal_bytes"].get<double>(), 2.0);
    EXPECT_LE(half["seconds_q1"].get<double>(), half["seconds_q3"].get<double>());
  }
  EXPECT_EQ(report["batches"][0]["bound"], "bytes");
  EXPECT_EQ(report["batches"][0]["routings"][2]["ideal_bytes"], 2.0);
  EXPECT_EQ(report["batches"][1]["bound"], "between");
  EXPECT_TRUE(report["batches"][1]["routings"][2]["realised"].is_null());
  EXPECT_EQ(report["batches"][2]["bound"], "rows");
}

}  // namespace
