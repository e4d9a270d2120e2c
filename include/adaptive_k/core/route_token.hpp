// The routing decision, written once: the logits of one token to its experts, weights, k and
// signal.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A call that gives its tokens no experts. Another type with these members gives the first
/// `count()` ranks, in order, where `active()` is true (for all tokens of a call or for none).
struct no_replay {
  static constexpr bool possible = false;
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool active() const noexcept { return false; }
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE int count() const noexcept { return 0; }
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE int expert(int) const noexcept { return -1; }
};

/// Reads one row of a logits matrix as float.
template <class Logit>
struct logit_row {
  const Logit* data;  ///< [E]
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float operator()(int expert) const noexcept {
    return to_float(data[expert]);
  }
};

/// Reads one row of a router head as float.
template <class Logit>
struct head_row {
  const Logit* data;  ///< [K0 - 1]
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float operator()(int j) const noexcept {
    return to_float(data[j]);
  }
};

/// One token's logits, spread over the lanes of a tile.
template <class Tile, int MaxRows>
struct token_state {
  static constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<expert_block<float, MaxRows, slots>> logits;
  expert_keys<Tile, MaxRows> keys;
  int num_experts;
  loop_count<Tile::unrolled, MaxRows> rows = {0};  ///< in use; slots past E hold -inf
  float largest;                                   ///< of the logits, made finite
  bool has_finite;
  bool has_nonfinite;
};

/// f(lane, row, slot, expert) for every slot, those past E included.
template <class Tile, class Rows, class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void for_each_slot(const Tile& tile, Rows rows, F f) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  tile.for_each_lane([&](int lane) {
    ADAPTIVE_K_UNROLL
    for (int row = 0; row < rows; ++row) {
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < slots; ++slot) f(lane, row, slot, Tile::expert_at(lane, row, slot));
    }
  });
}

/// Copies a row into the tile as float; slots past E get -inf.
template <int MaxRows, int Lanes, int RowWidth, class LogitAt>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void fetch_logits(
    const host_warp<Lanes, RowWidth>& tile, token_state<host_warp<Lanes, RowWidth>, MaxRows>& token,
    LogitAt logit_at) noexcept {
  constexpr int slots = RowWidth / Lanes;
  const int full_rows = token.num_experts / RowWidth;
  // The last row apart: a bounds check in the others would keep them from being vectorised.
  for_each_slot(tile, full_rows, [&](int lane, int row, int slot, int expert) {
    token.logits[lane].at[row][slot] = logit_at(expert);
  });
  if (full_rows == token.rows) return;
  tile.for_each_lane([&](int lane) {
    for (int slot = 0; slot < slots; ++slot) {
      const int expert = full_rows * RowWidth + lane * slots + slot;
      token.logits[lane].at[full_rows][slot] =
          expert < token.num_experts ? logit_at(expert) : -math::infinity;
    }
  });
}

/// Finds a row's largest logit, and whether all or none of its logits are finite. NaN stays as it
/// is: it compares false, so it is never the largest, and its key and its score are defined.
template <class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void examine_logits(const Tile& tile,
                                                    token_state<Tile, MaxRows>& token) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<float> lane_largest;
  typename Tile::template per_lane<int> lane_finite;
  tile.for_each_lane([&](int lane) {
    float largest[slots];
    int finite[slots];
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < slots; ++slot) {
      largest[slot] = -math::infinity;
      finite[slot] = 0;
    }
    ADAPTIVE_K_UNROLL
    for (int row = 0; row < token.rows; ++row) {
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < slots; ++slot) {
        const float logit = token.logits[lane].at[row][slot];
        finite[slot] += math::abs(logit) < math::infinity ? 1 : 0;
        largest[slot] = math::maximum(logit, largest[slot]);
      }
    }
    ADAPTIVE_K_UNROLL
    for (int slot = 1; slot < slots; ++slot) {
      largest[0] = math::maximum(largest[slot], largest[0]);
      finite[0] += finite[slot];
    }
    lane_largest[lane] = largest[0];
    lane_finite[lane] = finite[0];
  });
  token.largest = math::minimum(tile.reduce_max(lane_largest), math::largest_finite);
  const int num_finite = tile.reduce_sum(lane_finite);
  token.has_finite = num_finite > 0;
  token.has_nonfinite = num_finite < token.num_experts;
  if (!token.has_finite) {
    // A row with nothing finite is routed as zeros.
    token.largest = 0.0f;
    for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int expert) {
      token.logits[lane].at[row][slot] = expert < token.num_experts ? 0.0f : -math::infinity;
    });
  }
}

