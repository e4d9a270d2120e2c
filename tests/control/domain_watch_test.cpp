// When tokens outside of a policy's domain are worth a warning.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/domain_watch.hpp>

#include <limits>
#include <string>

namespace {

using adaptive_k::domain_change;
using adaptive_k::domain_expectation;
using adaptive_k::domain_watch;

adaptive_k::routing_metrics routed(std::uint64_t tokens, std::uint64_t outside) {
  adaptive_k::routing_metrics metrics;
  metrics.tokens = tokens;
  metrics.out_of_domain = outside;
  return metrics;
}

TEST(domain_watch, tells_once_when_the_text_leaves_and_once_when_it_returns) {
  domain_watch watch({0.02, 2.0, 1000});
  ASSERT_TRUE(watch.validity().ok());
  EXPECT_EQ(watch.observe(routed(1000, 20)), domain_change::none);
  EXPECT_FALSE(watch.outside());
  EXPECT_DOUBLE_EQ(watch.share(), 0.02);
  EXPECT_EQ(watch.observe(routed(1000, 40)), domain_change::none);  // not more than twice as many
  EXPECT_EQ(watch.observe(routed(1000, 41)), domain_change::left);
  EXPECT_TRUE(watch.outside());
  EXPECT_EQ(watch.observe(routed(1000, 500)), domain_change::none);
  EXPECT_EQ(watch.observe(routed(1000, 31)), domain_change::none);  // above 1.5 times
  EXPECT_TRUE(watch.outside());
  EXPECT_EQ(watch.observe(routed(1000, 30)), domain_change::returned);
  EXPECT_EQ(watch.observe(routed(1000, 31)), domain_change::none);
  EXPECT_FALSE(watch.outside());
}

TEST(domain_watch, gathers_tokens_before_it_decides) {
  domain_watch watch({0.1, 2.0, 100});
  EXPECT_EQ(watch.observe(routed(99, 99)), domain_change::none);
  EXPECT_DOUBLE_EQ(watch.share(), 0.0);
  EXPECT_EQ(watch.observe(routed(1, 0)), domain_change::left);
  EXPECT_DOUBLE_EQ(watch.share(), 0.99);
  EXPECT_EQ(watch.observe(routed(60, 0)), domain_change::none);  // counted anew
  EXPECT_EQ(watch.observe(routed(40, 0)), domain_change::returned);
  EXPECT_DOUBLE_EQ(watch.share(), 0.0);
}

TEST(domain_watch, counts_that_no_routing_gives_are_left_out) {
  domain_watch watch({0.1, 2.0, 10});
  EXPECT_EQ(watch.observe(routed(10, 11)), domain_change::none);
  EXPECT_EQ(watch.observe(routed(std::numeric_limits<std::uint64_t>::max(), 10)),
            domain_change::none);
  EXPECT_DOUBLE_EQ(watch.share(), 0.0);
  EXPECT_EQ(watch.observe(routed(10, 10)), domain_change::left);
}

TEST(domain_watch, refuses_expectations_out_of_range) {
  const auto refusal = [](double share, double factor, std::uint64_t tokens) {
    domain_watch watch({share, factor, tokens});
    EXPECT_EQ(watch.observe(routed(1u << 20, 1u << 20)) == domain_change::left,
              watch.validity().ok());
    return std::string(watch.validity().message());
  };
  EXPECT_EQ(refusal(0.02, 2.0, 1), "");
  EXPECT_EQ(refusal(0.0, 2.0, 1), "share is 0, expected above 0, below 0.5");
  EXPECT_EQ(refusal(0.5, 2.0, 1), "share is 0.5, expected above 0, below 0.5");
  EXPECT_EQ(refusal(0.02, 1.0, 1), "factor is 1, expected above 1, at most 1000");
  EXPECT_EQ(refusal(0.02, 1001.0, 1), "factor is 1001, expected above 1, at most 1000");
  EXPECT_EQ(refusal(0.02, 2.0, 0), "decision_tokens is 0, expected 1..2^48");
}

}  // namespace
