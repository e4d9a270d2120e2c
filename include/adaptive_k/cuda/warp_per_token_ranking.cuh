// Softmax ranked by logit where a warp decides one token: the row's sums, and its top K0.
#pragma once

#include <cstdint>

#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/cuda/warp_ops.cuh"
#include "adaptive_k/cuda/warp_per_token_choice.cuh"
#include "adaptive_k/cuda/warp_per_token_row.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// A token's row once its experts are ranked.
template <int Rows>
struct warp_ranking {
  warp_row<Rows> given;       ///< the logits, as they came
  detail::score_sums<> sums;  ///< over the row's scores
  lane_rank rank;             ///< expert, score and log_score; the latter two 0 past K0

  /// Gives this lane's rank its expert and score.
  __device__ ADAPTIVE_K_INLINE void set_rank(int lane, int top_k, int expert,
                                             const detail::score_pair<>& s) noexcept {
    rank.expert = expert;
    rank.score = lane < top_k ? s.score : 0.0f;
    rank.log_score = lane < top_k ? s.log_score : 0.0f;
  }
};

/// Softmax ranked by logit: the row at `data`. No branch but one, so that sums and ranks, which do
/// not wait for one another, can be computed at once.
template <class Tier, class Logit>
__device__ ADAPTIVE_K_INLINE void rank_by_logit(const Logit* data, const gating& model, int lane,
                                                warp_ranking<Tier::rows>& made) noexcept {
  using score = detail::softmax_score;
  constexpr int rows = Tier::rows;
  using key = warp_key<rows>;
  constexpr bool whole = sizeof(Logit) == 2;  // keys hold all of an order
  constexpr int more = whole ? 0 : 1;         // the first that is not chosen is looked at
  const int num_experts = model.num_experts;
  const int top_k = model.top_k;
  warp_row<rows>& row = made.given;
  row.load(data + lane, lane, num_experts, -math::infinity);
  const float largest = largest_of(row);
  std::uint32_t keys[rows];
  const std::uint32_t lane_bits = key::lane_bits(lane);
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) keys[r] = key::join(key::order(row.at[r]), r, lane_bits);
  warp_scores<rows> scores;
  made.sums = scores.template set<score>(row, lane, largest);
  // What is past E comes last: as -inf, and behind it by its id.
  const std::uint32_t own = rank_keys<Tier::max_top_k + more>(keys, lane, top_k + more);
  int expert = key::expert(own);
  const bool odd = lane == 0 && own - key::lowest_finite >= key::infinite - key::lowest_finite;
  float logit = 0.0f;
  detail::score_pair<> s;
  if constexpr (rows == 1) {  // a lane's only expert is its own
    s = {warp::of_lane(scores.score.at[0], expert), warp::of_lane(scores.log_score.at[0], expert)};
    if constexpr (!whole) logit = warp::of_lane(row.at[0], expert);
  } else {
    if constexpr (whole)
      logit = __uint_as_float(__float_as_uint(key::value(own)) & ~key::id_mask);
    else  // read again, which costs less than to find out which of a lane's it is
      logit = data[expert < num_experts ? expert : 0];
    s = detail::score_of<score, detail::logits_are::ordinary>(logit, largest);
  }
  made.set_rank(lane, top_k, expert, s);
  bool unsure = false;
  if constexpr (!whole) unsure = is_unsure<rows>(own, logit, lane, top_k);
  if (!warp::any(odd || unsure)) return;

  warp_row<rows> finite_row = row;
  const bool has_finite = make_finite(finite_row, lane, num_experts);
  const float finite_largest = largest_of(finite_row);
  made.sums = scores.template set<score>(finite_row, lane, finite_largest);
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) {
    const std::uint32_t order = detail::order_key(has_finite ? row.at[r] : 0.0f);
    keys[r] = 32 * r + lane < num_experts ? order : 0u;
  }
  expert = rank_whole_keys(keys, lane, top_k);
  logit = has_finite ? to_float(data[expert]) : 0.0f;
  made.set_rank(lane, top_k, expert, detail::score_of<score>(logit, finite_largest));
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
