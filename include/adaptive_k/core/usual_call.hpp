// The call that most engines make, compiled apart: softmax gating with renormalised weights, K0
// known to the compiler, and a policy that compares the softmax entropy or nothing. Its decision
// has no branches left. The arithmetic is core/'s.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline constexpr int most_usual_experts = 256;

/// A gating as core/ reads it, all but two members known to the compiler.
template <int TopK>
struct usual_gating {
  static constexpr gating_kind kind = gating_kind::softmax;
  static constexpr bool renormalize = true;
  static constexpr int top_k = TopK;
  int num_experts;
  float routed_scaling_factor;
};
template <int TopK>
struct ranks_by_logit<usual_gating<TopK>> : std::true_type {};

/// A plan as core/ reads it.
template <int TopK>
struct usual_plan {
  static constexpr signal_kind signal = signal_kind::softmax_entropy;
  static constexpr bool predicts_distortion = false;
  static constexpr float log_experts = 0.0f;  // not read
  static constexpr float inverse_log_experts = 0.0f;
  k_limits limits;
  int last_k;
  std::uint32_t tried;
  float mass_exponent;
  float threshold[TopK];
  distortion_ref distortion;
};

/// A plan made ready for many tokens: every k lies within its limits, so that it has none any more,
/// and a rank without a threshold has one that no entropy is below.
template <int TopK>
struct settled_plan : usual_plan<TopK> {
  int k_at[TopK];  ///< by the rank whose threshold is met; the last where none is

  ADAPTIVE_K_HD ADAPTIVE_K_INLINE explicit settled_plan(const usual_plan<TopK>& plan) noexcept
      : usual_plan<TopK>(plan) {
    const k_limits within = plan.limits;
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < TopK; ++j) {
      int k = j + 1 < TopK ? j + 1 : plan.last_k;
      k = k > within.k_max ? within.k_max : k;
      k_at[j] = k < within.k_min ? within.k_min : k;
      if ((plan.tried >> j & 1u) == 0) this->threshold[j] = -math::infinity;
    }
    this->limits = {1, TopK};
  }
};
template <int TopK>
struct is_settled<settled_plan<TopK>> : std::true_type {};

/// The same where all of the mass is restored, known to the compiler.
template <int TopK>
struct whole_mass_plan : settled_plan<TopK> {
  static constexpr float mass_exponent = 1.0f;
};
template <int TopK>
struct is_settled<whole_mass_plan<TopK>> : std::true_type {};

/// What decides tokens one by one on the host: gating, plan and limits in one. An entropy gets
/// k = j + 1 for the first j whose threshold it is below; from the last k on they are infinite.
struct usual_rule {
  static constexpr int ranks = 8;
  float threshold[ranks] = {};
  int num_experts = 0;
  float scale = 1.0f;  ///< the gating's routed_scaling_factor
  float mass_exponent = 1.0f;

  usual_rule() = default;
  usual_rule(const gating& model, const k_plan& plan, k_limits within) noexcept
      : num_experts(model.num_experts),
        scale(model.routed_scaling_factor),
        mass_exponent(plan.mass_exponent) {
    set_limits(plan, within);
  }
  void set_limits(const k_plan& plan, k_limits within) noexcept {
    int last_k = plan.last_k < within.k_max ? plan.last_k : within.k_max;
    if (last_k < within.k_min) last_k = within.k_min;
    float below_least = -math::infinity;  // thresholds ascend: of k up to k_min the last one counts
    for (int j = 0; j < ranks; ++j) {
      const bool tried = (plan.tried >> j & 1u) != 0;
      threshold[j] = tried ? plan.threshold[j] : -math::infinity;
      if (tried && j < within.k_min) below_least = plan.threshold[j];
      if (j + 1 < within.k_min) threshold[j] = -math::infinity;
      if (j + 1 == within.k_min) threshold[j] = below_least;
      if (j + 1 >= last_k) threshold[j] = math::infinity;
    }
  }
};

/// Host: whether there is code for such calls of a model. K0 and E as most models have them.
inline bool has_usual_code(const gating& g) noexcept {
  const bool softmax = g.kind == gating_kind::softmax || g.kind == gating_kind::top_k_softmax;
  return softmax && renormalizes(g) && !g.selection_bias && g.n_group == 1 &&
         g.num_experts <= most_usual_experts && (g.top_k == 2 || g.top_k == 4 || g.top_k == 8);
}

ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool is_usual_plan(const k_plan_head& head) noexcept {
  return head.signal == signal_kind::softmax_entropy && !head.predicts_distortion;
}

template <int TopK>
ADAPTIVE_K_INLINE usual_plan<TopK> usual_plan_of(const k_plan& plan) noexcept {
  usual_plan<TopK> made;
  made.limits = plan.limits;
  made.last_k = plan.last_k;
  made.tried = plan.tried;
  made.mass_exponent = plan.mass_exponent;
  for (int j = 0; j < TopK; ++j) made.threshold[j] = plan.threshold[j];
  return made;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
