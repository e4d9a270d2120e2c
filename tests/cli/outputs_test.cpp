// What cannot be written is an error that names the place, for every command and every output; what
// was there before stays.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

namespace fs = std::filesystem;

/// Every command at its smallest, on files of a folder of its own.
class Outputs : public ::testing::Test {
 protected:
  Outputs() {
    folder_.write("tiny.json", tiny_shape);
    folder_.write("policy.json",
                  R"({"name": "p", "provenance": "hand-set", "rule": "fixed", "k": 2})");
    EXPECT_EQ(run_program(record + command_line{"-o", path("trace")}).status, 0);
  }

  scratch_folder folder_;  // first: the command lines below name its files

  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }

  const command_line short_windows = {"--windows", "2", "--context", "16"};
  const command_line short_texts = {"--context", "16", "--tokens", "256", "--test-windows", "4"};
  const command_line benchmark = command_line{"benchmark"} + short_windows;
  const command_line record = command_line{"record"} + short_windows;
  const command_line combine = command_line{"combine"} + short_windows;
  const command_line budget =
      command_line{"budget"} + short_windows + command_line{"--batch", "1", "--budget", "8"};
  const command_line frontier = command_line{"frontier", "--mean-k", "4"} + short_texts;
  const command_line calibrate =
      command_line{"calibrate", "--target-savings", "0.4", "--signal", "top_p"} + short_texts;
  const command_line calibrate_trace = {"calibrate", "--target-savings", "0.4", "--trace",
                                        path("trace")};
  const command_line speed = {"speed",     "--shape", path("tiny.json"), "--batch", "1",
                              "--repeats", "1"};
  const command_line inspect = {"inspect", "--text", "She", "--policy", "entropy:2,8@2"};

  struct output {
    command_line command;
    std::string option;
    std::string file;  // a name that the option takes
  };
  /// Every option that names a file to write.
  std::vector<output> outputs() const {
    const std::string journal = path("journal");
    return {{benchmark, "--json", "out.json"},
            {{"benchmark", "--trace", path("trace")}, "--json", "out.json"},
            {benchmark, "--log", "out.log"},
            {record, "-o", "out.safetensors"},
            {combine, "--json", "out.json"},
            {budget, "--json", "out.json"},
            {speed, "--json", "out.json"},
            {inspect, "--perfetto", "out.json"},
            {frontier + command_line{"--journal", journal + "1"}, "--json", "out.json"},
            {calibrate + command_line{"-o", path("preset.json"), "--journal", journal + "2"},
             "--json", "out.json"},
            {calibrate + command_line{"--journal", journal + "3"}, "-o", "out.json"},
            {calibrate_trace, "-o", "out.json"}};
  }
};

std::string text_of(const command_line& arguments) {
  std::string text;
  for (const std::string& word : arguments) text += word + " ";
  return text;
}

TEST_F(Outputs, StdoutThatIsFull) {
  const std::vector<command_line> commands = {
      {"--help"},
      {"--version"},
      {"benchmark", "--help"},
      {"presets"},
      {"presets", "mixtral-8x7b"},
      {"presets", path("policy.json")},
      benchmark,
      benchmark + command_line{"--json", "-"},
      {"benchmark", "--trace", path("trace")},
      record + command_line{"-o", path("t")},
      combine,
      combine + command_line{"--json", "-"},
      budget,
      budget + command_line{"--json", "-"},
      speed,
      speed + command_line{"--json", "-"},
      inspect,
      frontier + command_line{"--journal", path("j1")},
      frontier + command_line{"--json", "-", "--journal", path("j2")},
      calibrate + command_line{"-o", path("c.json")},
      calibrate + command_line{"-o", path("c.json"), "--json", "-"},
      calibrate_trace + command_line{"-o", path("c.json")},
  };
  for (const command_line& command : commands) {
    const outcome result = run_program(command, "", "/dev/full");
    EXPECT_EQ(result.status, 2) << text_of(command);
    const std::string expected = "adaptive-k: stdout: cannot be written";
    EXPECT_EQ(result.err.substr(0, expected.size()), expected) << text_of(command);
    EXPECT_EQ(result.err.find('\n') + 1, result.err.size()) << "once: " << result.err;
  }
  const outcome log = run_program(benchmark + command_line{"--log", "-"}, "", "/dev/full");
  EXPECT_EQ(log.status, 2);
  EXPECT_TRUE(contains(log.err, "--log: -: not all lines could be written")) << log.err;
}

