// All that `adaptive-k benchmark` found out, for the table and for the JSON report.
#pragma once

#include <adaptive_k/host/metrics.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/benchmark/analysis.hpp"
#include "bench/adaptive_k/measure/continuation.hpp"
#include "bench/adaptive_k/measure/facts.hpp"

namespace bench {

struct fixed_figures {
  int k = 0;
  routing_figures figures;
};

/// How long greedy continuations are full K's.
struct continuation_result {
  int num_prompts = 0;  ///< 0: not measured
  std::string why_not;  ///< where the model or the windows have no room; "" where not asked for
  continuation_lengths lengths;
  continuation_figures full;  ///< the control: nothing but rounding can differ
  continuation_figures policy;
  std::vector<continuation_figures> fixed;  ///< k = 1..K0 - 1
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
  continuation_result continuation;
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

nlohmann::ordered_json to_json(const benchmark_result& result);
nlohmann::ordered_json to_json(const trace_result& result);

/// The tables on stdout.
void print(const benchmark_result& result);
void print(const trace_result& result);

/// The sum of the layers' counters.
adaptive_k::routing_metrics sum_of(const std::vector<adaptive_k::routing_metrics>& layers);

}  // namespace bench
