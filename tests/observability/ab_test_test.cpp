// A/B tests: assignment that stays put, error rates as stated, and a guard against peeking.
#include <gtest/gtest.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/observability/ab_test.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// Mean 0, variance 1, bell-shaped.
double noise(inputs::sequence& from) {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += static_cast<double>(from.below(1 << 20)) / 1048576.0;
  return sum;
}

/// A request of 100 ms +- 20%, its latency changed by `effect`.
ab_observation request(inputs::sequence& from, double effect) {
  ab_observation seen;
  seen.latency_seconds = 0.1 * (1.0 + effect) * (1.0 + 0.2 * noise(from));
  seen.expert_savings = 0.4 + 0.05 * noise(from) / 6.0;
  seen.quality = -1.2 + 0.1 * noise(from);
  return seen;
}

struct run_outcome {
  bool found = false;                // any metric, at any look
  bool naive_found = false;          // Welch's p below alpha at any look, latency alone
  double effect = 0.0;               // latency's, at the end
  bool covered = false;              // by the bootstrap's interval at the end
  bool always_covered = true;        // by the sequential interval, at every look
  bool naive_always_covered = true;  // by the bootstrap's, at every look
  double detectable = 0.0;           // latency's, at the end
};

run_outcome run_test(std::uint64_t seed, double effect, std::uint64_t planned, int looks,
                     int requests) {
  ab_options options;
  options.salt = seed;
  options.planned_requests = planned;
  options.bootstrap_replicates = 200;
  options.bootstrap_seed = seed;
  ab_test test({{"full"}, {"adaptive"}}, options);
  inputs::sequence from(seed);
  run_outcome outcome;
  for (int i = 1; i <= requests; ++i) {
    const std::size_t arm = test.assign_variant(std::to_string(i));
    EXPECT_TRUE(test.record(arm, request(from, arm == 1 ? effect : 0.0)).ok());
    if (i % (requests / looks) != 0) continue;
    const ab_results results = test.compute_results();
    const ab_effect& latency = results.comparisons[0].of(ab_metric::latency);
    for (const ab_effect& e : results.comparisons[0].effects)
      outcome.found = outcome.found || e.found;
    outcome.naive_found = outcome.naive_found || latency.welch_p < 0.05;
    outcome.effect = latency.effect;
    outcome.covered = latency.low <= effect && effect <= latency.high;
    outcome.naive_always_covered = outcome.naive_always_covered && outcome.covered;
    if (latency.sequential_low > effect || latency.sequential_high < effect)
      outcome.always_covered = false;
    outcome.detectable = latency.detectable;
  }
  return outcome;
}

struct rates {
  int found = 0, naive = 0, covered = 0, always_covered = 0, naive_always_covered = 0;
  double mean_effect = 0.0, mean_detectable = 0.0;
};

rates over_200_seeds(double effect, std::uint64_t planned, int looks) {
  rates sum;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const run_outcome one = run_test(seed, effect, planned, looks, 2000);
    sum.found += one.found;
    sum.naive += one.naive_found;
    sum.covered += one.covered;
    sum.always_covered += one.always_covered;
    sum.naive_always_covered += one.naive_always_covered;
    sum.mean_detectable += one.detectable / 200.0;
    sum.mean_effect += one.effect / 200.0;
  }
  return sum;
}

TEST(ab_test, a_planted_effect_of_5_percent_is_found_and_measured) {
  const rates r = over_200_seeds(-0.05, 0, 20);
  EXPECT_GE(r.found, 196);
  EXPECT_NEAR(r.mean_effect, -0.05, 0.002);
  EXPECT_GE(r.covered, 182);  // 95% intervals: 190 +- 3.1
  RecordProperty("found", r.found);
}

TEST(ab_test, none_is_found_where_there_is_none_however_often_one_looks) {
  const rates r = over_200_seeds(0.0, 0, 20);
  EXPECT_LE(r.found, 10);  // alpha = 5% of 200
  EXPECT_GT(r.naive, 30) << "peeking must be what the guard is for";
}

