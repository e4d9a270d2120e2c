// Several tokens at once, one in each lane: the path for many tokens.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/host/simd/keys.hpp"
#include "adaptive_k/host/simd/top_k_network.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// What the vectorised paths take: the rest goes to the scalar one.
inline constexpr int most_lane_experts = 256;
inline constexpr int most_lane_top_k = 16;

/// A decision about a block of tokens.
struct block_request {
  const gating* model;
  const k_plan* plan;
  const float* routing_bias;  ///< [E] or null
  int dictated;               ///< as finish_route takes it
  const float* rows;          ///< [lanes, E rounded up to 4], past E any of the row's
  std::int64_t stride;        ///< of rows
};

/// Decided tokens, one a column.
template <int Lanes>
struct block_routes {
  alignas(64) std::uint32_t expert[most_lane_top_k][Lanes];
  alignas(64) float weight[most_lane_top_k][Lanes];
  alignas(64) std::uint32_t count[Lanes];
  alignas(64) std::uint32_t chosen[Lanes];
  alignas(64) float signal[Lanes];
};

template <int MaxTopK, class Reals>
ADAPTIVE_K_INLINE void store_routes(const token_route<MaxTopK, Reals>& route, int top_k,
                                    block_routes<Reals::lanes>& routes) noexcept {
  using words = typename Reals::words;
  for (int j = 0; j < top_k; ++j) {
    words::store(routes.expert[j], route.expert[j]);
    Reals::store(routes.weight[j], route.weight[j]);
  }
  words::store(routes.count, route.count);
  words::store(routes.chosen, route.chosen);
  Reals::store(routes.signal, route.signal);
}

/// Expert-major logits of a block: [expert][lane].
template <int Lanes, int Experts = most_lane_experts>
struct block_columns {
  alignas(64) float at[Experts][Lanes];
};

/// The one reduction tree while its slots come four at a time: a sum of 2^i neighbouring groups
/// waits at level i for the next one.
template <class Reals>
struct slot_tree {
  Reals waiting[4];

  /// Takes the sum of group `group` of four slots.
  ADAPTIVE_K_INLINE void add_group(int group, const Reals& group_sum) noexcept {
    Reals sum = group_sum;
    int level = 0;
    for (; (group >> level & 1) != 0; ++level) sum = waiting[level] + sum;
    waiting[level] = sum;
  }
  /// The sum of all; slots that never came would only have added +0.
  ADAPTIVE_K_INLINE Reals total(int groups) const noexcept {
    if ((groups & (groups - 1)) == 0) return waiting[power_of_two_log(groups)];
    Reals sum = 0.0f;
    for (int level = 0; level < 4; ++level)
      if ((groups >> level & 1) != 0) sum = waiting[level] + sum;
    return sum;
  }
};

