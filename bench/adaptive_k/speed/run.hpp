// Wall time of whole MoE layers of a real model's shape, with random weights.
#pragma once

#include <adaptive_k/calibration/preset.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bench {

struct speed_options {
  std::string shape;
  std::string policy;
  std::string json;
  std::vector<int> batches = {1, 16, 64, 512};
  int layers = 2;
  int repeats = 0;  ///< 0: as many as fit about ten seconds a batch, in 5..50
  std::uint64_t seed = 1;
};

/// Which work the experts wait for, and so which ideal applies.
enum class bound_by {
  bytes,    ///< batch 1: expert weights read from memory
  either,   ///< in between: the truth lies between the two ideals
  compute,  ///< batch 512 and up: rows multiplied by an expert
};

bound_by bound_at(int batch);
const char* to_string(bound_by bound);

struct quartiles {
  double low = 0.0;
  double median = 0.0;
  double high = 0.0;
};

/// One routing at one batch, over all repeats.
struct speed_figures {
  std::string name;
  double mean_k = 0.0;
  double distinct_experts = 0.0;  ///< per layer and call
  double expert_rows = 0.0;       ///< token-expert pairs per layer and call
  quartiles seconds;              ///< all layers
  double speedup = 1.0;           ///< median of full K / median of this
  double ideal_bytes = 1.0;       ///< distinct experts of full K / of this
  double ideal_rows = 1.0;        ///< expert rows of full K / of this
};

struct batch_figures {
  int batch = 0;
  int repeats = 0;
  std::vector<speed_figures> routings;  ///< full K first
};

struct speed_result {
  adaptive_k::preset shape;
  int layers = 0;
  double expert_bytes = 0.0;  ///< of one expert as the engine stores it
  double all_bytes = 0.0;     ///< of all experts of all layers
  std::string backend;
  unsigned threads = 0;
  std::uint64_t seed = 0;
  std::vector<batch_figures> batches;
};

/// The shares of K0 to compare with full K: 3/4, 1/2 and 1/4, those that differ and are whole
/// experts.
std::vector<int> compared_shares(int top_k);

quartiles quartiles_of(const std::vector<double>& values);

/// Throws failure when the weights would not fit in the memory that is free.
speed_result run_speed(const speed_options& options, const adaptive_k::preset& shape);

}  // namespace bench
