// Every rule on every model, calibrated on each domain and tested on each.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/run_journal.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

struct matrix_options {
  std::vector<std::string> models;             ///< folders; none: the project's own
  std::vector<std::string> texts;              ///< NAME=FILE of each, or a domain, to calibrate on
  std::vector<std::string> tests;              ///< likewise, to test on
  std::vector<std::string> rules;              ///< none: all
  std::vector<std::string> calibrated_on;      ///< domains and `all_domains`; none: all of them
  std::vector<double> mean_ks;                 ///< none: 3/8, 1/2 and 5/8 of K0
  std::vector<double> sensitivity_exponents;   ///< that `distortion` is measured with, too
  std::vector<double> mass_exponents = {0.5};  ///< of which each rule gets its best, in [0, 1]
  std::string journal;
  std::string json;
  int context = 0;
  std::int64_t fit_tokens = 16384;
  std::int64_t test_windows = 64;
  std::uint64_t seed = 1;
};

/// A row of the matrix.
struct matrix_rule {
  std::string name;
  adaptive_k::calibration_rule rule = adaptive_k::calibration_rule::fixed;
  std::optional<double> sensitivity_exponent;  ///< none: the calibration's
};

/// One rule at one mean K in one cell.
struct matrix_point {
  std::string rule;
  std::string calibrated_on;  ///< a domain, or `all_domains`
  std::string tested_on;
  double target_mean_k = 0.0;
  double mass_exponent = 0.0;
  adaptive_k::held_outcome outcome;
};

/// What a rule saves where it costs what fixed K at 3/4 of K0 does.
struct equal_cost {
  std::string rule;
  std::string calibrated_on;
  std::string tested_on;
  double kl = 0.0;                ///< fixed K's, nats
  std::optional<double> savings;  ///< share of expert calls; none: no two points enclose that KL
  double se = 0.0;                ///< of the savings, from the paired difference of the KL's
};

struct matrix_calibration {
  std::string name;  ///< a domain, or `all_domains`
  std::int64_t tokens = 0;
  std::vector<double> sensitivities;  ///< of the layers, as measured
  double sensitivity_exponent = 0.0;
  std::vector<adaptive_k::exponent_trial> trials;
};

struct model_matrix {
  std::string model;
  adaptive_k::gating gating;
  int num_layers = 0;
  int window_length = 0;
  std::vector<std::string> domains;
  std::vector<matrix_rule> rules;
  std::vector<double> mean_ks;  ///< that were asked for; points go beyond, for equal cost
  std::vector<matrix_calibration> calibrations;
  std::vector<matrix_point> points;
  std::vector<equal_cost> at_equal_cost;

  const matrix_point* find(const std::string& rule, const std::string& calibrated_on,
                           const std::string& tested_on, double target_mean_k) const;
};

inline constexpr const char* all_domains = "all";

/// The rows. The oracle is that of the domain tested on, whatever was calibrated on: a ceiling.
std::vector<matrix_rule> matrix_rules(const matrix_options& options);

struct matrix_result {
  std::vector<model_matrix> models;
  std::unique_ptr<run_journal> journal;  ///< to be finished when the report is written
};

/// Throws failure. Takes hours; the journal keeps what was done.
matrix_result run_matrix(const matrix_options& options, file_roles& roles);

nlohmann::ordered_json to_json(const matrix_options& options,
                               const std::vector<model_matrix>& models);

/// Where a calibration and a test text stand to one another.
enum class transfer { in_domain, out_of_domain, every_domain };
/// Of a cell of `model`.
transfer transfer_of(const model_matrix& model, const std::string& calibrated_on,
                     const std::string& tested_on);

/// A model's tables, for people.
std::string matrix_text(const model_matrix& model);

}  // namespace bench
