// The plain route kernel: softmax ranked by logit alone. A warp takes 32 / lanes rows a round, a
// tile each, for up to `lanes` rounds; then every lane decides one token, so that the decision
// costs a token 1/32 of a warp's time and not `lanes`/32.
#pragma once

#include <cstdint>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/plain_row.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/tuning.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// A warp's ids or weights on their way out, as 32-bit words in the order of memory.
template <int MaxTopK>
struct staged_slots {
  static constexpr int most = 32 * MaxTopK;
  uint4 words[most / 4];

  __device__ ADAPTIVE_K_INLINE std::uint32_t* word() noexcept {
    return reinterpret_cast<std::uint32_t*>(words);
  }
};

/// Writes `count` staged values from `base[first]` on, a warp's neighbouring lanes side by side.
template <int MaxTopK, class T, class Convert>
__device__ ADAPTIVE_K_INLINE void copy_out(staged_slots<MaxTopK>& staged, T* base, int count,
                                           Convert convert) noexcept {
  struct alignas(4 * sizeof(T)) four {
    T at[4];
  };
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool aligned = reinterpret_cast<std::uintptr_t>(base) % sizeof(four) == 0;
  const int wide = aligned ? count / 4 * 4 : 0;
  for (int i = lane * 4; i < wide; i += 128) {
    const uint4 from = staged.words[i / 4];
    *reinterpret_cast<four*>(base + i) = {
        {convert(from.x), convert(from.y), convert(from.z), convert(from.w)}};
  }
  for (int i = wide + lane; i < count; i += 32) base[i] = convert(staged.word()[i]);
}

template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE void copy_ids(staged_slots<MaxTopK>& staged, void* base,
                                           std::int64_t first, int count, id_type type) noexcept {
  const auto narrow = [](std::uint32_t id) { return static_cast<std::int16_t>(id); };
  switch (type) {
    case id_type::int32:
      return copy_out(staged, static_cast<std::int32_t*>(base) + first, count,
                      [](std::uint32_t id) { return static_cast<std::int32_t>(id); });
    case id_type::int64:
      return copy_out(staged, static_cast<std::int64_t*>(base) + first, count,
                      [](std::uint32_t id) {
                        return static_cast<std::int64_t>(static_cast<std::int32_t>(id));
                      });
    case id_type::int16:
    case id_type::uint16:
      return copy_out(staged, static_cast<std::int16_t*>(base) + first, count, narrow);
  }
}

template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE void copy_weights(staged_slots<MaxTopK>& staged, void* base,
                                               std::int64_t first, int count,
                                               float_type type) noexcept {
  switch (type) {
    case float_type::float32:
      return copy_out(staged, static_cast<float*>(base) + first, count,
                      [](std::uint32_t bits) { return __uint_as_float(bits); });
    case float_type::float16:
      return copy_out(staged, static_cast<float16*>(base) + first, count, [](std::uint32_t bits) {
        return from_float<float16>(__uint_as_float(bits));
      });
    case float_type::bfloat16:
      return copy_out(staged, static_cast<bfloat16*>(base) + first, count, [](std::uint32_t bits) {
        return from_float<bfloat16>(__uint_as_float(bits));
      });
  }
}

