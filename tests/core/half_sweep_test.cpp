// Every fp16 and bf16 pattern there is, as a logit: its selection key, its score under each gating,
// and its place in a routed row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "inputs.hpp"
#include "oracle.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the test is about it

constexpr int num_patterns = 65536;

template <class T>
class EveryPattern : public ::testing::Test {
 protected:
  static T pattern(int bits) { return {static_cast<std::uint16_t>(bits)}; }
  static double value(int bits) { return inputs::number(pattern(bits)); }

  /// All patterns from the lowest to the highest, NaN below all.
  static std::vector<int> ascending() {
    std::vector<int> order(num_patterns);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [](int a, int b) {
      const double x = value(a), y = value(b);
      if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && !std::isnan(y);
      return x < y;
    });
    return order;
  }
};

using narrow_types = ::testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(EveryPattern, narrow_types);

TYPED_TEST(EveryPattern, HasAKeyInTheOrderOfTheReals) {
  const std::vector<int> order = this->ascending();
  std::uint32_t before = detail::no_expert_key;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double value = this->value(order[i]);
    const std::uint32_t key = detail::order_key(to_float(this->pattern(order[i])));
    const double value_before =
        i == 0 ? std::numeric_limits<double>::quiet_NaN() : this->value(order[i - 1]);
    const bool ties = i > 0 && (value == value_before || std::isnan(value));
    if (ties)
      ASSERT_EQ(key, before) << order[i];
    else
      ASSERT_GT(key, before) << order[i];
    const double behind = static_cast<double>(detail::key_value(key));
    ASSERT_EQ(behind, std::isnan(value) ? -oracle::infinity : value) << order[i];
    before = key;
  }
}

/// Distance from the truth in units in the last place of it, as a float.
double ulps(float got, double truth) {
  if (static_cast<double>(got) == truth) return 0.0;
  const auto nearest = static_cast<float>(truth);
  const auto next = std::nextafter(nearest, std::numeric_limits<float>::infinity());
  const double step = static_cast<double>(next) - static_cast<double>(nearest);
  return std::abs(static_cast<double>(got) - truth) / step;
}

/// Scores by logit, against double precision, and never falling by more than `most_fall`.
template <class Score, class Order, class ValueOf, class Truth>
void expect_scores(const Order& order, const ValueOf& value_of, const Truth& truth, float largest,
                   double most_ulps, float most_fall = 0.0f) {
  float before = 0.0f;
  for (const int bits : order) {
    const float logit = value_of(bits);
    const detail::score_pair<float> got = detail::score_of<Score>(logit, largest);
    ASSERT_GE(got.score, before - most_fall) << bits;
    before = got.score;
    const double expected = truth(static_cast<double>(logit));
    ASSERT_LE(ulps(got.score, expected), most_ulps)
        << bits << ": " << logit << " scores " << got.score << ", expected " << expected;
    // Of the score itself, floored: the logarithm that goes into the entropy.
    if (!detail::is_softmax<Score>) {
      const double logarithm = std::log(std::max(static_cast<double>(got.score), 1e-37));
      ASSERT_NEAR(static_cast<double>(got.log_score), logarithm,
                  0x1p-22 * std::max(1.0, std::abs(logarithm)))
          << bits;
    }
  }
}

TYPED_TEST(EveryPattern, ScoresWithinItsBoundUnderEachGating) {
  const std::vector<int> order = this->ascending();
  const auto value_of = [](int bits) {
    return to_float(TypeParam{static_cast<std::uint16_t>(bits)});
  };
  // Bounds as documented in core/math.hpp; a square root halves an error and adds half an ULP, but
  // an ULP of the root may be half as wide.
  expect_scores<detail::sigmoid_score>(order, value_of, oracle::sigmoid, 0.0f, 5.0);
  const auto root = [](double x) { return oracle::sqrt_softplus(std::min(x, 1e30)); };
  // Around 0 its two parts move against one another, and their roundings may show.
  expect_scores<detail::sqrt_softplus_score>(order, value_of, root, 0.0f, 6.0, 0x1p-23f);
  for (const float largest : {0.0f, 1.0f, 20.0f, -3.0f}) {
    const auto relative = [largest](double x) {  // what is above the largest scores as it does
      if (std::isnan(x)) return 0.0;
      const float distance = std::min(static_cast<float>(x) - largest, 0.0f);
      return oracle::exp_to_zero(static_cast<double>(distance));
    };
    expect_scores<detail::softmax_score>(order, value_of, relative, largest, 2.0 + 87.0 / 25.0);
  }
}

TYPED_TEST(EveryPattern, TakesItsPlaceInARowByEveryInstructionSet) {
  constexpr int num_experts = 1024, num_rows = num_patterns / num_experts;
  std::vector<TypeParam> logits;
  for (int row = 0; row < num_rows; ++row)
    for (int expert = 0; expert < num_experts; ++expert)  // an odd factor: each pattern once
      logits.push_back(this->pattern(static_cast<int>(
          static_cast<unsigned>(row + expert * num_rows) * 40503u % unsigned{num_patterns})));
  for (const gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid,
                                 gating_kind::top_k_softmax, gating_kind::sqrt_softplus}) {
    gating model;
    model.kind = kind;
    model.num_experts = num_experts;
    model.top_k = max_top_k;
    routed_batch scalar;
    for (const instruction_set set : {instruction_set::scalar, instruction_set::generic,
                                      instruction_set::avx2, instruction_set::avx512}) {
      if (!is_available(set)) continue;
      router_options options;
      options.instructions = set;
      const router made(model, k_policy::entropy({8, 32}, {3.0f}), options);
      const routed_batch got =
          made.route(0, logits_view<TypeParam>{logits.data(), num_rows, num_experts});
      ASSERT_TRUE(got.result.ok()) << got.result.message();
      if (set == instruction_set::scalar) scalar = got;
      ASSERT_EQ(got.topk_ids, scalar.topk_ids) << name_of(set);
      ASSERT_EQ(got.topk_weights, scalar.topk_weights) << name_of(set);
      ASSERT_EQ(got.signal, scalar.signal) << name_of(set);
    }
    for (int row = 0; row < num_rows; ++row) {
      std::vector<double> values;
      for (int e = 0; e < num_experts; ++e)
        values.push_back(inputs::number(logits[static_cast<std::size_t>(row * num_experts + e)]));
      const std::vector<int> expected = oracle::descending(values);
      for (int j = 0; j < scalar.topk_counts[static_cast<std::size_t>(row)]; ++j)
        ASSERT_EQ(scalar.topk_ids[static_cast<std::size_t>(row * max_top_k + j)],
                  expected[static_cast<std::size_t>(j)])
            << "row " << row << ", rank " << j;
    }
  }
}

}  // namespace
