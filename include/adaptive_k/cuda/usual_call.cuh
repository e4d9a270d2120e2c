// The call that most engines make, compiled apart: K0 is what the tier was made for, weights are
// renormalised and fp32, ids int32, and no token has limits or a mask of its own. Where the policy
// compares the entropy too, the decision has no branches left. The arithmetic is core/'s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/cuda/route_params.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Host: whether a launch is such a call.
inline bool is_usual_call(const route_params& params, int tier_top_k) noexcept {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  return params.model.top_k == tier_top_k && detail::renormalizes(params.model) &&
         params.padding_mask == nullptr && params.k_min == nullptr && params.k_max == nullptr &&
         params.chosen_counts == nullptr && params.ids == id_type::int32 &&
         params.weights == float_type::float32 && aligned(params.topk_ids) &&
         aligned(params.topk_weights);
}

/// A gating as core/ reads it, all but two members known to the compiler.
template <int MaxTopK>
struct usual_gating {
  static constexpr gating_kind kind = gating_kind::softmax;
  static constexpr bool renormalize = true;
  static constexpr int top_k = MaxTopK;
  int num_experts;
  float routed_scaling_factor;
};

/// A plan as core/ reads it, of a policy that compares the softmax entropy or nothing.
template <int MaxTopK>
struct usual_plan {
  static constexpr signal_kind signal = signal_kind::softmax_entropy;
  static constexpr bool predicts_distortion = false;
  static constexpr float log_experts = 0.0f;  // not read
  static constexpr float inverse_log_experts = 0.0f;
  detail::k_limits limits;
  int last_k;
  std::uint32_t tried;
  float mass_exponent;
  float threshold[MaxTopK];
  distortion_ref distortion;
};

__device__ ADAPTIVE_K_INLINE detail::k_plan_head load_plan_head(
    const detail::k_plan* plan) noexcept {
  static_assert(sizeof(detail::k_plan_head) == 32, "two loads");
  const uint4* from = reinterpret_cast<const uint4*>(plan);
  const uint4 words[2] = {from[0], from[1]};
  detail::k_plan_head head;
  std::memcpy(static_cast<void*>(&head), words, sizeof head);
  return head;
}

__device__ ADAPTIVE_K_INLINE bool is_usual_plan(const detail::k_plan_head& head) noexcept {
  return head.signal == signal_kind::softmax_entropy && !head.predicts_distortion;
}

template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE usual_plan<MaxTopK> load_usual_plan(
    const detail::k_plan* plan, const detail::k_plan_head& head) noexcept {
  constexpr int loads = (MaxTopK + 3) / 4;
  static_assert(sizeof(detail::k_plan_head) % 16 == 0, "thresholds are loaded by fours");
  const uint4* from = reinterpret_cast<const uint4*>(plan->threshold);
  uint4 words[loads];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < loads; ++i) words[i] = from[i];
  usual_plan<MaxTopK> made;
  made.limits = head.limits;
  made.last_k = head.last_k;
  made.tried = head.tried;
  made.mass_exponent = head.mass_exponent;
  std::memcpy(made.threshold, words, sizeof made.threshold);
  return made;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
