// What `calibrate` and `frontier` share: the model, its texts, and the runs over them.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/model.hpp"
#include "bench/adaptive_k/calibrate/run_journal.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

/// `policy` and `windows` stay empty: the policy is searched for, on all windows of the text.
struct calibration_options : input_options {
  std::string test;
  std::string other_domain;
  std::string journal;
  std::int64_t fit_tokens = 16384;
  std::int64_t test_windows = 128;
  std::uint64_t seed = 1;
};

/// Registers the files that the options name to be read, and the journal.
void add_roles(file_roles& roles, const calibration_options& options);

/// Texts: the calibration text (of a data set without --test its first half), the test text (the
/// second half) and, where given, one from another domain.
class calibration_setup {
 public:
  /// Loads and checks everything, reads the journal, and registers the model's preset, which -o may
  /// write, with `roles`. Throws failure.
  calibration_setup(const calibration_options& options, int expected_runs, file_roles& roles);

  loaded_model& model() noexcept { return model_; }
  const calibration_text& calibration_data() const noexcept { return *texts_.front(); }
  const calibration_text& test_data() const noexcept { return *texts_[1]; }
  const adaptive_k::calibration_runner& runner() const noexcept { return *runners_.front(); }
  /// The texts that results are reported on.
  std::vector<adaptive_k::report_text> report_texts() const;
  adaptive_k::study_options study_options() const;
  run_journal& journal() noexcept { return *journal_; }

 private:
  void add_text(calibration_text text);

  calibration_options options_;
  loaded_model model_;
  calibration_model adapter_;
  std::unique_ptr<run_journal> journal_;
  std::vector<std::unique_ptr<calibration_text>> texts_;
  std::vector<std::unique_ptr<adaptive_k::calibration_runner>> runners_;
};

/// The array that `frontier --json` writes.
nlohmann::ordered_json frontier_json(const std::vector<adaptive_k::frontier_point>& points,
                                     const std::string& model, int top_k);

/// A table for each text.
std::string frontier_table(const std::vector<adaptive_k::frontier_point>& points, int top_k);

}  // namespace bench
