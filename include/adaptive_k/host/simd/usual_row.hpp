// One token of the usual call (core/usual_call.hpp), its experts in the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/usual_call.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Sums over the lanes of two vectors, in all lanes.
template <class Reals>
ADAPTIVE_K_INLINE score_sums<Reals> fold_lanes(const Reals& score, const Reals& log) noexcept {
  if constexpr (Reals::lanes == 8) {
    const Reals pairs = Reals::add_neighbours(score, log);
    const Reals halves = Reals::add_neighbours(pairs, pairs);
    const Reals both = halves + Reals::template exchange<4>(halves);
    return {Reals::template each_first<0>(both), Reals::template each_first<1>(both)};
  } else {
    return {sum_of_lanes(score), sum_of_lanes(log)};
  }
}

/// Sums over the 32 slots, 32 / lanes vectors of each kind, in all lanes.
template <class Reals, int Parts>
ADAPTIVE_K_INLINE score_sums<Reals> fold_slots(Reals (&score)[Parts],
                                               Reals (&log)[Parts]) noexcept {
  if constexpr (Reals::lanes == 8) {
    const auto by_vector = [](const Reals(&v)[Parts]) ADAPTIVE_K_INLINE_LAMBDA {
      const Reals halves = Reals::add_neighbours(Reals::add_neighbours(v[0], v[1]),
                                                 Reals::add_neighbours(v[2], v[3]));
      return halves + Reals::template exchange<4>(halves);
    };
    const Reals pairs = Reals::add_neighbours(by_vector(score), by_vector(log));
    const Reals both = Reals::add_neighbours(pairs, pairs);
    return {Reals::template each_first<0>(both), Reals::template each_first<1>(both)};
  } else {
    for (int i = 0; i < Parts; ++i) {
      score[i] = sum_of_lanes(score[i]);
      log[i] = sum_of_lanes(log[i]);
    }
    for (int count = Parts / 2; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) {
        score[i] = score[2 * i] + score[2 * i + 1];
        log[i] = log[2 * i] + log[2 * i + 1];
      }
    return {score[0], log[0]};
  }
}

/// Decides one token of K0 = TopK and E up to most_lane_experts. False: it could not, as a logit is
/// not finite or neighbours are too close for keys.
template <int TopK>
struct usual_row {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    using words = typename reals::words;
    static constexpr int lanes = reals::lanes;
    static constexpr int parts = reduction_slots / lanes;
    /// Vectors a step: all slots, and whole lists.
    static constexpr int span = TopK > parts ? TopK : parts;

