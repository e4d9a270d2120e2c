// A/B tests: assignment that stays put, error rates as stated, and a guard against peeking.
#include <gtest/gtest.h>
#include <adaptive_k/observability/ab_test.hpp>

#include <cmath>
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
  bool found = false;        // any metric, at any look
  bool naive_found = false;  // Welch's p below alpha at any look, latency alone
  double effect = 0.0;       // latency's, at the end
  bool covered = false;      // by its interval
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
    EXPECT_TRUE(test.record(arm, request(from, arm == 1 ? effect : 0.0)));
    if (i % (requests / looks) != 0) continue;
    const ab_results results = test.compute_results();
    const ab_effect& latency = results.comparisons[0].of(ab_metric::latency);
    for (const ab_effect& e : results.comparisons[0].effects)
      outcome.found = outcome.found || e.found;
    outcome.naive_found = outcome.naive_found || latency.welch_p < 0.05;
    outcome.effect = latency.effect;
    outcome.covered = latency.low <= effect && effect <= latency.high;
  }
  return outcome;
}

struct rates {
  int found = 0, naive = 0, covered = 0;
  double mean_effect = 0.0;
};

rates over_200_seeds(double effect, std::uint64_t planned, int looks) {
  rates sum;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const run_outcome one = run_test(seed, effect, planned, looks, 2000);
    sum.found += one.found;
    sum.naive += one.naive_found;
    sum.covered += one.covered;
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

TEST(ab_test, nothing_is_decided_before_the_planned_size_and_only_once_after_it) {
  ab_options options;
  options.planned_requests = 100;
  ab_test test({{"full"}, {"adaptive"}}, options);
  inputs::sequence from(3);
  const auto record = [&](int requests, double effect) {
    for (int i = 0; i < requests; ++i)
      for (const std::size_t arm : {0, 1})
        ASSERT_TRUE(test.record(arm, request(from, arm == 1 ? effect : 0.0)));
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
    detectable = detail::detectable_difference(a, b, options.alpha, options.power);
    found += detail::welch_p(a, b) < options.alpha;
  }
  EXPECT_NEAR(detectable, 0.02506, 0.0015);
  EXPECT_NEAR(found, 160, 17);  // standard deviation 5.7
}

TEST(ab_test, a_shadow_says_what_would_be_saved_and_nothing_else) {
  ab_test test({{"full"}, {"adaptive", 1.0, true}});
  ASSERT_TRUE(test.validity());
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(test.record(0, {0.1 + 0.001 * i, 0.0, 1.0}));
    ASSERT_TRUE(test.record(1, {0.2 + 0.001 * i, 0.4, 1.0}));
  }
  const ab_results results = test.compute_results();
  for (const ab_effect& e : results.comparisons[0].effects) EXPECT_FALSE(e.found || e.compared);
  EXPECT_NE(results.sentence.find("would save 40.0% of expert calls"), std::string::npos)
      << results.sentence;
}

TEST(ab_test, the_sentence_a_person_reads) {
  ab_test test({{"full"}, {"adaptive"}});
  inputs::sequence from(5);
  for (int i = 0; i < 4000; ++i) {
    ab_observation control = request(from, 0.0), variant = request(from, -0.32);
    control.expert_savings = 0.0;
    ASSERT_TRUE(test.record(0, control));
    ASSERT_TRUE(test.record(1, variant));
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
    ASSERT_TRUE(test.record(i % 12 < 5 ? 0 : 1, request(from, i % 12 < 5 ? 0.0 : -0.5)));
  const ab_results results = test.compute_results();
  EXPECT_FALSE(results.trustworthy);
  EXPECT_FALSE(results.comparisons[0].of(ab_metric::latency).found);
  EXPECT_EQ(results.sentence.find("not to be trusted"), 0u) << results.sentence;
}

TEST(ab_test, bad_input_is_refused_by_name_and_counted) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  ab_test test({{"full"}, {"adaptive"}});
  EXPECT_FALSE(test.record(2, {}));
  EXPECT_FALSE(test.record(0, {nan, 0.0, 0.0}));
  EXPECT_FALSE(test.record(0, {-1.0, 0.0, 0.0}));
  EXPECT_FALSE(test.record(0, {1.0, 1.5, 0.0}));
  EXPECT_FALSE(test.record(0, {1.0, 0.5, nan}));
  EXPECT_EQ(test.refused_records(), 5u);
  EXPECT_NE(test.compute_results().sentence.find("too few requests"), std::string::npos);
  const auto refusal = [](std::vector<ab_variant> variants, ab_options options = {}) {
    return std::string(ab_test(std::move(variants), options).validity().message());
  };
  EXPECT_EQ(refusal({{"a"}}), "1 variants, expected a control and one or more others");
  EXPECT_EQ(refusal({{"a"}, {"a"}}), "variants[0] and [1] are both named 'a'");
  EXPECT_EQ(refusal({{"a"}, {"b", 0.0}}), "weight of variant 'b' is 0, expected above 0");
  EXPECT_EQ(refusal({{"a"}, {""}}), "variants[1] has no name");
  EXPECT_EQ(refusal({{"a", 1.0, true}, {"b"}}), "the control 'a' cannot be a shadow");
  ab_options options;
  options.alpha = 1.0;
  EXPECT_EQ(refusal({{"a"}, {"b"}}, options), "alpha is 1, expected above 0 and below 0.5");
}

TEST(ab_test, threads_lose_no_record) {
  ab_test test({{"full"}, {"adaptive"}});
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&test, t] {
      inputs::sequence from(static_cast<std::uint64_t>(t));
      for (int i = 0; i < 500; ++i) test.record(static_cast<std::size_t>(i % 2), request(from, 0));
      if (t == 0) test.compute_results();
    });
  for (std::thread& t : threads) t.join();
  const ab_results results = test.compute_results();
  EXPECT_EQ(results.comparisons[0].control_requests, 2000u);
  EXPECT_EQ(results.comparisons[0].variant_requests, 2000u);
}

}  // namespace
