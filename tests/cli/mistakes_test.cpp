// Every wrong argument or file: exit status 2, a message that names it, and nothing like a trace of
// the stack.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

void expect_refusal(const command_line& arguments, const std::vector<std::string>& expected) {
  const outcome result = run_program(arguments);
  std::string command;
  for (const std::string& argument : arguments) command += argument + " ";
  EXPECT_EQ(result.status, 2) << command << "\n" << result.err;
  EXPECT_EQ(result.out, "") << command;
  for (const std::string& word : expected)
    EXPECT_TRUE(contains(result.err, word))
        << command << "\nexpected: " << word << "\nsaid: " << result.err;
  EXPECT_FALSE(contains(result.err, "terminate called")) << command;
}

TEST(Mistakes, CommandLine) {
  expect_refusal({}, {"command is required"});
  expect_refusal({"frobnicate"}, {"frobnicate"});
  expect_refusal({"benchmark", "--frobnicate"}, {"--frobnicate"});
  expect_refusal({"benchmark", "--windows"}, {"--windows"});
  expect_refusal({"benchmark", "--windows", "0"}, {"--windows", "'0'", "1 or more"});
  expect_refusal({"benchmark", "--windows", "many"}, {"--windows", "many"});
  expect_refusal({"benchmark", "--context", "-5"}, {"--context"});
  expect_refusal({"benchmark", "--trace", "t", "--model", "m"}, {"--trace", "--model"});
  expect_refusal({"benchmark", "--metrics-port", "65536"}, {"--metrics-port", "65536"});
  expect_refusal({"benchmark", "--json", "-", "--log", "-"}, {"--json", "--log", "stdout"});
  expect_refusal({"benchmark", "--json", "-", "--log", "/dev/stdout"},
                 {"--json", "--log", "stdout"});
  expect_refusal({"benchmark", "--log", "x", "--log-fields", "gelf"}, {"--log-fields", "gelf"});
  expect_refusal({"benchmark", "--log-fields", "ecs"}, {"--log-fields", "--log"});
  expect_refusal({"inspect", "--perfetto", "/no/such/folder/f"},
                 {"--perfetto", "cannot be written"});
  expect_refusal({"combine", "--exit", "margin:1"}, {"--exit", "margin:1"});
  expect_refusal({"combine", "--merge-similarity", "2"}, {"--merge-similarity", "2", "-1..1"});
  expect_refusal({"combine", "--merge-window", "0"}, {"--merge-window", "'0'", "1 or more"});
  expect_refusal({"combine", "--json", "/no/such/folder/f"}, {"--json", "cannot be written"});
  expect_refusal({"record"}, {"--output"});
  expect_refusal({"speed"}, {"--shape"});
  expect_refusal({"inspect", "--text", "a", "--tokens", "3"}, {"--text", "--tokens"});
}

TEST(Mistakes, ValuesThatWouldBeTakenForOthers) {
  for (const char* seed : {"", "-1", "18446744073709551616", "1x", "0x10", "1.0"})
    expect_refusal({"benchmark", "--seed", seed}, {"--seed", "'", "whole number of 0 or more"});
  for (const char* port : {"", "0x10", "80 ", "99999999999999999999"})
    expect_refusal({"benchmark", "--metrics-port", port}, {"--metrics-port", "whole number"});
  for (const char* share : {"", "0x1p-2", "0.5 and more", "nan"})
    expect_refusal({"calibrate", "-o", "p.json", "--target-savings", share},
                   {"--target-savings", "expected a number"});
  expect_refusal({"inspect", "--text", "a", "--offset", ""}, {"--offset", "''"});
  expect_refusal({"combine", "--merge-similarity", ""}, {"--merge-similarity", "''"});
  for (const char* option : {"--json", "--log", "--model", "--dataset", "--policy"})
    expect_refusal({"benchmark", option, ""}, {option, "'', expected a value"});
  expect_refusal({"presets", ""}, {"'', expected a value"});
  expect_refusal({"calibrate", "-o", "", "--max-kl", "1"}, {"--output", "'', expected a value"});
}

