// What one routing launch costs, counted while an interpreter of its PTX executes it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ptx_device.hpp"

namespace kernel_cost {

enum class logit_type { bf16, f16, f32 };

struct routing_case {
  int num_experts;
  int top_k;
  std::int64_t num_tokens;
  logit_type dtype;
  std::string policy;  ///< full, entropy, half (entropy, mean K about K0 / 2), distortion or head
  std::string operation = "route";  ///< or permute, of what it chose; or route_permute
  int multiprocessors = 0;          ///< that launches count on; 0: those of the interpreter
  std::string gating = "softmax";   ///< or sigmoid, with a bias; or groups: that, 4 of 8 groups
};

struct cost {
  std::string kernel;  ///< demangled name
  double mean_k = 0.0;
  double warp_instructions_per_token = 0.0;
  double thread_instructions_per_token = 0.0;
  double load_sectors_per_token = 0.0;
  double store_sectors_per_token = 0.0;
  double least_load_sectors_per_token = 0.0;   ///< each byte of the inputs once
  double least_store_sectors_per_token = 0.0;  ///< each byte of the outputs once
  double atomic_requests_per_token = 0.0;
  std::uint64_t shared_bank_conflicts = 0;
  int launches = 0;
  int threads_per_block = 0;
  int dynamic_shared_bytes = 0;
  std::vector<ptx::launch_time> times;  ///< modelled, of each launch
};

/// Routes a model of the gating, renormalised, with int32 ids, fp32 weights, counts and signal, and
/// without metrics unless `with_metrics`; permutes by blocks of 64 rows, with every output. Models
/// times where `clock` names an sm. Throws std::runtime_error when a launch fails.
cost measure(const routing_case& which, bool with_metrics, const ptx::clock_settings& clock);

/// "full" and so on, "route" and so on, "softmax" and so on: what `measure` knows.
const std::vector<std::string>& policies();
const std::vector<std::string>& operations();
const std::vector<std::string>& gatings();

}  // namespace kernel_cost
