// The K decision of the built-in policies: how many of its ranked experts one token gets.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/weights.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// How a built-in plan chooses.
enum class k_choice : std::uint8_t {
  thresholds,  ///< the first k that is tried and whose threshold the signal meets, else last_k
  distortion,  ///< the least cost: predicted distortion + lambda k
  head,        ///< the same, predicted with a router head
};

/// What every built-in plan has. By rule:
///   full         thresholds   none tried       last_k = K0
///   fixed        thresholds   none tried       last_k = k_values[0]
///   thresholds   thresholds   all but the last  last_k = the last of k_values
///   distortion   distortion, or head where the policy has one
/// 32 bytes, which a device takes in with two loads.
struct alignas(16) k_plan_head : plan_base {
  k_choice choice = k_choice::thresholds;
  std::uint8_t last_k = 1;         ///< k when no threshold is met
  bool has_super_experts = false;  ///< see k_policy::super_experts
  bool has_domain = false;         ///< see domain_bounds
  std::uint32_t tried = 0;         ///< bit k - 1: k has a threshold

  k_plan_head() noexcept = default;
  explicit k_plan_head(const gating& g) noexcept : plan_base(g) {}
  ADAPTIVE_K_HD constexpr bool reads_topk_share() const noexcept {
    return choice == k_choice::distortion;
  }
  ADAPTIVE_K_HD constexpr bool reads_head() const noexcept { return choice == k_choice::head; }
};

/// Whether the threshold of rank j says that j + 1 experts are enough. Division-free.
template <class Plan, class Token>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto is_enough(const Plan& plan, const Token& token,
                                               int j) noexcept {
  using real = typename Token::real;
  const real threshold = plan.threshold[j];
  if (plan.signal == signal_kind::topk_mass) return token.mass(j) >= threshold * token.total();
  if (plan.signal == signal_kind::score_ratio)
    return token.score(j + 1) < threshold * token.score(0);
  return high_is_sure(plan.signal) ? token.signal >= threshold : token.signal < threshold;
}

/// What all of a token's costs share.
template <class F = float>
struct cost_terms {
  F inverse_mass;  ///< 1 / S_K0
  F log_first;     ///< ln w_1
  F log_share;     ///< ln S_K0, as distortion_ref means it

  ADAPTIVE_K_HD ADAPTIVE_K_INLINE cost_terms(const F& total, const F& first_score,
                                             const F& topk_share) noexcept
      : inverse_mass(math::divide(F(1.0f), total)),
        log_first(math::log(math::maximum(first_score * inverse_mass, least_share))),
        log_share(math::log(math::maximum(topk_share, least_share))) {}
};

/// The top K0 split after k ranks.
template <class F = float>
struct rank_split {
  F kept_mass;        ///< s_1 + ... + s_k
  F kept_squares;     ///< w_1^2 + ... + w_k^2
  F dropped_mass;     ///< w_(k+1) + ... + w_K0, summed from the last rank
  F dropped_squares;  ///< the same over w^2
};

/// d(k) of the first j + 1 ranks, j + 1 < K0. Cost: two logarithms, one or two exponentials.
template <class F, class Integers>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F distortion(const distortion_ref& model, float mass_exponent,
                                             const cost_terms<F>& terms, const rank_split<F>& split,
                                             int j, int num_experts, const Integers& first_expert,
                                             const Integers& next_expert) noexcept {
  const F kept_share = math::maximum(split.kept_mass * terms.inverse_mass, least_share);
  const F excess =  // of the factor r^-a over 1
      restore_mass(math::minimum(kept_share, 1.0f), mass_exponent) - 1.0f;
  // In this order: its square may overflow, and nothing be kept.
  const F psi = math::fma(excess * split.kept_squares, excess, split.dropped_squares);
  const float* c = model.coefficients + j * distortion_ref::num_features;
  F log_d = math::fma(math::log(math::maximum(split.dropped_mass, least_share)), F(c[1]), F(c[0]));
  log_d = math::fma(math::log(math::maximum(psi, least_share)), F(c[2]), log_d);
  log_d = math::fma(terms.log_first, F(c[3]), log_d);
  log_d = math::fma(terms.log_share, F(c[4]), log_d);
  const std::int64_t row = static_cast<std::int64_t>(j) * num_experts;
  if (model.first_expert != nullptr)
    log_d = log_d + math::gather(model.first_expert + row, first_expert);
  if (model.next_expert != nullptr)
    log_d = log_d + math::gather(model.next_expert + row, next_expert);
  return math::exp(math::minimum(log_d, 80.0f));
}