/// Sums over all experts, a token a lane. The columns reach to a multiple of 4, and those past E
/// score 0.
template <gating_kind Kind, bool WithLogs, class Reals, int Columns>
ADAPTIVE_K_INLINE score_sums<Reals> sum_columns(const block_columns<Reals::lanes, Columns>& logits,
                                                int num_experts, const Reals& largest) noexcept {
  slot_tree<Reals> scores;
  slot_tree<Reals> logs;
  const int slots = num_experts < reduction_slots ? num_experts : reduction_slots;
  const int groups = (slots + 3) / 4;
  for (int group = 0; group < groups; ++group) {
    Reals score[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    Reals log[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int expert = 4 * group; expert < num_experts; expert += reduction_slots) {
      for (int i = 0; i < 4; ++i) {
        // Lanes with a NaN or an infinity are decided again.
        const auto s =
            score_of<Kind, logits_are::ordinary>(Reals::load(logits.at[expert + i]), largest);
        score[i] = score[i] + s.score;
        if constexpr (WithLogs) log[i] = Reals::fma(s.score, s.log_score, log[i]);
      }
    }
    scores.add_group(group, (score[0] + score[1]) + (score[2] + score[3]));
    if constexpr (WithLogs) logs.add_group(group, (log[0] + log[1]) + (log[2] + log[3]));
  }
  if constexpr (WithLogs) return {scores.total(groups), logs.total(groups)};
  return {scores.total(groups), Reals(0.0f)};
}

/// Keys of the logits.
template <class Reals>
struct column_keys {
  const float (*values)[Reals::lanes];
  key_maker<Reals> maker;
  typename Reals::words inverted;  ///< of the expert that comes next

  ADAPTIVE_K_INLINE column_keys(const float (*from)[Reals::lanes], int num_indices) noexcept
      : values(from), maker(num_indices), inverted(num_indices - 1) {}
  /// Experts in ascending order.
  ADAPTIVE_K_INLINE typename Reals::words at(int expert) noexcept {
    const auto key = maker.key_of(Reals::load(values[expert]), inverted);
    inverted = inverted - typename Reals::words(1);
    return key;
  }
};

template <class Reals>
struct column_choice {
  typename Reals::words expert[most_lane_top_k];
  typename Reals::mask uncertain;
};

template <int N, class Reals>
ADAPTIVE_K_INLINE void take_choice(const key_maker<Reals>& maker,
                                   const typename Reals::words (&best)[N],
                                   const typename Reals::words& lost, int num_experts, int top_k,
                                   column_choice<Reals>& choice) noexcept {
  using words = typename Reals::words;
  choice.uncertain = maker.uncertain(best, lost, top_k);
  const words last = num_experts - 1;  // keys of NaN may hold no expert
  for (int j = 0; j < N; ++j) choice.expert[j] = words::smaller(maker.expert_of(best[j]), last);
}

/// The best top_k <= N of the columns, which reach to a multiple of N.
template <int N, class Reals>
ADAPTIVE_K_INLINE void choose_columns(const float (*values)[Reals::lanes], int num_experts,
                                      int top_k, column_choice<Reals>& choice) noexcept {
  using words = typename Reals::words;
  constexpr int multiple = N < 4 ? 4 : N;
  const int count = (num_experts + multiple - 1) / multiple * multiple;
  column_keys<Reals> keys(values, power_of_two_from(count));
  words best[N];
  words lost = 0;
  best_keys(keys, count, best, lost);
  take_choice(keys.maker, best, lost, num_experts, top_k, choice);
}

/// Own functions, so that each network is there once.
template <int N>
struct choose_columns_of {
  template <class Target>
  struct body {
    using reals = typename Target::reals;
    static ADAPTIVE_K_INLINE void run(const float (*values)[reals::lanes], int num_experts,
                                      int top_k, column_choice<reals>* choice) noexcept {
      choose_columns<N, reals>(values, num_experts, top_k, *choice);
    }
  };
};

template <class Target>
ADAPTIVE_K_INLINE void choose_columns(const float (*values)[Target::reals::lanes], int num_experts,
                                      int top_k,
                                      column_choice<typename Target::reals>& choice) noexcept {
  switch (power_of_two_from(top_k)) {
    case 1:
      return Target::template run<choose_columns_of<1>::template body>(values, num_experts, top_k,
                                                                       &choice);
    case 2:
      return Target::template run<choose_columns_of<2>::template body>(values, num_experts, top_k,
                                                                       &choice);
    case 4:
      return Target::template run<choose_columns_of<4>::template body>(values, num_experts, top_k,
                                                                       &choice);
    case 8:
      return Target::template run<choose_columns_of<8>::template body>(values, num_experts, top_k,
                                                                       &choice);
    default:
      return Target::template run<choose_columns_of<16>::template body>(values, num_experts, top_k,
                                                                        &choice);
  }
}

/// Columns that are read: whole groups of 4, and whole lists of the network for top_k.
ADAPTIVE_K_INLINE int padded_columns(int num_experts, int top_k) noexcept {
  const int list = power_of_two_from(top_k < 4 ? 4 : top_k);
  return (num_experts + list - 1) & ~(list - 1);
}

/// Transposes a block of rows. `not_finite` becomes NaN or infinite where a logit is, and perhaps
/// where the logits are so large that their sum is.
template <class Reals, int Columns>
ADAPTIVE_K_INLINE void load_columns(const float* rows, std::int64_t stride, int num_experts,
                                    block_columns<Reals::lanes, Columns>& columns, Reals& largest,
                                    Reals& not_finite) noexcept {
  largest = -math::infinity;
  not_finite = 0.0f;
  const float* row[4] = {rows, rows + stride, rows + 2 * stride, rows + 3 * stride};
  int expert = 0;
  if constexpr (Reals::lanes == 16) {
    for (; expert + 8 <= num_experts; expert += 8) {
      Reals v[2][4];
      for (int i = 0; i < 4; ++i) {
        v[0][i] = Reals::load_halves(row[i] + expert, stride);
        v[1][i] = Reals::load_halves(row[i] + 8 * stride + expert, stride);
      }
      Reals::transpose_quarters(v[0]);
      Reals::transpose_quarters(v[1]);
      for (int i = 0; i < 4; ++i) {
        Reals::part_quarters(v[0][i], v[1][i]);
        Reals::store(columns.at[expert + i], v[0][i]);
        Reals::store(columns.at[expert + 4 + i], v[1][i]);
        largest = Reals::larger(Reals::larger(v[0][i], v[1][i]), largest);
        not_finite = not_finite + (v[0][i] + v[1][i]);
      }
    }
  }
  for (; expert < num_experts; expert += 4) {
    Reals v[4] = {Reals::load_quarters(row[0] + expert, stride),
                  Reals::load_quarters(row[1] + expert, stride),
                  Reals::load_quarters(row[2] + expert, stride),
                  Reals::load_quarters(row[3] + expert, stride)};
    Reals::transpose_quarters(v);
    for (int i = 0; i < 4; ++i) {
      Reals::store(columns.at[expert + i], v[i]);
      largest = Reals::larger(v[i], largest);
      not_finite = not_finite + v[i];  // NaN or infinite from there on
    }
  }
}

/// Values to select by, where they are not the logits: score + bias, as key_by_score has them.
template <gating_kind Kind, class Reals>
ADAPTIVE_K_INLINE void score_columns(const block_columns<Reals::lanes>& logits, int num_experts,
                                     int num_columns, const float* bias, const Reals& largest,
                                     const Reals& total, block_columns<Reals::lanes>& values,
                                     Reals& not_finite) noexcept {
  const Reals inverse_total = is_softmax(Kind) ? Reals::divide(1.0f, total) : Reals(1.0f);
  for (int expert = 0; expert < num_experts; ++expert) {
    const Reals offset = bias != nullptr ? bias[expert] : 0.0f;
    const Reals score = score_of<Kind>(Reals::load(logits.at[expert]), largest).score;
    const Reals value = Reals::fma(score, inverse_total, offset);
    not_finite = not_finite + value;
    Reals::store(values.at[expert], value);
  }
  for (int expert = num_experts; expert < num_columns; ++expert)
    Reals::store(values.at[expert], -math::infinity);
}

/// Decides one block; the result tells the lanes, one bit each, that it could not decide.
template <gating_kind Kind>
struct route_lanes {
  template <class Target>
  struct body {
    using reals = typename Target::reals;
    static ADAPTIVE_K_INLINE std::uint32_t run(const block_request* request,
                                               block_routes<reals::lanes>* routes) noexcept {
      using words = typename reals::words;
      const gating& model = *request->model;
      const k_plan& plan = *request->plan;
      const int num_experts = model.num_experts;
      const int top_k = model.top_k;
      const int num_columns = padded_columns(num_experts, top_k);
      block_columns<reals::lanes> logits;
      reals largest, not_finite;
      load_columns<reals>(request->rows, request->stride, num_experts, logits, largest, not_finite);
      for (int expert = num_experts; expert < num_columns; ++expert)
        reals::store(logits.at[expert], -math::infinity);

      const sums_needed needed = sums_for<Kind>(model, plan, selects_by_score(model));
      score_sums<reals> sums = {reals(1.0f), reals(0.0f)};
      if (needed.logs)
        sums = sum_columns<Kind, true, reals>(logits, num_experts, largest);
      else if (needed.scores)
        sums = sum_columns<Kind, false, reals>(logits, num_experts, largest);

      block_columns<reals::lanes> scored;
      const bool by_score = selects_by_score(model);
      if (by_score)
        score_columns<Kind>(logits, num_experts, num_columns, request->routing_bias, largest,
                            sums.score, scored, not_finite);
      column_choice<reals> choice;
      choose_columns<Target>(by_score ? scored.at : logits.at, num_experts, top_k, choice);
      ranked_experts<most_lane_top_k, reals> ranked;
      for (int j = 0; j < top_k; ++j) {
        const words expert = choice.expert[j];
        const auto s = score_of<Kind>(reals::pick(logits.at[0], expert), largest);
        ranked.expert[j] = expert;
        ranked.score[j] = s.score;
        ranked.log_score[j] = s.log_score;
      }
      token_route<most_lane_top_k, reals> route;
      finish_route<Kind>(model, plan, sums, plan.limits, request->dictated, top_k, ranked, route);
      store_routes(route, top_k, *routes);
      return reals::mask::to_bits((not_finite * reals(0.0f) != reals(0.0f)) | choice.uncertain);
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
