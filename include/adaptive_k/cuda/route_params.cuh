// What every routing kernel takes, and what surrounds its decision.
#pragma once

#include <cstdint>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/permute_kernel.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Softmax ranked by logit, which knows that the first score is 1.
struct softmax_gating : gating {};

}  // namespace cuda

namespace detail {
template <>
struct ranks_by_logit<cuda::softmax_gating> : std::true_type {};
}  // namespace detail

namespace cuda {

/// Everything a launch needs; device pointers unless said otherwise. Passed by value.
struct route_params {
  const void* logits;        ///< [num_tokens, E] of the kernel's logit type
  std::int64_t num_tokens;   ///< >= 1
  std::int64_t row_stride;   ///< elements
  const void* head;          ///< [num_tokens, K0 - 1] of the same type, or null
  std::int64_t head_stride;  ///< elements
  int load_width;            ///< as device_row
  int rounds;                ///< of a softmax_topk kernel's warp, 1 to its lanes
  bool stages_rows;     ///< rows follow one another from a 16-byte boundary, and pay to be staged
  bool plain;           ///< see is_plain; for the warp_per_token kernels
  bool whole_rows;      ///< for the softmax_topk kernels: `plain`, K0 the tier's, 16-byte aligned
  int multiprocessors;  ///< host: that a launch may count on
  gating model;         ///< as the host's
  const void* plan;     ///< of the layer and the kernel's Plan; may be rewritten between launches
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
  unsigned long long* expert_counts;  ///< [E] or null
  id_type ids;                        ///< how ids are stored
  float_type weights;                 ///< how weights are stored
  fill_id fill;                       ///< past k_t
  bool overlaps;                      ///< host: may overlap the kernel before it on the stream
  permute_params permutation;         ///< of the ids chosen here; null topk_ids: none
};

/// Host: whether a call is as most engines route: renormalised, ids int32, weights fp32, no mask,
/// no limits of tokens' own, no shadow.
inline bool is_plain(const route_params& params) noexcept {
  return detail::renormalizes(params.model) && params.padding_mask == nullptr &&
         params.k_min == nullptr && params.k_max == nullptr && params.chosen_counts == nullptr &&
         params.ids == id_type::int32 && params.weights == float_type::float32;
}

/// Writes id number `at`, counted from `base`.
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

/// One token's columns of a router head. Where a launch has none they are NaN, as policies that
/// read them may be uploaded behind its capture: the token then gets the largest k.
template <class Logit>
struct device_head {
  const Logit* columns;  ///< [K0 - 1], or null
  /// Of the token.
  __device__ ADAPTIVE_K_INLINE device_head(const route_params& params, std::int64_t token) noexcept
      : columns(params.head != nullptr
                    ? static_cast<const Logit*>(params.head) + token * params.head_stride
                    : nullptr) {}
  /// Column j.
  __device__ ADAPTIVE_K_INLINE float operator()(int j) const noexcept {
    return columns != nullptr ? to_float(columns[j]) : math::from_bits(0x7FC00000u);
  }
};

/// One token's given experts, read from the launch's parameters.
struct device_replay {
  static constexpr bool possible = true;  ///< a call may replay
  const route_params& params;             ///< of the launch
  std::int64_t token;                     ///< whose experts are given
  bool exists;                            ///< else nothing is read: another tile may write over it
  /// Whether the call is a replay.
  __device__ ADAPTIVE_K_INLINE bool active() const noexcept { return params.replay_ids != nullptr; }
  /// Experts given, 0..K0.
  __device__ ADAPTIVE_K_INLINE int count() const noexcept {
    const int top_k = params.model.top_k;
    if (!exists) return 0;
    if (params.replay_counts == nullptr) return top_k;
    const int given = params.replay_counts[token];
    return given < 0 ? 0 : given > top_k ? top_k : given;
  }
  /// The expert given at a rank.
  __device__ ADAPTIVE_K_INLINE int expert(int rank) const noexcept {
    return load_id(params.replay_ids, token * params.model.top_k + rank, params.ids);
  }
};

/// Writes weight number `at`, counted from `base`, rounded to nearest even.
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

/// Whether the mask skips a token.
__device__ ADAPTIVE_K_INLINE bool is_padding(const route_params& params,
                                             std::int64_t token) noexcept {
  return params.padding_mask != nullptr && params.padding_mask[token] != 0;
}

/// What stands in the id slots past k_t.
__device__ ADAPTIVE_K_INLINE int filler_of(const route_params& params, bool padding,
                                           int first_expert) noexcept {
  if (params.fill == fill_id::num_experts) return params.model.num_experts;
  if (params.fill == fill_id::first_expert) return padding ? 0 : first_expert;
  return -1;
}

/// A token's count, signal and metrics; one lane does this. `Plain`: the call is (see is_plain).
template <bool Plain = false, int MaxTopK>
__device__ ADAPTIVE_K_INLINE void store_token(const route_params& params, std::int64_t token,
                                              bool padding,
                                              const detail::token_route<MaxTopK>& route,
                                              block_metrics& metrics) noexcept {
  const int count = padding ? 0 : route.count;
  if (params.topk_counts != nullptr) params.topk_counts[token] = count;
  if (!Plain && params.chosen_counts != nullptr)
    params.chosen_counts[token] = padding ? 0 : route.chosen;
  if (params.signal != nullptr) params.signal[token] = padding ? 0.0f : route.signal;
  metrics.add_token(padding, count, route.signal, route.has_nonfinite);
  if ((route.raised | route.outside) != 0 && !padding)
    metrics.add_watched(route.raised, route.outside);
  if (!Plain && params.chosen_counts != nullptr && !padding) metrics.add_chosen(route.chosen);
}

/// The token's bounds win over the plan's where they do not overlap.
__device__ ADAPTIVE_K_INLINE k_limits limits_of(const route_params& params, k_limits of_plan,
                                                std::int64_t token) noexcept {
  const int low = params.k_min != nullptr ? params.k_min[token] : 1;
  const int high = params.k_max != nullptr ? params.k_max[token] : params.model.top_k;
  return detail::narrow_limits(of_plan, low, high);
}

/// How every routing kernel ends, each block once all its tokens are routed.
__device__ ADAPTIVE_K_INLINE void finish_block(const route_params& params,
                                               block_metrics& metrics) noexcept {
  metrics.finish(params.model.top_k, params.chosen_counts != nullptr);
  if (params.permutation.topk_ids == nullptr) return;
  extern __shared__ uint4 adaptive_k_shared[];
  permute_after_routing(params.permutation, adaptive_k_shared);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
