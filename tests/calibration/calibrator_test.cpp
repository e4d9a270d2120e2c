// The calibrator on a model whose truth is known, of shapes that no reference model has.
#include <gtest/gtest.h>
#include <adaptive_k/calibration/calibrator.hpp>

#include <cmath>
#include <map>
#include <string>
#include <utility>
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

TEST(sensitivities, are_measured_where_only_one_expert_can_be_dropped) {
  toy_model model(8, 2, {0.5, 2.0, 1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const calibration_study study(runner, small_options());
  EXPECT_NEAR(study.sensitivities()[1] / study.sensitivities()[0], 4.0, 0.01);
  EXPECT_NEAR(study.sensitivities()[2] / study.sensitivities()[0], 2.0, 0.01);
}

TEST(sensitivities, shrink_towards_one_and_keep_their_mean) {
  const std::vector<double> g = {0.25, 1.0, 2.0, 0.75};
  for (const double q : {0.0, 0.25, 0.5, 1.0}) {
    const auto weights = adaptive_k::shrunk_sensitivities(g, q);
    ASSERT_EQ(weights.size(), g.size());
    double mean = 0.0;
    for (const double w : weights) mean += w / 4.0;
    EXPECT_NEAR(mean, 1.0, 1e-5) << q;
    EXPECT_NEAR(weights[2] / weights[0], std::pow(8.0, q), 1e-3) << q;
  }
  EXPECT_EQ(adaptive_k::shrunk_sensitivities(g, 1.0), g);
}

TEST(sensitivities, of_one_text_are_shrunk_by_half_unless_asked_otherwise) {
  toy_model model(13, 5, {0.5, 2.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  auto options = small_options();
  const calibration_study usual(runner, options);
  EXPECT_EQ(usual.sensitivity_exponent(), 0.5);
  EXPECT_TRUE(usual.exponent_trials().empty());
  const auto ratio = [](const calibration_study& study) {
    const auto set = study.policies(calibration_rule::distortion, 2.5, 0.5);
    return set.layers[1].distortion.sensitivity / set.layers[0].distortion.sensitivity;
  };
  EXPECT_NEAR(ratio(usual), 2.0, 0.01);
  options.sensitivity_exponent = 1.0;
  EXPECT_NEAR(ratio(calibration_study(runner, options)), 4.0, 0.01);
  options.sensitivity_exponent = 0.0;
  EXPECT_EQ(ratio(calibration_study(runner, options)), 1.0f);
  for (const double wrong : {-0.1, 1.1, std::nan("")}) {
    options.sensitivity_exponent = wrong;
    EXPECT_THROW(calibration_study(runner, options), std::runtime_error);
  }
}

/// The exponent found on texts whose layers matter so.
double exponent_of(const std::vector<std::vector<double>>& layer_weights) {
  toy_model model(13, 5, {1.0, 1.0});
  std::vector<toy_text> texts;
  for (std::size_t i = 0; i < layer_weights.size(); ++i)
    texts.push_back({i + 1, 24, layer_weights[i]});
  std::vector<calibration_runner> runners;
  for (std::size_t i = 0; i < texts.size(); ++i)
    runners.emplace_back(adaptive_k::bind_source(model, texts[i], "text " + std::to_string(i)));
  std::vector<adaptive_k::calibration_domain> domains;
  for (const calibration_runner& runner : runners)
    domains.push_back({runner.source().name, &runner});
  const calibration_study study(domains, small_options());
  EXPECT_EQ(study.exponent_trials().size(), 5 * texts.size());
  for (const auto& trial : study.exponent_trials())
    EXPECT_NEAR(trial.outcome.mean_k(), 3.0, 0.05) << trial.exponent << trial.held_out;
  return study.sensitivity_exponent();
}

TEST(sensitivities, are_trusted_as_far_as_they_hold_on_texts_left_out) {
  EXPECT_GE(exponent_of({{0.2, 3.0}, {0.2, 3.0}, {0.2, 3.0}}), 0.75) << "the same everywhere";
  EXPECT_EQ(exponent_of({{0.2, 3.0}, {3.0, 0.2}}), 0.0) << "each the other's opposite";
}

TEST(study, takes_an_equal_part_of_each_text) {
  toy_model model(13, 4, {1.0, 2.0});
  const toy_text first{1, 24}, second{2, 40};
  const calibration_runner a(adaptive_k::bind_source(model, first, "a"));
  const calibration_runner b(adaptive_k::bind_source(model, second, "b"));
  const calibration_study study({{"a", &a}, {"b", &b}}, small_options());
  EXPECT_EQ(study.records()[0].num_tokens(), 1024);
  EXPECT_EQ(study.tokens_by_domain(), (std::vector<std::int64_t>{512 + 256, 512 + 256}));
  EXPECT_EQ(study.tokens_analyzed(), 2 * (512 + 256));
  ASSERT_EQ(study.choice_texts().size(), 2u);
  EXPECT_EQ(study.choice_texts()[1].split, "b");
  EXPECT_EQ(study.choice_texts()[1].range.first, 512 / toy_model::length) << "not fitted on";
  // The second half of the record is the second text's own.
  const auto own = b.record({0, 8});
  EXPECT_EQ(study.records()[1].weights(512)[0], own[1].weights(0)[0]);
  EXPECT_EQ(study.records()[1].distortion(600, 2, 0.5), own[1].distortion(88, 2, 0.5));
  const auto both = study.measure(calibration_rule::fixed, 2.0, 0.5, study.choice_texts());
  EXPECT_EQ(both.windows.size(), 8u);
  EXPECT_EQ(both.mean_k(), 2.0);
  EXPECT_THROW(calibration_study({{"a", &a}, {"a", &b}}, small_options()), std::runtime_error);
  EXPECT_THROW(calibration_study(std::vector<adaptive_k::calibration_domain>(), small_options()),
               std::runtime_error);
}

TEST(study, holds_a_mean_k_on_a_text_that_it_was_not_set_on) {
  toy_model model(17, 6, {1.0, 0.5});
  toy_model flat_model(17, 6, {1.0, 0.5}, 0.9);  // a router that is less sure: other mean K's
  const toy_text text, other{5, 16};
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const calibration_runner elsewhere(adaptive_k::bind_source(flat_model, other, "other"));
  const calibration_study study(runner, small_options());
  for (const calibration_rule rule :
       {calibration_rule::top_p, calibration_rule::score_ratio, calibration_rule::skipping,
        calibration_rule::psi, calibration_rule::distortion, calibration_rule::fixed,
        calibration_rule::static_per_layer, calibration_rule::oracle}) {
    const auto outcome = study.measure_held(rule, 3.5, 0.5, {{"other", &elsewhere, {0, 16}}});
    EXPECT_NEAR(outcome.held.mean_k(), 3.5, 0.1) << adaptive_k::to_string(rule);
    EXPECT_EQ(outcome.held.windows.size(), 16u);
    if (rule == calibration_rule::top_p || rule == calibration_rule::score_ratio) {
      EXPECT_GT(std::fabs(outcome.as_set.mean_k() - 3.5), 0.1) << adaptive_k::to_string(rule);
    }
  }
}

TEST(skipping, drops_the_second_expert_below_the_median_of_its_share) {
  toy_model model(9, 2, {1.0, 1.0, 1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const calibration_study study(runner, small_options());
  const auto set = study.policies(calibration_rule::skipping, 1.5, 0.5);
  for (std::size_t l = 0; l < 3; ++l) {
    const auto& record = study.records()[l];
    std::int64_t kept = 0;
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      kept += record.weights(t)[1] >= set.layers[l].thresholds[0] * record.weights(t)[0] ? 1 : 0;
    EXPECT_NEAR(static_cast<double>(kept) / static_cast<double>(record.num_tokens()), 0.5, 0.005);
  }
  EXPECT_NE(set.layers[0].thresholds[0], set.layers[1].thresholds[0]) << "each layer its own";
}

TEST(psi, needs_no_tables_and_has_the_scale_of_the_distortions) {
  toy_model model(13, 5, {1.0, 1.0});
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  const auto records = runner.record({0, 16});
  const auto set =
      calibration_study(runner, small_options()).policies(calibration_rule::psi, 3.0, 0.5);
  EXPECT_EQ(set.layers[0].distortion.first_expert, nullptr);
  EXPECT_EQ(set.layers[0].distortion.next_expert, nullptr);
  const auto fit = adaptive_k::fit_psi(records[1], 0.5);
  double truth = 0.0, predicted = 0.0;
  for (std::int64_t t = 0; t < records[1].num_tokens(); ++t)
    for (int k = 1; k < 5; ++k) {
      truth += records[1].distortion(t, k, 0.5);
      predicted += adaptive_k::predicted_distortion(fit, records[1], t, k, 0.5);
    }
  EXPECT_NEAR(predicted / truth, 1.0, 1e-4);
}

TEST(head, predicts_what_the_logits_do_not_tell) {
  toy_model model(13, 5, {1.0, 1.0});
  model.give_inputs();
  const toy_text text;
  const calibration_runner runner(adaptive_k::bind_source(model, text, "toy"));
  adaptive_k::study_options options = small_options();
  EXPECT_FALSE(calibration_study(runner, options).can_set(calibration_rule::head));
  options.head = true;
  const calibration_study study(runner, options);
  const auto set = study.policies(calibration_rule::head, 3.0, 0.5);
  for (const adaptive_k::k_policy& layer : set.layers) {
    EXPECT_EQ(layer.distortion.first_expert, nullptr);
    EXPECT_EQ(layer.distortion.hidden_size, toy_model::hidden);
    // d is relative to |h + y|^2, whose logarithm is the first input; the others are noise.
    for (int j = 0; j < 4; ++j) {
      EXPECT_NEAR(layer.distortion.head[j * toy_model::hidden], -1.0f, 0.25f);
      for (int c = 1; c < toy_model::hidden; ++c)
        EXPECT_NEAR(layer.distortion.head[j * toy_model::hidden + c], 0.0f, 0.2f);
    }
  }
  const auto& texts = study.choice_texts();
  const auto own = study.measure(calibration_rule::head, 3.0, 0.5, texts);
  EXPECT_NEAR(own.mean_k(), 3.0, 0.1);
  const auto fixed = study.measure(calibration_rule::fixed, 3.0, 0.5, texts);
  const auto gain = adaptive_k::kl_difference(own, &fixed);
  EXPECT_LT(gain.value + 2.0 * gain.se, 0.0);
  const adaptive_k::layer_record& record = study.records()[0];
  const auto squared_error = [&](const adaptive_k::distortion_tables& fit) {
    double sum = 0.0;
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      for (int k = 1; k < 5; ++k) {
        const double predicted = adaptive_k::predicted_distortion(fit, record, t, k, 0.5);
        sum += std::pow(std::log(predicted / record.distortion(t, k, 0.5)), 2.0);
      }
    return sum;
  };
  EXPECT_LT(squared_error(adaptive_k::fit_head(record, 0.5)),
            0.9 * squared_error(adaptive_k::fit_psi(record, 0.5)));
  const auto oracle = study.measure(calibration_rule::oracle, 3.0, 0.5, texts);
  EXPECT_GT(own.mean_kl(), oracle.mean_kl());
  EXPECT_EQ(study.frontier({calibration_rule::head}, {3.0}, texts).size(), 1u);

  toy_model silent(13, 5, {1.0, 1.0});
  const calibration_runner without(adaptive_k::bind_source(silent, text, "toy"));
  EXPECT_THROW(calibration_study(without, options), std::runtime_error);
  EXPECT_THROW(without.run(set, {0, 2}), std::runtime_error) << "the columns are missing";
  calibrator search{adaptive_k::target_savings(0.4)};
  search.rules = {calibration_rule::head};
  search.options = small_options();
  EXPECT_THROW((void)search.calibrate(model, text), std::runtime_error);
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
  ASSERT_EQ(result.frontier.size(), 2 * (std::size(adaptive_k::all_calibration_rules) - 1));
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

TEST(calibrator, takes_several_texts) {
  toy_model model(13, 4, {1.0, 2.0});
  const toy_text first{1, 24}, second{2, 24};
  calibrator search{adaptive_k::target_savings(0.4)};
  search.options = small_options();
  const std::vector<std::pair<std::string, const toy_text*>> texts = {{"a", &first},
                                                                      {"b", &second}};
  const auto result = search.calibrate(model, texts);
  EXPECT_EQ(result.rule, calibration_rule::distortion) << result.sentence;
  EXPECT_NEAR(result.expert_savings, 0.4, 0.01);
  EXPECT_EQ(result.exponent_trials.size(), 10u);
  EXPECT_EQ(result.candidates[0].outcome.windows.size(), 8u) << "the choice windows of both";
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
  EXPECT_EQ(runs[1], 2) << "only the recording and the count of tokens out of domain run again";
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
