// One call of an expert-parallel layer, one step of one layer on all ranks: what travels, what each
// rank runs, and how long that takes on assumed machines. Formulas: bench/docs/scale.md.
#pragma once

#include <adaptive_k/host/metrics.hpp>
#include <cstdint>
#include <expert_parallel/placement.hpp>
#include <expert_parallel/traffic.hpp>
#include <vector>

namespace bench {

/// What one rank can do: assumed, not measured.
struct rank_machine {
  double link_bytes_per_s = 50e9;  ///< to all other ranks together, each way
  double latency_s = 20e-6;        ///< of one exchange
  double flops = 400e12;           ///< of its experts' products
  double memory_bytes_per_s = 3.35e12;
};

struct call_sizes {
  adaptive_k::expert_sizes expert;
  int top_k = 0;
  int bytes_per_value = 2;  ///< of an activation
};

/// One rank in one call.
struct rank_figures {
  expert_parallel::traffic pairs;   ///< sent, a row for each (token, expert)
  expert_parallel::traffic once;    ///< sent, a row for each (token, rank)
  std::uint64_t own_rows = 0;       ///< pairs of its own tokens that its own experts run
  std::uint64_t arriving_rows = 0;  ///< pairs of other ranks' tokens
  std::uint64_t arriving_once = 0;  ///< rows in which these come where tokens are sent once
  int own_slots = 0;                ///< slots that its own tokens touch
  int arriving_slots = 0;           ///< that others' do
  int slots = 0;                    ///< that any does: experts whose weights are read
};

struct call_figures {
  std::vector<rank_figures> ranks;
  double seconds = 0.0;             ///< exchange, experts, exchange, one after the other
  double overlapped_seconds = 0.0;  ///< own tokens run while rows are under way
};

/// `tokens` [R]: the experts of each rank's tokens. `form` is the one that times are of.
call_figures figures_of_call(const expert_parallel::placement& where,
                             const std::vector<expert_parallel::routed_tokens>& tokens,
                             const call_sizes& sizes, const rank_machine& machine,
                             expert_parallel::dispatch_form form);

}  // namespace bench
