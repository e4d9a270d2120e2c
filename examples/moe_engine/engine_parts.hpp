// What the engine is made of: shared by its plain forward pass and the one with hooks.
#pragma once

#include <Eigen/Core>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention.hpp"
#include "engine.hpp"
#include "parallel.hpp"
#include "rms_norm.hpp"

namespace moe_engine {

using clock_type = std::chrono::steady_clock;

inline double seconds_since(clock_type::time_point begin) {
  return std::chrono::duration<double>(clock_type::now() - begin).count();
}

struct layer {
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  attention_layer attention;
  int moe_index;  // among the MoE layers; of a dense layer, that of the next one
  std::optional<moe_layer> moe;
  std::optional<gated_mlp> dense;  // where there is no moe
};

/// y [T, H] = x / sqrt(mean(x^2) + epsilon) * weight, row by row.
inline void rms_norm(const float* x, std::int64_t num_tokens, const std::vector<float>& weight,
                     float epsilon, float* y) {
  const auto size = static_cast<Eigen::Index>(weight.size());
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      rms_norm_row(x + t * size, weight.data(), size, epsilon, y + t * size);
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
  std::optional<rotary_table> rotary;
  int rotary_length = 0;

  /// Fills `residual` with the tokens' embeddings; sizes the other two. Throws std::runtime_error.
  void read_tokens(const std::int32_t* tokens, std::int64_t num_tokens);
  /// Of at least `length` positions.
  const rotary_table& rotary_of(int length);
  /// Throws std::runtime_error unless the model takes such sequences.
  void check_lengths(int num_sequences, int length) const;
};

/// What a layer keeps in one text's cache.
inline std::size_t cache_index(int layer, int sequence, int num_sequences) {
  return static_cast<std::size_t>(layer) * static_cast<std::size_t>(num_sequences) +
         static_cast<std::size_t>(sequence);
}

}  // namespace moe_engine
