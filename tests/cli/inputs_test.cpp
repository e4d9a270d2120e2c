// Files that a command must not touch, inputs that never end, readers that never read, and Ctrl-C.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "bench/adaptive_k/input/model.hpp"
#include "cli/program.hpp"

namespace {

namespace fs = std::filesystem;

/// The reference model where a test may harm it.
fs::path copy_model(const scratch_folder& folder) {
  const fs::path model = folder.path() / "model";
  fs::create_directory(model);
  for (const char* name :
       {"config.json", "model.safetensors", "heldout_test.txt", "heldout_calibration.txt"})
    fs::copy_file(bench::reference_folder() / name, model / name);
  return model;
}

const command_line short_texts = {"--context", "16", "--tokens", "256", "--test-windows", "4"};
const command_line short_calibration =
    command_line{"calibrate", "--target-savings", "0.4", "--signal", "top_p"} + short_texts;

TEST(Inputs, NoOutputIsOneOfThem) {
  const scratch_folder folder;
  const fs::path model = copy_model(folder);
  const std::string weights = (model / "model.safetensors").string();
  const std::string text = folder.write("text.json", std::string(2000, 'x')).string();
  const std::string link = (folder.path() / "link.json").string();
  const std::string hard = (folder.path() / "hard.json").string();
  fs::create_symlink(text, link);
  fs::create_hard_link(text, hard);
  const std::string policy =
      folder.write("policy.json", R"({"name": "p", "provenance": "hand-set", "rule": "full"})")
          .string();
  const std::string shape = folder.write("shape.json", tiny_shape).string();
  const std::string trace = (folder.path() / "trace.json").string();
  ASSERT_EQ(run_program({"record", "--windows", "2", "--context", "16", "-o", trace}).status, 0);
  const command_line of_model = {"--model", model.string()};
  const std::string new_file = (folder.path() / "new.json").string();

  struct collision {
    command_line arguments;
    std::string harmed;
  };
  const std::vector<collision> collisions = {
      {command_line{"record", "-o", weights} + of_model, weights},
      {command_line{"record", "-o", (model / "config.json").string()} + of_model,
       (model / "config.json").string()},
      {command_line{"record", "--dataset", text, "-o", link}, text},
      {command_line{"benchmark", "--dataset", text, "--json", hard}, text},
      {command_line{"benchmark", "--dataset", text, "--log", text}, text},
      {command_line{"benchmark", "--policy", policy, "--json", policy}, policy},
      {command_line{"benchmark", "--policy", policy + ",a=0.5", "--json", policy}, policy},
      {command_line{"benchmark", "--trace", trace, "--json", trace}, trace},
      {command_line{"benchmark", "--trace", trace, "--log", trace}, trace},
      {command_line{"combine", "--dataset", text, "--json", text}, text},
      {command_line{"budget", "--dataset", text, "--json", text}, text},
      {command_line{"inspect", "--dataset", text, "--policy", "entropy:2,8@2", "--perfetto", text},
       text},
      {command_line{"speed", "--shape", shape, "--json", shape}, shape},
      {command_line{"frontier", "--json", text, "--test", text} + short_texts, text},
      {command_line{"frontier", "--journal", text, "--other-domain", text} + short_texts, text},
      {short_calibration + command_line{"-o", text, "--dataset", text}, text},
      {short_calibration + command_line{"-o", new_file, "--json", weights} + of_model, weights},
      {command_line{"calibrate", "--target-savings", "0.4", "--trace", trace, "-o", trace}, trace},
  };
  for (const collision& each : collisions) {
    const std::string before = content_of(each.harmed);
    const outcome result = run_program(each.arguments);
    std::string command;
    for (const std::string& word : each.arguments) command += word + " ";
    EXPECT_EQ(result.status, 2) << command;
    EXPECT_TRUE(contains(result.err, "that this command reads")) << command << result.err;
    EXPECT_TRUE(content_of(each.harmed) == before) << command;
  }
  const std::string in_folder = "cd " + quoted(folder.path().string()) + ";";
  for (const auto& [first, second] : {std::pair<std::string, std::string>{new_file, new_file},
                                      {"new", "./new"},
                                      {"new", "../" + folder.path().filename().string() + "/new"},
                                      {"new", (folder.path() / "new").string()}}) {
    const outcome twice = run_program({"benchmark", "--json", first, "--log", second}, in_folder);
    EXPECT_EQ(twice.status, 2) << first << ' ' << second;
    EXPECT_TRUE(contains(twice.err, "is also written by --json")) << twice.err;
  }
}

TEST(Inputs, WhatLiesBesideAModelIsNotTheModel) {
  const scratch_folder folder;
  const fs::path model = copy_model(folder);
  const std::string report = (model / "report.json").string();
  for (int run = 0; run < 2; ++run) {
    const outcome result =
        run_program(small_benchmark({"--model", model.string(), "--json", report}));
    EXPECT_EQ(result.status, 0) << result.err;
  }
}

TEST(Inputs, APipeIsRefusedAndNeverWaitedFor) {
  const scratch_folder folder;
  const std::string pipe = (folder.path() / "pipe.json").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const fs::path model = copy_model(folder);
  fs::remove(model / "config.json");
  fs::create_symlink(pipe, model / "config.json");
  const std::string result = (folder.path() / "result.json").string();
  for (const command_line& arguments : std::vector<command_line>{
           {"benchmark", "--dataset", pipe},
           {"benchmark", "--policy", pipe},
           {"benchmark", "--trace", pipe},
           {"benchmark", "--model", pipe},
           {"benchmark", "--model", model.string()},
           {"inspect", "--dataset", pipe},
           {"presets", pipe},
           {"speed", "--shape", pipe},
           {"calibrate", "--target-savings", "0.4", "--trace", pipe, "-o", result},
           {"calibrate", "--target-savings", "0.4", "--journal", pipe, "-o", result},
           {"calibrate", "--target-savings", "0.4", "--test", pipe, "-o", result}}) {
    const outcome refused = run_program(arguments, "timeout 60");
    EXPECT_EQ(refused.status, 2) << arguments[0] << ' ' << arguments[1] << refused.err;
    EXPECT_TRUE(contains(refused.err, pipe) || contains(refused.err, "config.json")) << refused.err;
  }
  EXPECT_EQ(run_program({"benchmark", "--dataset", "/dev/zero"}, "timeout 60").status, 2);
  EXPECT_FALSE(fs::exists(result));
}

TEST(Log, IsAppendedToAndOnlyWhenAllElseIsRight) {
  const scratch_folder folder;
  const std::string log = folder.write("log", "kept\n").string();
  EXPECT_EQ(run_program({"benchmark", "--model", "no-such-model", "--log", log}).status, 2);
  EXPECT_EQ(run_program(small_benchmark({"--policy", "fixed:9", "--log", log})).status, 2);
  EXPECT_EQ(content_of(log), "kept\n");
  ASSERT_EQ(run_program(small_benchmark({"--log", log})).status, 0);
  EXPECT_EQ(content_of(log).substr(0, 6), "kept\n{");
  const std::string fresh = (folder.path() / "fresh").string();
  EXPECT_EQ(run_program(small_benchmark({"--policy", "fixed:9", "--log", fresh})).status, 2);
  EXPECT_FALSE(fs::exists(fresh));
}

TEST(Log, AReaderThatNeverReadsHoldsNothingUp) {
  const scratch_folder folder;
  const std::string pipe = (folder.path() / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const outcome alone = run_program(small_benchmark({"--log", pipe}), "timeout 120");
  EXPECT_EQ(alone.status, 2);
  EXPECT_TRUE(contains(alone.err, "--log: " + pipe + ": cannot be written: nothing reads from it"))
      << alone.err;
  // More lines than a pipe holds.
  const command_line many = {"benchmark", "--windows", "160", "--context", "16", "--log", pipe};
  const outcome stuck = run_program(many, "sleep 300 < " + quoted(pipe) +
                                              " & sleeper=$!; trap 'kill $sleeper' EXIT; "
                                              "timeout 240");
  EXPECT_EQ(stuck.status, 2) << stuck.err;
  EXPECT_TRUE(contains(stuck.err, "not all lines could be written: nobody reads them"))
      << stuck.err;
  EXPECT_TRUE(contains(stuck.out, "Tokens by K")) << "the report is not lost";
}

/// Runs the program, sends it SIGINT once `when` is true, and returns its exit status.
int interrupted_run(const command_line& arguments, bool parent_ignores,
                    const std::function<bool()>& when) {
  const pid_t process = fork();
  if (process == 0) {
    std::signal(SIGINT, parent_ignores ? SIG_IGN : SIG_DFL);
    setenv("OMP_WAIT_POLICY", "passive", 1);
    if (std::freopen("/dev/null", "w", stdout) == nullptr ||
        std::freopen("/dev/null", "w", stderr) == nullptr)
      _exit(126);
    std::vector<std::string> words = {"adaptive-k"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    execv(ADAPTIVE_K_PROGRAM, argv.data());
    _exit(127);
  }
  int status = 0;
  while (!when() && waitpid(process, &status, WNOHANG) == 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  kill(process, SIGINT);
  waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Interrupt, EndsBetweenRunsUnlessTheParentIgnoresIt) {
  const scratch_folder folder;
  const std::string file = (folder.path() / "p.json").string();
  const std::string journal = file + ".journal";
  const command_line arguments = short_calibration + command_line{"-o", file};
  const auto has_started = [&] { return fs::exists(journal) && fs::file_size(journal) > 0; };
  EXPECT_EQ(interrupted_run(arguments, false, has_started), 2);
  EXPECT_FALSE(fs::exists(file));
  ASSERT_TRUE(fs::exists(journal)) << "to go on from";
  fs::remove(journal);
  EXPECT_EQ(interrupted_run(arguments, true, has_started), 0);
  EXPECT_TRUE(fs::exists(file));
}

TEST(Journal, ARefusedValueLeavesNone) {
  const scratch_folder folder;
  const std::string journal = (folder.path() / "j").string();
  const std::string file = (folder.path() / "p.json").string();
  for (const command_line& arguments : std::vector<command_line>{
           command_line{"frontier", "--mean-k", "99"} + short_texts,
           command_line{"calibrate", "--target-savings", "1.5", "-o", file} + short_texts,
           command_line{"calibrate", "--max-kl", "-1", "-o", file} + short_texts,
           command_line{"calibrate", "--max-kl", "0.1", "--test", "/no/such", "-o", file} +
               short_texts}) {
    const outcome result = run_program(arguments + command_line{"--journal", journal});
    EXPECT_EQ(result.status, 2) << result.err;
    EXPECT_FALSE(fs::exists(journal)) << arguments[0] << ' ' << arguments[1] << ' ' << arguments[2];
  }
}

TEST(Journal, IsOfOneModelAndOneTextAndOneSetting) {
  const scratch_folder folder;
  const fs::path model = copy_model(folder);
  const std::string journal = (folder.path() / "j").string();
  const std::string file = (folder.path() / "p.json").string();
  const command_line arguments =
      short_calibration + command_line{"--model", model.string(), "-o", file, "--journal", journal};
  // Everything is run; then the points cannot be written, so that the journal stays.
  const command_line cut = arguments + command_line{"--json", "/dev/full"};
  ASSERT_EQ(run_program(cut).status, 2);
  const std::string kept = content_of(journal);
  ASSERT_GT(kept.size(), 1000u);

  const auto changed = [&](const std::string& name, const std::function<void(std::string&)>& edit) {
    const std::string before = content_of(model / name);
    std::string after = before;
    edit(after);
    std::ofstream(model / name, std::ios::binary) << after;
    const outcome result = run_program(arguments);
    std::ofstream(model / name, std::ios::binary) << before;
    return result;
  };
  const auto last_byte = [](std::string& bytes) {
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
  };
  for (const auto& [name, told] : std::vector<std::pair<std::string, std::string>>{
           {"model.safetensors", "the model's model.safetensors"},
           {"heldout_calibration.txt", "the calibration text"},
           {"heldout_test.txt", "the test text"}}) {
    const outcome result = changed(name, last_byte);
    EXPECT_EQ(result.status, 2) << name;
    EXPECT_TRUE(contains(result.err, "of other work: it differs in " + told)) << result.err;
  }
  const outcome config =
      changed("config.json", [](std::string& text) { text.insert(text.find('{') + 1, " "); });
  EXPECT_EQ(config.status, 2);
  EXPECT_TRUE(contains(config.err, "differs in the model's config.json")) << config.err;
  for (const command_line& other : std::vector<command_line>{
           {"--seed", "2"}, {"--other-domain", (model / "config.json").string()}}) {
    const outcome result = run_program(arguments + other);
    EXPECT_EQ(result.status, 2) << other[0];
    EXPECT_TRUE(contains(result.err, "of other work")) << result.err;
  }
  EXPECT_EQ(content_of(journal), kept);
  // What is no journal is not advised to be removed as other work.
  const std::string text = folder.write("notes", "my notes\n").string();
  const outcome none = run_program(short_calibration + command_line{"-o", file, "--journal", text});
  EXPECT_EQ(none.status, 2);
  EXPECT_TRUE(contains(none.err, "is no journal")) << none.err;
  EXPECT_EQ(content_of(text), "my notes\n");
  // Unchanged, it goes on and finishes.
  const outcome resumed = run_program(arguments);
  EXPECT_EQ(resumed.status, 0) << resumed.err;
  EXPECT_FALSE(fs::exists(journal));
}

}  // namespace
