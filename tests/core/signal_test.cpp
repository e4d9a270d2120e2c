// What signals promise whatever the rounding.
#include "adaptive_k/core/signal.hpp"

#include <gtest/gtest.h>

#include <cmath>

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

}  // namespace