TEST(Mistakes, Model) {
  const scratch_folder folder;
  expect_refusal({"benchmark", "--model", "no-such-model"}, {"--model", "no-such-model"});
  expect_refusal({"benchmark", "--model", "olmoe-1b-7b"}, {"presets have no weights"});
  expect_refusal({"benchmark", "--model", folder.path().string()}, {"config.json"});
  folder.write("config.json", "{ \"vocab_size\": ");
  expect_refusal({"inspect", "--model", folder.path().string()}, {"config.json"});
  const std::filesystem::path reference =
      std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models" / "reference-32x8";
  std::filesystem::copy_file(reference / "config.json", folder.path() / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  expect_refusal({"benchmark", "--model", folder.path().string()}, {"model.safetensors"});
  folder.write("model.safetensors", content_of(reference / "model.safetensors").substr(0, 5000));
  expect_refusal({"benchmark", "--model", folder.path().string()}, {"model.safetensors"});
}

TEST(Mistakes, OtherModelsAreToldWhatWorks) {
  const scratch_folder folder;
  const std::vector<std::string> what_works = {"record_trace.py", "benchmark --trace",
                                               "calibrate --trace"};
  const auto told = [&](const std::string& model, const std::string& what) {
    std::vector<std::string> expected = what_works;
    expected.push_back(what);
    expect_refusal({"benchmark", "--model", model}, expected);
    expect_refusal({"calibrate", "--max-kl", "1", "-o", "/tmp/x.json", "--model", model}, expected);
    expect_refusal({"record", "-o", "/tmp/x.safetensors", "--model", model}, expected);
  };
  folder.write("config.json", R"({"model_type": "qwen3_moe", "vocab_size": 256})");
  told(folder.path().string(), "model_type is 'qwen3_moe'");
  const scratch_folder other;
  const std::string gguf = other.write("m.gguf", std::string("GGUF\3\0\0\0", 8)).string();
  told(gguf, "m.gguf: is a GGUF file");
  told(other.path().string(), "m.gguf: is a GGUF file");
  const std::string weights = other.write("model.safetensors", "x").string();
  expect_refusal({"benchmark", "--model", weights}, {"is a file, expected the folder"});
}

TEST(Mistakes, DataSet) {
  const scratch_folder folder;
  const std::string missing = (folder.path() / "none.txt").string();
  expect_refusal({"benchmark", "--dataset", missing}, {"none.txt", "cannot be read"});
  expect_refusal({"benchmark", "--dataset", folder.path().string()},
                 {"cannot be read (a directory)"});
  const std::string brief = folder.write("small.txt", "too short").string();
  expect_refusal({"benchmark", "--dataset", brief},
                 {"small.txt: 9 bytes, fewer than one window of 256"});
  expect_refusal({"benchmark", "--context", "257"}, {"--context: 257, expected 2..256"});
  expect_refusal({"benchmark", "--context", "1"}, {"--context: 1, expected 2..256"});
  expect_refusal({"inspect", "--dataset", brief, "--offset", "9"}, {"--offset: 9", "9 bytes"});
  expect_refusal({"inspect", "--text", std::string(300, 'x')}, {"--text: 300 tokens"});
}

TEST(Mistakes, Policy) {
  const scratch_folder folder;
  expect_refusal(small_benchmark({"--policy", "best"}), {"'best'", "unknown policy"});
  expect_refusal(small_benchmark({"--policy", "fixed:9"}), {"fixed:9", "1..top_k = 8"});
  expect_refusal(small_benchmark({"--policy", "top_p:1.5"}), {"top_p:1.5", "0..1"});
  expect_refusal(small_benchmark({"--policy", "entropy:2,4@1,2"}), {"2 thresholds for 2"});
  expect_refusal(small_benchmark({"--policy", "entropy:2,4,8@2,1"}), {"thresholds[1]"});
  expect_refusal(small_benchmark({"--policy", "none.json"}), {"none.json", "cannot be read"});
  const std::string bad = folder.write("bad.json", "{\"name\": \"x\",}").string();
  expect_refusal(small_benchmark({"--policy", bad}), {"bad.json", "line 1"});
  // A preset is refused whole, also for a policy that nobody asked for.
  const std::string preset = folder
                                 .write("preset.json", R"({
    "schema_version": 1, "name": "own", "aliases": [],
    "gating": {"kind": "softmax", "num_experts": 32, "top_k": 8, "renormalize": true,
               "selection_bias": false},
    "sizes": {"num_moe_layers": 4, "hidden": 64, "intermediate": 64, "matrices": 3,
              "shared_experts": {"count": 0, "intermediate": 0}},
    "sources": ["a test"], "default_policy": "full",
    "policies": [{"name": "full", "provenance": "the model's own routing", "rule": "full"},
                 {"name": "nine", "provenance": "hand-set", "rule": "fixed", "k": 9}]})")
                                 .string();
  expect_refusal(small_benchmark({"--policy", preset}),
                 {"preset.json", "policies[1].k", "1..top_k"});
  expect_refusal(small_benchmark({"--layers", "4"}), {"--layers: '4'", "0..3"});
  expect_refusal(small_benchmark({"--layers", "2-1"}), {"--layers"});
}

