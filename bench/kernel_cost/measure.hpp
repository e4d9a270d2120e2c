// What one routing launch costs, counted while an interpreter of its PTX executes it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kernel_cost {

enum class logit_type { bf16, f16, f32 };

struct routing_case {
  int num_experts;
  int top_k;
  std::int64_t num_tokens;
  logit_type dtype;
  std::string
      policy;  ///< full, entropy, half (entropy with a mean K of about K0 / 2) or distortion
};

struct cost {
  std::string kernel;  ///< demangled name
  double mean_k = 0.0;
  double warp_instructions_per_token = 0.0;
  double thread_instructions_per_token = 0.0;
  double load_sectors_per_token = 0.0;
  double store_sectors_per_token = 0.0;
  double least_load_sectors_per_token = 0.0;  ///< each byte of the logits once
  double least_store_sectors_per_token =
      0.0;  ///< each byte of ids, weights, counts and signals once
  double atomic_requests_per_token = 0.0;
  std::uint64_t shared_bank_conflicts = 0;
  int launches = 0;
};

/// Routes a softmax model, renormalised, with int32 ids, fp32 weights, counts and signal, and
/// without metrics unless `with_metrics`. Throws std::runtime_error when the launch fails.
cost measure(const routing_case& which, bool with_metrics);

/// "full" and so on: the policies that `measure` knows.
const std::vector<std::string>& policies();

}  // namespace kernel_cost
