// The routing decision, written once: the logits of one token to its experts, weights, k and
// signal.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// What one token gets.
template <int MaxTopK>
struct token_route {
  int count;              ///< k_t in 1..K0
  int expert[MaxTopK];    ///< K0 ids, best first; those past `count` are what full K would add
  float weight[MaxTopK];  ///< [count]
  float signal;           ///< in the unit of the policy's signal
  bool has_nonfinite;     ///< a logit was NaN or infinite
};

/// A layer's routing, checked and with derived values in place. Plain data.
struct layer_routing {
  gating model;
  k_policy policy;
  float mass_exponent = 1.0f;        ///< resolved, in [0, 1]
  float inverse_log_experts = 0.0f;  ///< 1 / ln E; 0 for E = 1
};

/// Takes a gating and a policy that `validate` accepts.
inline layer_routing prepare(const gating& g, const k_policy& policy) noexcept {
  layer_routing layer;
  layer.model = g;
  layer.policy = policy;
  if (g.kind == gating_kind::top_k_softmax) layer.model.renormalize = true;
  layer.mass_exponent = policy.mass_exponent;
  if (policy.mass_exponent == k_policy::mass_exponent_of_model)
    layer.mass_exponent = layer.model.renormalize ? 1.0f : 0.0f;
  if (g.num_experts > 1)
    layer.inverse_log_experts = math::divide(1.0f, math::log(static_cast<float>(g.num_experts)));
  return layer;
}

/// Reads one row of a logits matrix as float.
template <class Logit>
struct logit_row {
  const Logit* data;  ///< [E]
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float operator()(int expert) const noexcept {
    return to_float(data[expert]);
  }
};

/// One token's logits and selection keys, spread over the lanes of a tile.
template <class Tile, int MaxRows>
struct token_state {
  static constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<expert_block<float, MaxRows, slots>> logits;  ///< -inf for NaN
  expert_keys<Tile, MaxRows> keys;
  int rows;       ///< rows in use; slots past E hold -inf and `no_expert_key`
  float largest;  ///< of the logits
  bool has_finite;
  bool has_nonfinite;
};

template <class Tile, int MaxRows, class LogitAt>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void load_logits(const Tile& tile,
                                                 token_state<Tile, MaxRows>& token, int num_experts,
                                                 LogitAt logit_at) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  const int full_rows = num_experts / reduction_slots;
  token.rows = (num_experts + reduction_slots - 1) / reduction_slots;
  typename Tile::template per_lane<float> lane_largest;
  typename Tile::template per_lane<std::uint32_t> lane_finite;
  typename Tile::template per_lane<std::uint32_t> lane_nonfinite;
  tile.for_each_lane([&](int lane) {
    float largest[slots];
    std::uint32_t finite[slots] = {};
    std::uint32_t nonfinite[slots] = {};
    for (int slot = 0; slot < slots; ++slot) largest[slot] = -math::infinity;
    const auto place = [&](int row, int slot, float logit) {
      const bool is_finite = math::magnitude(logit) < math::infinity;
      const float value = logit == logit ? logit : -math::infinity;
      finite[slot] |= is_finite ? 1u : 0u;
      nonfinite[slot] |= is_finite ? 0u : 1u;
      largest[slot] = math::larger(value, largest[slot]);
      token.logits[lane].at[row][slot] = value;
      token.keys[lane].at[row][slot] = order_key(logit);
    };
    // The last row apart: a bounds check in the others would keep them from being vectorised.
    for (int row = 0; row < full_rows; ++row)
      for (int slot = 0; slot < slots; ++slot)
        place(row, slot, logit_at(row * reduction_slots + lane * slots + slot));
    if (full_rows < token.rows) {
      for (int slot = 0; slot < slots; ++slot) {
        const int expert = full_rows * reduction_slots + lane * slots + slot;
        if (expert < num_experts) {
          place(full_rows, slot, logit_at(expert));
        } else {
          token.logits[lane].at[full_rows][slot] = -math::infinity;
          token.keys[lane].at[full_rows][slot] = no_expert_key;
        }
      }
    }
    for (int slot = 1; slot < slots; ++slot) {
      largest[0] = math::larger(largest[slot], largest[0]);
      finite[0] |= finite[slot];
      nonfinite[0] |= nonfinite[slot];
    }
    lane_largest[lane] = largest[0];
    lane_finite[lane] = finite[0];
    lane_nonfinite[lane] = nonfinite[0];
  });
  token.largest = tile.reduce_max(lane_largest);
  token.has_finite = tile.reduce_or(lane_finite) != 0;
  token.has_nonfinite = tile.reduce_or(lane_nonfinite) != 0;
}

