// The weighted sum over experts' outputs on the host, the twin of the device's.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/expert_combine.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// sum[i] += weight * values[i] for i in `first` to `size` - 1, each rounded once.
template <class Value>
void add_scaled_scalar(const Value* values, float weight, int first, int size,
                       float* sum) noexcept {
  for (int i = first; i < size; ++i) sum[i] = math::fma(weight, to_float(values[i]), sum[i]);
}

struct add_scaled_vectors {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    template <class Value>
    static ADAPTIVE_K_INLINE void run(const Value* values, float weight, int size,
                                      float* sum) noexcept {
      int i = 0;
      for (; i + Set::lanes <= size; i += Set::lanes)
        f32_vec::store(sum + i,
                       f32_vec::fma(weight, f32_vec::load(values + i), f32_vec::load(sum + i)));
      add_scaled_scalar(values, weight, i, size, sum);
    }
  };
};

/// The same for all by a set that is available. Here, or compiled once in
/// kernels/route_vectors.cpp.
template <class Value>
void add_scaled(instruction_set set, const Value* values, float weight, int size,
                float* sum) noexcept;
#if ADAPTIVE_K_SIMD || !ADAPTIVE_K_LINKS_EVERY_SET
template <class Value>
void add_scaled(instruction_set set, const Value* values, float weight, int size,
                float* sum) noexcept {
  const bool added = with_vectors(set, [=](auto vectors) {
    decltype(vectors)::template run<add_scaled_vectors::body>(values, weight, size, sum);
  });
  if (!added) add_scaled_scalar(values, weight, 0, size, sum);
}
#endif

}  // namespace detail

/// output[t] = addend[t] + sum over slots j of w[t, j] * expert_outputs[row of (t, j)], in order of
/// j, in float, each step one fma, rounded to Value at the end. `output` [num_tokens, hidden_size]
/// may be `addend`. No allocation. With a refusal nothing is written.
template <class Value, class Weight>
status combine_experts(const combine_shape& shape, const combine_input<Value, Weight>& input,
                       Value* output) noexcept {
  const status checked = detail::check_combine(shape, input, output);
  if (!checked.ok()) return checked;
  const instruction_set set = best_instruction_set();
  constexpr int columns = 256;  // summed at a time, so that rows are read in order
  const std::int64_t stride = shape.row_stride != 0 ? shape.row_stride : shape.hidden_size;
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    const int count = input.topk_counts != nullptr ? input.topk_counts[t] : shape.top_k;
    for (int first = 0; first < shape.hidden_size; first += columns) {
      const int left = shape.hidden_size - first;
      const int size = left < columns ? left : columns;
      const std::int64_t at = t * shape.hidden_size + first;
      float sum[columns] = {};
      if (input.addend != nullptr)
        for (int i = 0; i < size; ++i) sum[i] = to_float(input.addend[at + i]);
      for (int j = 0; j < shape.top_k && j < count; ++j) {
        const std::int64_t slot = t * shape.top_k + j;
        const std::int64_t row = input.row_of_slot != nullptr ? input.row_of_slot[slot] : slot;
        if (row < 0) continue;
        const float weight = input.topk_weights != nullptr ? to_float(input.topk_weights[slot]) : 1;
        const Value* values = input.expert_outputs + row * stride + first;
        detail::add_scaled(set, values, weight, size, sum);
      }
      for (int i = 0; i < size; ++i) output[at + i] = detail::combined<Value>(sum[i]);
    }
  }
  return {};
}

ADAPTIVE_K_NAMESPACE_END
