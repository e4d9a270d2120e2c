// Results of calibration runs on disk, line by line: work that was cut short goes on where it was.
#pragma once

#include <adaptive_k/calibration/calibration_runs.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace bench {

/// One JSON object a line; a line that was cut off is dropped. The first line names what was run
/// (`identity`): a journal of other work is refused.
class run_journal {
 public:
  /// `expected_runs` is for the time left. Throws failure when the file is of other work or cannot
  /// be written.
  run_journal(std::filesystem::path file, const std::string& identity, int expected_runs);
  ~run_journal();
  run_journal(const run_journal&) = delete;
  run_journal& operator=(const run_journal&) = delete;

  /// Ctrl-C then ends the program between two runs, with a message how to go on.
  adaptive_k::run_memory memory();
  /// The work is done: the file is no longer needed.
  void discard();
  int runs() const noexcept { return runs_; }

 private:
  void show(const std::string& what);

  std::filesystem::path file_;
  std::map<std::string, adaptive_k::routing_outcome> known_;
  std::ofstream stream_;
  int runs_ = 0;
  int expected_runs_;
  bool shown_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace bench
