// Runs adaptive-k as a user does: a command line in, two streams and a status out.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/scratch.hpp"

using command_line = std::vector<std::string>;

inline command_line operator+(command_line first, const command_line& more) {
  first.insert(first.end(), more.begin(), more.end());
  return first;
}

struct outcome {
  int status = -1;  ///< exit status; -1 when a signal ended it
  std::string out;
  std::string err;
};

inline std::string content_of(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline std::string quoted(const std::string& word) {
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

/// `before` stands in front of the command: "NO_COLOR=1", "timeout 60", "ulimit -f 8;".
/// `stdout_file` takes what it prints, which is then not in the outcome.
inline outcome run_command(const std::string& program, const std::vector<std::string>& arguments,
                           const std::string& before = "", const std::string& stdout_file = "") {
  const scratch_folder folder;
  const std::string out = stdout_file.empty() ? (folder.path() / "out").string() : stdout_file;
  // Tests run side by side: threads that spin while they wait would starve one another.
  std::string command = "export OMP_WAIT_POLICY=passive; " + before + " " + quoted(program);
  for (const std::string& argument : arguments) command += " " + quoted(argument);
  command +=
      " > " + quoted(out) + " 2> " + quoted((folder.path() / "err").string()) + " < /dev/null";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          stdout_file.empty() ? content_of(out) : std::string(), content_of(folder.path() / "err")};
}

/// The program that the test is of.
inline outcome run_program(const std::vector<std::string>& arguments,
                           const std::string& before = "", const std::string& stdout_file = "") {
  return run_command(ADAPTIVE_K_PROGRAM, arguments, before, stdout_file);
}

/// The arguments of a benchmark that takes a second: few, short windows.
inline std::vector<std::string> small_benchmark(std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"benchmark", "--windows", "4", "--context", "64"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The report of a small benchmark; null, and a test failure, where there is none.
inline nlohmann::json benchmark_report(std::vector<std::string> more = {}) {
  more.insert(more.end(), {"--json", "-"});
  const outcome result = run_program(small_benchmark(more));
  EXPECT_EQ(result.status, 0) << result.err;
  return nlohmann::json::parse(result.out, nullptr, false);
}

/// A shape of a few kilobytes, so that the command itself is what is tested.
inline constexpr const char* tiny_shape = R"({
  "schema_version": 1, "name": "tiny", "aliases": [],
  "gating": {"kind": "softmax", "num_experts": 16, "top_k": 4, "renormalize": true,
             "selection_bias": false},
  "sizes": {"num_moe_layers": 3, "hidden": 64, "intermediate": 32, "matrices": 3,
            "shared_experts": {"count": 0, "intermediate": 0}},
  "sources": ["made up for this test"],
  "policies": [{"name": "full", "provenance": "the model's own routing", "rule": "full"}],
  "default_policy": "full"
})";

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
