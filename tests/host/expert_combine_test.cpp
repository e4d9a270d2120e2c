// The host's combine step against sums in double precision, and in exact cases.
#include "adaptive_k/host/expert_combine.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "combine_cases.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

template <class Value>
double unit_roundoff() {
  if (std::is_same_v<Value, float16>) return std::ldexp(1.0, -11);
  if (std::is_same_v<Value, bfloat16>) return std::ldexp(1.0, -8);
  return std::ldexp(1.0, -24);
}

/// Each of n additions is off by at most 2^-24 of the partial sums so far, themselves at most the
/// sum of magnitudes; the result is rounded once more to Value.
template <class Value, class Weight>
void expect_near_oracle(const combines::test_case<Value, Weight>& input) {
  SCOPED_TRACE(combines::describe(input));
  const combine_shape& shape = input.shape;
  const auto cells = static_cast<std::size_t>(shape.num_tokens * shape.hidden_size);
  std::vector<Value> output(cells, from_float<Value>(-77.0f));
  const status result = combine_experts(shape, combines::view_of(input), output.data());
  ASSERT_TRUE(result.ok()) << result.message();
  const std::int64_t stride = shape.row_stride != 0 ? shape.row_stride : shape.hidden_size;
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    for (int c = 0; c < shape.hidden_size; ++c) {
      const auto cell = static_cast<std::size_t>(t * shape.hidden_size + c);
      double sum = input.addend.empty() ? 0.0 : to_float(input.addend[cell]);
      double magnitude = std::fabs(sum);
      int terms = 0;
      for (int j = 0; j < shape.top_k; ++j) {
        const auto slot = static_cast<std::size_t>(t * shape.top_k + j);
        if (!input.counts.empty() && j >= input.counts[static_cast<std::size_t>(t)]) continue;
        const std::int64_t row =
            input.rows.empty() ? static_cast<std::int64_t>(slot) : input.rows[slot];
        if (row < 0) continue;
        const double weight = input.weights.empty() ? 1.0 : to_float(input.weights[slot]);
        const double term =
            weight * to_float(input.expert_outputs[static_cast<std::size_t>(row * stride + c)]);
        sum += term;
        magnitude += std::fabs(term);
        ++terms;
      }
      const double bound = 1.0001 * terms * std::ldexp(1.0, -24) * magnitude +
                           1.0001 * unit_roundoff<Value>() * std::fabs(sum) +
                           std::ldexp(1.0, -25);  // half a unit of fp16's subnormals
      ASSERT_LE(std::fabs(to_float(output[cell]) - sum), bound)
          << "token " << t << ", column " << c;
    }
  }
}

TEST(combine_experts, is_the_weighted_sum) {
  inputs::sequence from(1);
  for (int i = 0; i < 40; ++i) {
    const std::int64_t tokens = from.below(12);
    const int hidden = from.pick(std::vector<int>{1, 7, 64, 255, 256, 257, 600});
    expect_near_oracle(combines::random_case<float, float>(from, tokens, hidden, false));
    expect_near_oracle(combines::random_case<float16, float>(from, tokens, hidden, false));
    expect_near_oracle(combines::random_case<bfloat16, bfloat16>(from, tokens, hidden, false));
    expect_near_oracle(combines::random_case<float, float16>(from, tokens, hidden, false));
  }
}

TEST(combine_experts, adds_in_order_of_slots) {
  // 2^24 + 1 + 1 is 2^24 from the left, 2^24 + 2 from the right.
  const std::vector<float> rows = {16777216.0f, 1.0f, 1.0f};
  const combine_shape shape = {1, 3, 1};
  float sum = 0.0f;
  combine_input<float, float> input;
  input.expert_outputs = rows.data();
  ASSERT_TRUE(combine_experts(shape, input, &sum).ok());
  EXPECT_EQ(sum, 16777216.0f);
  const std::vector<std::int32_t> backwards = {2, 1, 0};
  input.row_of_slot = backwards.data();
  ASSERT_TRUE(combine_experts(shape, input, &sum).ok());
  EXPECT_EQ(sum, 16777218.0f);
}

TEST(combine_experts, dropped_slots_are_not_read) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> rows = {3.0f, nan, nan};
  const std::vector<float> weights = {2.0f, nan, nan};
  const std::int32_t count = 1;
  combine_input<float, float> input;
  input.expert_outputs = rows.data();
  input.topk_weights = weights.data();
  input.topk_counts = &count;
  float sum = 0.0f;
  ASSERT_TRUE(combine_experts(combine_shape{1, 3, 1}, input, &sum).ok());
  EXPECT_EQ(sum, 6.0f);
}

TEST(combine_experts, may_add_in_place) {
  std::vector<float> output = {10.0f, 20.0f};
  const std::vector<float> rows = {1.0f, 2.0f};
  combine_input<float, float> input;
  input.expert_outputs = rows.data();
  input.addend = output.data();
  ASSERT_TRUE(combine_experts(combine_shape{1, 1, 2}, input, output.data()).ok());
  EXPECT_EQ(output, (std::vector<float>{11.0f, 22.0f}));
}

TEST(combine_experts, every_nan_is_the_same) {
  for (const std::uint32_t bits : {0x7FC12345u, 0xFFC00000u, 0x7F800001u}) {
    const float value = inputs::from_bits(bits);
    combine_input<float, float> input;
    input.expert_outputs = &value;
    float sum = 0.0f;
    ASSERT_TRUE(combine_experts(combine_shape{1, 1, 1}, input, &sum).ok());
    EXPECT_EQ(inputs::bits_of(sum), 0x7FC00000u);
  }
}

TEST(combine_experts, refuses_what_does_not_fit) {
  float value = 0.0f;
  const auto message = [&](const combine_shape& shape, const float* from, float* to) {
    combine_input<float, float> input;
    input.expert_outputs = from;
    return std::string(combine_experts(shape, input, to).message());
  };
  EXPECT_EQ(message({1, 0, 1}, &value, &value), "top_k is 0, expected 1..32");
  EXPECT_EQ(message({1, 1, 0}, &value, &value), "hidden_size is 0, expected 1 or more");
  EXPECT_EQ(message({-1, 1, 1}, &value, &value), "num_tokens is -1, expected 0 or more");
  EXPECT_EQ(message({1, 1, 8, 7}, &value, &value),
            "row_stride is 7, expected 0 or at least hidden_size = 8");
  EXPECT_EQ(message({1, 1, 1}, nullptr, &value), "expert_outputs is null");
  EXPECT_EQ(message({1, 1, 1}, &value, nullptr), "output is null");
  EXPECT_EQ(message({0, 1, 1}, nullptr, nullptr), "");
}

}  // namespace
