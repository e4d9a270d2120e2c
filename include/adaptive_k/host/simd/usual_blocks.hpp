// Blocks of tokens of the usual call (core/usual_call.hpp), decided, counted and written at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/usual_call.hpp"
#include "adaptive_k/host/simd/block_counts.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/write_rows.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Columns are taken by fours, and by lists of K0.
constexpr bool is_whole_lists(int num_experts, int top_k) noexcept {
  return num_experts % (top_k < 4 ? 4 : top_k) == 0;
}

/// Blocks whose logits are floats; moves on with each block that is done.
struct usual_blocks_request {
  const gating* model;
  const k_plan* plan;
  block_rows rows;  ///< [blocks * lanes, E], E of whole lists
  std::int64_t
      blocks_ahead;  ///< that may be fetched: those blocks, and more if no gaps are in rows
  bool fill_first;
  int fixed_filler;
  routing_output<std::int32_t, float> output;  ///< of the whole call
  std::int64_t token;                          ///< the first of `rows`
  std::int64_t blocks;                         ///< at most most_counted_blocks where they count
  block_counts* counts;                        ///< or null: nothing is counted
  std::uint32_t* expert_counts;                ///< [max_experts + lanes]
};

/// Row index[lane] of few columns, by selections: a gather takes several times as long.
template <int Experts, class Reals, int Columns>
ADAPTIVE_K_INLINE Reals pick_of_few(const block_columns<Reals::lanes, Columns>& columns,
                                    const typename Reals::words& index) noexcept {
  using words = typename Reals::words;
  Reals left[Experts];
  for (int e = 0; e < Experts; ++e) left[e] = Reals::load(columns.at[e]);
  for (int half = Experts / 2; half > 0; half /= 2) {
    const auto upper = (index & words(half)) == words(half);
    for (int e = 0; e < half; ++e) left[e] = Reals::select(upper, left[e + half], left[e]);
  }
  return left[0];
}

/// The lanes where `chosen`, whose logits are `logit`, are not the best in their order. Neighbours
/// of the same distance that are in order came by their indices.
template <int TopK, class Reals, int Columns>
ADAPTIVE_K_INLINE typename Reals::mask wrong_choice(
    const block_columns<Reals::lanes, Columns>& logits, int num_experts,
    const Reals (&logit)[TopK]) noexcept {
  using words = typename Reals::words;
  words above = 0u;
  for (int e = 0; e < num_experts; ++e)
    above = words::select(Reals::load(logits.at[e]) > logit[TopK - 1], above + words(1), above);
  words chosen_above = 0u;
  auto wrong = logit[0] < logit[TopK > 1 ? 1 : 0];
  for (int j = 0; j + 1 < TopK; ++j) {
    chosen_above = words::select(logit[j] > logit[TopK - 1], chosen_above + words(1), chosen_above);
    wrong = wrong | (logit[j] < logit[j + 1]);
  }
  return wrong | (chosen_above < above);
}

template <int TopK, class Reals>
struct summed_choice {
  score_sums<Reals> sums;
  typename Reals::words best[TopK];  ///< keys
  typename Reals::words lost;        ///< the best of all other keys
  typename Reals::words least;       ///< of all keys
};

/// One expert's share of the sums, and its key.
template <bool First, class Reals>
ADAPTIVE_K_INLINE void add_expert(const float* column, const typename Reals::words& inverted,
                                  const Reals& to_distance, const distance_keys<Reals>& keys,
                                  Reals& score, Reals& log, typename Reals::words& key) noexcept {
  const auto s = score_and_key<logits_are::close>(Reals::load(column), to_distance, keys, inverted);
  score = First ? s.score : score + s.score;  // 0 + s is s
  log = Reals::fma(s.score, s.log_score, First ? Reals(0.0f) : log);
  key = s.key;
}

/// The Span experts from `first` on, slot by slot. No loop: g++ keeps arrays that loops write in
/// memory, and each store of 64 bytes takes Zen 4 two cycles.
template <bool First, class Reals, int Columns, int Span, std::size_t... I>
ADAPTIVE_K_INLINE void add_experts(const block_columns<Reals::lanes, Columns>& logits, int first,
                                   const Reals& to_distance, const distance_keys<Reals>& keys,
                                   Reals (&score)[Span], Reals (&log)[Span],
                                   typename Reals::words (&key)[Span],
                                   std::index_sequence<I...>) noexcept {
  using words = typename Reals::words;
  const std::uint32_t* const inverted = keys.inverted() + first;
  (add_expert<First>(logits.at[first + static_cast<int>(I)], words(inverted[I]), to_distance, keys,
                     score[I], log[I], key[I]),
   ...);
}

