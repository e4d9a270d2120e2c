// What makes ranks decide alike: they compare what they were started with, and share the rest.
#pragma once

#include <adaptive_k/host/metrics.hpp>
#include <string>
#include <vector>

#include "ranks.hpp"

namespace expert_parallel {

/// Compares `value`, at most 200 bytes of it, with rank 0's. Where one differs the job ends with a
/// message that names `what`, the ranks and both values.
void require_agreement(const ranks& job, const std::string& what, const std::string& value);

/// The metrics of the calls that all ranks made together, on every rank: `parts` [n] holds this
/// rank's part of each call, zeroed before it. A call that all share counts once, and its distinct
/// experts are those of all ranks together, so that the sums do not depend on the number of ranks.
void add_shared_calls(const ranks& job, std::vector<adaptive_k::routing_metrics> parts,
                      adaptive_k::routing_metrics* total);

}  // namespace expert_parallel
