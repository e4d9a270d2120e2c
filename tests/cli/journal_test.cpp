// A journal's file as others may have left it: cut off, edited, of another kind.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/run_journal.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "cli/scratch.hpp"

namespace {

const bench::work_identity work = {{"model", "m"}, {"text", "t"}};

std::string content_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

class Journal : public ::testing::Test {
 protected:
  Journal() {
    adaptive_k::routing_outcome outcome;
    outcome.windows = {{0.25, 1.5, 1.0}, {0.125, 1.25, 0.5}};
    outcome.layer_mean_k = {2.0, 3.5};
    bench::run_journal journal(file_, work, 2);
    const adaptive_k::run_memory memory = journal.memory();
    memory.remember("first", outcome);
    memory.remember("second", outcome);
    written_ = content_of(file_);
  }

  /// Which of the two runs a journal with this content remembers.
  std::string recalled_from(const std::string& content) {
    std::ofstream(file_, std::ios::binary) << content;
    bench::run_journal journal(file_, work, 2);
    const adaptive_k::run_memory memory = journal.memory();
    std::string names;
    for (const std::string name : {"first", "second"}) {
      adaptive_k::routing_outcome outcome;
      if (!memory.recall(name, outcome)) continue;
      names += name + " ";
      EXPECT_EQ(outcome.windows.at(1).kl, 0.125);
      EXPECT_EQ(outcome.layer_mean_k, (std::vector<double>{2.0, 3.5}));
    }
    return names;
  }

  std::string refusal_of(const std::string& content) {
    try {
      recalled_from(content);
    } catch (const bench::failure& failure) {
      return failure.what();
    }
    return "none";
  }

  std::string line(int number) const {
    std::istringstream lines(written_);
    std::string text;
    for (int i = 0; i <= number; ++i) std::getline(lines, text);
    return text + "\n";
  }

  scratch_folder folder_;
  std::filesystem::path file_ = folder_.path() / "journal";
  std::string written_;
};

TEST_F(Journal, RecallsWhatItKept) {
  EXPECT_EQ(recalled_from(written_), "first second ");
  EXPECT_EQ(recalled_from(""), "");
}

TEST_F(Journal, DropsALineThatIsNoObject) {
  for (const std::string& broken :
       {line(1).substr(0, 20) + "\n", std::string("\xFF\xFE\n"), std::string("[1, 2]\n"),
        std::string("null\n"), std::string(100'000, '[') + "\n",
        std::string("{\"key\": \"first\", \"key\": \"first\"}\n"), std::string("\n")})
    EXPECT_EQ(recalled_from(line(0) + broken + line(2)), "second ") << broken.substr(0, 40);
  EXPECT_EQ(recalled_from(line(0) + line(1) + line(2).substr(0, 30)), "first ");
}

TEST_F(Journal, RefusesAnotherType) {
  for (const char* const broken :
       {R"({"key": 1, "windows": [], "layer_mean_k": []})", R"({"key": "first"})",
        R"({"key": "first", "windows": {}, "layer_mean_k": "x"})",
        R"({"key": "first", "windows": [[1, 2]], "layer_mean_k": []})",
        R"({"key": "first", "windows": [[1, 2, null]], "layer_mean_k": []})",
        R"({"key": "first", "windows": [3], "layer_mean_k": []})"})
    EXPECT_NE(refusal_of(line(0) + broken + "\n").find("expected a result of a run"),
              std::string::npos)
        << broken;
}

TEST_F(Journal, RefusesAFileThatIsNoJournal) {
  for (const std::string& head :
       {std::string("important notes\n"), std::string("{}\n"), std::string("{\"format\": null}\n"),
        std::string("[]\n"), std::string(100'000, '{') + "\n"}) {
    EXPECT_NE(refusal_of(head + line(1)).find("is no journal"), std::string::npos) << head;
    EXPECT_EQ(content_of(file_), head + line(1)) << "and leaves it as it is";
  }
}

}  // namespace