TEST(Mistakes, Output) {
  expect_refusal(small_benchmark({"--json", "/no/such/folder/x.json"}),
                 {"--json: /no/such/folder/x.json", "cannot be written"});
  expect_refusal({"record", "--windows", "1", "-o", "/no/such/folder/t.safetensors"},
                 {"/no/such/folder/t.safetensors", "cannot be written"});
}

TEST(Mistakes, Trace) {
  const scratch_folder folder;
  expect_refusal({"benchmark", "--trace", "/no/such/trace"}, {"/no/such/trace", "cannot be read"});
  const std::string text = folder.write("t.safetensors", "not a trace at all").string();
  expect_refusal({"benchmark", "--trace", text}, {"t.safetensors", "not a safetensors file"});
  const std::string model =
      std::string(ADAPTIVE_K_SOURCE_DIR) + "/bench/models/reference-32x8/model.safetensors";
  expect_refusal({"benchmark", "--trace", model}, {"is not a trace"});
}

TEST(Mistakes, BrokenFilesOfTheSearchPathAreNamedWhereTheyMatter) {
  const scratch_folder folder;
  folder.write("deep.json", "{\"top_k\":" + std::string(100000, '['));
  folder.write("broken.json", "{");
  const std::string path = "ADAPTIVE_K_CALIBRATIONS=" + folder.path().string();
  const outcome benchmark = run_program(small_benchmark(), path);
  EXPECT_EQ(benchmark.status, 0) << benchmark.err;
  EXPECT_FALSE(contains(benchmark.err, "broken.json"));
  const outcome list = run_program({"presets"}, path);
  EXPECT_EQ(list.status, 0) << list.err;
  EXPECT_TRUE(contains(list.out, "olmoe-1b-7b"));
  for (const char* word : {"broken.json: line 1", "deep.json: top_k", "deep, expected"})
    EXPECT_TRUE(contains(list.err, word)) << list.err;
  EXPECT_EQ(run_program({"presets", "olmoe-1b-7b"}, path).status, 0);
  const outcome named = run_program({"presets", "broken"}, path);
  EXPECT_EQ(named.status, 2);
  EXPECT_TRUE(contains(named.err, "broken.json: line 1")) << named.err;
}

TEST(Mistakes, MessagesStayShort) {
  const std::string word(100'000, 'x');
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           small_benchmark({"--policy", word}),
           small_benchmark({"--policy", "top_p:" + word}),
           {"presets", word},
           {"benchmark", "--model", word},
           {"benchmark", "--trace", word},
           {"benchmark", "--dataset", word},
           {"benchmark", "--" + word},
           {word},
           {"speed", "--shape", word},
           small_benchmark({"--layers", word}),
           {"benchmark", "--policy", std::string("\xFF\x1B[2J")}}) {
    const outcome result = run_program(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_LE(result.err.size(), 1500u) << arguments.front();
    EXPECT_FALSE(contains(result.err, "\x1B"));
  }
}

TEST(Mistakes, PresetsAndShapes) {
  expect_refusal({"presets", "no-such-preset"}, {"no-such-preset", "olmoe-1b-7b"});
  expect_refusal({"presets", "none.json"}, {"none.json"});
  expect_refusal({"speed", "--shape", "no-such-preset"}, {"no-such-preset"});
  expect_refusal({"speed", "--shape", "olmoe-1b-7b", "--batch", "0"}, {"--batch"});
  expect_refusal({"speed", "--shape", "olmoe-1b-7b", "--layers", "17"}, {"--layers: 17", "16"});
  expect_refusal({"speed", "--shape", "llama-4-scout"}, {"K0 = 1"});
  // Terabytes.
  expect_refusal({"speed", "--shape", "kimi-k2", "--layers", "60"}, {"would take", "are free"});
}

}  // namespace
