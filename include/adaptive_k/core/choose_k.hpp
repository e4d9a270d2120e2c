// The K decision: how many of its ranked experts one token gets.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Bounds on k within 1..K0.
struct k_limits {
  int k_min;
  int k_max;
};

/// What every policy has: 32 bytes, which a device takes in with two loads.
struct alignas(16) k_plan_head {
  signal_kind signal = signal_kind::softmax_entropy;
  bool predicts_distortion = false;
  k_limits limits = {1, 1};
  int last_k = 1;                    ///< k when no threshold is met
  std::uint32_t tried = 0;           ///< bit k - 1: k has a threshold
  float mass_exponent = 1.0f;        ///< in [0, 1]
  float log_experts = 0.0f;          ///< ln E
  float inverse_log_experts = 0.0f;  ///< 1 / ln E; 0 for E = 1
};

/// A policy that compares a signal with thresholds, or nothing.
struct threshold_plan : k_plan_head {
  float threshold[max_top_k] = {};  ///< by k - 1
};

/// Any built-in K policy made ready for one gating. Plain data, so that it can live on a device.
struct k_plan : threshold_plan {
  distortion_ref distortion;
};

/// Takes a gating and a policy that `validate` accepts.
inline k_plan make_plan(const gating& g, const k_policy& policy) noexcept {
  k_plan plan;
  plan.signal = policy.signal;
  plan.predicts_distortion = policy.rule == k_rule::distortion;
  plan.limits = {policy.k_min, policy.k_max < g.top_k ? policy.k_max : g.top_k};
  plan.last_k = g.top_k;
  if (policy.rule == k_rule::fixed) plan.last_k = policy.k_values[0];
  if (policy.rule == k_rule::thresholds) {
    const int last = policy.num_k_values - 1;
    plan.last_k = policy.k_values[last];
    for (int i = 0; i < last; ++i) {
      plan.tried |= 1u << (policy.k_values[i] - 1);
      plan.threshold[policy.k_values[i] - 1] = policy.thresholds[i];
    }
  }
  plan.mass_exponent = policy.mass_exponent;
  if (policy.mass_exponent == k_policy::mass_exponent_of_model)
    plan.mass_exponent = renormalizes(g) ? 1.0f : 0.0f;
  plan.log_experts = math::log(static_cast<float>(g.num_experts));
  if (g.num_experts > 1) plan.inverse_log_experts = math::divide(1.0f, plan.log_experts);
  plan.distortion = policy.distortion;
  return plan;
}

/// A plan's limits within a token's own, which win where the two do not overlap.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE k_limits narrow_limits(k_limits limits, int k_min,
                                                       int k_max) noexcept {
  const auto clamp = [=](int k) { return k < k_min ? k_min : (k > k_max ? k_max : k); };
  return {clamp(limits.k_min), clamp(limits.k_max)};
}

/// Shares below this count as this: a biased choice may keep no mass at all.
inline constexpr float least_share = 7.888609e-31f;  // 2^-100

/// r^-a for r in (0, 1], a in [0, 1].
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F restore_mass(const F& kept_share, float mass_exponent) noexcept {
  if (mass_exponent == 0.0f) return F(1.0f);
  if (mass_exponent == 1.0f) return math::divide(F(1.0f), kept_share);
  if (mass_exponent == 0.5f) return math::divide(F(1.0f), math::square_root(kept_share));
  return math::exp(math::log(kept_share) * -mass_exponent);
}

/// Whether the threshold of rank j says that j + 1 experts are enough. Division-free.
template <int MaxTopK, class F, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto is_enough(const Plan& plan, const F& signal,
                                               const ranked_experts<MaxTopK, F>& ranked,
                                               int j) noexcept {
  const F threshold = plan.threshold[j];
  if (plan.signal == signal_kind::topk_mass) return ranked.mass[j] >= threshold * ranked.total;
  if (plan.signal == signal_kind::score_ratio)
    return ranked.score[j + 1] < threshold * ranked.score[0];
  return high_is_sure(plan.signal) ? signal >= threshold : signal < threshold;
}

