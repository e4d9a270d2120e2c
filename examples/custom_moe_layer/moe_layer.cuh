// A SwiGLU MoE layer: logits to experts by adaptive_k, two grouped products, and the combine step.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "adaptive_k/cuda/launch.cuh"

namespace custom_moe_layer {

inline constexpr int block_rows = 16;  ///< rows of one expert that a block of the products takes

struct layer_shape {
  int num_experts;        ///< E
  int top_k;              ///< K0
  int hidden_size;        ///< H
  int intermediate_size;  ///< F
};

/// Device memory, one expert after the other.
struct layer_weights {
  const float* gate;  ///< [E, F, H]
  const float* up;    ///< [E, F, H]
  const float* down;  ///< [E, H, F]
};

/// Device memory that a call needs, for at most `num_tokens` tokens. R is `capacity`.
struct layer_buffers {
  std::int32_t* topk_ids;       ///< [T, K0]
  float* topk_weights;          ///< [T, K0]
  std::int32_t* topk_counts;    ///< [T]
  std::int32_t* sorted_tokens;  ///< [R]
  std::int32_t* row_of_slot;    ///< [T, K0]
  std::int32_t* block_experts;  ///< [R / block_rows]
  float* activations;           ///< [R, F]
  float* expert_outputs;        ///< [R, H]
  void* workspace;              ///< zeroed once
  std::size_t workspace_bytes;
};

/// R, the rows that any routing of `num_tokens` tokens fits in.
std::int64_t capacity(const layer_shape& shape, std::int64_t num_tokens);

/// output[t] = sum over experts e of token t of w * down_e(silu(gate_e(x[t])) * up_e(x[t])).
/// Enqueues on `stream`, and never waits: the sizes of all launches depend on `num_tokens` alone,
/// so that the call can be captured in a graph while k varies from token to token.
adaptive_k::status forward(const layer_shape& shape, const layer_weights& weights,
                           const adaptive_k::cuda::device_router& router, const float* x,
                           const float* logits, std::int64_t num_tokens,
                           const layer_buffers& buffers, float* output, cudaStream_t stream);

/// The same on the host, from host memory, with the routing given: one row at a time.
adaptive_k::status forward_on_host(const layer_shape& shape, const layer_weights& weights,
                                   const float* x, std::int64_t num_tokens,
                                   const std::int32_t* topk_ids, const float* topk_weights,
                                   const std::int32_t* topk_counts, float* output);

}  // namespace custom_moe_layer
