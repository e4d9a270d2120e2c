// The weights of the experts that a token keeps.
//
// weight_j = s_j * scale / Z * r^-a, where Z is the mass of the K0 best for gatings that
// renormalise, the sum over all E for softmax, else 1; r is the share of the K0 best's mass that k
// experts keep (1 at k = K0), and a the plan's mass_exponent.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/score.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Least value of a share: a biased choice may keep no mass at all.
inline constexpr float least_share = 7.888609e-31f;  // 2^-100

/// r^-a for r in (0, 1], a in [0, 1].
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F restore_mass(const F& kept_share, float mass_exponent) noexcept {
  if (mass_exponent == 0.0f) return F(1.0f);
  if (mass_exponent == 1.0f) return math::divide(F(1.0f), kept_share);
  if (mass_exponent == 0.5f) return math::divide(F(1.0f), math::sqrt(kept_share));
  return math::exp(math::log(kept_share) * -mass_exponent);
}

/// r^-a of a token that keeps fewer than K0 experts. Where all kept scores are 0 (a bias may choose
/// such) nothing restores them: 1.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F mass_factor(const F& kept, const F& total,
                                              float mass_exponent) noexcept {
  const F kept_share = math::maximum(math::divide(kept, total), least_share);
  return math::select(kept > 0.0f, restore_mass(kept_share, mass_exponent), F(1.0f));
}

/// 2^64 where the kept mass is so small that a quotient by it could overflow (a biased choice, or
/// scores that are all tiny), else 1: what numerator and denominator are both multiplied by.
template <class Gating, class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F underflow_scale_of(const Gating& model, const F& kept) noexcept {
  if constexpr (ranks_by_logit<Gating>::value) return 1.0f;  // the first score is 1
  if (!renormalizes(model)) return 1.0f;
  return math::select(kept < F(8.67361738e-19f), F(1.84467441e19f), F(1.0f));  // 2^-60, 2^64
}

/// The factor of a token's weights: kept score * underflow_scale * this. `kept` is the mass of its
/// k experts, `total` that of K0, `score_sum` that of all E; `fewer`: k < K0.
template <class Score, class F, class Gating, class Plan, class Condition>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F weight_factor(const Gating& model, const Plan& plan,
                                                const F& kept, const F& total, const F& score_sum,
                                                const Condition& fewer,
                                                const F& underflow_scale) noexcept {
  const F scale = model.routed_scaling_factor;
  if (renormalizes(model) && plan.mass_exponent == 1.0f) {
    // scale / total * (kept / total)^-1, and at k = K0 the model's own factor to the bit.
    if constexpr (ranks_by_logit<Gating>::value) return math::divide(scale, kept);
    const F least = math::maximum(total * F(least_share), math::smallest_normal);
    return math::divide(scale, math::maximum(kept, least) * underflow_scale);
  }
  F factor = scale;
  if (renormalizes(model))
    factor = math::divide(scale, total * underflow_scale);
  else if (is_softmax<Score> && !is_masked<Score>)
    factor = math::divide(scale, score_sum);
  if (!math::any(fewer)) return factor;
  const F kept_share = math::maximum(math::divide(kept, total), least_share);
  F restored = restore_mass(kept_share, plan.mass_exponent);
  // All kept scores may be 0, where a bias chose them: nothing restores them, and no weight is NaN.
  if constexpr (!ranks_by_logit<Gating>::value)
    restored = math::select(kept > 0.0f, restored, F(1.0f));
  return factor * math::select(fewer, restored, F(1.0f));
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
