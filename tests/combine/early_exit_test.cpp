// Early exit's confidence against an oracle in double, and what its decisions promise.
#include <gtest/gtest.h>
#include <adaptive_k/combine/early_exit.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "inputs.hpp"

namespace {

using adaptive_k::early_exit_metrics;
using adaptive_k::early_exit_policy;
using adaptive_k::exit_signal;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

double oracle(exit_signal signal, const std::vector<float>& logits) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const float l : logits) largest = std::max(largest, static_cast<double>(l));
  double sum = 0.0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l) - largest);
  double entropy = 0.0;
  double greatest = 0.0;
  for (const float l : logits) {
    const double p = std::exp(static_cast<double>(l) - largest) / sum;
    if (p > 0.0) entropy -= p * std::log(p);
    greatest = std::max(greatest, p);
  }
  return signal == exit_signal::entropy ? entropy : greatest;
}

float confidence(exit_signal signal, const std::vector<float>& logits) {
  return adaptive_k::exit_confidence(signal, logits.data(), static_cast<int>(logits.size()));
}

TEST(early_exit, confidence_equals_the_oracle) {
  inputs::sequence numbers(1);
  for (const int size : {1, 2, 3, 17, 256, 5000}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> logits;
      const float scale = static_cast<float>(1 << numbers.below(4));
      for (int v = 0; v < size; ++v) logits.push_back(scale * inputs::fine_logit(numbers));
      if (round % 3 == 0 && size > 2) logits[1] = -infinity;
      for (const auto signal : {exit_signal::entropy, exit_signal::max_probability})
        ASSERT_NEAR(confidence(signal, logits), oracle(signal, logits), 3e-6) << size;
    }
  }
}

TEST(early_exit, confidence_at_its_bounds) {
  const std::vector<float> flat(8, 3.0f);
  EXPECT_NEAR(confidence(exit_signal::entropy, flat), std::log(8.0), 1e-6);
  EXPECT_EQ(confidence(exit_signal::max_probability, flat), 0.125f);
  EXPECT_EQ(confidence(exit_signal::entropy, {100.0f, -100.0f}), 0.0f);
  EXPECT_EQ(confidence(exit_signal::max_probability, {100.0f, -100.0f}), 1.0f);
  EXPECT_EQ(confidence(exit_signal::entropy, {-5.0f}), 0.0f);
}

TEST(early_exit, what_is_not_finite_never_exits) {
  for (const auto signal : {exit_signal::entropy, exit_signal::max_probability}) {
    const float loosest = signal == exit_signal::entropy ? 1e30f : 0.0f;
    const auto policy = early_exit_policy::uniform(signal, loosest, 2);
    ASSERT_TRUE(validate(policy).ok());
    EXPECT_TRUE(exits(policy, 1, confidence(signal, {1.0f, 2.0f})));
    const std::vector<std::vector<float>> bad = {
        {nan, 1.0f}, {1.0f, nan}, {infinity, 0.0f}, {-infinity, -infinity}, {}};
    for (const auto& logits : bad) {
      EXPECT_TRUE(std::isnan(confidence(signal, logits)));
      EXPECT_FALSE(exits(policy, 1, confidence(signal, logits)));
    }
  }
}

TEST(early_exit, thresholds_are_strict_and_per_layer) {
  early_exit_policy policy;
  policy.num_layers = 3;
  policy.thresholds[0] = 0.5f;
  policy.thresholds[2] = 1.0f;
  EXPECT_TRUE(exits(policy, 0, 0.25f));
  EXPECT_FALSE(exits(policy, 0, 0.5f));
  EXPECT_FALSE(policy.asks(1));
  EXPECT_FALSE(exits(policy, 1, 0.0f));
  EXPECT_TRUE(exits(policy, 2, 0.75f));
  for (const int layer : {-1, 3, 300}) EXPECT_FALSE(exits(policy, layer, 0.0f));
  policy.signal = exit_signal::max_probability;
  EXPECT_FALSE(exits(policy, 0, 0.5f));
  EXPECT_TRUE(exits(policy, 0, 0.75f));
  EXPECT_FALSE(exits(policy, 2, 1.0f));
  EXPECT_FALSE(policy.asks(2));
}

TEST(early_exit, the_default_never_exits) {
  const early_exit_policy policy;
  EXPECT_TRUE(validate(policy).ok());
  for (const int layer : {0, 1, 255}) EXPECT_FALSE(exits(policy, layer, 0.0f));
}

TEST(early_exit, a_looser_threshold_lets_no_fewer_out) {
  inputs::sequence numbers(4);
  std::vector<float> values;
  for (int i = 0; i < 200; ++i) values.push_back(static_cast<float>(numbers.below(1000)) / 1000);
  for (const auto signal : {exit_signal::entropy, exit_signal::max_probability}) {
    std::ptrdiff_t before = 0;
    for (int step = 0; step <= 20; ++step) {
      const float t = static_cast<float>(step) / 20.0f;
      const auto policy =
          early_exit_policy::uniform(signal, signal == exit_signal::entropy ? t : 1.0f - t, 1);
      const auto count = std::count_if(values.begin(), values.end(),
                                       [&](float value) { return exits(policy, 0, value); });
      EXPECT_GE(count, before);
      before = count;
    }
    EXPECT_GT(before, 190);
  }
}

TEST(early_exit, refusals_name_field_and_range) {
  const auto expect = [](const early_exit_policy& policy, const char* words) {
    const auto result = validate(policy);
    EXPECT_FALSE(result.ok());
    EXPECT_NE(std::string(result.message()).find(words), std::string::npos) << result.message();
  };
  expect(early_exit_policy::uniform(exit_signal::entropy, -0.5f, 2), "thresholds[0] is -0.5");
  expect(early_exit_policy::uniform(exit_signal::entropy, nan, 1), "0 nats or more and finite");
  expect(early_exit_policy::uniform(exit_signal::entropy, infinity, 1), "thresholds[0] is inf");
  expect(early_exit_policy::uniform(exit_signal::max_probability, 1.5f, 1), "expected 0..1");
  expect(early_exit_policy::uniform(exit_signal::entropy, 1.0f, 257), "num_layers is 257");
  expect(early_exit_policy::uniform(exit_signal::entropy, 1.0f, -1), "expected 0..256");
  early_exit_policy odd;
  odd.signal = static_cast<exit_signal>(7);
  expect(odd, "signal is 7");
}

TEST(early_exit, metrics_add_up) {
  early_exit_metrics a;
  a.count(0, 0.1f, true);
  a.count(0, 0.9f, false);
  a.count(1, nan, false);
  early_exit_metrics b;
  b.count(1, 0.1f, true);
  b.count(-1, 0.1f, true);
  b.count(256, 0.1f, true);
  a += b;
  EXPECT_EQ(a.predictions, 4u);
  EXPECT_EQ(a.exited, 2u);
  EXPECT_EQ(a.nan_confidences, 1u);
  EXPECT_EQ(a.exit_rate(0), 0.5);
  EXPECT_EQ(a.exit_rate(1), 0.5);
  EXPECT_EQ(a.exit_rate(2), 0.0);
  EXPECT_EQ(a.skipped_layers(4), 3u + 2u);
}

}  // namespace