/// Loads and examines a row. Tiles that do both in one pass overload it.
template <int MaxRows, int Lanes, int RowWidth, class LogitAt>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void load_logits(
    const host_warp<Lanes, RowWidth>& tile, token_state<host_warp<Lanes, RowWidth>, MaxRows>& token,
    int num_experts, LogitAt logit_at) noexcept {
  token.num_experts = num_experts;
  token.rows = {(num_experts + RowWidth - 1) / RowWidth};
  fetch_logits<MaxRows>(tile, token, logit_at);
  examine_logits(tile, token);
}

/// Both sums in the one reduction order, `Logits` as in score_of; experts for which
/// `counts(logit, row, slot)` is false add nothing.
template <class Score, bool WithLogs, logits_are Logits = logits_are::any, class Tile, int MaxRows,
          class Counts>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE score_sums<> sum_scores(const Tile& tile,
                                                        const token_state<Tile, MaxRows>& token,
                                                        float largest, Counts counts) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<slot_sums<slots>> scores;
  typename Tile::template per_lane<slot_sums<slots>> logs;
  tile.for_each_lane([&](int lane) {
    float(&score)[slots] = scores[lane].at;
    float(&log)[slots] = logs[lane].at;
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < slots; ++slot) score[slot] = log[slot] = 0.0f;
    ADAPTIVE_K_UNROLL
    for (int row = 0; row < token.rows; ++row) {
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < slots; ++slot) {
        const float logit = token.logits[lane].at[row][slot];
        const score_pair<> s = score_of<Score, Logits>(logit, largest);
        const float counted = counts(logit, row, slot) ? s.score : 0.0f;
        const bool first = Tile::unrolled && row == 0;  // 0 + s is s
        score[slot] = first ? counted : score[slot] + counted;
        if constexpr (WithLogs) log[slot] = math::fma(counted, s.log_score, log[slot]);
      }
    }
  });
  const float total = tile.sum_slots(scores);
  if constexpr (WithLogs) return {total, tile.sum_slots(logs)};
  return {total, 0.0f};
}

/// Keys of the logits: the order of selection where neither bias nor summed groups change it.
template <class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void key_by_logit(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token) noexcept {
  for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int expert) {
    const std::uint32_t key = order_key(token.logits[lane].at[row][slot]);
    token.keys[lane].at[row][slot] = expert < token.num_experts ? key : no_expert_key;
  });
}

/// Keys of score + bias, all equal where nothing was finite; `total` is the scores' sum for softmax
/// kinds.
template <class Score, class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void key_by_score(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token,
                                                  const gating& model, const float* bias,
                                                  float total) noexcept {
  const float inverse_total = is_softmax<Score> ? math::divide(1.0f, total) : 1.0f;
  for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int expert) {
    const bool exists = expert < token.num_experts;
    const float logit = token.logits[lane].at[row][slot];
    const float score = score_of<Score>(logit, token.largest).score;
    const float offset = model.selection_bias && exists ? bias[expert] : 0.0f;
    const float value = token.has_finite ? math::fma(score, inverse_total, offset) : 0.0f;
    const std::uint32_t key = logit == logit ? order_key(value) : nan_key;
    token.keys[lane].at[row][slot] = exists ? key : no_expert_key;
  });
}

/// Ranks the given experts before all others: their keys exceed every logit's.
template <class Tile, int MaxRows, class Ranks, class Replay>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void key_replay_first(const Tile& tile,
                                                      token_state<Tile, MaxRows>& token,
                                                      const Replay& replay, Ranks ranks) noexcept {
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    const int given = j < replay.count() ? replay.expert(j) : -1;
    for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int expert) {
      if (expert == given) token.keys[lane].at[row][slot] = ~static_cast<std::uint32_t>(j);
    });
  }
}

/// One expert's logit, in every lane.
template <class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float logit_of(const Tile& tile,
                                               const token_state<Tile, MaxRows>& token,
                                               int expert) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<float> lane_logit;
  if constexpr (Tile::unrolled) {
    for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int at) {
      if (at == expert) lane_logit[lane] = token.logits[lane].at[row][slot];
    });
  } else {
    tile.for_each_lane([&](int lane) {
      lane_logit[lane] = token.logits[lane].at[expert / Tile::row_width][expert % slots];
    });
  }
  return tile.broadcast(lane_logit, Tile::owner_of(expert));
}

