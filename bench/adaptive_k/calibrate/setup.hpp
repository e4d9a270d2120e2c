// What `calibrate` and `frontier` share: the model, its texts, and the runs over them.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/model.hpp"
#include "bench/adaptive_k/calibrate/run_journal.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

/// `policy` and `windows` stay empty: the policy is searched for, on all windows of the texts.
struct calibration_options : input_options {
  std::vector<std::string> texts;  ///< NAME=FILE or a domain each; instead of `dataset`
  std::vector<std::string> tests;  ///< likewise; one alone without a name is "test"
  std::string other_domain;
  std::string journal;
  std::int64_t fit_tokens = 16384;
  std::int64_t test_windows = 128;
  std::uint64_t seed = 1;
  std::optional<double> sensitivity_exponent;
  bool head = false;
};

/// Registers the files that the options name to be read, and the journal.
void add_roles(file_roles& roles, const calibration_options& options);

/// A text and what runs a model over it.
struct bound_text {
  std::string name;  ///< of its domain, or what it is for; "" for the only one calibrated on
  std::unique_ptr<calibration_text> text;
  std::unique_ptr<adaptive_k::calibration_runner> runner;
};

/// Binds `model` to a text; `memory` keeps what comes of runs, under keys that begin with `prefix`.
bound_text bind_text(calibration_model& model, std::string name, calibration_text text,
                     const std::string& prefix, adaptive_k::run_memory memory);

/// What results on this machine depend on beside texts and settings: the program, for its
/// arithmetic.
work_identity program_identity();
/// A model's files, each under "`prefix``file`".
void add_identity(work_identity& identity, const std::string& prefix, const loaded_model& model);
/// Which windows of which text.
std::string identity_of(const calibration_text& text);

/// The texts to calibrate on, and those to report on: the test texts (without --test the second
/// half of each that is calibrated on) and, where given, one from another domain.
class calibration_setup {
 public:
  /// Loads and checks everything, reads the journal, and registers the model's preset, which -o may
  /// write, with `roles`. Throws failure.
  calibration_setup(const calibration_options& options, int expected_runs, file_roles& roles);

  loaded_model& model() noexcept { return model_; }
  /// Those to calibrate on, one or more.
  const std::vector<bound_text>& domains() const noexcept { return domains_; }
  /// Those to report on; the first `num_tests` are what the policy is for.
  const std::vector<bound_text>& reported() const noexcept { return reported_; }
  std::size_t num_tests() const noexcept { return num_tests_; }
  /// The same as the calibrator takes them.
  std::vector<adaptive_k::calibration_domain> calibration_domains() const;
  std::vector<adaptive_k::report_text> report_texts() const;
  adaptive_k::study_options study_options() const;
  run_journal& journal() noexcept { return *journal_; }
  /// "NAME: FILE" of those to calibrate on.
  std::string domains_text() const;

 private:
  calibration_options options_;
  loaded_model model_;
  calibration_model adapter_;
  std::unique_ptr<run_journal> journal_;
  std::vector<bound_text> domains_;
  std::vector<bound_text> reported_;
  std::size_t num_tests_ = 0;
};

/// Settings of a study that fits on so many tokens.
adaptive_k::study_options study_options_for(std::int64_t fit_tokens, std::uint64_t seed);

/// The array that `frontier --json` writes.
nlohmann::ordered_json frontier_json(const std::vector<adaptive_k::frontier_point>& points,
                                     const std::string& model, int top_k);

/// What q is, and by which trials it was chosen.
std::string exponent_text(double exponent, const std::vector<adaptive_k::exponent_trial>& trials);

/// A table for each text.
std::string frontier_table(const std::vector<adaptive_k::frontier_point>& points, int top_k);

}  // namespace bench