/// Argmin over k in [k_min, k_max] of g d(k) + lambda k; the larger k on equal cost.
/// Cost: two logarithms, and about 20 operations per k beside those of `distortion`.
template <int MaxTopK, class F, class Ranks, class Head>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> least_cost_k(
    const distortion_ref& model, float mass_exponent,
    const ranked_token<MaxTopK, F, Ranks, Head>& token) noexcept {
  const ranked_experts<MaxTopK, F>& ranked = token.ranked;
  const Ranks ranks = token.ranks;
  const k_limits limits = token.limits;
  const cost_terms<F> terms(ranked.total, ranked.score[0], token.topk_share);
  F dropped_mass[MaxTopK];
  F dropped_squares[MaxTopK];
  F mass = 0.0f;
  F squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = ranks - 1; j > 0; --j) {
    const F w = ranked.score[j] * terms.inverse_mass;
    mass = math::fma(ranked.score[j], terms.inverse_mass, mass);
    squares = math::fma(w, w, squares);
    dropped_mass[j] = mass;
    dropped_squares[j] = squares;
  }

  math::integers<F> best_k = limits.k_max;
  F best_cost = math::infinity;
  F kept_squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    const int k = j + 1;
    const F w = ranked.score[j] * terms.inverse_mass;
    kept_squares = math::fma(w, w, kept_squares);
    if (k < limits.k_min || k > limits.k_max) continue;
    F cost = model.lambda * static_cast<float>(k);
    if (j + 1 < ranks && k < token.top_k) {
      const F d = distortion(
          model, mass_exponent, terms,
          rank_split<F>{ranked.mass[j], kept_squares, dropped_mass[j + 1], dropped_squares[j + 1]},
          j, token.num_experts, ranked.expert[0], ranked.expert[j + 1]);
      cost = math::fma(d, F(model.sensitivity), cost);
    }
    const auto better = cost <= best_cost;
    best_cost = math::select(better, cost, best_cost);
    best_k = math::select(better, math::integers<F>(k), best_k);
  }
  return best_k;
}

/// g d(k) + lambda k with a router head, whose column k - 1 is `head`; `dropped_mass` as
/// rank_split. Cost: a logarithm and an exponential.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F head_cost(const distortion_ref& model, const F& dropped_mass,
                                            const F& head, int k) noexcept {
  const float* c = model.coefficients + (k - 1) * distortion_ref::num_features;
  const F log_dropped = math::log(math::maximum(dropped_mass, least_share));
  const F log_d = math::fma(log_dropped, F(c[1]), F(c[0])) + head;
  const F d = math::exp(math::minimum(log_d, 80.0f));
  return math::fma(d, F(model.sensitivity), F(model.lambda * static_cast<float>(k)));
}

/// Argmin over k in [k_min, k_max] of head_cost, of K0 lambda K0; the larger k on equal cost.
template <class Token>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers least_head_cost_k(
    const distortion_ref& model, const Token& token) noexcept {
  using real = typename Token::real;
  using integers = typename Token::integers;
  const k_limits limits = token.limits;
  const real inverse_mass = math::divide(real(1.0f), token.total());
  integers best_k = limits.k_max;
  real best_cost = math::infinity;
  if (limits.k_max >= token.top_k) best_cost = model.lambda * static_cast<float>(token.top_k);
  real dropped_mass = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int k = token.ranks - 1; k > 0; --k) {
    if (k >= token.top_k) continue;
    dropped_mass = math::fma(token.score(k), inverse_mass, dropped_mass);
    if (k < limits.k_min || k > limits.k_max) continue;
    const real cost = head_cost(model, dropped_mass, token.head(k - 1), k);
    const auto better = cost < best_cost;
    best_cost = math::select(better, cost, best_cost);
    best_k = math::select(better, integers(k), best_k);
  }
  return best_k;
}

/// The first k whose threshold is met, within the token's limits.
template <class Plan, class Token>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers first_k_met(const Plan& plan,
                                                                     const Token& token) noexcept {
  using integers = typename Token::integers;
  integers k = plan.last_k;
  ADAPTIVE_K_UNROLL
  for (int j = token.ranks - 2; j >= 0; --j) {
    if ((plan.tried >> j & 1u) == 0) continue;
    k = math::select(is_enough(plan, token, j), integers(j + 1), k);
  }
  return within(k, token.limits);
}

/// A policy that compares a signal with thresholds, or nothing.
struct threshold_plan : k_plan_head {
  float threshold[max_top_k] = {};  ///< by k - 1

  using k_plan_head::k_plan_head;
  ADAPTIVE_K_HD static constexpr bool reads_topk_share() noexcept { return false; }
  ADAPTIVE_K_HD static constexpr bool reads_head() noexcept { return false; }
  template <class Token>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(
      const Token& token) const noexcept {
    return first_k_met(*this, token);
  }
};

