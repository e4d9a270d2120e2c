// Several tokens at once, one in each lane: the path for many tokens.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/host/simd/top_k.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Expert-major values of a block: [expert][lane].
template <int Lanes>
struct block_columns {
  alignas(64) float at[lane_experts][Lanes];
};

/// Transposes a block of rows. `not_finite` becomes NaN or infinite where a logit is, and perhaps
/// where the logits are so large that their sum is.
template <class F32>
ADAPTIVE_K_INLINE void load_columns(const block_rows& rows, int num_experts,
                                    block_columns<F32::lanes>& columns, F32& largest,
                                    F32& not_finite) noexcept {
  largest = -math::infinity;
  not_finite = 0.0f;
  for (int expert = 0; expert < num_experts; expert += 4) {
    F32 v[4];
    for (int i = 0; i < 4; ++i)
      v[i] = F32::load_quarters(rows.data + i * rows.stride + expert, rows.stride);
    F32::transpose_quarters(v);
    for (int i = 0; i < 4; ++i) {
      F32::store(columns.at[expert + i], v[i]);
      largest = F32::maximum(v[i], largest);
      not_finite = not_finite + v[i];  // NaN or infinite from there on
    }
  }
}

/// A block's head: column j of each lane's token.
template <class F32>
struct head_columns {
  alignas(64) float at[lane_top_k][F32::lanes];

  ADAPTIVE_K_INLINE F32 operator()(int j) const noexcept { return F32::load(at[j]); }
  /// Columns by fours, the last four again in part: nothing behind a row is read.
  ADAPTIVE_K_INLINE void load(const block_rows& rows, int num_columns) noexcept {
    for (int first = 0; first < num_columns; first += 4) {
      int start = first;
      if (first + 4 > num_columns) start = num_columns > 4 ? num_columns - 4 : 0;
      F32 v[4];
      for (int i = 0; i < 4; ++i)
        v[i] = F32::load_quarters(rows.data + i * rows.stride + start, rows.stride);
      F32::transpose_quarters(v);
      for (int i = 0; i < 4; ++i) F32::store(at[start + i], v[i]);
    }
  }
};

/// Sums over all experts in the one reduction order. The columns reach to a multiple of 4, and
/// those past E score 0.
template <class Score, bool WithLogs, class F32>
ADAPTIVE_K_INLINE score_sums<F32> sum_columns(const block_columns<F32::lanes>& logits,
                                              int num_experts, const F32& largest) noexcept {
  F32 scores[reduction_slots / 4];
  F32 logs[reduction_slots / 4];
  for (int group = 0; group < reduction_slots / 4; ++group) {
    F32 score[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    F32 log[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int expert = 4 * group; expert < num_experts; expert += reduction_slots) {
      for (int i = 0; i < 4; ++i) {
        // Lanes with a NaN or an infinity are decided again.
        const auto s =
            score_of<Score, logits_are::ordinary>(F32::load(logits.at[expert + i]), largest);
        score[i] = score[i] + s.score;
        if constexpr (WithLogs) log[i] = F32::fma(s.score, s.log_score, log[i]);
      }
    }
    scores[group] = (score[0] + score[1]) + (score[2] + score[3]);
    logs[group] = (log[0] + log[1]) + (log[2] + log[3]);
  }
  return {fold_neighbours(scores), WithLogs ? fold_neighbours(logs) : F32(0.0f)};
}

/// Values to select by, where they are not the logits: score + bias, as key_by_score has them.
template <class Score, class F32>
ADAPTIVE_K_INLINE void score_columns(const block_columns<F32::lanes>& logits, int num_experts,
                                     int num_columns, const float* bias, const F32& largest,
                                     const F32& total, block_columns<F32::lanes>& values,
                                     F32& not_finite) noexcept {
  const F32 inverse_total = is_softmax<Score> ? F32::divide(1.0f, total) : F32(1.0f);
  for (int expert = 0; expert < num_experts; ++expert) {
    const F32 score = score_of<Score>(F32::load(logits.at[expert]), largest).score;
    const F32 value = F32::fma(score, inverse_total, bias[expert]);
    not_finite = not_finite + value;
    F32::store(values.at[expert], value);
  }
  for (int expert = num_experts; expert < num_columns; ++expert)
    F32::store(values.at[expert], -math::infinity);
}

/// Keys of the columns.
template <class F32>
struct column_keys {
  using u32_vec = typename F32::u32_vec;
  const float (*values)[F32::lanes];
  key_maker<F32> maker;

  ADAPTIVE_K_INLINE column_keys(const float (*from)[F32::lanes], int num_indices) noexcept
      : values(from), maker(num_indices) {}
  template <int N>
  ADAPTIVE_K_INLINE void load(int first, u32_vec (&keys)[N]) noexcept {
    const u32_vec inverted = maker.low - u32_vec(first);
    unrolled_for<N>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
      keys[i] = maker.key_of(F32::load(values[first + i]), inverted - u32_vec(i));
    });
  }
};

template <class F32>
struct column_choice {
  typename F32::u32_vec expert[lane_top_k];
  typename F32::mask ambiguous_ties;
};