template <class Reals, int Span, std::size_t... I>
ADAPTIVE_K_INLINE void store_columns(const Reals (&values)[Span], float (*to)[Reals::lanes],
                                     std::index_sequence<I...>) noexcept {
  (Reals::store(to[I], values[I]), ...);
}

/// What a processor can do beside the arithmetic on a block: fetch the next one's rows, as hardware
/// fetches rows that are read side by side badly, and count the experts of the last one.
template <int TopK, int Lanes>
struct side_work {
  const char* next_rows = nullptr;  ///< or null
  std::uint32_t* expert_counts;
  waiting_counts<TopK, Lanes> counts;

  /// Its part for so many experts.
  template <int Experts>
  ADAPTIVE_K_INLINE void do_some() noexcept {
    constexpr int bytes = Experts * Lanes * static_cast<int>(sizeof(float));
    if (next_rows != nullptr) {
      for (int at = 0; at < bytes; at += 64) __builtin_prefetch(next_rows + at);
      next_rows += bytes;
    }
    counts.count_few(expert_counts);
  }
};

/// Sums and the best in one pass: sums wait for multiplications, keys for comparisons, so that a
/// processor works on both at once. Right where all logits are close to the largest. The scores
/// of the first 32 experts go to `each_score`, if it is given, which may be where the logits are.
template <int TopK, class Reals, int Columns, class Work>
ADAPTIVE_K_INLINE summed_choice<TopK, Reals> sum_and_choose(
    const block_columns<Reals::lanes, Columns>& logits, int num_experts, const Reals& largest,
    const distance_keys<Reals>& keys, Work& work,
    block_columns<Reals::lanes, Columns>* each_score) noexcept {
  using words = typename Reals::words;
  constexpr int span = TopK < 4 ? 4 : TopK;
  words best[TopK];
  for (words& key : best) key = words(0u);
  words lost = words(0u);
  words least = words(~0u);
  slot_tree<Reals> scores, logs;
  const int slots = num_experts < reduction_slots ? num_experts : reduction_slots;
  const Reals to_distance = to_distances(largest);
  const auto each = std::make_index_sequence<span>();
  for (int first = 0; first < slots; first += span) {
    Reals score[span], log[span];
    words key[span];
    add_experts<true>(logits, first, to_distance, keys, score, log, key, each);
    if (each_score != nullptr) store_columns(score, each_score->at + first, each);
    keep_best_of(key, first == 0, best, lost, least);
    work.template do_some<span>();
    for (int row = first + reduction_slots; row < num_experts; row += reduction_slots) {
      add_experts<false>(logits, row, to_distance, keys, score, log, key, each);
      keep_best_of(key, false, best, lost, least);
      work.template do_some<span>();
    }
    for (int i = 0; i < span; i += 4) {
      scores.add_group((first + i) / 4, (score[i] + score[i + 1]) + (score[i + 2] + score[i + 3]));
      logs.add_group((first + i) / 4, (log[i] + log[i + 1]) + (log[i + 2] + log[i + 3]));
    }
  }
  summed_choice<TopK, Reals> made;
  for (int j = 0; j < TopK; ++j) made.best[j] = best[j];
  made.lost = lost;
  made.least = least;
  made.sums = {scores.total(slots / 4), logs.total(slots / 4)};
  return made;
}

/// Decides blocks of K0 = TopK; Experts is E where it is known to the compiler, else 0. The result
/// is 0, or tells the lanes of a block that it could not decide, one bit each: that block is
/// neither counted nor written, and `routes` has its other lanes.
template <int TopK, int Experts>
struct usual_blocks {
  static_assert(is_whole_lists(Experts, TopK), "whole lists of columns");
  static_assert(Experts == 0 || TopK == 2, "scores that are picked are in order unless unsure");
  template <class Target>
  struct body {
    using reals = typename Target::reals;
    using words = typename reals::words;
    static constexpr int lanes = reals::lanes;

