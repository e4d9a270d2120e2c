// One token, its experts in the lanes: the path for few tokens and for many experts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/simd/keys.hpp"
#include "adaptive_k/host/simd/top_k_network.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// f(0) to f(Count - 1), constants. No loop: g++ keeps arrays that loops write in memory.
template <class F, std::size_t... I>
ADAPTIVE_K_INLINE void each_of(const F& f, std::index_sequence<I...>) noexcept {
  (f(std::integral_constant<int, static_cast<int>(I)>()), ...);
}
template <int Count, class F>
ADAPTIVE_K_INLINE void each_of(const F& f) noexcept {
  each_of(f, std::make_index_sequence<Count>());
}

/// A decision about one token.
struct row_request {
  const gating* model;
  const k_plan* plan;
  const float* routing_bias;  ///< [E] or null
  k_limits limits;
  int dictated;  ///< as finish_route takes it
};

/// f of all lanes, the same in each; f combines lane i with lane i ^ Distance, nearest first.
template <class Reals, int Distance = 1>
ADAPTIVE_K_INLINE Reals sum_of_lanes(const Reals& a) noexcept {
  if constexpr (Distance < Reals::lanes)
    return sum_of_lanes<Reals, Distance * 2>(a + Reals::template exchange<Distance>(a));
  else
    return a;
}
template <class Reals, int Distance = 1>
ADAPTIVE_K_INLINE Reals largest_of_lanes(const Reals& a) noexcept {
  if constexpr (Distance < Reals::lanes)
    return largest_of_lanes<Reals, Distance * 2>(
        Reals::larger(a, Reals::template exchange<Distance>(a)));
  else
    return a;
}
template <int Distance, class Words>
ADAPTIVE_K_INLINE Words exchange_words(const Words& a) noexcept {
  using reals = typename Words::reals;
  return reals::to_bits(reals::template exchange<Distance>(reals::from_bits(a)));
}

/// Both sums of a row in the one reduction order: vectors that hold the same slots are added up in
/// order, then the slots of a vector, then the vectors.
template <gating_kind Kind, bool WithLogs, class Reals>
ADAPTIVE_K_INLINE score_sums<Reals> sum_row(const float* logits, int num_experts,
                                            const Reals& largest) noexcept {
  constexpr int lanes = Reals::lanes;
  constexpr int parts = reduction_slots / lanes;
  Reals score[parts], log[parts];
  for (int part = 0; part < parts; ++part) {
    score[part] = 0.0f;
    log[part] = 0.0f;
    for (int expert = part * lanes; expert < num_experts; expert += reduction_slots) {
      const auto s = score_of<Kind>(Reals::load(logits + expert), largest);
      score[part] = score[part] + s.score;
      if constexpr (WithLogs) log[part] = Reals::fma(s.score, s.log_score, log[part]);
    }
    score[part] = sum_of_lanes(score[part]);
    if constexpr (WithLogs) log[part] = sum_of_lanes(log[part]);
  }
  for (int count = parts / 2; count > 0; count /= 2)
    for (int i = 0; i < count; ++i) {
      score[i] = score[2 * i] + score[2 * i + 1];
      if constexpr (WithLogs) log[i] = log[2 * i] + log[2 * i + 1];
    }
  return {score[0], log[0]};
}

/// Keys of a row's vectors.
template <class Reals>
struct row_keys {
  const float* logits;
  key_maker<Reals> maker;
  typename Reals::words inverted;

  ADAPTIVE_K_INLINE row_keys(const float* from, int num_indices) noexcept
      : logits(from),
        maker(num_indices),
        inverted(typename Reals::words(num_indices - 1) - Reals::words::lane()) {}
  /// Vectors in ascending order.
  ADAPTIVE_K_INLINE typename Reals::words at(int vector) noexcept {
    const auto key = maker.key_of(Reals::load(logits + vector * Reals::lanes), inverted);
    inverted = inverted - typename Reals::words(Reals::lanes);
    return key;
  }
};

/// From the L best of each lane to the N best of all lanes, the same in each.
template <int N, int Distance, class Words, int L>
ADAPTIVE_K_INLINE void combine_lanes(Words (&list)[L], Words (&best)[N], Words& lost) noexcept {
  if constexpr (Distance == Words::reals::lanes) {
    static_assert(L == N, "fewer keys than asked for");
    for (int i = 0; i < N; ++i) best[i] = list[i];
  } else if constexpr (L < N) {
    Words longer[2 * L];
    for (int i = 0; i < L; ++i) {
      longer[i] = list[i];
      longer[2 * L - 1 - i] = exchange_words<Distance>(list[i]);
    }
    merge_keys(longer);
    combine_lanes<N, Distance * 2>(longer, best, lost);
  } else {
    Words others[L];
    for (int i = 0; i < L; ++i) others[i] = exchange_words<Distance>(list[i]);
    lost = Words::larger(lost, exchange_words<Distance>(lost));
    keep_best(list, others, lost);
    combine_lanes<N, Distance * 2>(list, best, lost);
  }
}

