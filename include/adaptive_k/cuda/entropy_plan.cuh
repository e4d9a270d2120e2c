// core/entropy_plan.hpp on the device: K0 is what the tier was made for, weights are fp32, ids
// int32, and no token has limits or a mask of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/entropy_plan.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/cuda/route_params.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Host: whether a launch is such a call.
inline bool is_fixed_shape(const route_params& params, int tier_top_k) noexcept {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return params.model.top_k == tier_top_k && detail::renormalizes(params.model) &&
         params.padding_mask == nullptr && params.k_min == nullptr && params.k_max == nullptr &&
         params.chosen_counts == nullptr && params.ids == id_type::int32 &&
         params.weights == float_type::float32 && aligned(params.topk_ids) &&
         aligned(params.topk_weights);
}

/// The head of a built-in plan.
__device__ ADAPTIVE_K_INLINE detail::k_plan_head load_plan_head(const void* plan) noexcept {
  static_assert(sizeof(detail::k_plan_head) == 32, "two loads");
  const uint4* from = static_cast<const uint4*>(plan);
  const uint4 words[2] = {from[0], from[1]};
  detail::k_plan_head head;
  std::memcpy(static_cast<void*>(&head), words, sizeof head);
  return head;
}

/// The rest of a plan of the usual kind.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE detail::entropy_plan<MaxTopK> load_entropy_plan(
    const void* plan, const detail::k_plan_head& head) noexcept {
  constexpr int loads = (MaxTopK + 3) / 4;
  static_assert(sizeof(detail::k_plan_head) % 16 == 0, "thresholds are loaded by fours");
  const uint4* from =
      reinterpret_cast<const uint4*>(static_cast<const detail::k_plan*>(plan)->threshold);
  uint4 words[loads];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < loads; ++i) words[i] = from[i];
  detail::entropy_plan<MaxTopK> made;
  made.limits = head.limits;
  made.last_k = head.last_k;
  made.tried = head.tried;
  made.mass_exponent = head.mass_exponent;
  std::memcpy(made.threshold, words, sizeof made.threshold);
  return made;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
