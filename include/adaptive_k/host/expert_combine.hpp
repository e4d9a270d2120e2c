// The weighted sum over experts' outputs on the host, the twin of the device's.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/expert_combine.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/scaled_rows.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

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