TEST_F(Outputs, StdoutThatIsClosed) {
  const outcome result = run_program({"presets"}, "exec >&-;", "/dev/null");
  EXPECT_EQ(result.status, 0) << "the redirection behind it opens it again";
  // Without a stdout no file that is written may take its place.
  const scratch_folder folder;
  const std::string file = (folder.path() / "report.json").string();
  std::string command = "OMP_WAIT_POLICY=passive " + quoted(ADAPTIVE_K_PROGRAM);
  for (const std::string& word : benchmark + command_line{"--json", file})
    command += " " + quoted(word);
  command += " >&- 2> " + quoted((folder.path() / "err").string());
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_TRUE(contains(content_of(folder.path() / "err"), "stdout: cannot be written"));
  EXPECT_TRUE(nlohmann::json::accept(content_of(file))) << "the report alone";
}

TEST_F(Outputs, FilesThatAreFull) {
  for (const output& each : outputs()) {
    const command_line arguments = each.command + command_line{each.option, "/dev/full"};
    const outcome result = run_program(arguments);
    EXPECT_EQ(result.status, 2) << text_of(arguments);
    const std::string named =
        each.option == "-o" && each.command[0] == "record" ? "--output" : each.option;
    EXPECT_TRUE(contains(result.err, named + ": /dev/full: ")) << text_of(arguments) << result.err;
    EXPECT_TRUE(contains(result.err, each.option == "--log" ? "not all lines could be written"
                                                            : "cannot be written: No space left"))
        << text_of(arguments) << result.err;
  }
}

TEST_F(Outputs, AFailureLeavesWhatWasThere) {
  const std::string old_content(100, 'o');
  for (const output& each : outputs()) {
    if (each.option == "--log") continue;  // is appended to
    const scratch_folder own;
    const fs::path file = own.write(each.file, old_content);
    const command_line arguments = each.command + command_line{each.option, file.string()};
    // Files of at most 512 bytes, and no signal where one would be larger.
    const outcome result = run_program(arguments, "trap '' XFSZ; ulimit -f 1;", "/dev/null");
    EXPECT_EQ(result.status, 2) << text_of(arguments) << result.err;
    EXPECT_TRUE(contains(result.err, "cannot be written: File too large")) << result.err;
    EXPECT_EQ(content_of(file), old_content) << text_of(arguments);
    int files = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(own.path())) ++files;
    EXPECT_EQ(files, 1) << "nothing half-written beside it: " << text_of(arguments);
  }
}

TEST_F(Outputs, AReplacedFileKeepsItsModeAndItsLink) {
  const fs::path file = folder_.write("old.json", "old");
  const fs::path link = folder_.path() / "link.json";
  fs::create_symlink("old.json", link);
  ASSERT_EQ(chmod(file.c_str(), 0640), 0);
  ASSERT_EQ(run_program(benchmark + command_line{"--json", link.string()}).status, 0);
  EXPECT_TRUE(fs::is_symlink(link));
  struct stat now {};
  ASSERT_EQ(stat(file.c_str(), &now), 0);
  EXPECT_EQ(now.st_mode & 07777U, 0640U);
  EXPECT_TRUE(nlohmann::json::accept(content_of(file)));
  // A link to nothing yet: the file comes into being behind it.
  const fs::path dangling = folder_.path() / "dangling.json";
  fs::create_symlink("new.json", dangling);
  ASSERT_EQ(run_program(benchmark + command_line{"--json", dangling.string()}).status, 0);
  EXPECT_TRUE(fs::is_symlink(dangling));
  EXPECT_TRUE(nlohmann::json::accept(content_of(folder_.path() / "new.json")));
}

