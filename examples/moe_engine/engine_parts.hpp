// What the engine is made of: shared by its plain forward pass and the one with hooks.
#pragma once

#include <Eigen/Core>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "engine.hpp"
#include "parallel.hpp"

namespace moe_engine {

using clock_type = std::chrono::steady_clock;

inline double seconds_since(clock_type::time_point begin) {
  return std::chrono::duration<double>(clock_type::now() - begin).count();
}

struct layer {
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  attention_layer attention;
  moe_layer moe;
};

/// y [T, H] = x / sqrt(mean(x^2) + epsilon) * weight, row by row.
inline void rms_norm(const float* x, std::int64_t num_tokens, const std::vector<float>& weight,
                     float epsilon, float* y) {
  const auto size = static_cast<Eigen::Index>(weight.size());
  const Eigen::Map<const Eigen::VectorXf> scale(weight.data(), size);
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const Eigen::Map<const Eigen::VectorXf> in(x + t * size, size);
      const float mean_square = in.squaredNorm() / static_cast<float>(size);
      Eigen::Map<Eigen::VectorXf>(y + t * size, size) =
          in.cwiseProduct(scale) * (1.0f / std::sqrt(mean_square + epsilon));
    }
  });
}

struct engine::implementation {
  model_config config;
  std::string expert_dtype;
  std::vector<std::string> warnings;
  std::vector<float> embeddings;  // [V, H]
  std::vector<layer> layers;
  std::vector<float> norm;  // [H]
  dense head;               // [V, H]

  // Kept between calls: T tokens of H values each.
  std::vector<float> residual;
  std::vector<float> normed;
  std::vector<float> update;
  std::vector<float> attention_buffer;
  moe_workspace workspace;

  /// Checks the call and fills `residual` with the tokens' embeddings; sizes the other two.
  /// Throws std::runtime_error.
  void read_tokens(const std::int32_t* tokens, int num_sequences, int length);
};

}  // namespace moe_engine