/// The experts of a layer that no token drops.
struct super_expert_list {
  int count = 0;  ///< of `expert`
  std::uint16_t expert[max_super_experts] = {};
};

/// Any built-in K policy made ready for one gating. Plain data, so that it can live on a device.
struct k_plan : threshold_plan {
  distortion_ref distortion;
  super_expert_list super_expert_ids;
  domain_bounds domain_limits;

  using threshold_plan::threshold_plan;
  ADAPTIVE_K_HD constexpr bool reads_topk_share() const noexcept {
    return k_plan_head::reads_topk_share();
  }
  ADAPTIVE_K_HD constexpr bool reads_head() const noexcept { return k_plan_head::reads_head(); }
  /// Read where has_super_experts.
  ADAPTIVE_K_HD const super_expert_list& super_experts() const noexcept { return super_expert_ids; }
  /// Read where has_domain.
  ADAPTIVE_K_HD const domain_bounds& domain() const noexcept { return domain_limits; }
  template <class Token>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(
      const Token& token) const noexcept {
    switch (choice) {
      case k_choice::thresholds:
        break;
      case k_choice::distortion:
        return least_cost_k(distortion, mass_exponent, token);
      case k_choice::head:
        return least_head_cost_k(distortion, token);
    }
    return first_k_met(*this, token);
  }
};

template <>
struct keeps_limits<threshold_plan> : std::true_type {};
template <>
struct keeps_limits<k_plan> : std::true_type {};

/// Whether plans of a type may have super experts and a domain; of others nothing is asked.
template <class Plan>
struct may_watch_tokens : std::is_base_of<k_plan, Plan> {};

/// 1 where a token is outside of the domain, else 0.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> is_outside(const domain_bounds& domain,
                                                             const F& signal, const F& first_score,
                                                             const F& total) noexcept {
  using integers = math::integers<F>;
  integers outside = math::select(signal < domain.signal_least, integers(1), integers(0));
  outside = math::select(signal > domain.signal_most, integers(1), outside);
  outside = math::select(first_score < total * domain.first_share_least, integers(1), outside);
  return math::select(first_score > total * domain.first_share_most, integers(1), outside);
}

/// The rank behind the last super expert of the top K0, which is the least k that keeps them all;
/// 0 where there is none. Cost: `count` comparisons a rank.
template <int MaxTopK, class F, class Ranks>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE math::integers<F> least_k_with(
    const super_expert_list& list, const ranked_experts<MaxTopK, F>& ranked, Ranks ranks,
    int top_k) noexcept {
  using integers = math::integers<F>;
  integers least = 0;
  for (int i = 0; i < list.count; ++i) {
    const integers expert = static_cast<int>(list.expert[i]);
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < ranks; ++j) {
      if (j >= top_k) break;
      const integers k = j + 1;
      least = math::select(ranked.expert[j] == expert, math::select(k > least, k, least), least);
    }
  }
  return least;
}

}  // namespace detail

/// The plan of a built-in policy, which `validate` accepts with this gating.
inline detail::k_plan make_plan(const gating& g, const k_policy& policy) noexcept {
  detail::k_plan plan(g);
  plan.signal = policy.signal;
  plan.limits = {policy.k_min, policy.k_max < g.top_k ? policy.k_max : g.top_k};
  plan.last_k = static_cast<std::uint8_t>(g.top_k);
  switch (policy.rule) {
    case k_rule::full:
      break;
    case k_rule::fixed:
      plan.last_k = policy.k_values[0];
      break;
    case k_rule::thresholds: {
      const int last = policy.num_k_values - 1;
      plan.last_k = policy.k_values[last];
      for (int i = 0; i < last; ++i) {
        plan.tried |= 1u << (policy.k_values[i] - 1);
        plan.threshold[policy.k_values[i] - 1] = policy.thresholds[i];
      }
      break;
    }
    case k_rule::distortion:
      plan.choice =
          policy.distortion.head != nullptr ? detail::k_choice::head : detail::k_choice::distortion;
      plan.distortion = policy.distortion;
      break;
  }
  if (policy.mass_exponent != k_policy::mass_exponent_of_model)
    plan.mass_exponent = policy.mass_exponent;
  plan.has_domain = policy.domain.given;
  plan.domain_limits = policy.domain;
  plan.has_super_experts = policy.num_super_experts != 0;
  plan.super_expert_ids.count = policy.num_super_experts;
  for (int i = 0; i < policy.num_super_experts; ++i)
    plan.super_expert_ids.expert[i] = policy.super_experts[i];
  return plan;
}

ADAPTIVE_K_NAMESPACE_END
