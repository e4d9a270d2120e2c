// What engines do without the library, written plainly. Baselines to measure against, not to use.
#pragma once

#include <cstdint>
#include <vector>

#include "inputs.hpp"

namespace routing_bench {

/// Softmax, entropy, partial sort and renormalised weights, token by token.
class scalar_baseline {
 public:
  explicit scalar_baseline(shape s);
  void route(const float* logits, std::int64_t num_tokens, batch& out);

 private:
  void route_token(const float* logits, std::int32_t* ids, float* weights, float* entropy);

  shape shape_;
  std::vector<float> probabilities_;
  std::vector<std::int32_t> order_;
};

/// The chain of separate passes over the whole batch that a graph of tensor operations makes:
/// softmax, argsort of every row, the first K, gather, sum, divide. No entropy, K fixed.
class pass_chain_baseline {
 public:
  pass_chain_baseline(shape s, std::int64_t num_tokens);
  void route(const float* logits, std::int64_t num_tokens, batch& out);

 private:
  shape shape_;
  std::vector<float> probabilities_;   ///< [num_tokens, num_experts]
  std::vector<std::int32_t> order_;    ///< [num_tokens, num_experts]
  std::vector<float> chosen_weights_;  ///< [num_tokens, top_k]
  std::vector<float> sums_;            ///< [num_tokens]
};

}  // namespace routing_bench
