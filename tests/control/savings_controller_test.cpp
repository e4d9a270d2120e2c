// The controller against a stream that drifts: the saving is what routing really gave.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/savings_controller.hpp>

#include <cmath>
#include <string>
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
  EXPECT_TRUE(controller.validity().ok());
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
    EXPECT_TRUE(routed.result.ok()) << routed.result.message();
    adaptive_k::routing_metrics entropy;
    k_policy full = k_policy::full();
    const auto unadapted = adaptive_k::router(g, full).route(
        0, adaptive_k::logits_view<float>{logits.data(), tokens, num_experts}, &entropy);
    EXPECT_TRUE(unadapted.result.ok()) << unadapted.result.message();
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
      for (const std::uint64_t seed : {101u, 102u}) {
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

TEST(savings_controller, one_odd_batch_moves_it_by_a_factor_e_at_most) {
  adaptive_k::savings_controller up({0.5});  // off by half: six times that would be e^3
  EXPECT_TRUE(up.observe(8 * 4096, 8 * 4096, 4096));
  EXPECT_NEAR(up.scale(), 2.7182818, 1e-5);
  adaptive_k::savings_controller down({0.25});
  EXPECT_TRUE(down.observe(4096, 8 * 4096, 4096));
  EXPECT_NEAR(down.scale(), 1.0 / 2.7182818, 1e-5);
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
    EXPECT_TRUE(validate(controller.apply(policy), g).ok())
        << validate(controller.apply(policy), g).message();
  const k_policy policy = k_policy::entropy({2, 4}, {1.25f});
  EXPECT_EQ(controller.apply(policy).thresholds[0], 2.5f);
  EXPECT_EQ(controller.apply(policy, 1.0 / 16.0).thresholds[0], 1.25f);
}

/// A plant whose saving jumps where the scale passes `at`: nothing in between is to be had.
double jumping(double scale, double at) {
  return scale < at ? 0.25 : 0.5;
}

/// One decision on tokens of K0 = 8 of which `saved` was saved.
bool decide(adaptive_k::savings_controller& controller, double saved) {
  constexpr std::uint64_t full = 8 * 4096;
  return controller.observe(full - static_cast<std::uint64_t>(std::llround(saved * full)), full,
                            4096);
}

TEST(savings_controller, comes_to_rest_where_the_saving_jumps_over_the_target) {
  for (const double at : {0.07, 0.5, 0.999, 1.0, 1.001, 1.3, 2.0, 15.5})
    for (const double target : {0.3, 0.375, 0.45})
      for (const double gain : {0.5, 6.0, 20.0}) {
        SCOPED_TRACE("jump at " + std::to_string(at) + ", target " + std::to_string(target) +
                     ", gain " + std::to_string(gain));
        adaptive_k::savings_target wanted;
        wanted.expert_savings = target;
        wanted.gain = gain;
        adaptive_k::savings_controller controller(wanted);
        int moves = 0, last_move = 0;
        for (int i = 0; i < 1000; ++i)
          if (decide(controller, jumping(controller.scale(), at))) {
            ++moves;
            last_move = i;
          }
        EXPECT_LT(last_move, 300);  // a gain of 0.5 takes its time to get there
        EXPECT_TRUE(controller.at_jump());
        // At the jump, on the side that is nearer to the target.
        EXPECT_NEAR(std::log(controller.scale() / at), 0.0, 0.011);
        EXPECT_EQ(jumping(controller.scale(), at), target > 0.375 ? 0.5
                                                   : target < 0.375
                                                       ? 0.25
                                                       : jumping(controller.scale(), at));
        // What changes later is followed: now every saving is to be had.
        const double fits = at < 1.1 ? 2.0 : 0.5;
        double saved = 0.0;
        for (int i = 0; i < 400; ++i) {
          saved = target + 0.12 * std::log(controller.scale() / fits);
          saved = saved > 0.0 ? saved : 0.0;
          decide(controller, saved);
        }
        EXPECT_NEAR(saved, target, 0.003);
        EXPECT_FALSE(controller.at_jump());
      }
}

TEST(savings_controller, steps_of_noise_do_not_keep_it_from_the_target) {
  // Smooth but for noise that is larger than the hysteresis.
  inputs::sequence numbers(41);
  adaptive_k::savings_controller controller({0.4});
  double late = 0.0;
  for (int i = 0; i < 400; ++i) {
    const double drifted_by = 0.0005 * i;
    const double noise = 0.02 * (numbers.below(1000) / 999.0 - 0.5);
    const double saved = 0.2 + 0.15 * std::log(controller.scale()) + drifted_by;
    decide(controller, saved + noise);
    if (i >= 100) late += saved / 300;
  }
  EXPECT_NEAR(late, 0.4, 0.01);
}

TEST(savings_controller, refuses_what_is_no_saving_and_keeps_its_target) {
  const double nan = std::nan(""), inf = HUGE_VAL;
  adaptive_k::savings_controller controller({0.4});
  for (const double wrong : {nan, inf, -inf, 0.0, 1.0, -0.3, 1e300}) {
    const adaptive_k::status result = controller.retarget(wrong);
    EXPECT_FALSE(result.ok());
    EXPECT_NE(std::string(result.message()).find("expert_savings is "), std::string::npos);
    EXPECT_TRUE(controller.validity().ok());
  }
  EXPECT_FALSE(decide(controller, 0.4));
  EXPECT_EQ(controller.scale(), 1.0);
  EXPECT_TRUE(controller.retarget(0.5).ok());
  EXPECT_TRUE(decide(controller, 0.4));
  EXPECT_GT(controller.scale(), 1.0);
}

TEST(savings_controller, stays_where_it_is_with_a_target_or_counts_that_cannot_be) {
  const double nan = std::nan(""), inf = HUGE_VAL;
  using target = adaptive_k::savings_target;
  for (double target::*field : {&target::expert_savings, &target::hysteresis, &target::gain,
                                &target::lowest_scale, &target::highest_scale})
    for (const double wrong : {nan, inf, -inf, -1.0}) {
      target made;
      made.expert_savings = 0.4;
      made.*field = wrong;
      adaptive_k::savings_controller controller(made);
      EXPECT_FALSE(controller.validity().ok());
      for (int i = 0; i < 5; ++i) EXPECT_FALSE(decide(controller, 0.1 * i));
      EXPECT_EQ(controller.scale(), 1.0);
    }
  target many;
  many.expert_savings = 0.4;
  many.decision_tokens = ~std::uint64_t{0};
  EXPECT_NE(std::string(adaptive_k::savings_controller(many).validity().message())
                .find("decision_tokens is 18446744073709551615"),
            std::string::npos);

  adaptive_k::savings_controller controller({0.4});
  const std::uint64_t most = ~std::uint64_t{0};
  EXPECT_FALSE(controller.observe(9, 8, 4096));  // of a counter that began anew, subtracted
  EXPECT_FALSE(controller.observe(most - 5, most, most));
  EXPECT_FALSE(controller.observe(0, most, 4096));
  EXPECT_EQ(controller.scale(), 1.0);
}

TEST(savings_controller, makes_valid_policies_of_valid_ones_at_every_scale) {
  const adaptive_k::gating g = softmax_24_6();
  std::vector<float> coefficients(5 * (top_k - 1), 0.0f);
  adaptive_k::distortion_ref model;
  model.coefficients = coefficients.data();
  std::vector<k_policy> policies;
  // Neighbouring floats, and the ends of what is valid.
  for (const float first :
       {-9.9e29f, -1.0f, -1e-45f, 0.0f, 1e-45f, 1e-30f, 0.5f, 1.0f, 1.9999999f, 3.0f, 9e29f}) {
    std::vector<float> near = {first};
    for (int i = 0; i < 4; ++i) near.push_back(std::nextafter(near.back(), HUGE_VALF));
    k_policy entropy =
        k_policy::entropy({1, 2, 3, 4, 5, 6}, {near[0], near[1], near[2], near[3], near[4]});
    policies.push_back(entropy);
    k_policy margin = k_policy::with_thresholds(adaptive_k::signal_kind::margin, {1, 2, 3, 4, 5, 6},
                                                {near[4], near[3], near[2], near[1], near[0]});
    policies.push_back(margin);
  }
  policies.push_back(k_policy::with_thresholds(adaptive_k::signal_kind::margin, {1, 2, 3, 4, 5},
                                               {1.5f, 1.0f, 0.99999994f, 0.0f}));
  for (const float p : {0.0f, 1e-45f, 0.3f, 0.99999994f, 1.0f}) {
    policies.push_back(k_policy::top_p(p, top_k));
    policies.push_back(k_policy::score_ratio(p, top_k));
  }
  for (const float lambda : {0.0f, 1e-45f, 1.0f, 9.9e29f}) {
    model.lambda = lambda;
    policies.push_back(k_policy::min_distortion(model));
  }
  adaptive_k::savings_target extreme;
  extreme.expert_savings = 0.5;
  extreme.lowest_scale = 1e-6;
  extreme.highest_scale = 1e6;
  for (const double saved : {0.0, 0.9}) {
    adaptive_k::savings_controller controller(extreme);
    while (!controller.at_bound()) decide(controller, saved);
    for (const k_policy& policy : policies) {
      ASSERT_TRUE(validate(policy, g).ok()) << validate(policy, g).message();
      for (const double layer : {1e-6, 1.0, 1e6, 1e300}) {
        const adaptive_k::status valid = validate(controller.apply(policy, layer), g);
        EXPECT_TRUE(valid.ok()) << valid.message() << " at " << controller.scale() * layer;
      }
      if (policy.rule == adaptive_k::k_rule::distortion && policy.distortion.lambda == 0.0f)
        continue;
      for (const double wrong : {std::nan(""), HUGE_VAL, -1.0, 0.0})
        EXPECT_FALSE(validate(controller.apply(policy, wrong), g).ok()) << wrong;
    }
  }
}

/// Savings that make it follow, close in on a jump, rest and leave it.
double eventful(int i, double scale) {
  if (i < 40) return 0.2 + 0.1 * std::log(scale);
  if (i < 120) return jumping(scale, 1.3);
  return 0.3 + 0.12 * std::log(scale);
}

TEST(savings_controller, goes_on_from_its_state_as_if_nothing_had_been) {
  adaptive_k::savings_target target;
  target.expert_savings = 0.45;
  target.decision_tokens = 3 * 4096;  // stops also fall between two decisions
  adaptive_k::savings_controller kept(target), restarted(target);
  int phases = 0;
  for (int i = 0; i < 600; ++i) {
    const double saved = eventful(i / 3, kept.scale());
    EXPECT_EQ(decide(kept, saved), decide(restarted, saved));
    const adaptive_k::controller_state state = restarted.state();
    phases |= 1 << state.phase;
    restarted = adaptive_k::savings_controller(target);
    const adaptive_k::status resumed = restarted.resume(state);
    ASSERT_TRUE(resumed.ok()) << resumed.message();
    ASSERT_EQ(restarted.scale(), kept.scale()) << i;
    ASSERT_EQ(restarted.at_jump(), kept.at_jump()) << i;
  }
  EXPECT_EQ(phases, 7) << "the stream must pass every phase";
}

TEST(savings_controller, refuses_a_state_that_no_controller_was_in) {
  using state = adaptive_k::controller_state;
  const double nan = std::nan("");
  const auto refused = [](auto&& change, const char* field) {
    adaptive_k::savings_controller controller({0.4});
    decide(controller, 0.1);
    state wrong = controller.state();
    change(wrong);
    const double before = controller.scale();
    const adaptive_k::status result = controller.resume(wrong);
    EXPECT_FALSE(result.ok()) << field;
    EXPECT_NE(std::string(result.message()).find(field), std::string::npos) << result.message();
    EXPECT_EQ(controller.scale(), before);
  };
  for (const double scale : {nan, 0.0, -1.0, 16.5, 0.06, HUGE_VAL})
    refused([&](state& s) { s.scale = scale; }, "scale");
  refused([](state& s) { s.expert_calls = 1; }, "expert_calls");
  refused(
      [&](state& s) {
        s.full_expert_calls = 33;
        s.tokens = 1;
      },
      "full_expert_calls");
  refused([](state& s) { s.tokens = ~std::uint64_t{0}; }, "tokens");
  for (const int phase : {-1, 3}) refused([&](state& s) { s.phase = phase; }, "phase");
  refused(
      [&](state& s) {
        s.phase = 2;
        s.other_error = 0.0;
      },
      "phase");
  for (const int reversals : {-1, 1000})
    refused([&](state& s) { s.reversals = reversals; }, "reversals");
  for (const double error : {nan, 1.0, -1.0, HUGE_VAL})
    refused([&](state& s) { s.last_error = error; }, "error");
  refused(
      [&](state& s) {
        s.other_error = 0.1;
        s.other_scale = nan;
      },
      "scale");
  adaptive_k::savings_controller none({0.0});
  EXPECT_FALSE(none.resume({}).ok());
}

TEST(savings_controller, refuses_targets_out_of_range) {
  EXPECT_FALSE(adaptive_k::savings_controller({0.0}).validity().ok());
  EXPECT_FALSE(adaptive_k::savings_controller({1.0}).validity().ok());
  adaptive_k::savings_target target;
  target.expert_savings = 0.5;
  target.gain = -1.0;
  EXPECT_FALSE(adaptive_k::savings_controller(target).validity().ok());
}

}  // namespace
