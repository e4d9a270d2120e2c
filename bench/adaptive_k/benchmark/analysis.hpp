// From what was measured to what is said: figures of each routing, fixed K at equal mean K, and
// whether the policy beat it.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/measure/evaluation.hpp"
#include "bench/adaptive_k/measure/quality.hpp"

namespace bench {

using distinct_means = std::vector<std::optional<double>>;  ///< [decode_batches]

struct routing_figures {
  quality_summary quality;
  double mean_k = 0.0;
  double expert_savings = 0.0;
  distinct_means distinct_experts;  ///< per layer and step
  double moe_seconds = 0.0;
  double total_seconds = 0.0;
};

routing_figures figures_of(const evaluated& full, const evaluated& routing);

/// Where a mean K lies between two fixed K's.
struct mean_k_bracket {
  std::size_t low = 0;  ///< index of the routing with K = low + 1
  std::size_t high = 0;
  double share_of_high = 1.0;
};

/// `by_k[k - 1]` ran with fixed K = k, the last with full K. `mean_k` may lie anywhere in 1..K0.
mean_k_bracket bracket_mean_k(const std::vector<const variant*>& by_k, double mean_k);

distinct_means distinct_of(const variant& routing);
distinct_means distinct_at(const std::vector<const variant*>& by_k, const mean_k_bracket& bracket);

/// Fixed K at a mean K that need not be whole: predictions mixed from the two neighbouring K's.
struct fixed_at_mean_k {
  int low_k = 0;
  int high_k = 0;
  double share_of_high = 0.0;
  double mean_k = 0.0;
  quality_summary quality;  ///< without kl_p99 and agreement, which do not mix
  std::vector<double> kl_of_windows;
  std::vector<double> nll_of_windows;
  distinct_means distinct_experts;
};

fixed_at_mean_k interpolate_fixed(const std::vector<const evaluated*>& by_k, double mean_k);

enum class verdict { beats, does_not_beat, cannot_tell, nothing_to_compare };

const char* to_string(verdict v);

struct comparison_with_fixed {
  estimate delta_mean_kl;     ///< policy - fixed K at equal mean K, nats; negative is better
  estimate delta_perplexity;  ///< likewise; reported, but not what the verdict rests on
  verdict outcome = verdict::cannot_tell;
  std::string sentence;
};

/// `is_adaptive`: whether the policy ever gives tokens different K's.
comparison_with_fixed compare_with_fixed(const evaluated& policy, const fixed_at_mean_k& fixed,
                                         int top_k, bool is_adaptive);

/// Medians over batches of windows, which outliers do not move.
struct batch_times {
  double full_moe_seconds = 0.0;
  double full_total_seconds = 0.0;
  double moe_seconds = 0.0;
  double total_seconds = 0.0;
  double moe_speedup = 1.0;  ///< full's time / the routing's
  double total_speedup = 1.0;
};

batch_times compare_times(const evaluated& full, const evaluated& routing);

}  // namespace bench
