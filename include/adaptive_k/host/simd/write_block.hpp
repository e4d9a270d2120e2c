// Rows of logits into a block, and a block's decisions into rows.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/weights.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Elements from row to row of what widen_rows writes.
constexpr int wide_stride(int num_experts) {
  return (num_experts + 3) / 4 * 4;
}

/// Rows of logits as floats; past E they go on with one of their own, neither larger nor infinite.
struct widen_rows {
  template <class Set>
  struct body {
    template <class Logit>
    static ADAPTIVE_K_INLINE void run(const Logit* rows, std::int64_t stride, int num_rows,
                                      int num_experts, float* floats) noexcept {
      using f32_vec = typename Set::f32_vec;
      for (int i = 0; i < num_rows; ++i, rows += stride, floats += wide_stride(num_experts)) {
        int expert = 0;
        for (; expert + f32_vec::lanes <= num_experts; expert += f32_vec::lanes)
          f32_vec::store(floats + expert, f32_vec::load(rows + expert));
        for (; expert < num_experts; ++expert) floats[expert] = to_float(rows[expert]);
        for (; expert < wide_stride(num_experts); ++expert) floats[expert] = floats[0];
      }
    }
  };
};

/// Puts one token's decision where the block has it.
template <int Lanes>
void put_lane(const token_route<max_top_k>& route, int top_k, int lane,
              token_block<Lanes>& block) noexcept {
  for (int j = 0; j < top_k; ++j) {
    block.expert[j][lane] = static_cast<std::uint32_t>(route.expert[j]);
    block.weight[j][lane] = route.weight[j];
  }
  block.count[lane] = static_cast<std::uint32_t>(route.count);
  block.chosen[lane] = static_cast<std::uint32_t>(route.chosen);
  block.signal[lane] = route.signal;
  block.kept_mass[lane] = route.kept_mass;
  block.total_mass[lane] = route.total_mass;
  const auto set_lane = [lane](std::uint32_t& lanes, int bit) {
    lanes = (lanes & ~(1u << lane)) | static_cast<std::uint32_t>(bit) << lane;
  };
  set_lane(block.raised_lanes, route.raised);
  set_lane(block.outside_lanes, route.outside);
}

/// [top_k][lane] to [lane, top_k], four ranks at a time.
template <class F32>
ADAPTIVE_K_INLINE void transpose_ranks(float (&ranks)[lane_top_k][F32::lanes], int top_k,
                                       float* to) noexcept {
  int rank = 0;
  for (; rank + 4 <= top_k; rank += 4) {
    F32 v[4];
    for (int i = 0; i < 4; ++i) v[i] = F32::load(ranks[rank + i]);
    F32::transpose_quarters(v);
    for (int i = 0; i < 4; ++i) F32::store_quarters(to + i * top_k + rank, top_k, v[i]);
  }
  for (; rank < top_k; ++rank)
    for (int lane = 0; lane < F32::lanes; ++lane)
      std::memcpy(to + lane * top_k + rank, &ranks[rank][lane], sizeof *to);
}

/// Writes a block's decisions from `token` of a call on.
template <class F32, class Context>
ADAPTIVE_K_INLINE void write_block(const Context& call, const token_block<F32::lanes>& block,
                                   std::int64_t token) noexcept {
  const auto& output = *call.output;
  const int top_k = call.model->top_k;
  using u32_vec = typename F32::u32_vec;
  alignas(64) float weights[lane_top_k][F32::lanes];
  alignas(64) float ids[lane_top_k][F32::lanes];  // their bits, so that one function serves both
  const u32_vec count = u32_vec::load(block.count);
  const u32_vec pad =
      call.fill == fill_id::first_expert ? u32_vec::load(block.expert[0]) : u32_vec(call.pad_id());
  for (int j = 0; j < top_k; ++j) {
    const auto kept = count > u32_vec(j);
    F32::store(weights[j], F32::select(kept, F32::load(block.weight[j]), 0.0f));
    F32::store(ids[j], F32::from_bits(u32_vec::select(kept, u32_vec::load(block.expert[j]), pad)));
  }
  transpose_ranks<F32>(weights, top_k, output.topk_weights + token * top_k);
  transpose_ranks<F32>(ids, top_k, reinterpret_cast<float*>(output.topk_ids + token * top_k));
  if (output.topk_counts != nullptr)
    u32_vec::store(reinterpret_cast<std::uint32_t*>(output.topk_counts + token), count);
  if (output.chosen_counts != nullptr)
    u32_vec::store(reinterpret_cast<std::uint32_t*>(output.chosen_counts + token),
                   u32_vec::load(block.chosen));
  if (output.signal != nullptr) F32::store(output.signal + token, F32::load(block.signal));
  if (output.weight_factors != nullptr) {
    const F32 factor = mass_factor(F32::load(block.kept_mass), F32::load(block.total_mass),
                                   call.plan->mass_exponent);
    F32::store(output.weight_factors + token, F32::select(count < u32_vec(top_k), factor, 1.0f));
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
