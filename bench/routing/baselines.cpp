#include "baselines.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace routing_bench {

scalar_baseline::scalar_baseline(shape s)
    : shape_(s),
      probabilities_(static_cast<std::size_t>(s.num_experts)),
      order_(probabilities_.size()) {}

void scalar_baseline::route(const float* logits, std::int64_t num_tokens, batch& out) {
  for (std::int64_t t = 0; t < num_tokens; ++t)
    route_token(logits + t * shape_.num_experts, out.ids.data() + t * shape_.top_k,
                out.weights.data() + t * shape_.top_k, out.signal.data() + t);
}

void scalar_baseline::route_token(const float* logits, std::int32_t* ids, float* weights,
                                  float* entropy) {
  const float largest = *std::max_element(logits, logits + shape_.num_experts);
  float sum = 0.0f;
  for (int e = 0; e < shape_.num_experts; ++e) {
    probabilities_[static_cast<std::size_t>(e)] = std::exp(logits[e] - largest);
    sum += probabilities_[static_cast<std::size_t>(e)];
  }
  *entropy = 0.0f;
  for (float& p : probabilities_) {
    p /= sum;
    if (p > 0.0f) *entropy -= p * std::log(p);
  }
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + shape_.top_k, order_.end(),
                    [this](std::int32_t a, std::int32_t b) {
                      const float pa = probabilities_[static_cast<std::size_t>(a)];
                      const float pb = probabilities_[static_cast<std::size_t>(b)];
                      return pa != pb ? pa > pb : a < b;
                    });
  float mass = 0.0f;
  for (int k = 0; k < shape_.top_k; ++k) {
    ids[k] = order_[static_cast<std::size_t>(k)];
    weights[k] = probabilities_[static_cast<std::size_t>(ids[k])];
    mass += weights[k];
  }
  for (int k = 0; k < shape_.top_k; ++k) weights[k] /= mass;
}

pass_chain_baseline::pass_chain_baseline(shape s, std::int64_t num_tokens)
    : shape_(s),
      probabilities_(static_cast<std::size_t>(num_tokens * s.num_experts)),
      order_(probabilities_.size()),
      chosen_weights_(static_cast<std::size_t>(num_tokens * s.top_k)),
      sums_(static_cast<std::size_t>(num_tokens)) {}

void pass_chain_baseline::route(const float* logits, std::int64_t num_tokens, batch& out) {
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* row = logits + t * num_experts;
    float* to = probabilities_.data() + t * num_experts;
    const float largest = *std::max_element(row, row + num_experts);
    float sum = 0.0f;
    for (int e = 0; e < num_experts; ++e) sum += to[e] = std::exp(row[e] - largest);
    const float inverse = 1.0f / sum;
    for (int e = 0; e < num_experts; ++e) to[e] *= inverse;
  }
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* row = probabilities_.data() + t * num_experts;
    std::int32_t* order = order_.data() + t * num_experts;
    std::iota(order, order + num_experts, 0);
    std::sort(order, order + num_experts,
              [row](std::int32_t a, std::int32_t b) { return row[a] > row[b]; });
  }
  for (std::int64_t t = 0; t < num_tokens; ++t)
    std::copy_n(order_.data() + t * num_experts, top_k, out.ids.data() + t * top_k);
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (int k = 0; k < top_k; ++k) {
      const auto slot = static_cast<std::size_t>(t * top_k + k);
      chosen_weights_[slot] =
          probabilities_[static_cast<std::size_t>(t * num_experts + out.ids[slot])];
    }
  for (std::int64_t t = 0; t < num_tokens; ++t)
    sums_[static_cast<std::size_t>(t)] = std::accumulate(
        chosen_weights_.data() + t * top_k, chosen_weights_.data() + (t + 1) * top_k, 0.0f);
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (int k = 0; k < top_k; ++k) {
      const auto slot = static_cast<std::size_t>(t * top_k + k);
      out.weights[slot] = chosen_weights_[slot] / sums_[static_cast<std::size_t>(t)];
    }
}

}  // namespace routing_bench
