// What kernels load of a plan at first.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adaptive_k/core/choose_k.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// The head of a built-in plan in device memory.
__device__ ADAPTIVE_K_INLINE detail::k_plan_head load_plan_head(const void* plan) noexcept {
  static_assert(sizeof(detail::k_plan_head) == 32, "two loads");
  const uint4* from = static_cast<const uint4*>(plan);
  const uint4 words[2] = {from[0], from[1]};
  detail::k_plan_head head;
  std::memcpy(static_cast<void*>(&head), words, sizeof head);
  return head;
}

/// Of a built-in plan its head, else all.
template <class Plan>
__device__ ADAPTIVE_K_INLINE auto load_head(const void* plan) noexcept {
  if constexpr (std::is_same_v<Plan, detail::k_plan>)
    return load_plan_head(plan);
  else
    return *static_cast<const Plan*>(plan);
}

/// A built-in plan of which a thread has what most tokens need; the rest is where it was.
struct partial_plan : detail::k_plan {
  const detail::k_plan* whole;  ///< in device memory
  /// Read where has_super_experts.
  __device__ ADAPTIVE_K_INLINE const detail::super_expert_list& super_experts() const noexcept {
    return whole->super_expert_ids;
  }
  /// Read where has_domain.
  __device__ ADAPTIVE_K_INLINE const domain_bounds& domain() const noexcept {
    return whole->domain_limits;
  }
};

}  // namespace cuda

namespace detail {
template <>
struct keeps_limits<cuda::partial_plan> : std::true_type {};
}  // namespace detail

namespace cuda {

/// The plan of a head, with what it reads of up to MaxTopK ranks, in few loads.
template <int MaxTopK, class Plan, class Head>
__device__ ADAPTIVE_K_INLINE auto load_plan(const void* plan, const Head& head) noexcept {
  if constexpr (std::is_same_v<Plan, detail::k_plan>) {
    constexpr int loads = (MaxTopK + 3) / 4;
    static_assert(sizeof(Head) % 16 == 0, "thresholds are loaded by fours");
    const detail::k_plan* const from = static_cast<const detail::k_plan*>(plan);
    const uint4* const thresholds = reinterpret_cast<const uint4*>(from->threshold);
    uint4 words[loads];
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < loads; ++i) words[i] = thresholds[i];
    partial_plan made;
    static_cast<detail::k_plan_head&>(made) = head;
    made.whole = from;
    std::memcpy(made.threshold, words, sizeof(float) * MaxTopK);
    if (head.choice != detail::k_choice::thresholds) made.distortion = from->distortion;
    return made;
  } else {
    return head;
  }
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
