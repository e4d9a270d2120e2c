// All that `adaptive-k benchmark` found out, for the table and for the JSON report.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/host/metrics.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/analysis.hpp"
#include "bench/adaptive_k/dataset.hpp"
#include "bench/adaptive_k/policy_choice.hpp"

namespace bench {

struct model_facts {
  std::string name;
  std::string path;
  int num_layers = 0;
  adaptive_k::gating gating;
  adaptive_k::expert_sizes sizes;  ///< zero where only a trace is known
  std::string weight_dtype;
  std::string preset_note;
};

struct data_facts {
  std::string path;
  std::string sha256;
  std::string unit;
  window_plan windows;
};

/// What the policy is, and what it did layer by layer.
struct policy_facts {
  policy_choice choice;
  std::vector<adaptive_k::k_policy> layers;
  std::vector<bool> is_adaptive;                     ///< per layer: not held at full K by --layers
  std::vector<adaptive_k::routing_metrics> metrics;  ///< per layer
};

struct fixed_figures {
  int k = 0;
  routing_figures figures;
};

struct benchmark_result {
  model_facts model;
  data_facts data;
  policy_facts policy;
  routing_figures full;
  routing_figures adaptive;
  std::vector<fixed_figures> fixed;  ///< k = 1..K0 - 1, then full K as K0
  fixed_at_mean_k fixed_at_equal_mean_k;
  routing_figures random_mix;
  routing_figures inverted;
  comparison_with_fixed comparison;
  batch_times times;
  std::uint64_t random_seed = 0;
};

/// What `benchmark --trace` can say.
struct trace_result {
  model_facts model;
  data_facts data;
  policy_facts policy;
  double mean_k = 0.0;
  double expert_savings = 0.0;
  distinct_means distinct_full;
  distinct_means distinct_policy;
  distinct_means distinct_fixed;  ///< mixed from fixed K's at equal mean K
};

/// What every report starts with.
nlohmann::ordered_json report_header(const char* format);
nlohmann::ordered_json model_json(const model_facts& model);
nlohmann::ordered_json dataset_json(const data_facts& data);
void add_quality(nlohmann::ordered_json& target, const quality_summary& quality);
nlohmann::ordered_json to_json(const benchmark_result& result);
nlohmann::ordered_json to_json(const trace_result& result);

/// What was measured, a few lines on stdout.
void print_facts(const model_facts& model, const data_facts& data, const policy_facts& policy);

/// The tables on stdout.
void print(const benchmark_result& result);
void print(const trace_result& result);

/// Writes `report` with a newline; "-" is stdout. Throws failure, naming `option`, when the file
/// cannot be written.
void write_json(const std::string& option, const std::string& file,
                const nlohmann::ordered_json& report);

/// What the layers' counters come to together.
adaptive_k::routing_metrics sum_of(const std::vector<adaptive_k::routing_metrics>& layers);

}  // namespace bench