/// The best top_k <= N of the columns, which reach to a multiple of N.
template <int N>
struct choose_columns {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    using u32_vec = typename f32_vec::u32_vec;
    static ADAPTIVE_K_INLINE void run(const float (*values)[f32_vec::lanes], int num_experts,
                                      int top_k, column_choice<f32_vec>* choice) noexcept {
      constexpr int multiple = N < 4 ? 4 : N;  // NOLINT(bugprone-branch-clone): N may be 4
      const int count = (num_experts + multiple - 1) / multiple * multiple;
      column_keys<f32_vec> keys(values, power_of_two_from(count));
      u32_vec best[N];
      u32_vec best_rejected = 0;
      top_k_of_lanes(keys, count, best, best_rejected);
      choice->ambiguous_ties = keys.maker.ambiguous_ties(best, best_rejected, top_k);
      const u32_vec last = num_experts - 1;  // keys of NaN may hold no expert
      for (int j = 0; j < N; ++j)
        choice->expert[j] = u32_vec::minimum(keys.maker.expert_of(best[j]), last);
    }
  };
};

/// Decides a block. The result has a bit for each lane that it could not decide: a number was not
/// finite, or keys were ambiguous. TopK is K0, or 0 where only the run knows it; where it is not,
/// experts are ranked by their logits.
template <class Score, int TopK>
struct decide_block {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    using u32_vec = typename f32_vec::u32_vec;
    static constexpr int most_ranks = TopK != 0 ? TopK : lane_top_k;

    template <class Plan>
    static ADAPTIVE_K_INLINE std::uint32_t run(const token_request* request,
                                               const Plan* plan_of_all, block_rows rows,
                                               block_rows head_rows,
                                               token_block<f32_vec::lanes>* block) noexcept {
      const gating& model = *request->model;
      const Plan& plan = *plan_of_all;
      const int num_experts = model.num_experts;
      const loop_count<(TopK != 0), most_ranks> ranks = {model.top_k};
      const int list = power_of_two_from(ranks < 4 ? 4 : static_cast<int>(ranks));
      const int num_columns = (num_experts + list - 1) / list * list;
      block_columns<f32_vec::lanes> logits;
      f32_vec largest, not_finite;
      load_columns(rows, num_experts, logits, largest, not_finite);
      for (int expert = num_experts; expert < num_columns; ++expert)
        f32_vec::store(logits.at[expert], -math::infinity);

      const bool by_score = TopK == 0 && model.selection_bias;
      const sums_needed needed = sums_for<Score>(model, plan, by_score);
      score_sums<f32_vec> sums = {f32_vec(1.0f), f32_vec(0.0f)};
      if (needed.logs)
        sums = sum_columns<Score, true>(logits, num_experts, largest);
      else if (needed.scores)
        sums = sum_columns<Score, false>(logits, num_experts, largest);

      column_choice<f32_vec> choice;
      if constexpr (TopK != 0) {
        choose_columns<TopK>::template body<Set>::run(logits.at, num_experts, TopK, &choice);
      } else {
        block_columns<f32_vec::lanes> scored;
        if (by_score)
          score_columns<Score>(logits, num_experts, num_columns, request->routing_bias, largest,
                               sums.score, scored, not_finite);
        const auto* values = by_score ? scored.at : logits.at;
        with_power_of_two_from<lane_top_k>(ranks, [&](auto n) {
          Set::template run<choose_columns<n()>::template body>(values, num_experts,
                                                                static_cast<int>(ranks), &choice);
        });
      }

      ranked_experts<most_ranks, f32_vec> ranked;
      for (int j = 0; j < ranks; ++j) {
        const u32_vec expert = choice.expert[j];
        const f32_vec logit =
            f32_vec::gather(logits.at[0], (expert << log2_of(f32_vec::lanes)) + u32_vec::lane());
        const auto s = score_of<Score>(logit, largest);
        ranked.expert[j] = expert;
        ranked.score[j] = s.score;
        ranked.log_score[j] = s.log_score;
      }
      token_route<most_ranks, f32_vec> route;
      head_columns<f32_vec> head;
      if (plan.reads_head()) {
        head.load(head_rows, ranks - 1);
        not_finite = not_finite + head_defect<f32_vec>(head, ranks, ranks);
      }
      finish_route<Score>(model, plan, sums, request->limits, request->forced_k, ranks, ranked,
                          route, head);
      for (int j = 0; j < ranks; ++j) {
        u32_vec::store(block->expert[j], route.expert[j]);
        f32_vec::store(block->weight[j], route.weight[j]);
      }
      u32_vec::store(block->count, route.count);
      u32_vec::store(block->chosen, route.chosen);
      f32_vec::store(block->signal, route.signal);
      f32_vec::store(block->kept_mass, route.kept_mass);
      f32_vec::store(block->total_mass, route.total_mass);
      block->raised_lanes = f32_vec::mask::to_bits(route.raised > u32_vec(0));
      block->outside_lanes = f32_vec::mask::to_bits(route.outside > u32_vec(0));
      return f32_vec::mask::to_bits((not_finite * f32_vec(0.0f) != f32_vec(0.0f)) |
                                    choice.ambiguous_ties);
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
