// The generic_gating kernel: any gating, selection bias, groups, replay. One launch and one read of
// the logits. The decision is core/route_token.hpp; here is what surrounds it.
#pragma once

#include <cstdint>

#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/device_select.cuh"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/tuning.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Any call: a tile of the warp decides each token.
template <class Tier, class Score, class Logit, class Plan>
__global__ void __launch_bounds__(threads_per_block, generic_gating_blocks_per_sm)
    generic_gating_route_kernel(route_params params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  using tile_type = device_tile<Tier::lanes, Tier::row_width, Logit>;
  constexpr int lanes = Tier::lanes;
  constexpr int max_top_k = Tier::max_top_k;
  const tile_type tile;
  const int lane = tile_type::lane();
  const int top_k = params.model.top_k;
  block_metrics metrics(params.metrics, params.expert_counts, params.model.num_experts);

  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const bool exists = first < params.num_tokens;
  const std::int64_t token = exists ? first : params.num_tokens - 1;  // every lane must take part
  const Logit* row = static_cast<const Logit*>(params.logits) + token * params.row_stride;
  const device_replay replay = {params, token, exists};
  const Plan& plan = *static_cast<const Plan*>(params.plan);
  const detail::token_route<max_top_k> route = detail::route_token<Score, Tier::rows, max_top_k>(
      tile, params.model, plan, params.routing_bias, limits_of(params, plan.limits, token),
      params.chosen_counts != nullptr, device_row<Logit>{row, params.load_width}, replay,
      device_head<Logit>(params, token));

  const bool padding = is_padding(params, token) || (replay.active() && replay.count() == 0);
  const int count = padding ? 0 : route.count;
  const int filler = filler_of(params, padding, route.expert[0]);
  if (replay.active()) __syncwarp();  // ids may be rewritten in place
  if (exists) {
    ADAPTIVE_K_UNROLL
    for (int start = 0; start < max_top_k; start += lanes) {
      int expert = filler;
      float weight = 0.0f;
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < lanes && start + i < max_top_k; ++i) {
        if (i == lane && start + i < count) {
          expert = route.expert[start + i];
          weight = route.weight[start + i];
        }
      }
      const int j = start + lane;
      if (j < top_k) {
        store_id(params.topk_ids, token * top_k + j, params.ids, expert);
        store_weight(params.topk_weights, token * top_k + j, params.weights, weight);
        if (j < count) metrics.add_expert(expert);
      }
    }
    if (lane == 0) store_token(params, token, padding, route, metrics);
  }
  finish_block(params, metrics);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
