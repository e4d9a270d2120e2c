// The kernel for long launches of few experts: a lane decides whole rows
// (thread_per_token_rows.cuh). Tiles take what it cannot: the last rows, all of them under a plan
// that compares something else than the entropy (which only the device sees), and all of a warp's,
// loaded again, where one is not finite or not close.
#pragma once

#include <cstdint>

#include "adaptive_k/core/entropy_plan.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/entropy_plan.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/softmax_topk_kernel.cuh"
#include "adaptive_k/cuda/thread_per_token_rows.cuh"
#include "adaptive_k/cuda/tuning.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Routes rows that lie whole in the lanes, Rows of them a lane from `first` on, under a call
/// of fixed shape and a plan that compares the entropy. False, and nothing done: not all of them
/// are finite and close.
template <class Logit, int Experts, int Rows>
__device__ ADAPTIVE_K_INLINE bool route_thread_per_token(const route_params& params,
                                                         const detail::k_plan_head& head,
                                                         std::int64_t first,
                                                         token_loader<Logit, Experts, Rows>& loader,
                                                         block_metrics& metrics) noexcept {
  const std::int64_t token = first + threadIdx.x % 32;  // and every 32nd from here
  float logit[Rows][Experts];
  row_extremes extremes[Rows];
  loader.load(static_cast<const Logit*>(params.logits) + first * Experts, logit);
  bool close = true;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) {
    extremes[r] = extremes_of<Logit>(logit[r]);
    close = close && extremes[r].largest - extremes[r].least <= -math::exp_floor;
  }
  if (!__all_sync(0xFFFFFFFFu, close)) return false;

  const detail::renormalized_softmax<2> model = {Experts, params.model.routed_scaling_factor};
  const detail::limited_plan<2> plan(load_entropy_plan<2>(params.plan, head));
  const int filler = params.fill == fill_id::num_experts ? Experts : -1;
  detail::token_route<2> route[Rows];
  const auto decide = [&](const auto& by) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      detail::ranked_experts<2> ranked;
      const auto sums = rank_two(logit[r], extremes[r], ranked);
      detail::finish_route<detail::softmax_score>(model, by, sums, by.limits, detail::no_forced_k,
                                                  detail::loop_count<true, 2>{2}, ranked, route[r]);
      const bool both = route[r].count > 1;
      const int past = params.fill == fill_id::first_expert ? route[r].expert[0] : filler;
      route[r].expert[1] = both ? route[r].expert[1] : past;
      route[r].weight[1] = both ? route[r].weight[1] : 0.0f;
    }
  };
  if (plan.mass_exponent == 1.0f)
    decide(detail::whole_mass_plan<2>{plan});
  else
    decide(plan);

  int2* const ids = static_cast<int2*>(params.topk_ids) + token;
  float2* const weights = static_cast<float2*>(params.topk_weights) + token;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) {
    ids[32 * r] = {route[r].expert[0], route[r].expert[1]};
    weights[32 * r] = {route[r].weight[0], route[r].weight[1]};
  }
  if (params.topk_counts != nullptr) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) params.topk_counts[token + 32 * r] = route[r].count;
  }
  if (params.signal != nullptr) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) params.signal[token + 32 * r] = route[r].signal;
  }
  if (metrics.counts()) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      metrics.add_token(false, route[r].count, route[r].signal, false);
      metrics.add_experts(route[r].expert, route[r].count);
    }
  }
  return true;
}

/// Shared memory of a warp: its rows are long in registers when tiles need it.
template <class Tier, class Logit>
union warp_memory {
  token_loader<Logit, Tier::max_experts, tokens_per_thread> loader;  ///< while rows are read
  tile_memory<Tier, Logit> tiles;  ///< while a tile decides what a lane cannot
};

/// Takes calls of fixed shape of the tier's E and K0 whose rows follow one another from a 16-byte
/// boundary.
template <class Tier, class Logit>
__global__ void __launch_bounds__(threads_per_block, Tier::blocks_per_sm)
    thread_per_token_route_kernel(route_params params) {
  static_assert(takes_thread_per_token<Tier, Logit>, "rows of a size that the loader knows");
  wait_for_previous_kernel();
  allow_next_kernel();
  block_metrics metrics(params.metrics, params.expert_counts, params.model.num_experts);
  __shared__ warp_memory<Tier, Logit> memory_by_warp[threads_per_block / 32];
  warp_memory<Tier, Logit>& memory = memory_by_warp[threadIdx.x / 32];
  constexpr int rows = 32 * tokens_per_thread;
  const std::int64_t first = warp_of_launch() * rows;
  const std::int64_t left = params.num_tokens - first;
  if (left > 0) {
    const detail::k_plan_head plan = load_plan_head(params.plan);
    const bool by_entropy = detail::compares_entropy(plan);
    if (!by_entropy || left < rows ||
        !route_thread_per_token(params, plan, first, memory.loader, metrics)) {
      for (int done = 0; done < rows && done < left; done += 32) {
        __syncwarp();  // what was staged before may still be read
        route_tiles<Tier, Logit, detail::k_plan>(params, plan, by_entropy, first + done, 1,
                                                 memory.tiles, metrics);
      }
    }
  }
  finish_block(params, metrics);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