template <int Distance, class Words>
ADAPTIVE_K_INLINE Words union_of_lanes(const Words& a) noexcept {
  if constexpr (Distance < Words::reals::lanes)
    return union_of_lanes<Distance * 2>(a | exchange_words<Distance>(a));
  else
    return a;
}

/// What choose_row writes; entries past top_k are experts too.
struct row_choice {
  alignas(64) std::uint32_t expert[max_top_k];
  bool uncertain;
};

/// The best top_k <= N of a row of `num_vectors` vectors, a multiple of L, by its lanes' L best.
template <int N, int L, class Reals>
ADAPTIVE_K_INLINE void choose_row(const float* values, int num_experts, int num_vectors, int top_k,
                                  row_choice& choice) noexcept {
  using words = typename Reals::words;
  constexpr int lanes = Reals::lanes;
  row_keys<Reals> keys(values, power_of_two_from(num_vectors * lanes));
  words list[L];
  words best[N];
  words lost = 0;
  best_keys(keys, num_vectors, list, lost);
  combine_lanes<N, 1>(list, best, lost);
  keys.maker.dropped = union_of_lanes<1>(keys.maker.dropped);
  choice.uncertain = math::any(keys.maker.uncertain(best, lost, top_k));
  const words last = num_experts - 1;  // keys of NaN may hold no expert
  for (int first = 0; first < N; first += lanes) {
    words experts = 0;
    for (int j = first; j < N && j < first + lanes; ++j) {
      const words expert = words::smaller(keys.maker.expert_of(best[j]), last);
      experts = words::select(words::lane() == words(j - first), expert, experts);
    }
    words::store(choice.expert + first, experts);
  }
}

/// Own functions, so that each network is there once.
template <int N, int L>
struct choose_row_of {
  template <class Target>
  struct body {
    static ADAPTIVE_K_INLINE void run(const float* values, int num_experts, int num_vectors,
                                      int top_k, row_choice* choice) noexcept {
      choose_row<N, L, typename Target::reals>(values, num_experts, num_vectors, top_k, *choice);
    }
  };
};

/// How choose_row is called for a shape: lists of 1, 4 or N keys in each lane.
struct row_plan {
  int best;         ///< N
  int per_lane;     ///< L
  int num_vectors;  ///< E in vectors, up to the next multiple of L
};
template <int Lanes>
ADAPTIVE_K_INLINE row_plan plan_row(int num_experts, int top_k) noexcept {
  const int best = power_of_two_from(top_k);
  const int vectors = (num_experts + Lanes - 1) / Lanes;
  int per_lane = best;
  if (vectors <= 4 && best > 4 && best <= 16) per_lane = 4;
  if (vectors == 1 && best <= 16) per_lane = 1;
  return {best, per_lane, (vectors + per_lane - 1) / per_lane * per_lane};
}

template <class Target, int N>
ADAPTIVE_K_INLINE void choose_row_by(const row_plan& plan, const float* values, int num_experts,
                                     int top_k, row_choice& choice) noexcept {
  constexpr int lanes = Target::reals::lanes;
  if constexpr (N > 1 && N <= lanes && N <= 16) {
    if (plan.per_lane == 1)
      return Target::template run<choose_row_of<N, 1>::template body>(
          values, num_experts, plan.num_vectors, top_k, &choice);
  }
  if constexpr (N > 4 && N <= 4 * lanes && N <= 16) {
    if (plan.per_lane == 4)
      return Target::template run<choose_row_of<N, 4>::template body>(
          values, num_experts, plan.num_vectors, top_k, &choice);
  }
  return Target::template run<choose_row_of<N, N>::template body>(values, num_experts,
                                                                  plan.num_vectors, top_k, &choice);
}

template <class Target>
ADAPTIVE_K_INLINE void choose_row(const row_plan& plan, const float* values, int num_experts,
                                  int top_k, row_choice& choice) noexcept {
  switch (plan.best) {
    case 1:
      return choose_row_by<Target, 1>(plan, values, num_experts, top_k, choice);
    case 2:
      return choose_row_by<Target, 2>(plan, values, num_experts, top_k, choice);
    case 4:
      return choose_row_by<Target, 4>(plan, values, num_experts, top_k, choice);
    case 8:
      return choose_row_by<Target, 8>(plan, values, num_experts, top_k, choice);
    case 16:
      return choose_row_by<Target, 16>(plan, values, num_experts, top_k, choice);
    default:
      return choose_row_by<Target, 32>(plan, values, num_experts, top_k, choice);
  }
}