    static ADAPTIVE_K_INLINE std::uint32_t run(usual_blocks_request* request,
                                               block_routes<lanes>* routes) noexcept {
      const int num_experts = Experts != 0 ? Experts : request->model->num_experts;
      const usual_gating<TopK> model = {num_experts, request->model->routed_scaling_factor};
      const settled_plan<TopK> plan(usual_plan_of<TopK>(*request->plan));
      side_work<TopK, lanes> work;
      work.expert_counts = request->expert_counts;
      std::uint32_t undecided = 0;
      for (; request->blocks > 0; --request->blocks) {
        const float* const next_rows = request->rows.data + lanes * request->rows.stride;
        const bool fetch = --request->blocks_ahead > 0 && Experts == 0;
        work.next_rows = fetch ? reinterpret_cast<const char*>(next_rows) : nullptr;
        token_route<TopK, reals> route;
        undecided = reals::mask::to_bits(decide(model, plan, request->rows, work, route));
        work.counts.count_all(work.expert_counts);
        if (undecided != 0) {
          store_routes(route, TopK, *routes);
          break;
        }
        if (request->counts != nullptr)
          count_block<TopK, Experts>(route, *request->counts, work.counts);
        const held_routes<TopK, reals> decided = {route};
        write_block<reals>(decided, loop_count<true, TopK>{TopK}, request->fill_first,
                           request->fixed_filler, request->token, request->output);
        request->token += lanes;
        request->rows.data = next_rows;
      }
      work.counts.count_all(work.expert_counts);
      return undecided;
    }

   private:
    /// One block; the result is the lanes that it could not decide.
    static ADAPTIVE_K_INLINE typename reals::mask decide(const usual_gating<TopK>& model,
                                                         const settled_plan<TopK>& plan,
                                                         const block_rows& rows,
                                                         side_work<TopK, lanes>& work,
                                                         token_route<TopK, reals>& route) noexcept {
      const int num_experts = Experts != 0 ? Experts : model.num_experts;
      block_columns<lanes, Experts != 0 ? Experts : most_lane_experts> columns;
      reals largest, unused;
      load_columns<reals>(rows.data, rows.stride, num_experts, columns, largest, unused);
      const distance_keys<reals> keys(power_of_two_from(num_experts));
      // Scores of few experts are kept, in place of their logits, to be picked.
      const auto chosen = sum_and_choose<TopK>(columns, num_experts, largest, keys, work,
                                               Experts != 0 ? &columns : nullptr);
      ranked_experts<TopK, reals> ranked;
      reals logit[TopK];
      auto undecided = keys.any_far(chosen.least) | (chosen.sums.score != chosen.sums.score);
      for (int j = 0; j < TopK; ++j) {
        ranked.expert[j] = keys.expert_of(chosen.best[j]);
        ranked.log_score[j] = 0.0f;  // not read
        if (j == 0) {
          ranked.score[0] = 1.0f;  // the largest logit's
        } else if (Experts != 0) {
          ranked.score[j] = pick(columns, ranked.expert[j]);
        } else {
          logit[j] = pick(columns, ranked.expert[j]);
          ranked.score[j] =
              score_of<gating_kind::softmax, logits_are::close>(logit[j], largest).score;
          if (j > 1) undecided = undecided | (logit[j - 1] < logit[j]);
        }
      }
      auto unsure = keys.same_distance(chosen.best[TopK - 1], chosen.lost);
      if (TopK > 1)
        unsure = unsure | keys.same_distance(chosen.best[0], chosen.best[TopK > 1 ? 1 : 0]);
      if (reals::mask::any(unsure)) {
        if (Experts != 0) {
          load_columns<reals>(rows.data, rows.stride, num_experts, columns, largest, unused);
          for (int j = 1; j < TopK; ++j) logit[j] = pick(columns, ranked.expert[j]);
        }
        logit[0] = pick(columns, ranked.expert[0]);
        undecided =
            undecided | (logit[0] < largest) | wrong_choice<TopK>(columns, num_experts, logit);
      }
      finish_route<gating_kind::softmax>(model, plan, chosen.sums, plan.limits, choice_counts,
                                         loop_count<true, TopK>{TopK}, ranked, route);
      return undecided;
    }

    template <class Columns>
    static ADAPTIVE_K_INLINE reals pick(const Columns& columns, const words& expert) noexcept {
      if constexpr (Experts != 0)
        return pick_of_few<Experts, reals>(columns, expert);
      else
        return reals::pick(columns.at[0], expert);
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
