// The warp_per_token kernel: a warp decides one token, for launches that leave most of a GPU idle,
// where what counts is how long a token's chain of dependent steps is. The lanes share a row's
// experts, then its ranks. Softmax ranked by logit alone, or any gating but sparsemixer.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/tuning.cuh"
#include "adaptive_k/cuda/warp_per_token_choice.cuh"
#include "adaptive_k/cuda/warp_per_token_gating.cuh"
#include "adaptive_k/cuda/warp_per_token_ranking.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Writes what a token gets, under any call. `row` is its logits.
template <int Rows>
__device__ ADAPTIVE_K_INLINE void store_warp(const route_params& params, std::int64_t token,
                                             int lane, const warp_row<Rows>& row,
                                             const warp_ranking& ranking, const warp_choice& choice,
                                             block_metrics& metrics) noexcept {
  const int top_k = params.model.top_k;
  const bool padding = is_padding(params, token);
  const int count = padding ? 0 : choice.count;
  const int expert = ranking.rank.expert;
  const int filler = filler_of(params, padding, warp::of_lane(expert, 0));
  detail::token_route<1> route;
  route.count = choice.count;
  route.chosen = choice.chosen;
  route.raised = choice.raised;
  route.outside = choice.outside;
  route.signal = choice.signal;
  route.has_nonfinite =
      metrics.counts() && (ranking.was_odd || has_nonfinite(row, lane, params.model.num_experts) ||
                           warp::any(choice.odd_head));
  if (lane < top_k) {
    const bool kept = lane < count;
    store_id(params.topk_ids, token * top_k + lane, params.ids, kept ? expert : filler);
    store_weight(params.topk_weights, token * top_k + lane, params.weights,
                 kept ? choice.weight : 0.0f);
    if (kept) metrics.add_expert(expert);
  }
  if (lane == 0) store_token(params, token, padding, route, metrics);
}

/// The same under a plain call (see route_params).
template <int Rows>
__device__ ADAPTIVE_K_INLINE void store_plain(const route_params& params, int token, int lane,
                                              const warp_row<Rows>& row,
                                              const warp_ranking& ranking,
                                              const warp_choice& choice,
                                              block_metrics& metrics) noexcept {
  const int top_k = params.model.top_k;
  const int expert = ranking.rank.expert;
  int filler = -1;
  if (params.fill != fill_id::minus_one)
    filler = filler_of(params, false, warp::of_lane(expert, 0));
  const bool kept = lane < choice.count;
  if (lane < top_k) {
    const int slot = token * top_k + lane;
    static_cast<std::int32_t*>(params.topk_ids)[slot] = kept ? expert : filler;
    static_cast<float*>(params.topk_weights)[slot] = kept ? choice.weight : 0.0f;
  }
  if (lane == 0) {
    if (params.topk_counts != nullptr) params.topk_counts[token] = choice.count;
    if (params.signal != nullptr) params.signal[token] = choice.signal;
  }
  if (!metrics.counts()) return;
  const bool odd = ranking.was_odd || has_nonfinite(row, lane, params.model.num_experts) ||
                   warp::any(choice.odd_head);
  if (kept) metrics.add_expert(expert);
  if (lane == 0) metrics.add_token(false, choice.count, choice.signal, odd);
  if (lane == 0 && (choice.raised | choice.outside) != 0)
    metrics.add_watched(choice.raised, choice.outside);
}

/// Any call of a gating that Score says: softmax_score of softmax ranked by logit, score_of_kind of
/// any built-in gating, or a user's own.
template <class Tier, class Score, class Logit, class Plan>
__global__ void __launch_bounds__(threads_per_block, 5)
    warp_per_token_route_kernel(route_params params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  block_metrics metrics(params.metrics, params.expert_counts, params.model.num_experts);
  const int lane = warp::lane();
  const int token = warp::kept(static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32));
  if (token < static_cast<int>(params.num_tokens)) {
    constexpr int max_top_k = Tier::max_top_k;
    const Logit* const data =
        static_cast<const Logit*>(params.logits) + token * static_cast<int>(params.row_stride);
    warp_row<Tier::rows> row;
    row.load(data + lane, lane, params.model.num_experts);
    const loaded_plan<Plan> plan(params.plan, lane);
    warp_ranking ranking;
    const auto finish = [&](auto& model, float divisor) {
      model.kind = gating_kind::softmax;  // asked no more: `renormalize` holds of any kind
      constexpr bool built_in =
          std::is_same_v<Score, detail::softmax_score> || std::is_same_v<Score, score_of_kind>;
      const warp_choice choice = finish_warp<Logit, max_top_k, built_in>(
          params, token, model, plan, lane, ranking.sums, divisor, ranking.rank);
      if (params.plain)
        store_plain(params, token, lane, row, ranking, choice, metrics);
      else
        store_warp(params, token, lane, row, ranking, choice, metrics);
    };
    if constexpr (std::is_same_v<Score, detail::softmax_score>) {
      rank_by_logit<Tier>(data, row, params.model, lane, ranking);
      softmax_gating model;
      static_cast<gating&>(model) = params.model;
      finish(model, ranking.sums.score);
    } else {
      const float divisor = rank_by_gating<Tier, Score>(
          data, row, params.model, params.routing_bias, lane,
          detail::is_full_entropy(plan.head.signal), plan.reads_log_scores(), ranking);
      gating model = params.model;
      finish(model, divisor);
    }
  }
  finish_block(params, metrics);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