/// Argmin over k in [k_min, k_max] of g d(k) + lambda k; the larger k on equal cost.
/// Cost: three logarithms, one or two exponentials and about 20 operations per k.
template <int MaxTopK, class F, class Ranks, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> least_cost_k(
    const Plan& plan, const ranked_experts<MaxTopK, F>& ranked, const F& topk_share,
    int num_experts, int top_k, Ranks ranks, k_limits limits) noexcept {
  const distortion_ref& model = plan.distortion;
  const F inverse_mass = math::divide(F(1.0f), ranked.total);
  F dropped_mass[MaxTopK];     // w_(j+1) + ... + w_K0, summed from the last rank
  F dropped_squares[MaxTopK];  // the same over w^2
  F mass = 0.0f;
  F squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = ranks - 1; j > 0; --j) {
    const F w = ranked.score[j] * inverse_mass;
    mass = math::fma(ranked.score[j], inverse_mass, mass);
    squares = math::fma(w, w, squares);
    dropped_mass[j] = mass;
    dropped_squares[j] = squares;
  }
  const F log_first = math::log(math::larger(ranked.score[0] * inverse_mass, least_share));
  const F log_share = math::log(math::larger(topk_share, least_share));

  math::integers<F> best_k = limits.k_max;
  F best_cost = math::infinity;
  F kept_squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    const int k = j + 1;
    const F w = ranked.score[j] * inverse_mass;
    kept_squares = math::fma(w, w, kept_squares);
    if (k < limits.k_min || k > limits.k_max) continue;
    F cost = model.lambda * static_cast<float>(k);
    if (j + 1 < ranks && k < top_k) {
      const F kept_share = math::larger(ranked.mass[j] * inverse_mass, least_share);
      const F stretch = restore_mass(math::smaller(kept_share, 1.0f), plan.mass_exponent) - 1.0f;
      // In this order: the square of a stretch may overflow, and nothing be kept.
      const F psi = math::fma(stretch * kept_squares, stretch, dropped_squares[j + 1]);
      const float* c = model.coefficients + j * distortion_ref::num_features;
      F log_d =
          math::fma(math::log(math::larger(dropped_mass[j + 1], least_share)), F(c[1]), F(c[0]));
      log_d = math::fma(math::log(math::larger(psi, least_share)), F(c[2]), log_d);
      log_d = math::fma(log_first, F(c[3]), log_d);
      log_d = math::fma(log_share, F(c[4]), log_d);
      const std::int64_t row = static_cast<std::int64_t>(j) * num_experts;
      if (model.first_expert != nullptr)
        log_d = log_d + math::look_up(model.first_expert + row, ranked.expert[0]);
      if (model.next_expert != nullptr)
        log_d = log_d + math::look_up(model.next_expert + row, ranked.expert[j + 1]);
      cost = math::fma(math::exp(math::smaller(log_d, 80.0f)), F(model.sensitivity), cost);
    }
    const auto better = cost <= best_cost;
    best_cost = math::select(better, cost, best_cost);
    best_k = math::select(better, math::integers<F>(k), best_k);
  }
  return best_k;
}

/// Whether a plan says at once what k follows from which threshold, within limits of its own:
/// `k_at[j]` where that of rank j is met, else `k_at` of the last rank.
template <class Plan>
struct is_settled : std::false_type {};

/// The first k whose threshold is met, within limits.
template <int MaxTopK, class F, class Ranks, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> first_k_met(
    const Plan& plan, const F& signal, const ranked_experts<MaxTopK, F>& ranked, Ranks ranks,
    k_limits limits) noexcept {
  using integers = math::integers<F>;
  integers k;
  if constexpr (is_settled<Plan>::value) {
    k = plan.k_at[MaxTopK - 1];
    ADAPTIVE_K_UNROLL
    for (int j = MaxTopK - 2; j >= 0; --j)
      k = math::select(is_enough(plan, signal, ranked, j), integers(plan.k_at[j]), k);
    if (limits.k_min <= 1 && limits.k_max >= MaxTopK) return k;  // the plan's own were met
  } else {
    k = plan.last_k;
    ADAPTIVE_K_UNROLL
    for (int j = ranks - 2; j >= 0; --j) {
      if ((plan.tried >> j & 1u) == 0) continue;
      k = math::select(is_enough(plan, signal, ranked, j), integers(j + 1), k);
    }
  }
  k = math::select(k > limits.k_max, integers(limits.k_max), k);
  return math::select(k < limits.k_min, integers(limits.k_min), k);
}

/// How many experts this token gets, within its limits. `topk_share` is S_K0 as distortion_ref
/// means it; `ranks` is a loop_count of K0.
template <int MaxTopK, class F, class Ranks, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> choose_k(const Plan& plan, const F& signal,
                                                           const ranked_experts<MaxTopK, F>& ranked,
                                                           [[maybe_unused]] const F& topk_share,
                                                           [[maybe_unused]] int num_experts,
                                                           [[maybe_unused]] int top_k, Ranks ranks,
                                                           k_limits limits) noexcept {
  if constexpr (std::is_same_v<Plan, k_plan>)
    if (plan.predicts_distortion)
      return least_cost_k(plan, ranked, topk_share, num_experts, top_k, ranks, limits);
  return first_k_met(plan, signal, ranked, ranks, limits);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