/// The first `count` of a vector, the others -inf.
template <class Reals>
ADAPTIVE_K_INLINE Reals load_part(const float* from, int count) noexcept {
  float part[Reals::lanes] = {};
  for (int i = 0; i < count; ++i) part[i] = from[i];
  const auto in_row = Reals::words::lane() < typename Reals::words(count);
  return Reals::select(in_row, Reals::load(part), -math::infinity);
}

/// A row of 16-bit logits as floats.
template <class Reals, class Logit>
ADAPTIVE_K_INLINE void widen_row(const Logit* row, int num_experts, float* floats) noexcept {
  int expert = 0;
  for (; expert + Reals::lanes <= num_experts; expert += Reals::lanes)
    Reals::store(floats + expert, Reals::load(row + expert));
  for (; expert < num_experts; ++expert) floats[expert] = to_float(row[expert]);
}

/// A row: itself where whole vectors can be read from it, else a copy in `buffer`, -inf past E.
template <class Reals>
ADAPTIVE_K_INLINE const float* load_row(const float* row, int num_experts, int num_vectors,
                                        float* buffer, Reals& largest, Reals& not_finite) noexcept {
  constexpr int lanes = Reals::lanes;
  const bool copies = num_experts != num_vectors * lanes;
  largest = -math::infinity;
  not_finite = 0.0f;
  int expert = 0;
  for (; expert + lanes <= num_experts; expert += lanes) {
    const Reals v = Reals::load(row + expert);
    if (copies) Reals::store(buffer + expert, v);
    largest = Reals::larger(v, largest);
    not_finite = Reals::fma(v, 0.0f, not_finite);  // NaN from there on
  }
  if (const int rest = num_experts - expert; rest > 0) {
    const Reals v = load_part<Reals>(row + expert, rest);
    const auto in_row = Reals::words::lane() < typename Reals::words(rest);
    Reals::store(buffer + expert, v);
    largest = Reals::larger(v, largest);
    not_finite = Reals::fma(Reals::select(in_row, v, 0.0f), 0.0f, not_finite);
    expert += lanes;
  }
  for (; expert < num_vectors * lanes; expert += lanes)
    Reals::store(buffer + expert, -math::infinity);
  return copies ? buffer : row;
}

template <class Words, int Distance = 1>
ADAPTIVE_K_INLINE Words smallest_of_lanes(const Words& a) noexcept {
  if constexpr (Distance < Words::reals::lanes)
    return smallest_of_lanes<Words, Distance * 2>(Words::smaller(a, exchange_words<Distance>(a)));
  else
    return a;
}

/// Values to select by, where they are not the logits: score + bias, as key_by_score has them.
template <gating_kind Kind, class Reals>
ADAPTIVE_K_INLINE void score_row(const float* logits, int num_experts, int num_vectors,
                                 const float* bias, const Reals& largest, const Reals& total,
                                 float* values, Reals& not_finite) noexcept {
  constexpr int lanes = Reals::lanes;
  const Reals inverse_total = is_softmax(Kind) ? Reals::divide(1.0f, total) : Reals(1.0f);
  for (int expert = 0; expert < num_vectors * lanes; expert += lanes) {
    const int rest = num_experts - expert;
    Reals offset = 0.0f;
    if (bias != nullptr && rest >= lanes) offset = Reals::load(bias + expert);
    if (bias != nullptr && rest > 0 && rest < lanes) offset = load_part<Reals>(bias + expert, rest);
    const Reals score = score_of<Kind>(Reals::load(logits + expert), largest).score;
    const Reals value = Reals::fma(score, inverse_total, offset);
    const auto in_row = Reals::words::lane() < typename Reals::words(rest > 0 ? rest : 0);
    not_finite = Reals::fma(Reals::select(in_row, value, 0.0f), 0.0f, not_finite);
    Reals::store(values + expert, Reals::select(in_row, value, -math::infinity));
  }
}

