// K's dealt out anew, against what the words say.
#include "adaptive_k/calibration/search/k_assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

TEST(KAssignment, InversionGivesTheSurestTheMost) {
  std::vector<std::uint8_t> counts = {2, 8, 5, 2};
  invert_counts(counts, {0.3f, 0.9f, 0.5f, 0.1f}, signal_kind::softmax_entropy);
  // Surest first: tokens 3 (K 2, signal 0.1), 0, 2, 1.
  EXPECT_EQ(counts, (std::vector<std::uint8_t>{5, 2, 2, 8}));
  counts = {2, 8, 5, 2};
  // Where high is sure, token 0 is the surest of the two.
  invert_counts(counts, {0.3f, 0.9f, 0.5f, 0.1f}, signal_kind::margin);
  EXPECT_EQ(counts, (std::vector<std::uint8_t>{8, 2, 2, 5}));
  counts = {1, 4, 1, 4};
  invert_counts(counts, {0.0f, 0.0f, 0.0f, 0.0f}, signal_kind::margin);  // by index
  EXPECT_EQ(counts, (std::vector<std::uint8_t>{4, 1, 4, 1}));
}

TEST(KAssignment, ShuffleReachesEveryPlace) {
  std::vector<int> seen(6, 0);
  integer_rng rng(3);
  for (int i = 0; i < 600; ++i) {
    std::vector<std::uint8_t> counts = {1, 0, 0, 0, 0, 0};
    shuffle_counts(counts, rng);
    ++seen[static_cast<std::size_t>(std::find(counts.begin(), counts.end(), 1) - counts.begin())];
  }
  for (const int times : seen) EXPECT_NEAR(times, 100, 45);
}

TEST(KAssignment, ChosenStaysAndOthersKeepTheSum) {
  const std::vector<float> signal = {0.3f, 0.9f, 0.5f, 0.1f};
  const std::vector<std::uint8_t> own = {2, 8, 5, 2};
  integer_rng rng(1);
  for (const auto how : {k_assignment::chosen, k_assignment::shuffled, k_assignment::inverted}) {
    std::vector<std::uint8_t> counts = own;
    assign_counts(how, counts, signal, signal_kind::softmax_entropy, rng);
    EXPECT_TRUE(std::is_permutation(counts.begin(), counts.end(), own.begin()));
    const std::vector<std::uint8_t> inverted = {5, 2, 2, 8};
    if (how != k_assignment::shuffled) {
      EXPECT_EQ(counts, how == k_assignment::chosen ? own : inverted);
    }
  }
}

TEST(KAssignment, FullLikeAPolicyDiffersInItsKAlone) {
  k_policy policy = k_policy::top_p(0.8f, 8);
  policy.mass_exponent = 0.5f;
  const k_policy full = full_like({policy}).front();
  EXPECT_EQ(full.rule, k_rule::full);
  EXPECT_EQ(full.signal, policy.signal);
  EXPECT_EQ(full.mass_exponent, 0.5f);
}

}  // namespace