/// Routes what falls to this warp.
template <class Tier, class Logit>
__device__ ADAPTIVE_K_INLINE void route_warp(const route_params& params,
                                             block_metrics& metrics) noexcept {
  using tile_type = device_tile<Tier::lanes, Tier::row_width, Logit>;
  constexpr int lanes = Tier::lanes;
  constexpr int max_top_k = Tier::max_top_k;
  constexpr int tiles = 32 / lanes;
  const tile_type tile;
  const int lane = tile_type::lane();
  const int warp_lane = static_cast<int>(threadIdx.x % 32);
  const int top_k = params.model.top_k;
  const int num_experts = params.model.num_experts;
  const detail::k_plan& plan = *params.plan;
  const detail::sums_needed needed =
      detail::sums_for<gating_kind::softmax>(params.model, plan, false);

  const int rounds = lanes == 1 ? 1 : params.rounds;
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const std::int64_t first = warp * (tiles * rounds);  // the warp's first token
  if (first >= params.num_tokens) return;
  const int tile_index = warp_lane / lanes;
  using staging = staged_rows<tile_type, Tier::max_experts>;
  __shared__ staging rows_by_warp[staging::fit ? threads_per_block / 32 : 1];
  row_summary<Logit, max_top_k> own;
  for (int round = 0; round < rounds; ++round) {
    if (first + round * tiles >= params.num_tokens) break;
    const std::int64_t round_first = first + round * tiles;
    const std::int64_t left = params.num_tokens - round_first;
    const int in_round = left < tiles ? static_cast<int>(left) : tiles;
    const int index = tile_index < in_round ? tile_index : in_round - 1;  // every lane takes part
    const Logit* const data =
        static_cast<const Logit*>(params.logits) + round_first * params.row_stride;
    device_row<Logit> source = {data + index * params.row_stride, params.load_width};
    loaded_row<tile_type, Tier::rows> row;
    if (staging::fit && params.stages_rows) {
      staging& staged = rows_by_warp[staging::fit ? threadIdx.x / 32 : 0];
      staged.copy_in(data, in_round, num_experts);
      source.data = staged.row(index, num_experts);
      row = fetch_row<Tier::rows, tile_type, true>(source, num_experts);
    } else {
      row = fetch_row<Tier::rows, tile_type>(source, num_experts);
    }
    row_summary<Logit, max_top_k> summary;
    summarise(tile, row, num_experts, needed, summary);
    if (lanes == 1 || lane == round) own = summary;
  }

  const int own_index = lane * tiles + tile_index;  // of the warp's tokens
  const std::int64_t token = first + own_index;
  const bool decides = lane < rounds && token < params.num_tokens;
  detail::token_route<max_top_k> route;
  bool padding = false;
  int count = 0;
  if (decides) {
    detail::ranked_experts<max_top_k> ranked;
    own.rank(top_k, ranked);
    const bool shadow = params.chosen_counts != nullptr;
    route.has_nonfinite = own.has_nonfinite;
    detail::finish_route<gating_kind::softmax>(
        params.model, plan, own.sums, limits_of(params, token),
        shadow ? top_k : detail::choice_counts, detail::loop_count<true, max_top_k>{top_k}, ranked,
        route);
    padding = is_padding(params, token);
    count = padding ? 0 : route.count;
    store_token(params, token, padding, route, metrics);
  }

  __shared__ staged_slots<max_top_k> staged_by_warp[threads_per_block / 32];
  staged_slots<max_top_k>& staged = staged_by_warp[threadIdx.x / 32];
  std::uint32_t* own_slots = staged.word() + own_index * top_k;
  const std::int64_t left = params.num_tokens - first;
  const int tokens = left < tiles * rounds ? static_cast<int>(left) : tiles * rounds;
  if (decides) {
    const int filler = filler_of(params, padding, route.expert[0]);
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < max_top_k; ++j) {
      if (j >= top_k) break;
      if (j < count) metrics.add_expert(route.expert[j]);
      own_slots[j] = static_cast<std::uint32_t>(j < count ? route.expert[j] : filler);
    }
  }
  __syncwarp();
  copy_ids(staged, params.topk_ids, first * top_k, tokens * top_k, params.ids);
  __syncwarp();
  if (decides) {
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < max_top_k; ++j) {
      if (j >= top_k) break;
      own_slots[j] = __float_as_uint(j < count ? route.weight[j] : 0.0f);
    }
  }
  __syncwarp();
  copy_weights(staged, params.topk_weights, first * top_k, tokens * top_k, params.weights);
}

template <class Tier, class Logit>
__global__ void __launch_bounds__(threads_per_block, Tier::blocks_per_sm)
    plain_route_kernel(route_params params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  block_metrics metrics(params.metrics, params.model.num_experts);
  route_warp<Tier, Logit>(params, metrics);
  finish_block(params, metrics);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
