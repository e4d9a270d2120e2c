// The enumerations of C are those of C++, value by value, and none is missing.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/c/adaptive_k.h"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/types.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test

/// Each value of C beside the C++ name of it.
template <class Enum>
void expect_same(const std::vector<std::pair<int, const char*>>& values) {
  EXPECT_EQ(static_cast<int>(values.size()), num_values(Enum{}));
  std::set<std::string> names;
  for (const auto& [value, name] : values) {
    EXPECT_STREQ(to_string(static_cast<Enum>(value)), name) << value;
    names.insert(name);
  }
  EXPECT_EQ(names.size(), values.size());
  // One past the last: an enumerator that num_values does not count has a name there.
  EXPECT_STREQ(to_string(static_cast<Enum>(num_values(Enum{}))), "?");
}

TEST(c_enumerations, are_those_of_cpp) {
  expect_same<gating_kind>({{ADAPTIVE_K_SOFTMAX, "softmax"},
                            {ADAPTIVE_K_SIGMOID, "sigmoid"},
                            {ADAPTIVE_K_TOP_K_SOFTMAX, "top_k_softmax"},
                            {ADAPTIVE_K_SQRT_SOFTPLUS, "sqrt_softplus"},
                            {ADAPTIVE_K_SPARSEMIXER, "sparsemixer"}});
  expect_same<group_score>(
      {{ADAPTIVE_K_GROUP_TOP2_SUM, "top2_sum"}, {ADAPTIVE_K_GROUP_MAXIMUM, "maximum"}});
  expect_same<signal_kind>({{ADAPTIVE_K_SIGNAL_NONE, "none"},
                            {ADAPTIVE_K_SOFTMAX_ENTROPY, "softmax_entropy"},
                            {ADAPTIVE_K_NORMALIZED_ENTROPY, "normalized_entropy"},
                            {ADAPTIVE_K_TOPK_ENTROPY, "topk_entropy"},
                            {ADAPTIVE_K_TOPK_MASS, "topk_mass"},
                            {ADAPTIVE_K_SCORE_RATIO, "score_ratio"},
                            {ADAPTIVE_K_MARGIN, "margin"}});
  expect_same<k_rule>({{ADAPTIVE_K_FULL, "full"},
                       {ADAPTIVE_K_FIXED, "fixed"},
                       {ADAPTIVE_K_THRESHOLDS, "thresholds"},
                       {ADAPTIVE_K_DISTORTION, "distortion"}});
  EXPECT_EQ(ADAPTIVE_K_FILL_MINUS_ONE, static_cast<int>(fill_id::minus_one));
  EXPECT_EQ(ADAPTIVE_K_FILL_NUM_EXPERTS, static_cast<int>(fill_id::num_experts));
  EXPECT_EQ(ADAPTIVE_K_FILL_FIRST_EXPERT, static_cast<int>(fill_id::first_expert));
  EXPECT_EQ(ADAPTIVE_K_INVALID_ARGUMENT, static_cast<int>(status_code::invalid_argument));
  EXPECT_EQ(ADAPTIVE_K_SHAPE_MISMATCH, static_cast<int>(status_code::shape_mismatch));
  EXPECT_EQ(ADAPTIVE_K_UNSUPPORTED, static_cast<int>(status_code::unsupported));
  EXPECT_EQ(ADAPTIVE_K_CUDA_ERROR, static_cast<int>(status_code::cuda_error));
}

}  // namespace