TEST(ab_test, one_look_at_the_planned_size_errs_at_the_stated_rate) {
  const rates none = over_200_seeds(0.0, 900, 1);
  EXPECT_LE(none.found, 17);  // 10 expected, standard deviation 3.1
  const rates planted = over_200_seeds(-0.05, 900, 1);
  EXPECT_GE(planted.found, 196);
}

TEST(ab_test, an_effect_of_the_size_said_to_be_detectable_is_found_with_the_stated_power) {
  // The effect moves nothing but the mean, so what a null run calls detectable is what to plant.
  const double in_sequence = over_200_seeds(0.0, 0, 20).mean_detectable;
  EXPECT_GE(over_200_seeds(-in_sequence, 0, 20).found, 160);  // power 0.8
  const double once = over_200_seeds(0.0, 900, 1).mean_detectable;
  EXPECT_LT(once, in_sequence) << "looking often has its price";
  const int found = over_200_seeds(-once, 900, 1).found;
  EXPECT_GE(found, 148);  // 160 expected, standard deviation 5.7
  EXPECT_LE(found, 180);
}

TEST(ab_test, the_sequential_interval_holds_at_all_looks_at_once) {
  for (const double effect : {0.0, -0.05}) {
    const rates r = over_200_seeds(effect, 0, 20);
    EXPECT_GE(r.always_covered, 190) << effect;  // 95% of 200
    EXPECT_LT(r.naive_always_covered, 180) << "one look's interval must not hold at 20";
  }
}

TEST(ab_test, skewed_latencies_raise_no_more_false_alarms_than_stated) {
  int found = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    ab_options options;
    options.bootstrap_replicates = 100;
    ab_test test({{"full"}, {"adaptive"}}, options);
    inputs::sequence from(seed + 7000);
    bool any = false;
    for (int i = 0; i < 2000; ++i) {
      const double seconds = std::exp(noise(from));  // lognormal: the mean is far in the tail
      ASSERT_TRUE(
          test.record(static_cast<std::size_t>(i % 2), {seconds, 0.4, noise(from) - 9.0}).ok());
      if (i % 20 != 19) continue;
      const ab_results results = test.compute_results();
      for (const ab_effect& e : results.comparisons[0].effects) any |= e.found;
    }
    found += any;
  }
  EXPECT_LE(found, 10);
}

TEST(ab_test, nothing_is_decided_before_the_planned_size_and_only_once_after_it) {
  ab_options options;
  options.planned_requests = 100;
  ab_test test({{"full"}, {"adaptive"}}, options);
  inputs::sequence from(3);
  const auto record = [&](int requests, double effect) {
    for (int i = 0; i < requests; ++i)
      for (const std::size_t arm : {0u, 1u})
        ASSERT_TRUE(test.record(arm, request(from, arm == 1 ? effect : 0.0)).ok());
  };
  record(99, -0.5);
  EXPECT_FALSE(test.compute_results().comparisons[0].of(ab_metric::latency).found);
  EXPECT_EQ(test.compute_results().sentence.find("too early to decide: "), 0u);
  record(1, -0.5);
  const ab_results decided = test.compute_results();
  EXPECT_TRUE(decided.comparisons[0].of(ab_metric::latency).found);
  record(500, 0.5);
  EXPECT_EQ(test.compute_results().sentence, decided.sentence);
}

TEST(ab_test, hash_is_what_it_always_was) {
  EXPECT_EQ(ab_hash(""), 0x5b21f68ffa77f14cu);
  EXPECT_EQ(ab_hash("a"), 0x2a5a3f02a61014a9u);
  EXPECT_EQ(ab_hash("request-1"), 0xbd3bf0c72e84ab15u);
  EXPECT_EQ(ab_hash("request-1", 1), 0xa3718ee8c42ad664u);
  EXPECT_EQ(ab_hash("\xC3\xBC"
                    "bung",
                    42),
            0x330ade241b53914cu);
}

