// Inputs of combine steps, for the host's tests and the kernels'.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "adaptive_k/core/expert_combine.hpp"
#include "inputs.hpp"

namespace combines {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test helper

template <class Value, class Weight>
struct test_case {
  combine_shape shape;
  std::vector<Value> expert_outputs;
  std::vector<std::int32_t> rows;    ///< row of each slot, or empty
  std::vector<std::int32_t> counts;  ///< or empty
  std::vector<Weight> weights;       ///< or empty
  std::vector<Value> addend;         ///< or empty
};

template <class T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class Value, class Weight>
combine_input<Value, Weight> view_of(const test_case<Value, Weight>& input) {
  return {input.expert_outputs.data(), data_or_null(input.rows), data_or_null(input.counts),
          data_or_null(input.weights), data_or_null(input.addend)};
}

template <class Value, class Weight>
std::string describe(const test_case<Value, Weight>& input) {
  return "T " + std::to_string(input.shape.num_tokens) + ", K0 " +
         std::to_string(input.shape.top_k) + ", H " + std::to_string(input.shape.hidden_size) +
         ", stride " + std::to_string(input.shape.row_stride) +
         (input.rows.empty() ? "" : ", rows") + (input.counts.empty() ? "" : ", counts") +
         (input.weights.empty() ? "" : ", weights") + (input.addend.empty() ? "" : ", addend");
}

/// `special`: some values are NaN, infinite, subnormal or the largest there is.
template <class Value, class Weight>
test_case<Value, Weight> random_case(inputs::sequence& from, std::int64_t num_tokens,
                                     int hidden_size, bool special) {
  test_case<Value, Weight> made;
  made.shape.num_tokens = num_tokens;
  made.shape.top_k = from.between(1, from.chance(4) ? 32 : 8);
  made.shape.hidden_size = hidden_size;
  made.shape.row_stride = from.chance(2) ? 0 : hidden_size + 8 * from.below(3) + from.below(2);
  const std::int64_t stride = made.shape.row_stride != 0 ? made.shape.row_stride : hidden_size;
  const std::int64_t slots = num_tokens * made.shape.top_k;
  std::int64_t num_rows = slots;
  if (from.chance(2)) {
    num_rows = slots / 2 + 1;
    for (std::int64_t slot = 0; slot < slots; ++slot)
      made.rows.push_back(from.chance(4) ? -1 : from.below(static_cast<int>(num_rows)));
  }
  const float odd[] = {inputs::from_bits(0x7FC00001u), inputs::from_bits(0x7F800000u),
                       inputs::from_bits(0xFF800000u), inputs::from_bits(0x00000001u),
                       inputs::from_bits(0x33000000u), inputs::from_bits(0x7F7F0000u),
                       inputs::from_bits(0x477FE000u), -0.0f};
  const auto value = [&] {
    return from_float<Value>(special && from.chance(20) ? odd[from.below(8)]
                                                        : inputs::fine_logit(from));
  };
  for (std::int64_t i = 0; i < num_rows * stride; ++i) made.expert_outputs.push_back(value());
  if (from.chance(2))
    for (std::int64_t t = 0; t < num_tokens; ++t)
      made.counts.push_back(from.below(made.shape.top_k + 1));
  if (!from.chance(4))
    for (std::int64_t slot = 0; slot < slots; ++slot)
      made.weights.push_back(from_float<Weight>(static_cast<float>(from.below(1000)) / 977.0f));
  if (from.chance(2))
    for (std::int64_t i = 0; i < num_tokens * hidden_size; ++i) made.addend.push_back(value());
  return made;
}

}  // namespace combines
