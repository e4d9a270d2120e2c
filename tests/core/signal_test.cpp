// What signals promise whatever the rounding.
#include "adaptive_k/core/signal.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "adaptive_k/core/host_warp.hpp"

namespace {

namespace detail = adaptive_k::detail;
namespace math = adaptive_k::math;

TEST(signal, an_entropy_is_never_negative) {
  // One score has entropy 0; its terms cancel but for their rounding, to either side.
  int cancelled = 0, below = 0;
  for (float score = 0.001f; score < 100.0f; score *= 1.01f) {
    const float score_log_score = score * math::log(score);
    const float raw = math::log(score) - score_log_score / score;
    cancelled += raw == 0.0f ? 1 : 0;
    below += raw < 0.0f ? 1 : 0;
    const float entropy = detail::entropy_nats(score, score_log_score);
    EXPECT_GE(entropy, 0.0f) << score;
    EXPECT_LE(entropy, 1e-6f) << score;
    EXPECT_FALSE(std::signbit(entropy)) << score;
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_GT(below, 0) << "no case of it";
}

constexpr int top_k = 2;

float value_of(adaptive_k::signal_kind kind, float full_entropy, float first, float second) {
  detail::ranked_experts<top_k> ranked = {};
  ranked.score[0] = ranked.mass[0] = first;
  ranked.score[1] = second;
  ranked.mass[1] = ranked.total = first + second;
  return detail::signal_value(kind, full_entropy, 1.0f / math::log(8.0f), ranked,
                              detail::loop_count<false, top_k>{top_k});
}

TEST(signal, a_normalised_entropy_is_at_most_1) {
  const float most = math::log(8.0f);
  for (const float above : {most * 1.0000001f, most * 1.000001f})
    EXPECT_EQ(value_of(adaptive_k::signal_kind::normalized_entropy, above, 0.5f, 0.25f), 1.0f);
  EXPECT_LT(value_of(adaptive_k::signal_kind::normalized_entropy, most * 0.99f, 0.5f, 0.25f), 1.0f);
}

TEST(signal, a_ratio_is_at_most_1024) {
  // A bias may put an expert first whose own score is 0.
  constexpr auto ratio = adaptive_k::signal_kind::score_ratio;
  EXPECT_EQ(value_of(ratio, 0.0f, 0.0f, 0.5f), 1024.0f);
  EXPECT_EQ(value_of(ratio, 0.0f, 1e-6f, 0.5f), 1024.0f);
  EXPECT_EQ(value_of(ratio, 0.0f, 0.25f, 0.5f), 2.0f);
}

}  // namespace