TEST(ab_test, a_number_is_hashed_as_its_bytes) {
  EXPECT_EQ(ab_hash(std::uint64_t{0x0102030405060708u}, 42),
            ab_hash("\x08\x07\x06\x05\x04\x03\x02\x01", 42));
  const ab_assignment halves({{"a"}, {"b"}}, 0);
  std::vector<std::uint64_t> counts(2);
  for (std::uint64_t id = 0; id < 80000; ++id) ++counts[halves.assign_variant(id)];
  EXPECT_GT(detail::share_mismatch_p(counts, {0.5, 0.5}), 0.01);
}

TEST(ab_test, a_variant_that_grows_keeps_its_requests) {
  const ab_assignment before({{"full", 9.0}, {"adaptive", 1.0}}, 7);
  const ab_assignment after({{"full", 5.0}, {"adaptive", 5.0}}, 7);
  int moved = 0;
  for (std::uint64_t id = 0; id < 10000; ++id) {
    if (before.assign_variant(id) == 1) {
      ASSERT_EQ(after.assign_variant(id), 1u);
    }
    moved += before.assign_variant(id) != after.assign_variant(id);
  }
  EXPECT_NEAR(moved, 4000, 200);
}

TEST(ab_test, variants_get_their_shares_and_salts_deal_anew) {
  const ab_assignment weighted({{"a", 1.0}, {"b", 2.0}, {"c", 5.0}}, 0);
  const ab_assignment other({{"a", 1.0}, {"b", 2.0}, {"c", 5.0}}, 1);
  std::vector<std::uint64_t> counts(3), joint(9);
  std::vector<double> joint_shares;
  for (int i = 0; i < 80000; ++i) {
    const std::string id = "user-" + std::to_string(i);
    ++counts[weighted.assign_variant(id)];
    ++joint[3 * weighted.assign_variant(id) + other.assign_variant(id)];
  }
  for (std::size_t a = 0; a < 3; ++a)
    for (std::size_t b = 0; b < 3; ++b) joint_shares.push_back(weighted.share(a) * other.share(b));
  EXPECT_GT(detail::share_mismatch_p(counts, {0.125, 0.25, 0.625}), 0.01);
  EXPECT_GT(detail::share_mismatch_p(joint, joint_shares), 0.01);
}

// Figures by an independent implementation (scipy.stats.ttest_ind, equal_var=False; chisquare).
TEST(ab_test, statistics_equal_known_figures) {
  ab_moments a, b;
  for (const double x :
       {27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4})
    a.add(x);
  for (const double x :
       {27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 31.5})
    b.add(x);
  EXPECT_NEAR(detail::welch_p(a, b), 0.006541406689309671, 1e-9);
  EXPECT_NEAR(detail::share_mismatch_p({480, 520}, {0.5, 0.5}), 0.20590321073206466, 1e-9);
  ab_moments constant;
  constant.add(1.0);
  constant.add(1.0);
  EXPECT_EQ(detail::welch_p(constant, constant), 1.0);
  EXPECT_EQ(detail::sequential_p(constant, constant, 0.1), 1.0);
}

TEST(ab_test, the_detectable_effect_is_found_with_the_stated_power) {
  // 2000 requests of +- 20% in two arms: a single look sees 2.5% in 80 of 100 cases.
  ab_options options;
  int found = 0;
  double detectable = 0.0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    ab_moments a, b;
    inputs::sequence from(seed);
    for (int i = 0; i < 1000; ++i) {
      a.add(1.0 + 0.2 * noise(from));
      b.add(1.0 + 0.2 * noise(from) + 0.02506);
    }
    const double v = a.variance_of_mean() + b.variance_of_mean();
    detectable = detail::detectable_difference(v, options.alpha, options.power);
    found += detail::welch_p(a, b) < options.alpha;
  }
  EXPECT_NEAR(detectable, 0.02506, 0.0015);
  EXPECT_NEAR(found, 160, 17);  // standard deviation 5.7
}

