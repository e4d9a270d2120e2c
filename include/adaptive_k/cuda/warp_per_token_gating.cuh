// Any gating but sparsemixer, with a selection bias and groups, where a warp decides one token: the
// steps of core/route_token.hpp, the experts over the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/tuning.cuh"
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

/// Makes the two largest keys of each row over all lanes: of row r in the lanes r, r + Rows, ...
/// Lanes `Offset` apart give each other half of their rows and, where one is left, what they have
/// of it. The seconds come with the first exchange.
template <int Rows, int Offset = 1, int Size>
__device__ ADAPTIVE_K_INLINE void gather_best_two(std::uint32_t (&first)[Size],
                                                  std::uint32_t (&second)[Size],
                                                  int lane) noexcept {
  if constexpr (Offset < 32) {
    constexpr int left = Rows > 1 ? Rows / 2 : 1;
    const bool odd = (lane & Offset) != 0;
    const auto kept = [&](const std::uint32_t(&of)[Size], int i) {
      return Rows == 1 ? of[0] : odd ? of[2 * i + 1] : of[2 * i];
    };
    const auto taken = [&](const std::uint32_t(&of)[Size], int i) {
      return warp::exchange<Offset>(Rows == 1 ? of[0] : odd ? of[2 * i] : of[2 * i + 1]);
    };
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < left; ++i) {
      const std::uint32_t own = kept(first, i);
      const std::uint32_t other = taken(first, i);
      std::uint32_t next = own < other ? own : other;
      if constexpr (Offset > 1) {
        const std::uint32_t own_second = kept(second, i);
        const std::uint32_t other_second = taken(second, i);
        const std::uint32_t best = own_second > other_second ? own_second : other_second;
        next = best > next ? best : next;
      }
      first[i] = own > other ? own : other;
      second[i] = next;
    }
    gather_best_two<left, 2 * Offset>(first, second, lane);
  }
}

/// Shortens keys, and clears those of all but the best groups, where each group is a row of the
/// warp: as core's keep_best_groups. Where groups are not, or a value is NaN or +inf, a key says so
/// that is above all others.
template <int Rows>
__device__ ADAPTIVE_K_INLINE void keep_best_rows(std::uint32_t (&keys)[Rows], const gating& model,
                                                 int lane) noexcept {
  using key = warp_key<Rows>;
  constexpr unsigned size = Rows <= 4 ? 4 : Rows <= 8 ? 8 : Rows <= 16 ? 16 : 32;
  std::uint32_t first[size];
  std::uint32_t second[size];
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < static_cast<int>(size); ++r)
    first[r] = r < Rows ? keys[r < Rows ? r : 0] : 0u;
  gather_best_two<static_cast<int>(size)>(first, second, lane);
  const auto this_lane = static_cast<unsigned>(lane);
  const unsigned group = this_lane % size;
  float value = key::value(first[0]);
  if (model.group_rank == group_score::top2_sum) value = value + key::value(second[0]);
  const std::uint32_t own = group < static_cast<unsigned>(model.n_group) ? key::order(value) : 0u;

  // Lanes that have the same group compare it with a share of all of them each.
  constexpr unsigned copies = 32 / size;
  constexpr unsigned others = size > copies ? size / copies : 1;
  constexpr int times = static_cast<int>(copies * others / size);  // that each is compared
  const unsigned same_group = (~0u / ((1u << (size - 1)) * 2u - 1u)) << group;  // lanes
  int better = 0;
  ADAPTIVE_K_UNROLL
  for (unsigned i = 0; i < others; ++i) {
    const unsigned at = (this_lane / size * others + i) % size;
    const std::uint32_t other = warp::of_lane(own, static_cast<int>(at));
    const std::uint32_t lead = at < group ? 1u : 0u;  // equal ones by the lower index
    better += __popc(warp::lanes_where(other + lead > own) & same_group);
  }
  const unsigned kept = warp::lanes_where(better < times * model.topk_group);
  warp::while_true<Rows>([&](auto r) {
    std::uint32_t mask;  // bit r, in every bit
    asm("bfe.s32 %0, %1, %2, 1;" : "=r"(mask) : "r"(kept), "n"(static_cast<int>(r)));
    keys[r] = key::shorten(keys[r], mask);
    return true;
  });
  if (first[0] >= key::infinite || model.num_experts != 32 * model.n_group) keys[0] = ~key::id_mask;
}

/// The experts by keys that hold all of an order, any logits, bias and groups: in lane j that of
/// rank j. `has_finite`: a logit is; `inverse_total` as in core's key_by_score. Seldom needed, so
/// the row is loaded again. `scores` [E].
template <int Rows, class Logit>
__device__ ADAPTIVE_K_INLINE int rank_exactly(const Logit* data, const gating& model,
                                              const float* bias, int lane, const float* scores,
                                              float inverse_total, bool has_finite) noexcept {
  const bool by_score = detail::selects_by_score(model);
  std::uint32_t keys[Rows];
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const int expert = 32 * r + lane;
    keys[r] = 0u;
    if (expert >= model.num_experts) continue;
    const float logit = has_finite ? to_float(data[expert]) : 0.0f;
    float value = logit;
    if (by_score && has_finite)
      value = math::fma(scores[expert], inverse_total, model.selection_bias ? bias[expert] : 0.0f);
    keys[r] = logit == logit ? detail::order_key(value) : detail::nan_key;
  }
  if (model.n_group > 1) {
    using tile = device_tile<32, 32, Logit>;
    expert_keys<tile, Rows> of_tile;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) of_tile.value.at[r][0] = keys[r];
    detail::keep_best_groups<tile, Rows>(tile(), of_tile, model,
                                         detail::loop_count<true, Rows>{Rows}, has_finite);
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) keys[r] = of_tile.value.at[r][0];
  }
  return rank_whole_keys(keys, lane, model.top_k);
}

