// Token merging against a second reading of its rules in double, and proof that nothing at a
// position depends on what comes behind it.
#include <gtest/gtest.h>
#include <adaptive_k/combine/token_merging.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "inputs.hpp"

namespace {

using adaptive_k::token_merging_metrics;
using adaptive_k::token_merging_policy;

constexpr int hidden = 5;

struct matched {
  std::vector<std::int32_t> representative;
  std::vector<std::int32_t> sizes;
  token_merging_metrics metrics;
};

matched match(const token_merging_policy& policy, const std::vector<float>& x,
              const std::vector<std::uint8_t>& takes_part = {}, std::int64_t first = 0) {
  const std::size_t tokens = x.size() / hidden;
  matched result{std::vector<std::int32_t>(tokens, -7), std::vector<std::int32_t>(tokens, -7), {}};
  std::vector<double> squares(tokens);
  const auto status = adaptive_k::match_tokens(
      policy, x.data(), static_cast<std::int64_t>(tokens), hidden,
      {result.representative.data(), result.sizes.data(), squares.data()}, &result.metrics,
      takes_part.empty() ? nullptr : takes_part.data(), first);
  EXPECT_TRUE(status.ok()) << status.message();
  return result;
}

/// Small integers: equal directions and exact ties are common.
std::vector<float> tokens_of(int count, std::uint64_t seed) {
  inputs::sequence numbers(seed);
  std::vector<float> x;
  for (int i = 0; i < count * hidden; ++i) x.push_back(static_cast<float>(numbers.between(-1, 2)));
  return x;
}

double cosine(const std::vector<float>& x, std::size_t a, std::size_t b) {
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (std::size_t i = 0; i < hidden; ++i) {
    const double u = x[a * hidden + i], v = x[b * hidden + i];
    ab += u * v;
    aa += u * u;
    bb += v * v;
  }
  return ab / std::sqrt(aa * bb);
}

TEST(token_merging, equal_inputs_always_merge) {
  inputs::sequence numbers(17);
  for (int i = 0; i < 1000; ++i) {
    std::vector<float> x;
    for (int j = 0; j < hidden; ++j)
      x.push_back(std::ldexp(static_cast<float>(numbers.between(1, 1 << 20)), i % 200 - 120));
    for (std::size_t j = 0; j < hidden; ++j) x.push_back(x[j]);
    EXPECT_EQ(match({}, x).representative[1], 0) << i;
  }
}

TEST(token_merging, equals_a_second_reading_of_its_rules) {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    for (const int window : {1, 2, 3, 8, 100}) {
      for (const float least : {-1.0f, 0.3f, 0.8f, 1.0f}) {
        for (const std::int64_t first : {0, 1, 6}) {
          const auto x = tokens_of(41, seed);
          std::vector<std::uint8_t> takes_part(41, 1);
          inputs::sequence numbers(seed + 9);
          for (auto& each : takes_part) each = numbers.chance(4) ? 0 : 1;
          const matched got = match({least, window}, x, takes_part, first);
          std::vector<std::int32_t> sizes(41, 0);
          for (int t = 0; t < 41; ++t) {
            const auto at = static_cast<std::size_t>(t);
            int best = t;
            if (takes_part[at] != 0 && (t + first) % 2 == 1) {
              for (int d = t - 1; d >= std::max(0, t - window); --d) {
                const auto other = static_cast<std::size_t>(d);
                if ((d + first) % 2 == 1 || takes_part[other] == 0) continue;
                const double own = cosine(x, at, other);
                if (!(own >= static_cast<double>(least))) continue;
                if (best == t || own >= cosine(x, at, static_cast<std::size_t>(best))) best = d;
              }
            }
            ASSERT_EQ(got.representative[at], best) << "token " << t << ", window " << window;
            if (takes_part[at] != 0) ++sizes[static_cast<std::size_t>(best)];
          }
          ASSERT_EQ(got.sizes, sizes);
        }
      }
    }
  }
}