TEST(ab_test, a_shadow_says_what_would_be_saved_and_nothing_else) {
  ab_test test({{"full"}, {"adaptive", 1.0, true}});
  ASSERT_TRUE(test.validity().ok());
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(test.record(0, {0.1 + 0.001 * i, 0.0, 1.0}).ok());
    ASSERT_TRUE(test.record(1, {0.2 + 0.001 * i, 0.4, 1.0}).ok());
  }
  const ab_results results = test.compute_results();
  for (const ab_effect& e : results.comparisons[0].effects) EXPECT_FALSE(e.found || e.compared);
  EXPECT_NE(results.sentence.find("would save 40.0% of expert calls"), std::string::npos)
      << results.sentence;
}

TEST(ab_test, a_shadow_records_what_the_router_would_have_saved) {
  gating model;
  model.num_experts = 32;
  model.top_k = 8;
  const router adaptive{model, k_policy::top_p(0.85f, model.top_k)};
  ab_test test({{"full"}, {"adaptive", 1.0, true}});
  inputs::sequence from(11);
  double saved = 0.0;
  for (int i = 0; i < 40; ++i) {
    std::vector<float> logits(4 * 32);
    for (float& x : logits) x = inputs::fine_logit(from);
    std::vector<std::int32_t> ids(4 * 8), routed(4), chosen(4);
    std::vector<float> weights(4 * 8);
    routing_output<> output{ids.data(), weights.data(), routed.data()};
    output.chosen_counts = chosen.data();
    routing_metrics metrics;
    ASSERT_TRUE(adaptive.route(0, {logits.data(), 4, 32}, output, &metrics).ok());
    EXPECT_EQ(metrics.expert_savings(), 0.0) << "full K was run";
    EXPECT_EQ(routed, std::vector<std::int32_t>(4, 8));
    const double would_save = shadow_savings(chosen.data(), 4, model.top_k);
    routing_metrics own;
    ASSERT_TRUE(adaptive.route(0, {logits.data(), 4, 32}, {ids.data(), weights.data()}, &own).ok());
    EXPECT_DOUBLE_EQ(would_save, own.expert_savings());
    saved += would_save / 40.0;
    ASSERT_TRUE(test.record(1, {0.1, would_save, 1.0}).ok());
    ASSERT_TRUE(test.record(0, {0.1, 0.0, 1.0}).ok());
  }
  EXPECT_GT(saved, 0.05);
  const std::int32_t with_padding[] = {2, 0, 4, 0};
  EXPECT_EQ(shadow_savings(with_padding, 4, 8), 1.0 - 6.0 / 16.0);
  EXPECT_EQ(shadow_savings(with_padding + 1, 1, 8), 0.0);
  EXPECT_NEAR(test.compute_results().comparisons[0].of(ab_metric::savings).variant_mean, saved,
              1e-12);
}

TEST(ab_test, the_sentence_a_person_reads) {
  ab_test test({{"full"}, {"adaptive"}});
  inputs::sequence from(5);
  for (int i = 0; i < 4000; ++i) {
    ab_observation control = request(from, 0.0), variant = request(from, -0.32);
    control.expert_savings = 0.0;
    ASSERT_TRUE(test.record(0, control).ok());
    ASSERT_TRUE(test.record(1, variant).ok());
  }
  const std::string said = test.compute_results().sentence;
  EXPECT_EQ(said.find("adaptive: latency -3"), 0u) << said;
  EXPECT_NE(said.find(", savings +40."), std::string::npos) << said;
  EXPECT_NE(said.find(", quality no difference found ("), std::string::npos) << said;
}

TEST(ab_test, broken_sharing_is_not_trusted) {
  ab_test test({{"full"}, {"adaptive"}});
  inputs::sequence from(6);
  for (int i = 0; i < 1200; ++i)
    ASSERT_TRUE(test.record(i % 12 < 5 ? 0 : 1, request(from, i % 12 < 5 ? 0.0 : -0.5)).ok());
  const ab_results results = test.compute_results();
  EXPECT_FALSE(results.trustworthy);
  EXPECT_FALSE(results.comparisons[0].of(ab_metric::latency).found);
  EXPECT_EQ(results.sentence.find("not to be trusted"), 0u) << results.sentence;
  EXPECT_EQ(results.sentence.find("no difference found"), std::string::npos) << results.sentence;
}

