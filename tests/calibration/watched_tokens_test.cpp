// What a calibration says of super experts and of the domain, on a model whose truth is known.
#include <gtest/gtest.h>
#include <adaptive_k/calibration/calibrator.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "calibration/toy_model.hpp"

namespace {

using adaptive_k::calibration_rule;
using adaptive_k::calibration_runner;
using adaptive_k::calibration_study;
using adaptive_k::signal_kind;

adaptive_k::study_options quick_options() {
  adaptive_k::study_options options;
  options.fit_tokens = 1024;
  options.choice_tokens = 512;
  options.sensitivity_tokens = 512;
  options.mass_exponents = {0.5};
  return options;
}

TEST(super_experts, are_found_where_outputs_stand_out) {
  toy_model model(16, 4, {1.0, 1.0, 1.0});
  const toy_text text;
  const calibration_runner plain(adaptive_k::bind_source(model, text, "toy"));
  EXPECT_TRUE(adaptive_k::find_super_experts(plain.record({0, 8})).empty());

  model.enlarge(1, 5, 40.0f);
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto records = runner.record({0, 8});
  const auto found = adaptive_k::find_super_experts(records);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].layer, 1);
  EXPECT_EQ(found[0].expert, 5);
  EXPECT_EQ(found[0].largest, static_cast<double>(model.largest_output(1, 5)));
  EXPECT_EQ(records[1].largest_output(5), model.largest_output(1, 5));
  EXPECT_GT(found[0].of_median, 10.0);

  // Twice as large as the others is nothing of the kind; and what is not asked for is not said.
  EXPECT_TRUE(adaptive_k::find_super_experts(records, {0.995, 0.1, 100.0}).empty());
  toy_model larger(16, 4, {1.0, 1.0, 1.0});
  larger.enlarge(1, 5, 2.0f);
  const calibration_runner mild(adaptive_k::bind_source(larger, text, "toy"));
  EXPECT_TRUE(adaptive_k::find_super_experts(mild.record({0, 8})).empty());
}

TEST(super_experts, are_counted_by_layer_and_by_size) {
  // 3 layers of 100: above the 99th percentile are 3.
  toy_model model(100, 8, {1.0, 1.0, 1.0});
  const toy_text text;
  model.enlarge(0, 1, 500.0f);
  model.enlarge(2, 7, 400.0f);
  model.enlarge(2, 8, 20.0f);  // below a tenth of the largest
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto records = runner.record({0, 24});
  const auto found = adaptive_k::find_super_experts(records, {0.99, 0.1, 10.0});
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].layer, 0);
  EXPECT_EQ(found[1].expert, 7);
  EXPECT_EQ(adaptive_k::find_super_experts(records, {0.99, 0.01, 10.0}).size(), 3u);
}

TEST(super_experts, are_kept_by_every_rule_that_adapts) {
  toy_model model(16, 4, {1.0, 1.0, 1.0});
  model.enlarge(1, 5, 40.0f);
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const calibration_study study(runner, quick_options());
  ASSERT_EQ(study.super_experts().size(), 1u);
  for (const auto rule : {calibration_rule::distortion, calibration_rule::top_p,
                          calibration_rule::psi, calibration_rule::entropy}) {
    const auto set = study.settled_policies(rule, 2.0, 0.5);
    for (std::size_t l = 0; l < 3; ++l)
      EXPECT_EQ(set.layers[l].num_super_experts, l == 1 ? 1 : 0) << to_string(rule);
    EXPECT_EQ(set.layers[1].super_experts[0], 5);
    // With it in every choice the mean K asked for is met still.
    EXPECT_NEAR(calibration_study::run(set, study.choice_texts()).mean_k(), 2.0, 0.05);
  }
  const auto fixed = study.policies(calibration_rule::fixed, 2.0, 0.5);
  EXPECT_EQ(fixed.layers[1].num_super_experts, 0);
}

TEST(domain, holds_all_but_the_part_left_out_at_each_end) {
  toy_model model(16, 4, {1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto records = runner.record({0, 16});
  const adaptive_k::layer_record& record = records[0];
  for (const auto signal : {signal_kind::none, signal_kind::softmax_entropy,
                            signal_kind::normalized_entropy, signal_kind::topk_entropy,
                            signal_kind::topk_mass, signal_kind::score_ratio, signal_kind::margin})
    for (const double part : {0.0, 0.01, 0.1}) {
      // Against the router's own signals and weights.
      adaptive_k::k_policy policy = adaptive_k::k_policy::full();
      policy.signal = signal;
      policy.domain = adaptive_k::fit_domain(record, signal, part);
      ASSERT_TRUE(policy.domain.given);
      ASSERT_TRUE(adaptive_k::validate(policy, model.router_gating()).ok());
      const double outside = runner.out_of_domain_share({{policy}, nullptr}, {0, 16});
      const double ends = signal == signal_kind::none ? 2.0 : 4.0;
      EXPECT_LE(outside, ends * part + 0.01) << to_string(signal) << ' ' << part;
      EXPECT_GE(outside, part * 0.9 - 0.002) << to_string(signal) << ' ' << part;
    }
  EXPECT_FALSE(
      adaptive_k::fit_domain(adaptive_k::layer_record(model.router_gating()), signal_kind::none)
          .given);
}

TEST(domain, of_a_calibration_tells_its_own_text_from_another) {
  toy_model model(16, 4, {1.0, 0.5});
  const toy_text text;
  adaptive_k::calibrator search;
  search.target = adaptive_k::target_savings(0.4);
  search.options = quick_options();
  const auto result = search.calibrate(model, text);
  EXPECT_TRUE(result.super_experts.empty());
  for (const adaptive_k::k_policy& layer : result.policies.layers) EXPECT_TRUE(layer.domain.given);
  EXPECT_GT(result.out_of_domain, 0.0);
  EXPECT_LT(result.out_of_domain, 0.05);
  // Routers that are far surer: the same gating, other logits.
  toy_model other(16, 4, {1.0, 0.5}, 6.0);
  const calibration_runner elsewhere(adaptive_k::bind_source(other, text, "other"));
  EXPECT_GT(elsewhere.out_of_domain_share(result.policies, {0, 8}), 4.0 * result.out_of_domain);
}

}  // namespace
