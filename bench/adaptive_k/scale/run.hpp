// Expert-parallel traffic, loads and step times of recorded routings, over numbers of ranks.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/scale/call_figures.hpp"

namespace bench {

/// Which tokens of a trace stand for those of a step.
enum class token_order {
  decode,   ///< position 0 of all windows, then position 1 of all, ...
  prefill,  ///< window after window
};

struct scale_options {
  std::string trace;
  std::string policy;                ///< "": the preset's
  std::vector<int> ranks;            ///< empty: 8, 16, ... 256, as far as the trace has tokens
  std::int64_t tokens_of_rank = 64;  ///< of a step
  token_order order = token_order::decode;
  expert_parallel::dispatch_form form = expert_parallel::dispatch_form::each_pair;
  int redundant = 0;  ///< copies of experts, placed by load; 0: no such rows
  int budget = 0;     ///< distinct experts of a rank's tokens in a call; 0: no such rows
  int hidden = 0;     ///< 0: the preset's
  int intermediate = 0;
  int bytes_per_value = 2;
  double bytes_per_weight = 2.0;
  rank_machine machine;
  std::string json;
};

/// The second half of a trace's windows, as rows of the trace in the order of `order`; the first
/// half is what placements are made of.
std::vector<std::int64_t> dealt_rows(const trace_info& info, token_order order);

/// One layer under one routing.
struct routed_layer {
  std::vector<std::int32_t> ids;     ///< [tokens, K0], of the dealt tokens
  std::vector<float> weights;        ///< likewise
  std::vector<std::int32_t> counts;  ///< [tokens]
  std::vector<std::uint64_t> loads;  ///< [E], tokens of each expert in the first half
};
routed_layer route_dealt(const trace_reader& trace, int layer, const adaptive_k::router& router,
                         const std::vector<std::int64_t>& rows);

/// The experts of step `step` on each of `ranks` ranks; with a budget, of the step's tokens after
/// it, for which `held` keeps them.
std::vector<expert_parallel::routed_tokens> tokens_of_step(const routed_layer& layer, int top_k,
                                                           int num_experts, int ranks,
                                                           std::int64_t tokens_of_rank,
                                                           std::int64_t step, int budget,
                                                           routed_layer* held);

/// Means over steps, of all layers together unless said otherwise.
struct scale_row {
  int ranks = 0;
  std::string routing;
  std::string placement;
  int slots = 0;
  std::int64_t steps = 0;
  double mean_k = 0.0;
  double rows = 0.0;                ///< that a rank sends, a row for each (token, expert)
  double bytes = 0.0;               ///< there and back
  double once_rows = 0.0;           ///< a row for each (token, rank)
  double once_bytes = 0.0;          ///< there and back
  double largest_bytes = 0.0;       ///< of the rank that sends most in its call, in `form`
  double largest_load = 0.0;        ///< of a call: rows of the busiest rank / mean
  double worst_load = 0.0;          ///< the largest of these
  double experts_read = 0.0;        ///< of a call: slots of a rank that any token touches
  double seconds = 0.0;             ///< of a step
  double overlapped_seconds = 0.0;  ///< of a step
};

struct scale_result {
  trace_info trace;
  policy_choice policy;
  call_sizes sizes;
  std::string sizes_of;  ///< where they come from
  std::vector<scale_row> rows;
};

/// Throws failure.
scale_result run_scale(const scale_options& options, file_roles& roles);

nlohmann::ordered_json to_json(const scale_result& result, const scale_options& options);
void print(const scale_result& result, const scale_options& options);

}  // namespace bench
