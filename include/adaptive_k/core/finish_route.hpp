// From ranked scores to signal, k and weights: the part of the decision that looks at the top K0
// alone. Written for any value type that core/math.hpp knows.
#pragma once

#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/weights.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// What one token gets, or one token in each lane.
template <int MaxTopK, class F = float>
struct token_route {
  math::integers<F> count;    ///< k_t in 1..K0
  math::integers<F> chosen;   ///< what the policy chose; differs from `count` where that is forced
  math::integers<F> raised;   ///< 1 where super experts raised `chosen`, else 0
  math::integers<F> outside;  ///< 1 where the token is outside of the plan's domain, else 0
  math::integers<F> expert[MaxTopK];  ///< K0 ids, best first; past `count`: what full K would add
  F weight[MaxTopK];                  ///< [count]
  F signal;                           ///< in the unit of the policy's signal
  F kept_mass;                        ///< sum of the kept experts' scores
  F total_mass;                       ///< that of K0
  bool has_nonfinite;                 ///< a logit was NaN or infinite
};

template <class F = float>
struct score_sums {
  F score;            ///< sum of s over all experts
  F score_log_score;  ///< sum of s ln s
};

/// Which sums over all experts a decision reads; one that it does not read is 1 or 0.
struct sums_needed {
  bool scores;
  bool logs;
};
template <class Score, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE sums_needed sums_for(const gating& model, const Plan& plan,
                                                     bool by_score) noexcept {
  const bool entropy = is_full_entropy(plan.signal);
  const bool total =
      is_softmax<Score> && (by_score || plan.reads_topk_share() || !renormalizes(model));
  return {entropy || total, entropy};
}

/// -sum p ln p over all experts. `relative`: to the row's largest logit, so that not all scores
/// underflow; where they do, the token is as unsure as can be.
template <class F, class Plan>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F full_entropy_of(const Plan& plan, const score_sums<F>& sums,
                                                  bool relative) noexcept {
  const F entropy = entropy_nats(sums.score, sums.score_log_score);
  return relative ? entropy : math::select(sums.score > 0.0f, entropy, F(plan.log_experts));
}

inline constexpr int no_forced_k = -1;

/// Fills `route`, apart from `has_nonfinite`. Reads `expert`, `score` and `log_score` of `ranked`
/// and completes it. `forced_k` is k where the policy does not decide it (shadow mode, replay),
/// else `no_forced_k`. Some members of `model` and `plan` may be known at compile time. `head`
/// gives the token's columns, where the plan reads them.
template <class Score, int MaxTopK, class F, class Ranks, class Gating, class Plan,
          class Head = no_head>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void finish_route(const Gating& model, const Plan& plan,
                                                  const score_sums<F>& sums, k_limits limits,
                                                  int forced_k, Ranks ranks,
                                                  ranked_experts<MaxTopK, F>& ranked,
                                                  token_route<MaxTopK, F>& route,
                                                  const Head& head = {}) noexcept {
  using integers = math::integers<F>;
  const int top_k = model.top_k;
  F full_entropy = 0.0f;
  if (is_full_entropy(plan.signal)) full_entropy = full_entropy_of(plan, sums, is_softmax<Score>);
  F mass = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    mass = mass + ranked.score[j];
    ranked.mass[j] = mass;
  }
  ranked.total = mass;
  const auto weighs = mass > 0.0f;  // else every chosen score underflowed
  if (!ranks_by_logit<Gating>::value && !math::all(weighs)) {
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < ranks; ++j) {
      const int rank = j < top_k ? j + 1 : top_k;
      ranked.score[j] = math::select(weighs, ranked.score[j], F(j < top_k ? 1.0f : 0.0f));
      ranked.log_score[j] = math::select(weighs, ranked.log_score[j], F(0.0f));
      ranked.mass[j] = math::select(weighs, ranked.mass[j], F(static_cast<float>(rank)));
    }
    ranked.total = math::select(weighs, ranked.total, F(static_cast<float>(top_k)));
  }

  // Sparsemixer's scores are shares already.
  const bool relative = is_softmax<Score> && !is_masked<Score>;
  F topk_share = 0.0f;  // also where none weighs
  if (plan.reads_topk_share()) topk_share = relative ? math::divide(mass, sums.score) : mass;
  route.signal = signal_value(plan.signal, full_entropy, plan.inverse_log_experts, ranked, ranks);
  route.chosen =
      choose_k(plan, ranked_token<MaxTopK, F, Ranks, Head>{ranked, ranks, top_k, model.num_experts,
                                                           limits, route.signal, topk_share, head});
  route.raised = 0;
  route.outside = 0;
  if constexpr (may_watch_tokens<Plan>::value) {
    if (plan.has_domain)
      route.outside = is_outside(plan.domain(), route.signal, ranked.score[0], ranked.total);
    if (plan.has_super_experts) {
      const integers least = least_k_with(plan.super_experts(), ranked, ranks, top_k);
      const auto raises = least > route.chosen;
      route.raised = math::select(raises, integers(1), integers(0));
      route.chosen = math::select(raises, least, route.chosen);
    }
  }
  route.count = route.chosen;
  if (forced_k != no_forced_k) route.count = integers(forced_k);

  F kept = ranked.mass[0];
  ADAPTIVE_K_UNROLL
  for (int j = 1; j < ranks; ++j)
    kept = math::select(route.count > integers(j), ranked.mass[j], kept);
  route.kept_mass = kept;
  route.total_mass = ranked.total;
  const F underflow_scale = underflow_scale_of(model, kept);
  F factor = weight_factor<Score>(model, plan, kept, ranked.total, sums.score,
                                  route.count < integers(top_k), underflow_scale);
  if (!renormalizes(model)) factor = math::select(weighs, factor, F(0.0f));
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    route.expert[j] = ranked.expert[j];
    route.weight[j] = ranked.score[j] * underflow_scale * factor;
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