/// Any gating: the row at `data`, which was loaded with -inf past E and is made finite; `bias` [E]
/// or null. `needs_logs`: the sum of s ln s is read, and `needs_rank_logs`: the logarithms of the
/// ranks' scores. Returns finish_warp's divisor.
template <class Tier, class Score, class Logit>
__device__ ADAPTIVE_K_INLINE float rank_by_gating(const Logit* data, warp_row<Tier::rows>& row,
                                                  const gating& model, const float* bias, int lane,
                                                  bool needs_logs, bool needs_rank_logs,
                                                  warp_ranking& made) noexcept {
  constexpr int rows = Tier::rows;
  using key = warp_key<rows>;
  const int num_experts = model.num_experts;
  const int top_k = model.top_k;
  bool by_score = model.selection_bias;
  warp_row<rows> offset;  // of the scores, -inf past E
  if (by_score) {
    offset.load(bias + lane, lane, num_experts);
  } else if (detail::selects_by_score(model)) {
    by_score = true;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r)
      offset.at[r] = 32 * r + lane < num_experts ? 0.0f : -math::infinity;
  }
  std::uint32_t most = largest_order(row);
  made.was_odd = key::is_odd(most);  // in all lanes
  bool has_finite = true;
  if (made.was_odd) {
    has_finite = make_finite(row, lane, num_experts);
    most = largest_order(row);
  }

  __shared__ float scores_by_warp[threads_per_block / 32][32 * rows];
  float* const shared_scores = scores_by_warp[warp::kept(static_cast<int>(threadIdx.x / 32))];
  warp_scores<rows> scores;
  made.sums = {};  // read where `needs_logs`
  float divisor = 1.0f;
  float inverse_total = 1.0f;
  with_score<Score>(model.kind, [&](auto score) {
    using type = decltype(score);
    if constexpr (detail::is_softmax<type>) {
      made.sums = scores.set_softmax(row, lane, key::value(most));
      divisor = made.sums.score;
      if (by_score) inverse_total = math::divide(1.0f, divisor);
    } else {
      ADAPTIVE_K_UNROLL
      for (int r = 0; r < rows; ++r) scores.score.at[r] = type::of(row.at[r]);
      if (needs_logs) {
        ADAPTIVE_K_UNROLL
        for (int r = 0; r < rows; ++r)
          scores.log_score.at[r] = detail::log_of_score(scores.score.at[r]);
        made.sums = scores.add_up(lane);
      }
    }
  });
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < rows; ++r) shared_scores[32 * r + lane] = scores.score.at[r];
  __syncwarp();

  std::uint32_t keys[rows];
  if (by_score) {
    // The sum with a built-in score, which is not -0, is not -0 either.
    constexpr bool may_be_negative_zero = !std::is_same_v<Score, score_of_kind>;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r) {
      const float value = math::fma(scores.score.at[r], inverse_total, offset.at[r]);
      keys[r] = may_be_negative_zero ? key::order(value) : key::order_of_result(value);
    }
  } else {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r) keys[r] = key::order(row.at[r]);
  }
  if (model.n_group > 1) {
    keep_best_rows(keys, model, lane);
  } else {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < rows; ++r) keys[r] = key::shorten(keys[r]);
  }
  const std::uint32_t lane_bits = key::lane_bits(lane);
  warp::while_true<rows>([&](auto r) {
    keys[r] = key::template join<r>(keys[r], lane_bits);
    return true;
  });
  const std::uint32_t own = rank_keys<Tier::max_top_k + 1>(keys, lane, top_k + 1);
  int expert = key::expert(own);
  // Short keys of 16-bit logits hold all of their order; else two that meet may be the wrong way.
  const bool meets = (own ^ warp::of_next_lane(own)) <= key::id_mask;
  bool unsure = meets && (by_score || sizeof(Logit) != 2) && lane < top_k;
  unsure = unsure || own >= key::infinite || made.was_odd;
  if (warp::any(unsure))
    expert = rank_exactly<rows>(data, model, bias, lane, shared_scores, inverse_total, has_finite);
  expert = lane < top_k ? expert : 0;

  const float chosen = shared_scores[expert];
  detail::score_pair<> s = {chosen, 0.0f};
  if (needs_rank_logs) {
    const float logit = has_finite ? to_float(data[expert]) : 0.0f;
    s.log_score =
        is_relative<Score>(model.kind)
            ? math::minimum(math::maximum(logit - key::value(most), math::exp_floor), 0.0f)
            : detail::log_of_score(chosen);
  }
  made.set_rank(lane, top_k, expert, s);
  return divisor;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