TEST(ab_test, right_sharing_is_not_suspected_however_early_or_often_one_looks) {
  ab_test lopsided({{"full", 99.0}, {"adaptive", 1.0}});
  ASSERT_TRUE(lopsided.record(1, {0.1, 0.4, 1.0}).ok());
  EXPECT_TRUE(lopsided.compute_results().trustworthy);
  int suspected = 0, naive = 0;
  for (std::uint64_t salt = 1; salt <= 1000; ++salt) {
    const ab_assignment halves({{"a"}, {"b"}}, salt);
    std::vector<std::uint64_t> counts(2);
    bool once = false, in_sequence = false;
    for (std::uint64_t id = 0; id < 2000; ++id) {
      ++counts[halves.assign_variant(id)];
      if (id % 10 != 9) continue;
      once |= detail::share_mismatch_p(counts, {0.5, 0.5}) < 0.001;
      in_sequence |= detail::sequential_mismatch_p(counts, {0.5, 0.5}) < 0.001;
    }
    suspected += in_sequence;
    naive += once;
  }
  EXPECT_LE(suspected, 4);  // 1 expected at most, standard deviation 1
  EXPECT_GT(naive, 4) << "peeking must be what the guard is for";
}

// The mismatch by exact rational arithmetic.
TEST(ab_test, sequential_figures_equal_known_ones) {
  EXPECT_NEAR(detail::sequential_mismatch_p({480, 600}, {0.5, 0.5}), 0.007588519616905952, 1e-9);
  EXPECT_NEAR(detail::sequential_mismatch_p({30, 10, 60}, {0.5, 0.25, 0.25}) / 7.55241112914275e-07,
              1.0, 1e-9);
  EXPECT_NEAR(detail::sequential_mismatch_p({0, 1}, {0.99, 0.01}), 1.0, 1e-9);
  // The p at the margin's edge is the level itself.
  ab_moments a, b;
  for (int i = 0; i < 200; ++i) {
    a.add(i % 2);
    b.add(i % 2);
  }
  const double v = a.variance_of_mean() + b.variance_of_mean();
  b.mean += detail::sequential_margin(v, 0.3, 0.02);
  EXPECT_NEAR(detail::sequential_p(a, b, 0.3), 0.02, 1e-12);
}

TEST(ab_test, values_at_the_edges_of_what_is_taken_give_results) {
  for (const double size : {1e60, 1.0, 1e-60, 1e-160, 1e-300}) {
    for (const double expected : {1e-6, 1e6}) {
      for (const double weight : {1e-6, 1.0}) {
        ab_options options;
        options.expected_effect = expected;
        ab_test test({{"full"}, {"adaptive", weight * 1.00001}}, options);
        for (int i = 0; i < 300; ++i) {
          const double jitter = 1.0 - 0.01 * (i % 7);
          ASSERT_TRUE(test.record(i % 2 == 0 ? 0 : 1, {size * jitter, 0.5, -size * jitter}).ok());
        }
        const ab_results results = test.compute_results();
        const ab_effect& latency = results.comparisons[0].of(ab_metric::latency);
        EXPECT_GE(latency.welch_p, 0.0) << size;
        EXPECT_LE(latency.welch_p, 1.0) << size;
        EXPECT_GE(latency.sequential_p, 0.0) << size;
      }
    }
  }
}