/// The best of a row by its values themselves, one after the other, for rows whose keys are
/// uncertain. Takes the chosen out of `values`.
struct choose_row_exactly {
  template <class Target>
  struct body {
    using reals = typename Target::reals;
    static ADAPTIVE_K_INLINE void run(float* values, int num_vectors, int top_k,
                                      row_choice* choice) noexcept {
      using words = typename reals::words;
      constexpr int lanes = reals::lanes;
      for (int rank = 0; rank < top_k; ++rank) {
        reals best = -math::infinity;
        for (int vector = 0; vector < num_vectors; ++vector)
          best = reals::larger(reals::load(values + vector * lanes), best);
        best = largest_of_lanes(best);
        words leader = ~0u;
        for (int vector = 0; vector < num_vectors; ++vector) {
          const auto leads = reals::load(values + vector * lanes) == best;
          const words expert = words::lane() + words(vector * lanes);
          leader = words::smaller(leader, words::select(leads, expert, ~0u));
        }
        const std::uint32_t expert = words::first(smallest_of_lanes(leader));
        choice->expert[rank] = expert;
        values[expert] = -math::infinity;
      }
    }
  };
};

/// finish_route of one token, in scalars, or in vectors where only they have a fused multiply-add.
template <gating_kind Kind, class Reals>
ADAPTIVE_K_INLINE void finish_row(const row_request& request, const score_sums<Reals>& sums,
                                  const row_choice& choice, const float* score,
                                  const float* log_score, token_route<max_top_k>& route) noexcept {
  using value = std::conditional_t<math::has_fma_instruction, float, Reals>;
  const int top_k = request.model->top_k;
  ranked_experts<max_top_k, value> ranked;
  for (int j = 0; j < top_k; ++j) {
    ranked.expert[j] = static_cast<int>(choice.expert[j]);
    ranked.score[j] = score[j];
    ranked.log_score[j] = log_score[j];
  }
  if constexpr (math::has_fma_instruction) {
    const score_sums<> row_sums = {Reals::first(sums.score), Reals::first(sums.score_log_score)};
    finish_route<Kind>(*request.model, *request.plan, row_sums, request.limits, request.dictated,
                       top_k, ranked, route);
  } else {
    token_route<max_top_k, Reals> wide;
    finish_route<Kind>(*request.model, *request.plan, sums, request.limits, request.dictated, top_k,
                       ranked, wide);
    for (int j = 0; j < top_k; ++j) {
      route.expert[j] = static_cast<int>(choice.expert[j]);
      route.weight[j] = Reals::first(wide.weight[j]);
    }
    route.count = static_cast<int>(Reals::words::first(wide.count));
    route.chosen = static_cast<int>(Reals::words::first(wide.chosen));
    route.signal = Reals::first(wide.signal);
  }
}

/// Decides one token; false: a number was not finite.
template <gating_kind Kind>
struct route_row {
  template <class Target>
  struct body {
    using reals = typename Target::reals;
    static ADAPTIVE_K_INLINE bool run(const row_request* request, const float* row,
                                      token_route<max_top_k>* route) noexcept {
      using words = typename reals::words;
      constexpr int lanes = reals::lanes;
      const gating& model = *request->model;
      const k_plan& plan = *request->plan;
      const int num_experts = model.num_experts;
      const int top_k = model.top_k;
      const bool by_score = selects_by_score(model);
      const row_plan shape = plan_row<lanes>(num_experts, top_k);
      alignas(64) float copy[max_experts];
      alignas(64) float scored[max_experts];
      reals largest, not_finite;
      const float* logits =
          load_row(row, num_experts, shape.num_vectors, copy, largest, not_finite);
      largest = largest_of_lanes(largest);

      const sums_needed needed = sums_for<Kind>(model, plan, by_score);
      score_sums<reals> sums = {reals(1.0f), reals(0.0f)};
      if (needed.logs)
        sums = sum_row<Kind, true>(logits, num_experts, largest);
      else if (needed.scores)
        sums = sum_row<Kind, false>(logits, num_experts, largest);
      if (by_score)
        score_row<Kind>(logits, num_experts, shape.num_vectors, request->routing_bias, largest,
                        sums.score, scored, not_finite);
      if (math::any(not_finite != not_finite)) return false;  // NOLINT(misc-redundant-expression)

      const float* values = by_score ? scored : logits;
      row_choice choice;
      choose_row<Target>(shape, values, num_experts, top_k, choice);
      if (choice.uncertain) {
        for (int expert = 0; expert < shape.num_vectors * lanes; expert += lanes)
          reals::store(scored + expert, reals::load(values + expert));
        Target::template run<choose_row_exactly::template body>(scored, shape.num_vectors, top_k,
                                                                &choice);
      }
      alignas(64) float score[max_top_k];
      alignas(64) float log_score[max_top_k];
      for (int first = 0; first < top_k; first += lanes) {
        const words expert = words::load(choice.expert + first);
        const auto s = score_of<Kind>(reals::look_up(logits, expert), largest);
        reals::store(score + first, s.score);
        reals::store(log_score + first, s.log_score);
      }
      finish_row<Kind, reals>(*request, sums, choice, score, log_score, *route);
      route->has_nonfinite = false;
      return true;
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