/// Phi-3.5's weights: each chosen expert's softmax over the experts within a relative 2 eps of
/// it, the first one left out for the second (HuggingFace PhimoeSparseMoeBlock, inference).
template <class Tile, int MaxRows, int MaxTopK>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void score_by_masked_softmax(const Tile& tile,
                                                             token_state<Tile, MaxRows>& token,
                                                             float jitter_epsilon,
                                                             ranked_experts<MaxTopK>& ranked,
                                                             int top_k) noexcept {
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j) {
    if (j >= top_k) break;
    const int expert = ranked.expert[j];
    const float largest = logit_of(tile, token, expert);
    const float tolerance = 2.0f * jitter_epsilon;
    const auto counts = [=](float logit, int, int) {
      const float scale = math::maximum(math::abs(logit), largest);
      return !(largest - logit > tolerance * scale);
    };
    const score_sums<> sums = sum_scores<softmax_score, false>(
        tile, token, math::minimum(largest, math::largest_finite), counts);
    const bool weighs = largest > -math::infinity;  // neither -inf nor NaN
    const float share = math::divide(1.0f, math::maximum(sums.score, 1.0f));
    ranked.score[j] = weighs ? share : 0.0f;
    ranked.log_score[j] = weighs ? math::log(share) : -100.0f;
    for_each_slot(tile, token.rows, [&](int lane, int row, int slot, int at) {
      if (at == expert) token.logits[lane].at[row][slot] = -math::infinity;
    });
  }
}

/// Selects and scores the top K0 by their keys, which tell the logits unless `by_score`.
template <class Score, class Tile, int MaxRows, int MaxTopK, class Ranks>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void rank_experts(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token,
                                                  const gating& model, bool by_score, Ranks ranks,
                                                  ranked_experts<MaxTopK>& ranked) noexcept {
  const int top_k = model.top_k;
  keyed_expert best[MaxTopK];
  select_experts<MaxRows>(tile, token.keys, token.rows, top_k, best);
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j) {
    const bool chosen = j < top_k;
    const float logit = by_score ? logit_of(tile, token, best[j].expert) : key_value(best[j].key);
    const score_pair<> s = score_of<Score>(logit, token.largest);
    ranked.expert[j] = best[j].expert;
    ranked.score[j] = chosen ? s.score : 0.0f;
    ranked.log_score[j] = chosen ? s.log_score : 0.0f;
  }
  if constexpr (is_masked<Score>)
    score_by_masked_softmax(tile, token, model.jitter_epsilon, ranked, top_k);
}

/// Routes one token of a layer, its gating by `Score`. `logit_at(e)` gives logit e as float;
/// `bias` is [E] where the model selects by bias; `limits` lie within 1..K0. `shadow` routes full K
/// and only reports the choice. `replay` may give experts and k: the best of the others then
/// take the ranks from k to K0, so that unchanged logits give unchanged weights. `head(j)` gives
/// column j of a router head, where the plan reads one. MaxRows * row_width >= E, MaxTopK >= K0. No
/// allocation.
template <class Score, int MaxRows, int MaxTopK, class Tile, class Plan, class LogitAt,
          class Replay = no_replay, class Head = no_head>
ADAPTIVE_K_HD inline token_route<MaxTopK> route_token(const Tile& tile, const gating& model,
                                                      const Plan& plan, const float* bias,
                                                      k_limits limits, bool shadow,
                                                      LogitAt logit_at, const Replay& replay = {},
                                                      const Head& head = {}) noexcept {
  const int top_k = model.top_k;
  const loop_count<Tile::unrolled, MaxTopK> ranks = {top_k};

  token_state<Tile, MaxRows> token;
  load_logits<MaxRows>(tile, token, model.num_experts, logit_at);
  // Nothing but the call decides which collectives run: tiles of one warp must stay together.
  const bool by_score = selects_by_score(model);

  const sums_needed needed = sums_for<Score>(model, plan, by_score);
  const auto all = [](float, int, int) { return true; };
  score_sums<> sums = {1.0f, 0.0f};
  if (needed.logs)
    sums = sum_scores<Score, true>(tile, token, token.largest, all);
  else if (needed.scores)
    sums = sum_scores<Score, false>(tile, token, token.largest, all);

  if (by_score)
    key_by_score<Score>(tile, token, model, bias, sums.score);
  else
    key_by_logit(tile, token);
  if (model.n_group > 1)
    keep_best_groups<Tile, MaxRows>(tile, token.keys, model, token.rows, token.has_finite);
  const bool replays = Replay::possible && replay.active();
  if (replays) key_replay_first(tile, token, replay, ranks);
  ranked_experts<MaxTopK> ranked;
  rank_experts<Score>(tile, token, model, by_score || replays, ranks, ranked);
  int forced_k = shadow ? top_k : no_forced_k;
  if (replays) forced_k = replay.count();
  token_route<MaxTopK> route;
  route.has_nonfinite = token.has_nonfinite;
  if (plan.reads_head() && !(head_defect<float>(head, top_k, ranks) == 0.0f))
    route.has_nonfinite = true;
  finish_route<Score>(model, plan, sums, limits, forced_k, ranks, ranked, route, head);
  return route;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