struct score_sums {
  float score;            ///< sum of s over all experts
  float score_log_score;  ///< sum of s ln s
};

/// Both sums in the one reduction order; experts for which `counts(logit)` is false add nothing.
template <gating_kind Kind, bool WithLogs, class Tile, int MaxRows, class Counts>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE score_sums sum_scores(const Tile& tile,
                                                      const token_state<Tile, MaxRows>& token,
                                                      float largest, Counts counts) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<float> lane_score;
  typename Tile::template per_lane<float> lane_log;
  tile.for_each_lane([&](int lane) {
    float score[slots] = {};
    float log[slots] = {};
    for (int row = 0; row < token.rows; ++row) {
      for (int slot = 0; slot < slots; ++slot) {
        const float logit = token.logits[lane].at[row][slot];
        const score_pair s = score_of<Kind>(logit, largest);
        const float counted = counts(logit) ? s.score : 0.0f;
        score[slot] += counted;
        if constexpr (WithLogs) log[slot] = math::fma(counted, s.log_score, log[slot]);
      }
    }
    lane_score[lane] = fold_slots(score);
    if constexpr (WithLogs) lane_log[lane] = fold_slots(log);
  });
  const float total = tile.reduce_add(lane_score);
  if constexpr (WithLogs) return {total, tile.reduce_add(lane_log)};
  return {total, 0.0f};
}

/// Replaces logit keys by keys of score + bias; `total` is the scores' sum for softmax kinds.
template <gating_kind Kind, class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void key_by_score(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token,
                                                  const gating& model, const float* bias,
                                                  float total) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  const float inverse_total = is_softmax(Kind) ? math::divide(1.0f, total) : 1.0f;
  tile.for_each_lane([&](int lane) {
    for (int row = 0; row < token.rows; ++row) {
      for (int slot = 0; slot < slots; ++slot) {
        const int expert = row * reduction_slots + lane * slots + slot;
        std::uint32_t& key = token.keys[lane].at[row][slot];
        if (key <= nan_key) continue;
        const float score = score_of<Kind>(token.logits[lane].at[row][slot], token.largest).score;
        const float offset = model.selection_bias ? bias[expert] : 0.0f;
        key = order_key(math::fma(score, inverse_total, offset));
      }
    }
  });
}

template <class Tile, int MaxRows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float logit_of(const Tile& tile,
                                               const token_state<Tile, MaxRows>& token,
                                               int expert) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<float> lane_logit;
  tile.for_each_lane([&](int lane) {
    lane_logit[lane] = token.logits[lane].at[expert / reduction_slots][expert % slots];
  });
  return tile.broadcast(lane_logit, expert % reduction_slots / slots);
}

/// Phi-3.5's weights: each chosen expert's softmax over the experts within a relative 2 eps of
/// it, the first one left out for the second (HuggingFace PhimoeSparseMoeBlock, inference).
template <class Tile, int MaxRows, int MaxTopK>
ADAPTIVE_K_HD inline void score_by_masked_softmax(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token,
                                                  float jitter_epsilon,
                                                  ranked_experts<MaxTopK>& ranked,
                                                  int top_k) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  for (int j = 0; j < top_k; ++j) {
    const float largest = logit_of(tile, token, ranked.expert[j]);
    const float tolerance = 2.0f * jitter_epsilon;
    const auto counts = [=](float logit) {
      const float scale = math::larger(math::magnitude(logit), largest);
      return !(largest - logit > tolerance * scale);
    };
    const score_sums sums = sum_scores<gating_kind::softmax, false>(tile, token, largest, counts);
    ranked.score[j] = math::divide(1.0f, math::larger(sums.score, 1.0f));
    ranked.log_score[j] = math::log(ranked.score[j]);
    tile.for_each_lane([&](int lane) {
      const int expert = ranked.expert[j];
      if (lane == expert % reduction_slots / slots)
        token.logits[lane].at[expert / reduction_slots][expert % slots] = -math::infinity;
    });
  }
}

