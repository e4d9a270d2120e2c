// The last step of a MoE layer: each token's weighted sum over the outputs of its experts.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Sizes of a combine call.
struct combine_shape {
  std::int64_t num_tokens = 0;  ///< T >= 0
  int top_k = 0;                ///< K0 in 1..32
  int hidden_size = 0;          ///< H >= 1
  std::int64_t row_stride = 0;  ///< elements from expert row to expert row; 0 means hidden_size
};

/// Slot j of a token is added where j < topk_counts[token] and its row is not -1: experts that the
/// policy dropped, or that another rank holds, are left out.
template <class Value = float, class Weight = float>
struct combine_input {
  static_assert(is_float_storage<Value>, "adaptive_k: values must be float, float16 or bfloat16");
  static_assert(is_float_storage<Weight>, "adaptive_k: weights must be float, float16 or bfloat16");
  const Value* expert_outputs = nullptr;      ///< [rows, hidden_size], row stride `row_stride`
  const std::int32_t* row_of_slot = nullptr;  ///< [num_tokens, top_k]; null: slots are rows
  const std::int32_t* topk_counts = nullptr;  ///< [num_tokens]; null: all top_k slots
  const Weight* topk_weights = nullptr;       ///< [num_tokens, top_k]; null: 1 each, where the
                                              ///< weights went into the experts' inputs
  const Value* addend = nullptr;              ///< [num_tokens, hidden_size] to start from, such as
                                              ///< the shared expert's output; null: zeros
};

/// Refuses values outside the ranges above; the message names the field, its value and the range.
inline status validate(const combine_shape& shape) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (shape.num_tokens < 0)
    return status::error(invalid, "`num_tokens` is %lld, expected 0 or more",
                         static_cast<long long>(shape.num_tokens));
  if (shape.top_k < 1 || shape.top_k > max_top_k)
    return status::error(invalid, "`top_k` is %d, expected 1..%d", shape.top_k, max_top_k);
  if (shape.hidden_size < 1)
    return status::error(invalid, "`hidden_size` is %d, expected 1 or more", shape.hidden_size);
  if (shape.row_stride != 0 && shape.row_stride < shape.hidden_size)
    return status::error(status_code::shape_mismatch,
                         "`row_stride` is %lld, expected 0 or at least hidden_size = %d",
                         static_cast<long long>(shape.row_stride), shape.hidden_size);
  return {};
}

namespace detail {

/// Refuses what neither host nor device takes.
template <class Value, class Weight>
status check_combine(const combine_shape& shape, const combine_input<Value, Weight>& input,
                     const Value* output) noexcept {
  const status checked = validate(shape);
  if (!checked.ok() || shape.num_tokens == 0) return checked;
  if (input.expert_outputs == nullptr)
    return status::error(status_code::invalid_argument, "`expert_outputs` is null");
  if (output == nullptr) return status::error(status_code::invalid_argument, "`output` is null");
  return {};
}

/// The sum as stored. NaNs become one and the same, as machines differ in which of two operands'
/// NaNs an operation returns.
template <class Value>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE Value combined(float sum) noexcept {
  return from_float<Value>(sum == sum ? sum : bit_cast<float>(std::uint32_t{0x7FC00000u}));
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
