// The route kernel: one launch and one read of the logits from logits to experts, weights, counts,
// signals and metrics. The decision is core/route_token.hpp; here is what surrounds it.
#pragma once

#include <cstdint>

#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/device_select.cuh"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/tuning.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

enum class id_type : std::uint8_t { int32, int64, int16, uint16 };
enum class float_type : std::uint8_t { float32, float16, bfloat16 };

/// Everything a launch needs; device pointers unless said otherwise. Passed by value.
struct route_params {
  const void* logits;       ///< [num_tokens, E] of the kernel's logit type
  std::int64_t num_tokens;  ///< >= 1
  std::int64_t row_stride;  ///< elements
  int load_width;           ///< as device_row
  gating model;
  const detail::k_plan* plan;        ///< of the layer; may be rewritten between launches
  const float* routing_bias;         ///< [E] or null
  const std::uint8_t* padding_mask;  ///< [num_tokens] or null
  const std::uint8_t* k_min;         ///< [num_tokens] or null
  const std::uint8_t* k_max;         ///< [num_tokens] or null
  const void* replay_ids;  ///< [num_tokens, K0] of type `ids`, or null: the router chooses
  const std::int32_t* replay_counts;  ///< [num_tokens], or null: all K0
  void* topk_ids;                     ///< [num_tokens, K0]
  void* topk_weights;                 ///< [num_tokens, K0]
  std::int32_t* topk_counts;          ///< [num_tokens] or null
  std::int32_t* chosen_counts;        ///< [num_tokens] or null; given: route full K, record k here
  float* signal;                      ///< [num_tokens] or null
  device_metrics* metrics;            ///< or null
  id_type ids;
  float_type weights;
  fill_id fill;
};

__device__ ADAPTIVE_K_INLINE void store_id(void* base, std::int64_t at, id_type type,
                                           int value) noexcept {
  switch (type) {
    case id_type::int32:
      static_cast<std::int32_t*>(base)[at] = value;
      break;
    case id_type::int64:
      static_cast<std::int64_t*>(base)[at] = value;
      break;
    case id_type::int16:
    case id_type::uint16:
      static_cast<std::int16_t*>(base)[at] = static_cast<std::int16_t>(value);
      break;
  }
}

__device__ ADAPTIVE_K_INLINE int load_id(const void* base, std::int64_t at, id_type type) noexcept {
  switch (type) {
    case id_type::int32:
      return static_cast<const std::int32_t*>(base)[at];
    case id_type::int64: {
      const std::int64_t id = static_cast<const std::int64_t*>(base)[at];
      return id >= 0 && id < max_experts ? static_cast<int>(id) : -1;
    }
    case id_type::int16:
      return static_cast<const std::int16_t*>(base)[at];
    case id_type::uint16:
      return static_cast<const std::uint16_t*>(base)[at];
  }
  return -1;
}

/// One token's dictated experts, read from the launch's parameters.
template <bool Possible>
struct device_replay {
  static constexpr bool possible = Possible;
  const route_params& params;
  std::int64_t token;
  __device__ ADAPTIVE_K_INLINE bool active() const noexcept { return params.replay_ids != nullptr; }
  __device__ ADAPTIVE_K_INLINE int count() const noexcept {
    const int top_k = params.model.top_k;
    if (params.replay_counts == nullptr) return top_k;
    const int given = params.replay_counts[token];
    return given < 0 ? 0 : given > top_k ? top_k : given;
  }
  __device__ ADAPTIVE_K_INLINE int expert(int rank) const noexcept {
    return load_id(params.replay_ids, token * params.model.top_k + rank, params.ids);
  }
};

__device__ ADAPTIVE_K_INLINE void store_weight(void* base, std::int64_t at, float_type type,
                                               float value) noexcept {
  switch (type) {
    case float_type::float32:
      static_cast<float*>(base)[at] = value;
      break;
    case float_type::float16:
      static_cast<float16*>(base)[at] = from_float<float16>(value);
      break;
    case float_type::bfloat16:
      static_cast<bfloat16*>(base)[at] = from_float<bfloat16>(value);
      break;
  }
}

/// The token's bounds win over the plan's where they do not overlap.
__device__ ADAPTIVE_K_INLINE detail::k_limits limits_of(const route_params& params,
                                                        std::int64_t token) noexcept {
  const int low = params.k_min != nullptr ? params.k_min[token] : 1;
  const int high = params.k_max != nullptr ? params.k_max[token] : params.model.top_k;
  return detail::narrow_limits(params.plan->limits, low, high);
}

template <class Tier, gating_kind Kind, class Logit, bool ByLogitOnly>
__global__ void __launch_bounds__(threads_per_block, blocks_per_sm<Tier>(ByLogitOnly))
    route_kernel(route_params params) {
  using tile_type = device_tile<Tier::lanes, Tier::row_width, ByLogitOnly, Logit>;
  constexpr int lanes = Tier::lanes;
  constexpr int max_top_k = Tier::max_top_k;
  const tile_type tile;
  const int lane = tile_type::lane();
  const int top_k = params.model.top_k;
  block_metrics metrics(params.metrics, params.model.num_experts);

  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const bool exists = first < params.num_tokens;
  const std::int64_t token = exists ? first : params.num_tokens - 1;  // every lane must take part
  const Logit* row = static_cast<const Logit*>(params.logits) + token * params.row_stride;
  const device_replay<!ByLogitOnly> replay = {params, token};
  detail::token_route<max_top_k> route = detail::route_token<Kind, Tier::rows, max_top_k>(
      tile, params.model, *params.plan, params.routing_bias, limits_of(params, token),
      params.chosen_counts != nullptr, device_row<Logit>{row, params.load_width}, replay);

  const bool padding = (params.padding_mask != nullptr && params.padding_mask[token] != 0) ||
                       (decltype(replay)::possible && replay.active() && replay.count() == 0);
  const int count = padding ? 0 : route.count;
  if (decltype(replay)::possible && replay.active()) __syncwarp();  // ids may be rewritten in place
  int filler = -1;
  if (params.fill == fill_id::num_experts) filler = params.model.num_experts;
  if (params.fill == fill_id::first_expert) filler = padding ? 0 : route.expert[0];

  if (exists) {
    ADAPTIVE_K_UNROLL
    for (int start = 0; start < max_top_k; start += lanes) {
      int expert = filler;
      float weight = 0.0f;
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < lanes && start + i < max_top_k; ++i) {
        if (i == lane && start + i < count) {
          expert = route.expert[start + i];
          weight = route.weight(start + i);
        }
      }
      const int j = start + lane;
      if (j < top_k) {
        store_id(params.topk_ids, token * top_k + j, params.ids, expert);
        store_weight(params.topk_weights, token * top_k + j, params.weights, weight);
        if (j < count) metrics.add_expert(expert);
      }
    }
    if (lane == 0) {
      if (params.topk_counts != nullptr) params.topk_counts[token] = count;
      if (params.chosen_counts != nullptr) params.chosen_counts[token] = padding ? 0 : route.chosen;
      if (params.signal != nullptr) params.signal[token] = padding ? 0.0f : route.signal;
      metrics.add_token(padding, count, route.signal, route.has_nonfinite);
    }
  }
  metrics.finish(top_k);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