TEST(token_merging, what_comes_later_changes_nothing_earlier) {
  int merged = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const auto x = tokens_of(30, seed);
    const matched whole = match({0.7f, 12}, x);
    merged += static_cast<int>(whole.metrics.merged);
    for (std::size_t changed = 0; changed < 30; ++changed) {
      auto other = x;
      for (std::size_t i = changed * hidden; i < other.size(); ++i) other[i] += 1.0f;
      const matched after = match({0.7f, 12}, other);
      for (std::size_t t = 0; t < changed; ++t)
        ASSERT_EQ(after.representative[t], whole.representative[t]) << "token " << t;
    }
  }
  EXPECT_GT(merged, 100);  // else there was nothing to see
}

TEST(token_merging, representatives_are_earlier_and_run_themselves) {
  const auto x = tokens_of(200, 5);
  const matched got = match({0.5f, 16}, x);
  ASSERT_GT(got.metrics.merged, 50u);
  std::int64_t total = 0;
  for (std::size_t t = 0; t < 200; ++t) {
    const auto representative = static_cast<std::size_t>(got.representative[t]);
    EXPECT_LE(representative, t);
    EXPECT_EQ(got.representative[representative], got.representative[t]);  // no chains
    EXPECT_GE(got.sizes[representative], 1);
    EXPECT_EQ(got.sizes[t] == 0, representative != t);
    total += got.sizes[t];
  }
  EXPECT_EQ(total, 200);
}

TEST(token_merging, the_earliest_of_equals_wins) {
  std::vector<float> x(6 * hidden, 1.0f);
  const matched got = match({0.9f, 100}, x);
  EXPECT_EQ(got.representative, (std::vector<std::int32_t>{0, 0, 2, 0, 4, 0}));
  EXPECT_EQ(got.sizes, (std::vector<std::int32_t>{4, 0, 1, 0, 1, 0}));
  EXPECT_EQ(got.metrics.largest_size, 4u);
  EXPECT_EQ(got.metrics.comparisons, 1u + 2u + 3u);
  EXPECT_EQ(got.metrics.merged_share(), 0.5);
}

TEST(token_merging, zeros_and_what_is_not_finite_never_merge) {
  for (const float odd :
       {0.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const std::size_t where : {0u, 1u}) {
      std::vector<float> x(2 * hidden, 1.0f);
      for (std::size_t i = 0; i < hidden; ++i) x[where * hidden + i] = odd;
      EXPECT_EQ(match({-1.0f, 4}, x).metrics.merged, 0u) << odd;
    }
  }
  EXPECT_EQ(match({-1.0f, 4}, std::vector<float>(2 * hidden, 1.0f)).metrics.merged, 1u);
}

TEST(token_merging, metrics_add_up) {
  const auto x = tokens_of(50, 8);
  const matched got = match({0.5f, 6}, x);
  token_merging_metrics sum = got.metrics;
  sum += got.metrics;
  EXPECT_EQ(sum.tokens, 100u);
  EXPECT_EQ(sum.merged, 2 * got.metrics.merged);
  EXPECT_EQ(sum.largest_size, got.metrics.largest_size);
  EXPECT_EQ(sum.merged_share(), got.metrics.merged_share());
  EXPECT_EQ(token_merging_metrics().merged_share(), 0.0);
}

TEST(token_merging, refusals_name_field_and_range) {
  const float x[hidden] = {};
  std::int32_t representative = 0;
  std::int32_t size = 0;
  double norm = 0.0;
  const auto expect = [&](const token_merging_policy& policy, std::int64_t count, int width,
                          const float* data, const char* words) {
    const auto result =
        adaptive_k::match_tokens(policy, data, count, width, {&representative, &size, &norm});
    EXPECT_FALSE(result.ok());
    EXPECT_NE(std::string(result.message()).find(words), std::string::npos) << result.message();
  };
  expect({1.5f, 4}, 1, hidden, x, "min_similarity is 1.5, expected -1..1");
  expect({std::numeric_limits<float>::quiet_NaN(), 4}, 1, hidden, x, "min_similarity");
  expect({0.5f, 0}, 1, hidden, x, "window is 0");
  expect({}, -1, hidden, x, "num_tokens is -1");
  expect({}, 1, 0, x, "hidden 0");
  expect({}, 1, hidden, nullptr, "null");
  EXPECT_TRUE(adaptive_k::match_tokens({}, nullptr, 0, hidden, {}).ok());
}

}  // namespace
