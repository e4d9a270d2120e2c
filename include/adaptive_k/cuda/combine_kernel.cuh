// The combine kernel: a thread sums one vector of columns of one token over the token's experts.
#pragma once

#include <cstdint>

#include "adaptive_k/core/expert_combine.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

inline constexpr int combine_threads = 128;     ///< of a block
inline constexpr int combine_rows_at_once = 4;  ///< rows a thread has in flight

/// Everything a launch needs; device pointers. Passed by value.
struct combine_params {
  combine_shape shape;              ///< row_stride is never 0
  const void* expert_outputs;       ///< [rows, H] of the kernel's value type
  const std::int32_t* row_of_slot;  ///< [T, K0], -1: left out; null: slots are rows
  const std::int32_t* topk_counts;  ///< [T] or null: all K0
  const void* topk_weights;         ///< [T, K0] of `weights`, or null
  const void* addend;               ///< [T, H] or null; may be `output`
  void* output;                     ///< [T, H]
  std::uint32_t num_vectors;        ///< of all tokens
  std::uint32_t vectors_per_token;  ///< H / Width
  float_type weights;               ///< how topk_weights are stored
};

namespace combine_detail {

template <class Value, int Width>
struct alignas(Width * sizeof(Value)) vector {
  Value at[Width];
};

__device__ ADAPTIVE_K_INLINE float widen(float value) noexcept {
  return value;
}
__device__ ADAPTIVE_K_INLINE float widen(bfloat16 value) noexcept {
  return to_float(value);
}
/// One instruction; differs from to_float in the bits of NaNs alone.
__device__ ADAPTIVE_K_INLINE float widen(float16 value) noexcept {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

}  // namespace combine_detail

/// Width elements a load: 16 bytes, or 1 where addresses, stride or H do not allow that.
template <class Value, int Width>
__global__ void __launch_bounds__(combine_threads) combine_kernel(combine_params params) {
  using vector = combine_detail::vector<Value, Width>;
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::uint32_t index = blockIdx.x * combine_threads + threadIdx.x;
  if (index >= params.num_vectors) return;
  const std::int64_t token = index / params.vectors_per_token;
  const std::int64_t column = static_cast<std::int64_t>(index % params.vectors_per_token) * Width;
  const std::int64_t at = token * params.shape.hidden_size + column;
  const int top_k = params.shape.top_k;
  int count = top_k;
  if (params.topk_counts != nullptr && params.topk_counts[token] < top_k)
    count = params.topk_counts[token];

  float sum[Width] = {};
  if (params.addend != nullptr) {
    const vector start =
        *reinterpret_cast<const vector*>(static_cast<const Value*>(params.addend) + at);
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Width; ++i) sum[i] = combine_detail::widen(start.at[i]);
  }
  const Value* outputs = static_cast<const Value*>(params.expert_outputs) + column;
  for (int first = 0; first < count; first += combine_rows_at_once) {
    vector row[combine_rows_at_once];
    float weight[combine_rows_at_once];
    bool adds[combine_rows_at_once];
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < combine_rows_at_once; ++i) {
      adds[i] = first + i < count;
      const std::int64_t slot = token * top_k + first + i;
      std::int64_t from = slot;
      if (adds[i] && params.row_of_slot != nullptr) from = params.row_of_slot[slot];
      adds[i] = adds[i] && from >= 0;
      if (adds[i]) {
        weight[i] = params.topk_weights != nullptr
                        ? load_weight(params.topk_weights, slot, params.weights)
                        : 1.0f;
        row[i] = *reinterpret_cast<const vector*>(outputs + from * params.shape.row_stride);
      }
    }
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < combine_rows_at_once; ++i) {
      if (!adds[i]) continue;
      ADAPTIVE_K_UNROLL
      for (int c = 0; c < Width; ++c)
        sum[c] = math::fma(weight[i], combine_detail::widen(row[i].at[c]), sum[c]);
    }
  }
  vector result;
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < Width; ++i) result.at[i] = detail::combined<Value>(sum[i]);
  *reinterpret_cast<vector*>(static_cast<Value*>(params.output) + at) = result;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
