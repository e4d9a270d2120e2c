// Shapes and inputs that all baselines share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace routing_bench {

struct shape {
  int num_experts;
  int top_k;
};

inline constexpr shape shapes[] = {{8, 2}, {60, 4}, {64, 8}, {128, 8}, {256, 8}};
inline constexpr std::int64_t token_counts[] = {1, 512, 4096};

/// So many that branches cannot learn them by heart, so few that single rows stay in the cache.
constexpr std::size_t number_of_inputs(std::int64_t num_tokens) {
  return num_tokens == 1 ? 512 : num_tokens <= 512 ? 8 : 2;
}

/// Logits of standard deviation 2, near normal, made from integers: the same everywhere.
inline std::vector<float> random_logits(std::size_t size, std::uint64_t seed) {
  std::vector<float> logits(size);
  std::uint64_t state = seed;
  for (float& logit : logits) {
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<std::int64_t>(state >> 48) - 32768;
    }
    logit = static_cast<float>(sum) / 18918.0f;
  }
  return logits;
}

/// Inputs that take turns, and room for what a call writes.
struct batch {
  std::vector<std::vector<float>> logits;  ///< [number_of_inputs][num_tokens, num_experts]
  std::vector<std::int32_t> ids;           ///< [num_tokens, top_k]
  std::vector<float> weights;
  std::vector<std::int32_t> counts;  ///< [num_tokens]
  std::vector<float> signal;

  batch(std::int64_t num_tokens, shape s)
      : ids(static_cast<std::size_t>(num_tokens * s.top_k)),
        weights(ids.size()),
        counts(static_cast<std::size_t>(num_tokens)),
        signal(counts.size()) {
    for (std::size_t i = 0; i < number_of_inputs(num_tokens); ++i)
      logits.push_back(random_logits(static_cast<std::size_t>(num_tokens * s.num_experts), i + 1));
  }
};

}  // namespace routing_bench