TEST_F(Outputs, DevicesAndStreamsAreWrittenInPlace) {
  EXPECT_EQ(run_program(benchmark + command_line{"--json", "/dev/null"}).status, 0);
  const outcome directed = run_program(benchmark + command_line{"--json", "/dev/stdout"});
  ASSERT_EQ(directed.status, 0) << directed.err;
  EXPECT_TRUE(nlohmann::json::accept(directed.out)) << directed.out;
  const std::string file = path("named_twice.json");
  ASSERT_EQ(run_program(benchmark + command_line{"--json", file}, "", file).status, 0);
  EXPECT_TRUE(nlohmann::json::accept(content_of(file))) << content_of(file);
}

// Stdout is for a program or for people: whatever is written there stands alone.
TEST_F(Outputs, NothingIsPrintedBesideWhatIsWrittenToStdout) {
  for (output each : outputs()) {
    std::string command = "export OMP_WAIT_POLICY=passive; (" + quoted(ADAPTIVE_K_PROGRAM);
    for (const std::string& word : each.command + command_line{each.option, "/dev/stdout"})
      command += " " + quoted(word);
    command += " 2> " + quoted(path("err")) + " || echo failed) | cat > " + quoted(path("piped"));
    ASSERT_EQ(std::system(command.c_str()), 0);
    std::string piped = content_of(path("piped"));
    if (each.option == "--log") {
      std::replace(piped.begin(), piped.end(), '\n', ',');
      piped = "[" + piped.substr(0, piped.size() - 1) + "]";
    }
    if (each.command == record)
      EXPECT_EQ(piped, content_of(path("trace"))) << content_of(path("err"));
    else
      EXPECT_TRUE(nlohmann::json::accept(piped)) << command << piped << content_of(path("err"));
  }
}

TEST_F(Outputs, AJournalThatCannotBeWrittenIsToldAndTheWorkGoesOn) {
  const std::string journal = path("j");
  const std::string file = path("preset.json");
  // Many windows make long lines of a journal and no larger a preset.
  const command_line arguments = {
      "calibrate", "--target-savings", "0.4", "--signal", "top_p", "--context", "16",   "--tokens",
      "256",       "--test-windows",   "400", "-o",       file,    "--journal", journal};
  ASSERT_EQ(run_program(arguments).status, 0);
  const auto blocks = static_cast<int>(fs::file_size(file) / 512 + 2);
  fs::remove(file);
  // Room for the result, not for the journal.
  const outcome result = run_program(
      arguments, "trap '' XFSZ; ulimit -f " + std::to_string(blocks) + ";", "/dev/null");
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_TRUE(contains(result.err, "--journal: " + journal + ": cannot be written: File too large"))
      << result.err;
  EXPECT_TRUE(nlohmann::json::accept(content_of(file))) << "the result is whole";
  EXPECT_FALSE(fs::exists(journal));
}

// A pipe has names too, of which /proc has a link that leads nowhere.
TEST_F(Outputs, APipeIsWrittenToByAnyName) {
  for (const char* name : {"/dev/stdout", "/dev/fd/3"}) {
    std::string command = "export OMP_WAIT_POLICY=passive; (" + quoted(ADAPTIVE_K_PROGRAM);
    for (const std::string& word : benchmark + command_line{"--json", name})
      command += " " + quoted(word);
    command += " 3>&1 2>/dev/null; echo ended $?) | cat > " + quoted(path("piped"));
    ASSERT_EQ(std::system(command.c_str()), 0);
    const std::string piped = content_of(path("piped"));
    EXPECT_TRUE(contains(piped, "\"perplexity\"")) << name << piped;
    EXPECT_TRUE(contains(piped, "ended 0")) << name;
  }
}

}  // namespace
