// The calibrator on a model whose truth is known, of shapes that no reference model has.
#include <gtest/gtest.h>
#include <adaptive_k/calibration/calibrator.hpp>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "calibration/toy_model.hpp"

namespace {

using adaptive_k::calibration_rule;
using adaptive_k::calibration_runner;
using adaptive_k::calibration_study;
using adaptive_k::calibrator;

adaptive_k::study_options small_options() {
  adaptive_k::study_options options;
  options.fit_tokens = 1024;
  options.choice_tokens = 512;
  options.sensitivity_tokens = 512;
  options.mass_exponents = {0.0, 0.5, 1.0};
  return options;
}

TEST(layer_record, distortion_is_that_of_the_outputs) {
  // The toy's own KL is computed from outputs, the record's from its three products.
  for (const bool is_biased : {false, true}) {
    for (const double exponent : {0.0, 0.3, 1.0}) {
      toy_model model(11, 5, {1.0});
      if (is_biased) model.select_by_bias();
      const toy_text text;
      const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
      const auto records = runner.record({2, 1});
      for (int k = 1; k <= 5; ++k) {
        const auto outcome = runner.run(
            adaptive_k::same_policy(adaptive_k::k_policy::fixed(k), exponent, 1), {2, 1});
        double mean = 0.0;
        for (int t = 0; t < toy_model::length; ++t)
          mean += records[0].distortion(t, k, exponent) / toy_model::length;
        EXPECT_NEAR(outcome.mean_kl(), mean, 1e-5 * mean + 1e-9) << k << " " << exponent;
      }
    }
  }
}

// Every kind of run gives the router the layer's bias, without which it refuses.
TEST(selection_bias, reaches_every_routing_call) {
  toy_model model(11, 5, {1.0, 0.5});
  model.select_by_bias();
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto layers = static_cast<std::size_t>(model.num_layers());
  const auto policies = adaptive_k::same_policy(adaptive_k::k_policy::top_p(0.8f, 5), 1.0, layers);
  const auto fixed = adaptive_k::same_policy(adaptive_k::k_policy::fixed(1), 1.0, layers);
  const auto chosen = runner.run(policies, {0, 4});
  EXPECT_GT(chosen.mean_k(), 1.0);
  EXPECT_LT(chosen.mean_k(), 5.0);
  const auto shuffled = runner.run(policies, {0, 4}, adaptive_k::k_assignment::shuffled);
  EXPECT_NEAR(shuffled.mean_k(), chosen.mean_k(), 1e-12);
  const auto oracle = runner.run_oracle({1.0, 0.5}, 0.001, 1.0, {0, 4});
  EXPECT_GE(oracle.mean_k(), 1.0);
  EXPECT_LT(oracle.mean_kl(), runner.run(fixed, {0, 4}).mean_kl());
}

TEST(sensitivities, are_the_weights_of_the_layers) {
  toy_model model(13, 5, {0.5, 2.0, 1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const calibration_study study(runner, small_options());
  const auto& g = study.sensitivities();
  ASSERT_EQ(g.size(), 3u);
  EXPECT_NEAR(g[1] / g[0], 4.0, 0.01);
  EXPECT_NEAR(g[2] / g[0], 2.0, 0.01);
}

TEST(nonnegative_least_squares, meets_the_conditions_of_its_minimum) {
  inputs::sequence numbers(5);
  Eigen::MatrixXd a(40, 6);
  Eigen::VectorXd b(40);
  for (int i = 0; i < 40; ++i) {
    for (int j = 0; j < 6; ++j) a(i, j) = numbers.between(-100, 100) / 100.0;
    b[i] = numbers.between(-100, 100) / 100.0;
  }
  const Eigen::VectorXd x = adaptive_k::detail::nonnegative_least_squares(a, b);
  const Eigen::VectorXd slope = a.transpose() * (a * x - b);
  bool some_at_bound = false;
  for (int j = 0; j < 6; ++j) {
    EXPECT_GE(x[j], 0.0);
    EXPECT_GE(slope[j], -1e-8);
    EXPECT_NEAR(x[j] * slope[j], 0.0, 1e-8);
    some_at_bound = some_at_bound || x[j] == 0.0;
  }
  EXPECT_TRUE(some_at_bound);
}

TEST(calibrator, meets_a_saving_and_beats_every_control) {
  for (const int top_k : {3, 6}) {
    toy_model model(3 * top_k + 2, top_k, {1.0, 0.5});
    const toy_text text, test{77, 12};
    calibrator search{adaptive_k::target_savings(0.4)};
    search.options = small_options();
    const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
    const calibration_runner held_out(adaptive_k::bind_source(model, test, "test"));
    const calibration_study study(runner, search.options);
    const auto result = search.choose(study);
    EXPECT_TRUE(result.quality_known);
    EXPECT_EQ(result.rule, calibration_rule::distortion) << result.sentence;
    EXPECT_NEAR(result.expert_savings, 0.4, 0.01);
    EXPECT_LT(result.against_fixed.value + 2.0 * result.against_fixed.se, 0.0);
    const auto own = held_out.run(result.policies, {0, 12});
    for (const calibration_rule rule :
         {calibration_rule::fixed, calibration_rule::static_per_layer, calibration_rule::entropy,
          calibration_rule::score_ratio, calibration_rule::random_mix, calibration_rule::inverted})
      EXPECT_LT(
          own.mean_kl(),
          study.measure(rule, result.mean_k, result.mass_exponent, held_out, {0, 12}).mean_kl())
          << adaptive_k::to_string(rule);
    EXPECT_GT(own.mean_kl(), study
                                 .measure(calibration_rule::oracle, result.mean_k,
                                          result.mass_exponent, held_out, {0, 12})
                                 .mean_kl());
  }
}

TEST(calibrator, gives_the_whole_frontier_where_asked) {
  toy_model model(13, 4, {1.0, 2.0});
  calibrator search{adaptive_k::target_savings(0.4)};
  search.options = small_options();
  EXPECT_TRUE(search.calibrate(model, toy_text()).frontier.empty());
  search.frontier_mean_ks = {2.0, 3.0};
  const auto result = search.calibrate(model, toy_text());
  ASSERT_EQ(result.frontier.size(), 2 * std::size(adaptive_k::all_calibration_rules));
  for (const auto& point : result.frontier) {
    EXPECT_EQ(point.split, "calibration");
    EXPECT_NEAR(point.outcome.mean_k(), point.target_mean_k, 0.1)
        << adaptive_k::to_string(point.rule);
    EXPECT_GT(point.outcome.mean_kl(), 0.0);
  }
  for (const double mean_k : {0.5, 4.0, std::nan("")}) {
    search.frontier_mean_ks = {mean_k};
    EXPECT_THROW(search.calibrate(model, toy_text()), std::runtime_error);
  }
}

TEST(calibrator, keeps_within_a_kl_and_a_perplexity) {
  toy_model model(17, 5, {1.0, 1.0});
  const toy_text text;
  for (const auto target : {adaptive_k::max_kl(0.02), adaptive_k::max_perplexity_increase(0.02)}) {
    calibrator search{target};
    search.options = small_options();
    const auto result = search.calibrate(model, text);
    EXPECT_LE(result.mean_kl.value, 0.0201);
    EXPECT_GT(result.mean_kl.value, 0.015) << "it must use what it may";
    EXPECT_GT(result.expert_savings, 0.1);
  }
}

TEST(calibrator, says_so_where_a_static_rule_wins) {
  // A router that is always equally sure, and one expert in all: nothing tells tokens apart.
  toy_model model(9, 4, {1.0, 3.0}, 0.0);
  const toy_text text;
  calibrator search{adaptive_k::target_savings(0.5)};
  search.options = small_options();
  search.rules = {calibration_rule::top_p, calibration_rule::fixed};
  const auto result = search.calibrate(model, text);
  EXPECT_EQ(result.rule, calibration_rule::fixed);
  EXPECT_NE(result.sentence.find("fixed wins"), std::string::npos);
}

TEST(calibrator, gives_the_same_policies_again_and_from_remembered_runs) {
  const toy_text text;
  calibrator search{adaptive_k::target_savings(0.4)};
  search.options = small_options();
  std::map<std::string, adaptive_k::routing_outcome> kept;
  adaptive_k::run_memory memory;
  memory.recall = [&](const std::string& key, adaptive_k::routing_outcome& outcome) {
    const auto found = kept.find(key);
    if (found != kept.end()) outcome = found->second;
    return found != kept.end();
  };
  memory.remember = [&](const std::string& key, const adaptive_k::routing_outcome& outcome) {
    kept[key] = outcome;
  };
  std::vector<float> lambdas, coefficients;
  std::vector<int> runs;
  for (int i = 0; i < 4; ++i) {
    for (auto& [key, outcome] : kept) {  // what somebody cut is not used
      if (i == 2 && !outcome.windows.empty()) outcome.windows.pop_back();
      if (i == 3) outcome.layer_mean_k.push_back(1.0);
    }
    toy_model model(13, 4, {1.0, 2.0});
    const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"), memory);
    const auto result = search.choose(calibration_study(runner, search.options));
    lambdas.push_back(result.policies.layers[1].distortion.lambda);
    coefficients.push_back(result.policies.layers[1].distortion.coefficients[2]);
    runs.push_back(model.runs);
  }
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(lambdas[i], lambdas[0]);
    EXPECT_EQ(coefficients[i], coefficients[0]);
  }
  EXPECT_GT(runs[0], 20);
  EXPECT_EQ(runs[1], 1) << "only the recording runs again";
  EXPECT_EQ(runs[2], runs[0]);
  EXPECT_EQ(runs[3], runs[0]);
}

TEST(calibrator, meets_a_saving_from_logits_alone_and_claims_nothing) {
  toy_model model(19, 6, {1.0, 1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto result =
      calibrator{adaptive_k::target_savings(0.3)}.calibrate_trace(runner.record({0, 24}));
  EXPECT_FALSE(result.quality_known);
  EXPECT_NE(result.sentence.find("quality unknown"), std::string::npos);
  EXPECT_NEAR(runner.run(result.policies, {0, 24}).mean_k(), 0.7 * 6, 0.01);
  EXPECT_THROW(calibrator{adaptive_k::max_kl(0.1)}.calibrate_trace(runner.record({0, 1})),
               std::runtime_error);
}

TEST(calibrator, refuses_targets_and_texts_that_do_not_fit) {
  toy_model model(9, 3, {1.0});
  for (const double share : {0.0, 1.0, -0.5, std::nan("")})
    EXPECT_THROW(calibrator{adaptive_k::target_savings(share)}.calibrate(model, toy_text()),
                 std::runtime_error);
  EXPECT_THROW(calibrator{adaptive_k::target_savings(0.5)}.calibrate(model, toy_text{1, 3}),
               std::runtime_error);
}

}  // namespace
