// What a report says of its model, data and policy, whatever was measured.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/host/metrics.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"
#include "bench/adaptive_k/input/model.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/measure/quality.hpp"

namespace bench {

struct model_facts {
  std::string name;
  std::string path;
  int num_layers = 0;
  adaptive_k::gating gating;
  adaptive_k::expert_sizes sizes;  ///< zero where only a trace is known
  int shared_intermediate = 0;     ///< width of the shared experts, which run whatever K is
  std::string weight_dtype;
  std::string preset_note;  ///< why the policy is not a preset's; "" where it is, or was asked for
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

/// `policy` as it was asked for.
model_facts facts_of(const loaded_model& model, const std::string& policy);
data_facts facts_of(const dataset& data, const window_plan& windows);

/// What every report starts with.
nlohmann::ordered_json report_header(const char* format);
nlohmann::ordered_json model_json(const model_facts& model);
nlohmann::ordered_json dataset_json(const data_facts& data);
/// Everything that tells this policy from another, but for the tables of experts.
nlohmann::ordered_json policy_json(const policy_facts& policy, const adaptive_k::gating& model);
void add_quality(nlohmann::ordered_json& target, const quality_summary& quality);

/// Prints the facts, a few lines on stdout.
void print_facts(const model_facts& model, const data_facts& data, const policy_facts& policy);

}  // namespace bench
