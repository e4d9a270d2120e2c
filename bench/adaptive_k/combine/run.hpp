// `adaptive-k combine` without its command line: adaptive K, early exit and token merging in every
// combination, over the same windows.
#pragma once

#include <adaptive_k/combine/early_exit.hpp>
#include <adaptive_k/combine/token_merging.hpp>
#include <cstdint>
#include <moe_engine/stacking.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/measure/facts.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

struct combine_options : input_options {
  std::string exit = "entropy:0.5";
  double merge_similarity = 0.9;
  int merge_window = 16;
  std::uint64_t seed = 1;  ///< of the random controls
  std::string json;
};

/// One combination, or a control, over the data set.
struct combined_figures {
  std::string name;
  bool adapts_k = false;
  bool exits_early = false;
  bool merges_tokens = false;

  quality_summary quality;
  moe_engine::work_count work;
  adaptive_k::early_exit_metrics exits;
  std::vector<adaptive_k::token_merging_metrics> merges_by_layer;  ///< empty where none merges
  /// Over all tokens and layers of the text; a token that is not run counts as 0.
  double mean_k = 0.0;
  double calls_left = 1.0;       ///< expert calls / the full model's
  double arithmetic_left = 1.0;  ///< multiply-adds, also of deciding, / the full model's
  /// Products of what the methods leave alone; of two methods or three.
  std::optional<double> predicted_calls_left;
  std::optional<double> predicted_arithmetic_left;
  /// Fixed K alone at this mean K; none below K = 1.
  std::optional<quality_summary> fixed_at_equal_mean_k;
  std::optional<estimate> kl_above_fixed;  ///< mean KL - fixed K's, nats, paired by window
};

struct combine_result {
  model_facts model;
  data_facts data;
  policy_facts policy;
  adaptive_k::early_exit_policy exit;
  adaptive_k::token_merging_policy merging;
  std::uint64_t random_seed = 0;
  std::vector<combined_figures> combinations;  ///< [8]; bit 0 adapts K, 1 exits, 2 merges
  std::vector<combined_figures> controls;      ///< the same rates at random
};

/// "entropy:0.1" or "max_probability:0.9,0.95,0.99": signal, then a threshold for all layers or
/// one for each but the last. Throws failure naming what is wrong.
adaptive_k::early_exit_policy parse_exit(const std::string& text, int num_layers);

/// Registers the preset that it reads with `roles`.
combine_result run_combine(const combine_options& options, file_roles& roles);

/// The table on stdout.
void print(const combine_result& result);

nlohmann::ordered_json to_json(const combine_result& result);

}  // namespace bench
