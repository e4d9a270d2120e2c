// The softmax_topk kernel: softmax ranked by logit alone. A warp takes 32 / lanes rows a round, a
// tile each, for up to `lanes` rounds; then every lane decides one token, so that the decision
// costs a token 1/32 of a warp's time and not `lanes`/32.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/plan_head.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/softmax_topk_row.cuh"
#include "adaptive_k/cuda/staged_stores.cuh"
#include "adaptive_k/cuda/tuning.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// This thread's warp, counted over the grid.
__device__ ADAPTIVE_K_INLINE std::int64_t warp_of_launch() noexcept {
  return static_cast<std::int64_t>(blockIdx.x) * (threads_per_block / 32) + threadIdx.x / 32;
}

/// The tokens of a warp, and which of them a lane decides.
struct warp_tokens {
  std::int64_t first;  ///< token of the warp
  int count;           ///< from `first` on, 1..32
  int own;             ///< of this lane, counted from `first`
  bool decides;        ///< whether this lane has a token that counts
  /// The token that this lane decides.
  __device__ ADAPTIVE_K_INLINE std::int64_t own_token() const noexcept { return first + own; }
};

/// Decides and stores. `Fixed`: a call whose rows are whole (see route_params), which leaves fewer
/// questions.
template <bool Fixed, class Plan, class Head, int MaxTopK, class Logit>
__device__ ADAPTIVE_K_INLINE void decide(const route_params& params, const Head& head,
                                         const row_summary<Logit, MaxTopK>& own,
                                         const warp_tokens& tokens, staged_slots<MaxTopK>& staged,
                                         block_metrics& metrics) noexcept {
  softmax_gating model;
  static_cast<gating&>(model) = params.model;
  if constexpr (Fixed) {
    model.top_k = MaxTopK;
    model.renormalize = true;
  }
  const int top_k = model.top_k;
  const std::int64_t token = tokens.own_token();
  std::uint32_t ids[MaxTopK];
  std::uint32_t weights[MaxTopK];
  if (tokens.decides) {
    detail::ranked_experts<MaxTopK> ranked;
    own.rank(top_k, ranked);
    detail::token_route<MaxTopK> route;
    route.has_nonfinite = own.has_nonfinite;
    const auto plan = load_plan<MaxTopK, Plan>(params.plan, head);
    const bool shadow = !Fixed && params.chosen_counts != nullptr;
    k_limits limits = plan.limits;
    if constexpr (!Fixed) limits = limits_of(params, plan.limits, token);
    const detail::loop_count<true, MaxTopK> ranks = {top_k};
    const device_head<Logit> columns(params, token);
    if (plan.reads_head() && !(detail::head_defect<float>(columns, top_k, ranks) == 0.0f))
      route.has_nonfinite = true;
    detail::finish_route<detail::softmax_score>(model, plan, own.sums, limits,
                                                shadow ? top_k : detail::no_forced_k, ranks, ranked,
                                                route, columns);
    const bool padding = !Fixed && is_padding(params, token);
    const int count = padding ? 0 : route.count;
    store_token<Fixed>(params, token, padding, route, metrics);
    metrics.add_experts(route.expert, count);
    const int filler = filler_of(params, padding, route.expert[0]);
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < MaxTopK; ++j) {
      ids[j] = static_cast<std::uint32_t>(j < count ? route.expert[j] : filler);
      weights[j] = __float_as_uint(j < count ? route.weight[j] : 0.0f);
    }
  }
  const std::int64_t first_slot = tokens.first * top_k;
  if constexpr (Fixed) {
    store_rows(staged, static_cast<std::int32_t*>(params.topk_ids) + first_slot, ids, tokens.own,
               tokens.decides, tokens.count);
    store_rows(staged, static_cast<float*>(params.topk_weights) + first_slot, weights, tokens.own,
               tokens.decides, tokens.count);
  } else {
    const auto stage = [&](const std::uint32_t(&values)[MaxTopK]) {
      std::uint32_t* const own_slots = staged.word() + tokens.own * top_k;
      if (tokens.decides) {
        ADAPTIVE_K_UNROLL
        for (int j = 0; j < MaxTopK; ++j) {
          if (j >= top_k) break;
          own_slots[j] = values[j];
        }
      }
      __syncwarp();
    };
    const int num_slots = tokens.count * top_k;
    stage(ids);
    copy_ids(staged, params.topk_ids, first_slot, num_slots, params.ids);
    __syncwarp();
    stage(weights);
    copy_weights(staged, params.topk_weights, first_slot, num_slots, params.weights);
  }
}

