// Results of calibration runs on disk, line by line, so that interrupted work resumes.
#pragma once

#include <adaptive_k/calibration/search/calibration_runs.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace bench {

/// What results depend on, by name: weights, texts, settings.
using work_identity = std::map<std::string, std::string>;

/// One JSON object a line; an incomplete last line is dropped. The first line names what was run: a
/// journal of other work is refused, with what differs. The file is created with the first result.
class run_journal {
 public:
  /// `expected_runs` is for the time left. Throws failure when the file is of other work, no
  /// journal, or cannot be written.
  run_journal(std::filesystem::path file, work_identity identity, int expected_runs);
  ~run_journal();
  run_journal(const run_journal&) = delete;
  run_journal& operator=(const run_journal&) = delete;

  /// From then on Ctrl-C ends the program between two runs and says how to resume.
  adaptive_k::run_memory memory();
  /// Removes the file, as the work is done. Throws failure if results could not be kept.
  void finish();

 private:
  void read();
  void keep(const std::string& key, const adaptive_k::routing_outcome& outcome);
  void show(const std::string& what);

  std::filesystem::path file_;
  work_identity identity_;
  std::map<std::string, adaptive_k::routing_outcome> known_;
  std::ofstream stream_;
  bool has_header_ = false;
  std::string problem_;  ///< why results are not kept; "" while they are
  int runs_ = 0;
  int expected_runs_;
  bool shown_;
  std::chrono::steady_clock::time_point start_;
  struct sigaction interrupt_before_ {};
};

}  // namespace bench
