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
struct warp_ranking {
  bool was_odd = false;       ///< the row was made finite: a logit is NaN or infinite
  detail::score_sums<> sums;  ///< over the row's scores
  lane_rank rank;             ///< expert, score and log_score

  /// Gives this lane's rank its expert and score.
  __device__ ADAPTIVE_K_INLINE void set_rank(int lane, int top_k, int expert,
                                             const detail::score_pair<>& s) noexcept {
    rank.expert = expert;
    rank.score = lane < top_k ? s.score : 0.0f;
    rank.log_score = s.log_score;
  }
};

/// Softmax ranked by logit: the row at `data`, which was loaded with -inf past E. No branch but
/// one, so that sums and ranks, which do not wait for one another, can be computed at once.
template <class Tier, class Logit>
__device__ ADAPTIVE_K_INLINE void rank_by_logit(const Logit* data, const warp_row<Tier::rows>& row,
                                                const gating& model, int lane,
                                                warp_ranking& made) noexcept {
  using score = detail::softmax_score;
  constexpr int rows = Tier::rows;
  using key = warp_key<rows>;
  constexpr bool whole = sizeof(Logit) == 2;  // keys hold all of an order
  constexpr int more = whole ? 0 : 1;         // the first that is not chosen is looked at
  const int num_experts = model.num_experts;
  const int top_k = model.top_k;
  std::uint32_t keys[rows];
  std::uint32_t most = 0;
  const std::uint32_t lane_bits = key::lane_bits(lane);
  warp::while_true<rows>([&](auto r) {
    const std::uint32_t order = key::order(row.at[r]);
    most = order > most ? order : most;
    keys[r] = key::template join<r>(key::shorten(order), lane_bits);
    return true;
  });
  const float largest = key::value(warp::largest(most));  // of NaN anything
  warp_scores<rows> scores;
  made.sums = scores.set_softmax(row, lane, largest);
  // What is past E comes last: as -inf, and behind it by its id.
  const std::uint32_t own = rank_keys<Tier::max_top_k + more>(keys, lane, top_k + more);
  int expert = key::expert(own);
  const bool odd = lane < top_k && key::is_odd(own);
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
  const float finite_largest = key::value(largest_order(finite_row));
  made.sums = scores.set_softmax(finite_row, lane, finite_largest);
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