    static ADAPTIVE_K_INLINE bool run(const gating* model, const k_plan* plan,
                                      const k_limits* limits, const float* row,
                                      token_route<max_top_k>* route) noexcept {
      const int num_experts = model->num_experts;
      const int whole = num_experts / lanes;
      const int rest = num_experts % lanes;
      reals largest = -math::infinity;
      reals not_finite = 0.0f;  // NaN or infinite where a logit is
      for (int v = 0; v < whole; ++v) {
        const reals logit = reals::load(row + v * lanes);
        largest = reals::larger(logit, largest);
        not_finite = not_finite + logit;
      }
      reals tail = -math::infinity;
      if (rest != 0) {
        const reals logit = reals::load_first(row + whole * lanes, rest);
        tail = reals::select(words::lane() < words(rest), logit, tail);
        largest = reals::larger(tail, largest);
        not_finite = not_finite + logit;
      }
      if (math::any(not_finite * reals(0.0f) != reals(0.0f))) return false;
      const reals to_distance = to_distances(largest_of_lanes(largest));

      const int vectors = whole + (rest != 0 ? 1 : 0);
      alignas(64) float score[most_lane_experts];
      alignas(64) float log_score[most_lane_experts];
      score_sums<reals> sums;
      words best[TopK];
      words lost = 0u;
      const distance_keys<reals> keys(power_of_two_from(vectors * lanes));
      const words inverted = keys.low - words::lane();
      const auto take = [&](const reals& logit, int v) ADAPTIVE_K_INLINE_LAMBDA {
        const auto s = score_and_key(logit, to_distance, keys, inverted - words(v * lanes));
        reals::store(score + v * lanes, s.score);
        reals::store(log_score + v * lanes, s.log_score);
        return s;
      };
      if (TopK <= lanes && vectors == 1) {
        const auto s = take(whole != 0 ? reals::load(row) : tail, 0);
        sums = fold_lanes<reals>(s.score, reals::fma(s.score, s.log_score, 0.0f));
        words list[1] = {s.key};
        if constexpr (TopK <= lanes) combine_lanes<TopK, 1>(list, best, lost);
      } else {
        reals score_parts[parts], log_parts[parts];
        for (int i = 0; i < parts; ++i) score_parts[i] = log_parts[i] = reals(0.0f);
        words list[TopK];
        for (words& key : list) key = words(0u);
        for (int first = 0; first < vectors; first += span) {
          words key[span];
          const auto add = [&](const reals& logit, int i) ADAPTIVE_K_INLINE_LAMBDA {
            const auto s = take(logit, first + i);
            score_parts[i % parts] = score_parts[i % parts] + s.score;
            log_parts[i % parts] = reals::fma(s.score, s.log_score, log_parts[i % parts]);
            key[i] = s.key;
          };
          if (first + span <= whole) {
            for (int i = 0; i < span; ++i) add(reals::load(row + (first + i) * lanes), i);
          } else {
            for (int i = 0; i < span; ++i) {
              const int v = first + i;
              add(v < whole ? reals::load(row + v * lanes)
                            : (v == whole ? tail : reals(-math::infinity)),
                  i);
            }
          }
          keep_best_of(key, first == 0, list, lost);
        }
        sums = fold_slots(score_parts, log_parts);
        combine_lanes<TopK, 1>(list, best, lost);
      }
      std::uint32_t key[TopK + 1];
      for (int j = 0; j < TopK; ++j) key[j] = words::first(best[j]);
      key[TopK] = words::first(lost);
      return finish(*model, *plan, *limits, row, keys.low_bits, key, sums, score, log_score,
                    *route);
    }

   private:
    static ADAPTIVE_K_INLINE bool finish(const gating& gating, const k_plan& plan,
                                         const k_limits& limits, const float* row, int low_bits,
                                         const std::uint32_t (&key)[TopK + 1],
                                         const score_sums<reals>& sums, const float* score,
                                         const float* log_score,
                                         token_route<max_top_k>& route) noexcept {
      using value = std::conditional_t<math::has_fma_instruction, float, reals>;
      const auto low = static_cast<std::uint32_t>(low_bits);
      const auto tied = [&](int j) { return (key[j] ^ key[j + 1]) <= low; };
      int expert[TopK];
      for (int j = 0; j < TopK; ++j) expert[j] = static_cast<int>(~key[j] & low);
      if (tied(TopK - 1) || (TopK > 1 && tied(0))) return false;
      for (int j = 1; j + 1 < TopK; ++j)
        if (tied(j) && row[expert[j]] < row[expert[j + 1]]) return false;

      ranked_experts<TopK, value> ranked;
      for (int j = 0; j < TopK; ++j) {
        ranked.expert[j] = expert[j];
        ranked.score[j] = score[expert[j]];
        ranked.log_score[j] = log_score[expert[j]];
      }
      const usual_gating<TopK> model = {gating.num_experts, gating.routed_scaling_factor};
      score_sums<value> totals;
      if constexpr (math::has_fma_instruction)
        totals = {reals::first(sums.score), reals::first(sums.score_log_score)};
      else
        totals = sums;
      token_route<TopK, value> made;
      finish_route<gating_kind::softmax>(model, usual_plan_of<TopK>(plan), totals, limits,
                                         choice_counts, loop_count<true, TopK>{TopK}, ranked, made);
      for (int j = 0; j < TopK; ++j) route.expert[j] = expert[j];
      if constexpr (math::has_fma_instruction) {
        for (int j = 0; j < TopK; ++j) route.weight[j] = made.weight[j];
        route.count = made.count;
        route.signal = made.signal;
      } else {
        for (int j = 0; j < TopK; ++j) route.weight[j] = reals::first(made.weight[j]);
        route.count = static_cast<int>(words::first(made.count));
        route.signal = reals::first(made.signal);
      }
      route.chosen = route.count;
      route.has_nonfinite = false;
      return true;
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
