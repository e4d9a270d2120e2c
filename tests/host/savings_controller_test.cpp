// The controller against a stream that drifts: the saving is what routing really gave.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/host/savings_controller.hpp>

#include <cmath>
#include <vector>

#include "inputs.hpp"

namespace {

using adaptive_k::k_policy;

constexpr int num_experts = 24;
constexpr int top_k = 6;
constexpr std::int64_t tokens = 512;

adaptive_k::gating softmax_24_6() {
  adaptive_k::gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  return g;
}

/// Logits of sums of twelve uniform numbers, times `spread`: the smaller, the higher the entropy.
std::vector<float> logits_of(inputs::sequence& numbers, double spread) {
  std::vector<float> logits;
  for (std::int64_t i = 0; i < tokens * num_experts; ++i) {
    double sum = -6.0;
    for (int j = 0; j < 12; ++j) sum += numbers.below(1 << 20) / 1048576.0;
    logits.push_back(static_cast<float>(spread * sum));
  }
  return logits;
}

struct stream_outcome {
  double saved = 0.0;           // over the second half of the drift
  std::vector<double> windows;  // of 40 batches each, the first 40 apart: the policy's own start
  double first_entropy = 0.0;   // mean, nats
  double last_entropy = 0.0;
  std::vector<double> scales;
};

enum class drift { rises, falls, returns };

/// From 0 to 1 and, where it returns, back.
double drifted(drift how, double along) {
  if (how == drift::rises) return along;
  return how == drift::falls ? 1.0 - along : 1.0 - std::fabs(2.0 * along - 1.0);
}

/// 240 batches whose spread moves between 2.4 and 1.65: the entropy by a third.
stream_outcome run_stream(const k_policy& policy, bool controlled, double target,
                          drift how = drift::rises, std::uint64_t seed = 7) {
  const adaptive_k::gating g = softmax_24_6();
  adaptive_k::savings_controller controller({target});
  EXPECT_TRUE(controller.validity());
  inputs::sequence numbers(seed);
  adaptive_k::router router(g, policy);
  adaptive_k::routing_metrics late, window;
  stream_outcome outcome;
  constexpr int batches = 240;
  for (int b = 0; b < batches; ++b) {
    const double spread = 2.4 - 0.75 * drifted(how, static_cast<double>(b) / (batches - 1));
    const std::vector<float> logits = logits_of(numbers, spread);
    adaptive_k::routing_metrics metrics;
    const auto routed = router.route(
        0, adaptive_k::logits_view<float>{logits.data(), tokens, num_experts}, &metrics);
    EXPECT_TRUE(routed.result) << routed.result.message();
    adaptive_k::routing_metrics entropy;
    k_policy full = k_policy::full();
    adaptive_k::router(g, full).route(
        0, adaptive_k::logits_view<float>{logits.data(), tokens, num_experts}, &entropy);
    if (b == 0) outcome.first_entropy = entropy.mean_signal();
    outcome.last_entropy = entropy.mean_signal();
    if (b >= batches / 2) late += metrics;
    window += metrics;
    if (b % 40 == 39) {
      if (b > 40) outcome.windows.push_back(window.expert_savings());
      window = {};
    }
    if (controlled && controller.observe(metrics))
      router = adaptive_k::router(g, controller.apply(policy));
    outcome.scales.push_back(controller.scale());
  }
  outcome.saved = late.expert_savings();
  return outcome;
}

TEST(savings_controller, holds_the_target_within_a_point_while_entropy_drifts_by_30_percent) {
  constexpr double target = 0.4;
  for (const k_policy& policy : {k_policy::top_p(0.75f, top_k), k_policy::score_ratio(0.3f, top_k),
                                 k_policy::entropy({2, 3, 4, 5, 6}, {1.2f, 1.5f, 1.8f, 2.1f})}) {
    const stream_outcome held = run_stream(policy, true, target);
    const stream_outcome left_alone = run_stream(policy, false, target);
    ASSERT_GE(held.last_entropy / held.first_entropy, 1.3);
    EXPECT_NEAR(held.saved, target, 0.01) << static_cast<int>(policy.signal);
    EXPECT_GT(std::fabs(left_alone.saved - target), 0.02) << "the drift must be one that matters";
  }
}

TEST(savings_controller, holds_every_stretch_of_streams_it_was_not_tuned_on) {
  for (const double target : {0.25, 0.5})
    for (const drift how : {drift::rises, drift::falls, drift::returns})
      for (const std::uint64_t seed : {101, 102}) {
        const stream_outcome held =
            run_stream(k_policy::top_p(0.75f, top_k), true, target, how, seed);
        ASSERT_EQ(held.windows.size(), 5u);
        for (const double saved : held.windows)
          EXPECT_NEAR(saved, target, 0.01) << static_cast<int>(how) << " seed " << seed;
      }
}

TEST(savings_controller, holds_a_distortion_policy_by_its_price) {
  // ln d(k) = ln psi_k: the plain second moment of what is dropped.
  std::vector<float> coefficients;
  for (int k = 1; k < top_k; ++k)
    coefficients.insert(coefficients.end(), {0.0f, 0.0f, 1.0f, 0.0f, 0.0f});
  adaptive_k::distortion_ref model;
  model.coefficients = coefficients.data();
  model.lambda = 0.005f;
  const stream_outcome held = run_stream(k_policy::min_distortion(model), true, 0.4);
  EXPECT_NEAR(held.saved, 0.4, 0.01);
}

TEST(savings_controller, equal_streams_give_equal_scales) {
  const k_policy policy = k_policy::top_p(0.75f, top_k);
  EXPECT_EQ(run_stream(policy, true, 0.4).scales, run_stream(policy, true, 0.4).scales);
}

TEST(savings_controller, rests_within_the_hysteresis_and_waits_for_enough_tokens) {
  adaptive_k::savings_controller controller({0.5});
  EXPECT_FALSE(controller.observe(100, 800, 100));  // far off, but few tokens
  EXPECT_EQ(controller.scale(), 1.0);
  adaptive_k::savings_controller settled({0.5});
  EXPECT_FALSE(settled.observe(4 * 4096 + 30, 8 * 4096, 4096));
  EXPECT_EQ(settled.scale(), 1.0);
}

TEST(savings_controller, stays_within_its_bounds_and_says_so) {
  adaptive_k::savings_controller controller({0.5});
  for (int i = 0; i < 100; ++i) controller.observe(8 * 4096, 8 * 4096, 4096);
  EXPECT_EQ(controller.scale(), 16.0);
  EXPECT_TRUE(controller.at_bound());
  for (int i = 0; i < 100; ++i) controller.observe(4096, 8 * 4096, 4096);
  EXPECT_EQ(controller.scale(), 1.0 / 16.0);
}

TEST(savings_controller, keeps_the_proportion_of_layers_and_valid_policies) {
  adaptive_k::savings_controller controller({0.5});
  while (!controller.at_bound()) controller.observe(8 * 4096, 8 * 4096, 4096);
  const adaptive_k::gating g = softmax_24_6();
  for (const k_policy& policy :
       {k_policy::top_p(0.75f, top_k), k_policy::score_ratio(0.3f, top_k),
        k_policy::entropy({2, 4}, {1.2f}), k_policy::fixed(3), k_policy::full()})
    EXPECT_TRUE(validate(controller.apply(policy), g))
        << validate(controller.apply(policy), g).message();
  const k_policy policy = k_policy::entropy({2, 4}, {1.25f});
  EXPECT_EQ(controller.apply(policy).thresholds[0], 2.5f);
  EXPECT_EQ(controller.apply(policy, 1.0 / 16.0).thresholds[0], 1.25f);
}

TEST(savings_controller, refuses_targets_out_of_range) {
  EXPECT_FALSE(adaptive_k::savings_controller({0.0}).validity());
  EXPECT_FALSE(adaptive_k::savings_controller({1.0}).validity());
  adaptive_k::savings_target target;
  target.expert_savings = 0.5;
  target.gain = -1.0;
  EXPECT_FALSE(adaptive_k::savings_controller(target).validity());
}

}  // namespace
