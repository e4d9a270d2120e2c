// Every command once, on a model of a few kilobytes: quick enough to be run under sanitizers, whose
// reports end the program with another status.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/program.hpp"
#include "model/small_model.hpp"

namespace {

/// A model of bytes, a text to fit on and one to test on, and the shape of a preset.
class SmallRuns : public ::testing::Test {
 protected:
  void SetUp() override {
    small_model::shape shape;
    shape.vocab = 256;
    const auto folder = folder_.path() / "small";
    std::filesystem::create_directories(folder);
    small_model::write_model(folder, shape, small_model::weights_of(shape, 7));
    model_ = folder.string();
    std::string text;
    for (int i = 0; i < 60; ++i) text += "It was " + std::to_string(i * i) + ", she said. ";
    fit_ = folder_.write("fit.txt", text).string();
    test_ = folder_.write("test.txt", text.substr(7)).string();
  }

  std::string file(const std::string& name) const { return (folder_.path() / name).string(); }

  outcome run(std::vector<std::string> arguments) {
    const outcome result = run_program(arguments);
    EXPECT_EQ(result.status, 0) << arguments[0] << ": " << result.err;
    EXPECT_FALSE(contains(result.err, "runtime error")) << result.err;
    return result;
  }

  /// With the options that all commands take which run the model.
  outcome run_on_model(std::vector<std::string> arguments, const char* windows = "4") {
    arguments.insert(arguments.end(), {"--model", model_, "--dataset", fit_, "--context", "16"});
    if (windows != nullptr) arguments.insert(arguments.end(), {"--windows", windows});
    return run(arguments);
  }

  scratch_folder folder_;
  std::string model_, fit_, test_;
};

TEST_F(SmallRuns, Benchmark) {
  for (const char* policy : {"entropy:1,3@1.2", "top_p:0.7", "full", "fixed:2"})
    run_on_model({"benchmark", "--policy", policy, "--json", file("report.json")});
  run_on_model({"benchmark", "--policy", "topk_entropy:1,2,3@0.5,0.9", "--log", file("log.json")});
  EXPECT_FALSE(content_of(file("log.json")).empty());
}

TEST_F(SmallRuns, RecordAndTrace) {
  const std::string trace = file("trace.safetensors");
  run_on_model({"record", "-o", trace});
  run({"benchmark", "--trace", trace, "--policy", "top_p:0.7"});
  run({"calibrate", "--trace", trace, "--target-savings", "0.3", "-o", file("policy.json")});
  // More than all experts but one cannot be saved, which is known before anything runs.
  for (const command_line& from :
       {command_line{"--trace", trace},
        command_line{"--model", model_, "--dataset", fit_, "--test", fit_}}) {
    const outcome beyond = run_program(
        command_line{"calibrate", "--target-savings", "0.9", "-o", file("most.json")} + from);
    EXPECT_NE(beyond.status, 0);
    EXPECT_TRUE(contains(beyond.err, "--target-savings: 0.9, expected at most 0.")) << beyond.err;
    EXPECT_FALSE(std::filesystem::exists(file("most.json")));
  }
}

TEST_F(SmallRuns, ANameThatIsNoTextGoesIntoFilesAsMuchAsItCan) {
  const std::string odd = file("\xFF\xFE.txt");
  std::filesystem::copy_file(fit_, odd);
  for (const std::string command : {"record", "benchmark"})
    run({command, "--model", model_, "--dataset", odd, "--context", "16", "--windows", "4",
         command == "record" ? "-o" : "--json", file("out")});
  EXPECT_FALSE(content_of(file("out")).empty());
}

TEST_F(SmallRuns, CalibrateAndUseWhatItWrote) {
  const std::string preset = file("preset.json");
  run_on_model({"calibrate", "--test", test_, "--test-windows", "4", "--tokens", "512",
                "--target-savings", "0.3", "-o", preset, "--json", "-"},
               nullptr);
  EXPECT_TRUE(contains(run({"presets", preset}).out, "6 experts of which 3"));
  run_on_model({"frontier", "--test", test_, "--test-windows", "4", "--tokens", "512", "--mean-k",
                "1.5,2", "--json", file("frontier.json")},
               nullptr);
}

TEST_F(SmallRuns, Budget) {
  run_on_model({"budget", "--policy", "top_p:0.7", "--batch", "1,4", "--budget", "2,4"});
}

TEST_F(SmallRuns, Combine) {
  run_on_model({"combine", "--policy", "top_p:0.7", "--exit", "entropy:1", "--merge-similarity",
                "0.7", "--json", file("combine.json")});
}

TEST_F(SmallRuns, Inspect) {
  run({"inspect", "--model", model_, "--text", "She was.", "--policy", "entropy:1,3@1.2",
       "--perfetto", file("timeline.json")});
  run({"inspect", "--model", model_, "--dataset", fit_, "--tokens", "3", "--offset", "5",
       "--policy", "full"});
}

TEST_F(SmallRuns, PresetsAndSpeed) {
  run({"presets"});
  run({"presets", "mixtral-8x7b"});
  const std::string shape = folder_.write("tiny.json", tiny_shape).string();
  run({"speed", "--shape", shape, "--batch", "1,16", "--repeats", "2", "--policy", "top_p:0.7"});
}

}  // namespace