TEST(ab_test, bad_input_is_refused_by_name_and_counted) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  ab_test test({{"full"}, {"adaptive"}});
  EXPECT_FALSE(test.record(2, {}).ok());
  EXPECT_FALSE(test.record(0, {nan, 0.0, 0.0}).ok());
  EXPECT_FALSE(test.record(0, {-1.0, 0.0, 0.0}).ok());
  EXPECT_FALSE(test.record(0, {1.0, 1.5, 0.0}).ok());
  EXPECT_FALSE(test.record(0, {1.0, 0.5, nan}).ok());
  EXPECT_FALSE(test.record(0, {1e61, 0.5, 1.0}).ok());
  EXPECT_FALSE(test.record(0, {1.0, 0.5, -std::numeric_limits<double>::max()}).ok());
  EXPECT_EQ(test.refused_records(), 7u);
  EXPECT_NE(test.compute_results().sentence.find("too few requests"), std::string::npos);
  const auto refusal = [](std::vector<ab_variant> variants, ab_options options = {}) {
    return std::string(ab_test(std::move(variants), options).validity().message());
  };
  EXPECT_EQ(refusal({{"a", 1e308}, {"b", 1e308}}),
            "the weights sum to inf, expected a finite number");
  ab_test none({});
  EXPECT_STREQ(none.record(0, {0.1, 0.0, 1.0}).message(), none.validity().message());
  const ab_results refused = none.compute_results();
  EXPECT_EQ(refused.sentence, "0 variants, expected a control and one or more others");
  EXPECT_FALSE(refused.trustworthy || refused.final);
  EXPECT_EQ(refusal({{"a"}}), "1 variants, expected a control and one or more others");
  EXPECT_EQ(refusal({{"a"}, {"a"}}), "variants[0] and [1] are both named 'a'");
  std::string umlauts = "x";  // 80 bytes end inside a character
  while (umlauts.size() < 200) umlauts += "\xC3\xA4";
  EXPECT_EQ(refusal({{umlauts}, {umlauts}}),
            "variants[0] and [1] are both named '" + umlauts.substr(0, 79) + "'");
  EXPECT_EQ(refusal({{"a"}, {"b", 0.0}}), "weight of variant 'b' is 0, expected above 0");
  EXPECT_EQ(refusal({{"a"}, {"b", 1e-20}}),
            "weight of variant 'b' is 1e-20 of 1, expected 1e-06 of it");
  EXPECT_EQ(refusal({{"a"}, {""}}), "variants[1] has no name");
  EXPECT_EQ(refusal({{"a", 1.0, true}, {"b"}}), "the control 'a' cannot be a shadow");
  ab_options options;
  options.alpha = 1.0;
  EXPECT_EQ(refusal({{"a"}, {"b"}}, options), "alpha is 1, expected above 0 and below 0.5");
}

TEST(ab_test, what_was_found_stays_found_and_its_interval_stays_off_0) {
  int found = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    ab_test test({{"full"}, {"adaptive"}, {"rare", 1e-4}});
    inputs::sequence from(seed);
    bool before = false;
    for (int look = 0; look < 40; ++look) {
      for (int i = 0; i < 50; ++i) {
        EXPECT_TRUE(test.record(0, request(from, 0.0)).ok());
        EXPECT_TRUE(test.record(1, request(from, -0.03)).ok());
      }
      if (look == 20 || look == 21) {
        EXPECT_TRUE(test.record(2, request(from, 0.0)).ok());
      }
      const ab_results results = test.compute_results();
      const ab_effect& latency = results.comparisons[0].of(ab_metric::latency);
      EXPECT_TRUE(!before || latency.found) << seed << ' ' << look;
      before |= latency.found;
      if (latency.found) {
        EXPECT_LT(latency.sequential_high, 0.0) << seed << " " << look;
      }
    }
    found += before;
  }
  EXPECT_GT(found, 10);
}

TEST(ab_test, threads_lose_no_record) {
  ab_test test({{"full"}, {"adaptive"}});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&test, t] {
      inputs::sequence from(static_cast<std::uint64_t>(t));
      for (int i = 0; i < 500; ++i)
        EXPECT_TRUE(test.record(static_cast<std::size_t>(i % 2), request(from, 0)).ok());
      if (t == 0) test.compute_results();
    });
  for (std::thread& t : threads) t.join();
  const ab_results results = test.compute_results();
  EXPECT_EQ(results.comparisons[0].control_requests, 2000u);
  EXPECT_EQ(results.comparisons[0].variant_requests, 2000u);
}

}  // namespace
