// Any gating but sparsemixer, with a selection bias and groups, where a warp decides one token: the
// steps of core/route_token.hpp, the experts over the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/warp_per_token_ranking.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Stands for the score that a gating's kind says at run time: a branch that all warps take alike.
struct score_of_kind {};

/// f(score), of the type that `kind` says unless Score is one.
template <class Score, class F>
__device__ ADAPTIVE_K_INLINE void with_score(gating_kind kind, F f) noexcept {
  if constexpr (!std::is_same_v<Score, score_of_kind>)
    f(Score());
  else if (kind == gating_kind::sigmoid)
    f(detail::sigmoid_score());
  else if (kind == gating_kind::sqrt_softplus)
    f(detail::sqrt_softplus_score());
  else
    f(detail::softmax_score());
}

/// Whether scores are relative to the row's largest logit.
template <class Score>
__device__ ADAPTIVE_K_INLINE bool is_relative(gating_kind kind) noexcept {
  if constexpr (std::is_same_v<Score, score_of_kind>)
    return kind == gating_kind::softmax || kind == gating_kind::top_k_softmax;
  else
    return detail::is_softmax<Score>;
}

/// Keys of the best groups alone, where each group is a row of the warp: as core's
/// keep_best_groups.
template <int Rows>
__device__ ADAPTIVE_K_INLINE void keep_best_rows(std::uint32_t (&keys)[Rows], const gating& model,
                                                 int lane) noexcept {
  const bool top_two = model.group_rank == group_score::top2_sum;
  std::uint32_t first = 0;
  std::uint32_t second = 0;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const std::uint32_t best = warp::largest(keys[r]);
    first = lane == r ? best : first;
    if (!top_two) continue;
    const bool leads = warp::is_first(keys[r] == best, lane);
    const std::uint32_t next = warp::largest(leads ? 0u : keys[r]);
    second = lane == r ? next : second;
  }
  float value = detail::key_value(first);
  if (top_two) value += detail::key_value(second);
  std::uint32_t group = lane < model.n_group ? detail::order_key(value) : 0u;
  unsigned kept = 0;
#pragma unroll 1
  for (int i = 0; i < model.topk_group; ++i) {
    const bool best = warp::is_first(group == warp::largest(group), lane);
    kept |= warp::lanes_where(best);
    group = best ? 0u : group;
  }
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) keys[r] = (kept >> r & 1u) != 0 ? keys[r] : 0u;
}

/// Any groups.
template <int Rows, class Logit>
__device__ ADAPTIVE_K_INLINE void keep_best_groups(std::uint32_t (&keys)[Rows],
                                                   const gating& model) noexcept {
  using tile = device_tile<32, 32, Logit>;
  expert_keys<tile, Rows> whole;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) whole.value.at[r][0] = keys[r];
  detail::keep_best_groups<tile, Rows>(tile(), whole, model, detail::loop_count<true, Rows>{Rows},
                                       true);
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) keys[r] = whole.value.at[r][0];
}

/// Any gating: the row at `data`, `bias` [E] or null. `needs_logs`: the sum of s ln s is read, and
/// `needs_rank_logs`: the logarithms of the ranks' scores.
template <class Tier, class Score, class Logit>
__device__ ADAPTIVE_K_INLINE void rank_by_gating(const Logit* data, const gating& model,
                                                 const float* bias, int lane, bool needs_logs,
                                                 bool needs_rank_logs,
                                                 warp_ranking<Tier::rows>& made) noexcept {
  constexpr int rows = Tier::rows;
  using key = warp_key<rows>;
  const int num_experts = model.num_experts;
  const int top_k = model.top_k;
  const bool relative = is_relative<Score>(model.kind);
  const bool by_score = detail::selects_by_score(model);
  made.given.load(data + lane, lane, num_experts, -math::infinity);
  warp_row<rows> offset;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) offset.at[r] = 0.0f;
  if (model.selection_bias) offset.load(bias + lane, lane, num_experts, 0.0f);
  warp_row<rows> row = made.given;
  float largest = largest_of(row);
  bool has_finite = true;
  if (!(math::abs(largest) < math::infinity)) {
    has_finite = make_finite(row, lane, num_experts);
    largest = largest_of(row);
  }

  warp_row<rows> scores;
  with_score<Score>(model.kind, [&](auto score) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r)
      scores.at[r] =
          detail::score_of<decltype(score), detail::logits_are::ordinary>(row.at[r], largest).score;
  });
  const auto log_of = [&](float score, float logit) {
    return relative ? math::maximum(logit - largest, math::exp_floor)
                    : math::log(math::maximum(score, 1e-37f));
  };
  made.sums = {1.0f, 0.0f};
  if (needs_logs || relative) {
    float sum = scores.at[0];
    float logs = 0.0f;
    ADAPTIVE_K_UNROLL
    for (int r = 1; r < rows; ++r) sum = sum + scores.at[r];
    if (needs_logs) {
      ADAPTIVE_K_UNROLL
      for (int r = 0; r < rows; ++r)
        logs = math::fma(scores.at[r], log_of(scores.at[r], row.at[r]), logs);
    }
    warp::sum_both(lane, sum, logs);
    made.sums = {sum, logs};
  }

  std::uint32_t whole_keys[rows];  // as detail::order_key makes them; 0 where there is no expert
  const float inverse_total = relative ? math::divide(1.0f, made.sums.score) : 1.0f;
  warp_row<rows> value = made.given;
  if (by_score) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r)
      value.at[r] = math::fma(scores.at[r], inverse_total, offset.at[r]);
  }
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) {
    const bool is_nan = made.given.at[r] != made.given.at[r];
    const std::uint32_t order = is_nan ? detail::nan_key : key::order(value.at[r]);
    whole_keys[r] = 32 * r + lane < num_experts ? order : 0u;
  }
  if (!has_finite) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r)
      whole_keys[r] = whole_keys[r] != 0 ? detail::order_key(0.0f) : 0u;
  }
  if (model.n_group > 1 && has_finite) {
    if (model.num_experts == 32 * model.n_group)
      keep_best_rows(whole_keys, model, lane);
    else
      keep_best_groups<rows, Logit>(whole_keys, model);
  }
  std::uint32_t keys[rows];
  const std::uint32_t lane_bits = key::lane_bits(lane);
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) keys[r] = key::join(whole_keys[r], r, lane_bits);
  const std::uint32_t own = rank_keys<Tier::max_top_k + 1>(keys, lane, top_k + 1);
  int expert = key::expert(own);
  // Short keys of 16-bit logits hold all of their order; else two that meet may be the wrong way.
  // So may NaN and what is no expert or in no group.
  const bool meets = (own ^ warp::of_next_lane(own)) <= key::id_mask;
  const bool unsure = own <= key::id_mask || (meets && (by_score || sizeof(Logit) != 2));
  if (warp::any(unsure && lane < top_k)) expert = rank_whole_keys(whole_keys, lane, top_k);
  expert = lane < top_k ? expert : 0;

  float chosen = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) {
    const float there = warp::of_lane(scores.at[r], expert);  // modulo 32
    chosen = expert / 32 == r ? there : chosen;
  }
  made.rank.expert = expert;
  made.rank.score = lane < top_k ? chosen : 0.0f;
  made.rank.log_score = 0.0f;
  if (needs_rank_logs) {
    const float logit = has_finite ? to_float(data[expert]) : 0.0f;
    float log_score = log_of(chosen, logit);
    if (relative) log_score = math::minimum(log_score, 0.0f);
    made.rank.log_score = lane < top_k ? log_score : 0.0f;
  }
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