template <gating_kind Kind, class Tile, int MaxRows, int MaxTopK>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void rank_experts(const Tile& tile,
                                                  token_state<Tile, MaxRows>& token,
                                                  const gating& model,
                                                  ranked_experts<MaxTopK>& ranked) noexcept {
  selection<Tile, MaxRows> best(tile, token.keys, token.rows);
  for (int j = 0; j < model.top_k; ++j) {
    const int expert = best.next();
    const score_pair s = score_of<Kind>(logit_of(tile, token, expert), token.largest);
    ranked.expert[j] = expert;
    ranked.score[j] = s.score;
    ranked.log_score[j] = s.log_score;
  }
  if constexpr (Kind == gating_kind::sparsemixer)
    score_by_masked_softmax(tile, token, model.jitter_epsilon, ranked, model.top_k);
  float mass = 0.0f;
  for (int j = 0; j < model.top_k; ++j) {
    mass += ranked.score[j];
    ranked.mass[j] = mass;
  }
  ranked.total = mass;
}

/// The model's own weight of a score: `score * own_factor`.
template <gating_kind Kind>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float own_factor(const gating& model, float topk_mass,
                                                 float total) noexcept {
  const float scale = model.routed_scaling_factor;
  if (model.renormalize) return math::divide(scale, topk_mass);
  return Kind == gating_kind::softmax ? math::divide(scale, total) : scale;
}

/// Routes one token. `logit_at(e)` gives logit e as float; `bias` is [E] where the model selects
/// by bias; `limits` lie within 1..K0. MaxRows * 32 >= E, MaxTopK >= K0. Cost O(K0 * E); no
/// allocation.
template <gating_kind Kind, int MaxRows, int MaxTopK, class Tile, class LogitAt>
ADAPTIVE_K_HD inline token_route<MaxTopK> route_token(const Tile& tile, const layer_routing& layer,
                                                      const float* bias, k_limits limits,
                                                      LogitAt logit_at) noexcept {
  const gating& model = layer.model;
  const k_policy& policy = layer.policy;
  const int top_k = model.top_k;

  token_state<Tile, MaxRows> token;
  load_logits(tile, token, model.num_experts, logit_at);
  const bool has_nonfinite = token.has_nonfinite;
  // A row with nothing finite is routed as zeros and by index: experts 0..K0-1, equal weights.
  const bool dead = !token.has_finite;
  if (dead) load_logits(tile, token, model.num_experts, [](int) { return 0.0f; });
  const bool by_score = selects_by_score(model) && !dead;

  const bool entropy = is_full_entropy(policy.signal);
  const bool needs_total =
      is_softmax(Kind) && (by_score || policy.rule == k_rule::distortion || !model.renormalize);
  const auto all = [](float) { return true; };
  score_sums sums = {1.0f, 0.0f};
  if (entropy)
    sums = sum_scores<Kind, true>(tile, token, token.largest, all);
  else if (needs_total)
    sums = sum_scores<Kind, false>(tile, token, token.largest, all);
  const float full_entropy =
      entropy && sums.score > 0.0f ? entropy_nats(sums.score, sums.score_log_score) : 0.0f;

  if (by_score) key_by_score<Kind>(tile, token, model, bias, sums.score);
  if (model.n_group > 1 && !dead)
    keep_best_groups<Tile, MaxRows>(tile, token.keys, model, token.rows);
  ranked_experts<MaxTopK> ranked;
  rank_experts<Kind>(tile, token, model, ranked);
  const bool weightless = !(ranked.total > 0.0f);  // every chosen score underflowed
  if (weightless) {
    for (int j = 0; j < top_k; ++j) {
      ranked.score[j] = 1.0f;
      ranked.log_score[j] = 0.0f;
      ranked.mass[j] = static_cast<float>(j + 1);
    }
    ranked.total = static_cast<float>(top_k);
  }

  const float topk_mass = ranked.total;
  const float topk_share = is_softmax(Kind) ? math::divide(topk_mass, sums.score) : topk_mass;
  token_route<MaxTopK> route;
  route.has_nonfinite = has_nonfinite;
  route.signal =
      signal_value(policy.signal, full_entropy, layer.inverse_log_experts, ranked, top_k);
  route.count = choose_k(policy, layer.mass_exponent, route.signal, ranked, topk_share,
                         model.num_experts, top_k, limits);

  float factor = own_factor<Kind>(model, topk_mass, sums.score);
  if (weightless && !model.renormalize) factor = 0.0f;
  for (int j = 0; j < top_k; ++j) {
    route.expert[j] = ranked.expert[j];
    route.weight[j] = ranked.score[j] * factor;
  }
  if (route.count < top_k) {
    constexpr float floor = 7.888609e-31f;  // 2^-100: a biased choice may keep no mass at all
    const float kept = math::divide(ranked.mass[route.count - 1], topk_mass);
    const float stretch = restore_mass(math::larger(kept, floor), layer.mass_exponent);
    for (int j = 0; j < route.count; ++j) route.weight[j] *= stretch;
  }
  return route;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