/// Shared memory of a warp that routes by tiles.
template <class Tier, class Logit>
struct tile_memory {
  /// Rows of the warp's tokens.
  staged_rows<device_tile<Tier::lanes, Tier::row_width, Logit>, Tier::max_experts> rows;
  staged_slots<Tier::max_top_k> slots;  ///< what it writes
};

/// Routes what falls to this warp: up to 32 / lanes rows a round, by tiles.
template <class Tier, class Logit, class Plan>
__device__ ADAPTIVE_K_INLINE void route_warp(const route_params& params,
                                             block_metrics& metrics) noexcept {
  using tile_type = device_tile<Tier::lanes, Tier::row_width, Logit>;
  constexpr int lanes = Tier::lanes;
  constexpr int max_top_k = Tier::max_top_k;
  constexpr int tiles = 32 / lanes;
  const int rounds = lanes == 1 ? 1 : params.rounds;               // at most the lanes
  const std::int64_t first = warp_of_launch() * (tiles * rounds);  // its first token
  if (first >= params.num_tokens) return;
  __shared__ tile_memory<Tier, Logit> memory_by_warp[threads_per_block / 32];
  tile_memory<Tier, Logit>& memory = memory_by_warp[threadIdx.x / 32];
  const auto plan = load_head<Plan>(params.plan);
  const tile_type tile;
  const int lane = tile_type::lane();
  const int warp_lane = static_cast<int>(threadIdx.x % 32);
  const int num_experts = params.model.num_experts;
  const std::int64_t left = params.num_tokens - first;
  const detail::sums_needed needed =
      detail::sums_for<detail::softmax_score>(params.model, plan, false);
  const int tile_index = warp_lane / lanes;
  const int count = left < tiles * rounds ? static_cast<int>(left) : tiles * rounds;
  row_summary<Logit, max_top_k> own;
  for (int round = 0; round < rounds; ++round) {
    const int done = round * tiles;
    if (done >= count) break;
    const int in_round = count - done < tiles ? count - done : tiles;
    const int index = tile_index < in_round ? tile_index : in_round - 1;  // every lane takes part
    const Logit* const data =
        static_cast<const Logit*>(params.logits) + (first + done) * params.row_stride;
    device_row<Logit> source = {data + index * params.row_stride, params.load_width};
    loaded_row<tile_type, Tier::rows> row;
    if (memory.rows.fit && params.stages_rows) {
      memory.rows.copy_in(data, in_round, num_experts);
      source.data = memory.rows.row(index, num_experts);
      row = fetch_row<Tier::rows, Tier::max_experts, tile_type, true>(source, num_experts);
    } else {
      row = fetch_row<Tier::rows, Tier::max_experts, tile_type>(source, num_experts);
    }
    row_summary<Logit, max_top_k> summary;
    summarise<Tier::max_experts>(tile, row, num_experts, needed, summary);
    if (lanes == 1 || lane == round) own = summary;
  }

  const int own_index = lane * tiles + tile_index;
  const warp_tokens tokens = {first, count, own_index, lane < rounds && own_index < count};
  if (params.whole_rows)
    decide<true, Plan>(params, plan, own, tokens, memory.slots, metrics);
  else
    decide<false, Plan>(params, plan, own, tokens, memory.slots, metrics);
}

/// Softmax ranked by logit alone: tiles read rows, then every lane decides one token.
template <class Tier, class Logit, class Plan>
__global__ void __launch_bounds__(threads_per_block, Tier::blocks_per_sm)
    softmax_topk_route_kernel(route_params params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  block_metrics metrics(params.metrics, params.expert_counts, params.model.num_experts);
  route_warp<Tier, Logit, Plan>(params, metrics);
  finish_block(params, metrics);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
