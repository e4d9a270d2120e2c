// A/B tests of K policies: latency, savings and quality of the variants, and what may be concluded.
//
//   ab_test test({{"full"}, {"adaptive"}});
//   const std::size_t arm = test.assign_variant(request_id);
//   // ... route the request by the policy of `arm`, then
//   const status recorded = test.record(arm, {seconds, metrics.expert_savings(), log_likelihood});
//   if (!recorded.ok()) std::fprintf(stderr, "%s\n", recorded.message());
//   std::puts(test.compute_results().sentence.c_str());
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/ab_assignment.hpp"
#include "adaptive_k/observability/ab_statistics.hpp"
#include "adaptive_k/observability/text.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// One request. Requests are assumed to be independent: record each id once (see
/// `ab_assignment::assign_variant`). No value exceeds 1e60 in magnitude.
struct ab_observation {
  double latency_seconds = 0.0;  ///< of the whole request
  double expert_savings = 0.0;   ///< 0..1; a shadow's: `shadow_savings`
  double quality = 0.0;          ///< larger is better, any unit whose mean is not 0
};

/// What a shadow records as `expert_savings`: the share of expert calls that its policy would have
/// saved in one call, by its `routing_output::chosen_counts`.
/// `routing_metrics::shadow_expert_savings()` is the same over all calls that a struct counted.
/// Padding tokens, whose count is 0, are left out; 0 where there is no other token.
inline double shadow_savings(const std::int32_t* chosen_counts, std::int64_t num_tokens,
                             int top_k) noexcept {
  std::int64_t calls = 0, tokens = 0;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    calls += chosen_counts[t];
    tokens += chosen_counts[t] > 0;
  }
  if (tokens == 0 || top_k < 1) return 0.0;
  return 1.0 - static_cast<double>(calls) / (static_cast<double>(tokens) * top_k);
}

/// What is compared, in the order of ab_comparison::effects.
enum class ab_metric { latency, savings, quality };
constexpr std::size_t num_ab_metrics = 3;  ///< number of them

/// How a test decides.
struct ab_options {
  std::uint64_t salt = 0;  ///< of ab_assignment: another one, other variants for the same ids
  /// Probability of any false positive, over all variants and metrics.
  double alpha = 0.05;
  double power = 0.8;  ///< at which an effect counts as detectable
  /// 0: results may be looked at as often as one likes (sequential p). Otherwise Welch's t decides
  /// once, when every variant has this many requests.
  std::uint64_t planned_requests = 0;
  /// Relative effect for which the sequential test is most powerful; it finds others too, later.
  double expected_effect = 0.05;           ///< 1e-6..1e6
  std::size_t bootstrap_replicates = 500;  ///< of `low` and `high`
  std::uint64_t bootstrap_seed = 1;        ///< equal seeds, equal intervals
};

/// A variant's metric against the control's.
struct ab_effect {
  double control_mean = 0.0;  ///< in the metric's unit
  double variant_mean = 0.0;  ///< likewise
  /// Latency and quality: relative to the control's mean. Savings: difference of the shares.
  double effect = 0.0;
  /// Bootstrap interval of `effect` at 1 - alpha, one look.
  double low = 0.0, high = 0.0;  ///< its ends
  /// Interval of `effect` at 1 - alpha that holds at all looks at once, and so is wider; the
  /// sentence states it unless there are `planned_requests`. It is the intersection of the
  /// intervals of all looks so far, or this look's where that is empty (the effect drifts). NaN
  /// below 50 requests a variant.
  double sequential_low = std::numeric_limits<double>::quiet_NaN();
  double sequential_high = std::numeric_limits<double>::quiet_NaN();  ///< see sequential_low
  double welch_p = 1.0;                                               ///< one look
  double sequential_p = 1.0;                                          ///< over all looks so far
  /// Effect that the deciding test finds with probability `power` or more at this number of
  /// requests, under Holm's strictest level.
  double detectable = 0.0;
  /// Significant after Holm's correction over all variants and metrics. In the sequential test,
  /// what was found stays found.
  bool found = false;
  bool compared = false;  ///< false where a shadow has nothing of its own to compare
};

/// A variant against the control, over all records so far.
struct ab_comparison {
  std::string variant;  ///< its name
  bool shadow = false;  ///< as its variant says
  /// Requests recorded.
  std::uint64_t control_requests = 0, variant_requests = 0;  ///< of each
  std::array<ab_effect, num_ab_metrics> effects;             ///< by ab_metric
  std::string sentence;                                      ///< what may be concluded, in words
  /// The effect on one metric.
  const ab_effect& of(ab_metric m) const noexcept { return effects[static_cast<std::size_t>(m)]; }
};

/// What a look at the test says.
struct ab_results {
  std::vector<ab_comparison> comparisons;  ///< each variant but the control
  double share_mismatch_p = 1.0;           ///< of the requests' shares, one look
  double sequential_mismatch_p = 1.0;      ///< over all looks so far
  /// False where the variants' shares of the requests are off, so that assignment or recording is
  /// broken: the sequential p was ever below 0.001, or that of the planned look is. Nothing is then
  /// found.
  bool trustworthy = true;
  bool final = true;     ///< false before `planned_requests`
  std::string sentence;  ///< of all comparisons, in words
};

/// Records from any number of threads; memory O(variants x replicates). A record costs about
/// `bootstrap_replicates` hashes under the variant's own lock.
class ab_test {
 public:
  /// `variants`, the first of them the control. `validity` says whether they and the options are
  /// accepted.
  explicit ab_test(std::vector<ab_variant> variants, const ab_options& options = {})
      : assignment_(std::move(variants), options.salt), options_(options) {
    if (!validity().ok()) return;
    for (std::size_t i = 0; i < assignment_.variants().size(); ++i)
      arms_.push_back(std::make_unique<arm>(options, i));
    looks_.resize(arms_.size());
  }

  /// Refuses what `ab_assignment` does and options out of range. A refused test records nothing,
  /// and its result is this message.
  status validity() const {
    const auto invalid = status_code::invalid_argument;
    const status variants = assignment_.validity();
    if (!variants.ok()) return variants;
    if (!(options_.alpha > 0.0 && options_.alpha < 0.5))
      return status::error(invalid, "`alpha` is %g, expected above 0 and below 0.5",
                           options_.alpha);
    if (!(options_.power >= 0.5 && options_.power < 1.0))
      return status::error(invalid, "`power` is %g, expected 0.5 or more and below 1",
                           options_.power);
    if (!(options_.expected_effect >= 1e-6 && options_.expected_effect <= 1e6))
      return status::error(invalid, "`expected_effect` is %g, expected 1e-06..1e+06",
                           options_.expected_effect);
    if (options_.bootstrap_replicates < 100 || options_.bootstrap_replicates > 10000)
      return status::error(invalid, "`bootstrap_replicates` is %zu, expected 100..10000",
                           options_.bootstrap_replicates);
    return {};
  }

  /// Index into the variants: see ab_assignment::assign_variant. No lock, no allocation.
  std::size_t assign_variant(std::string_view request_id) const noexcept {
    return assignment_.assign_variant(request_id);
  }
  /// The same for a number.
  std::size_t assign_variant(std::uint64_t request_id) const noexcept {
    return assignment_.assign_variant(request_id);
  }
  /// What assigns requests to variants.
  const ab_assignment& assignment() const noexcept { return assignment_; }

  /// Refuses, and counts, an unknown variant, values that are not finite or beyond 1e60, a negative
  /// latency, and savings outside 0..1.
  status record(std::size_t variant, const ab_observation& seen) {
    const auto invalid = status_code::invalid_argument;
    status checked;
    if (arms_.empty())
      checked = validity();
    else if (variant >= arms_.size())
      checked =
          status::error(invalid, "`variant` is %zu, expected 0..%zu", variant, arms_.size() - 1);
    else if (!(seen.latency_seconds >= 0.0 && seen.latency_seconds <= largest_value))
      checked = status::error(invalid, "`latency_seconds` is %g, expected 0..1e+60",
                              seen.latency_seconds);
    else if (!(seen.expert_savings >= 0.0 && seen.expert_savings <= 1.0))
      checked =
          status::error(invalid, "`expert_savings` is %g, expected 0..1", seen.expert_savings);
    else if (!(std::fabs(seen.quality) <= largest_value))
      checked = status::error(invalid, "`quality` is %g, expected -1e+60..1e+60", seen.quality);
    if (!checked.ok()) {
      refused_.fetch_add(1, std::memory_order_relaxed);
      return checked;
    }
    arm& a = *arms_[variant];
    const std::array<double, num_ab_metrics> values = {seen.latency_seconds, seen.expert_savings,
                                                       seen.quality};
    const std::lock_guard<std::mutex> lock(a.mutex);
    for (std::size_t m = 0; m < num_ab_metrics; ++m) a.state.moments[m].add(values[m]);
    a.state.bootstrap.add(values);
    return {};
  }

  /// Records that were refused.
  std::uint64_t refused_records() const noexcept {
    return refused_.load(std::memory_order_relaxed);
  }

  /// What the records say so far. Every call is a look, and the sequential p remembers it. With
  /// `planned_requests` the first look past them is the last: later calls repeat it.
  ab_results compute_results() {
    const std::lock_guard<std::mutex> one_look(look_mutex_);
    if (decided_) return *decided_;
    ab_results results;
    if (arms_.empty()) {
      results.trustworthy = results.final = false;
      results.sentence = validity().message();
      return results;
    }
    std::vector<arm_state> seen;
    std::vector<std::uint64_t> counts;
    std::vector<double> shares;
    for (std::size_t i = 0; i < arms_.size(); ++i) {
      const std::lock_guard<std::mutex> lock(arms_[i]->mutex);
      seen.push_back(arms_[i]->state);
      counts.push_back(seen.back().moments[0].count);
      shares.push_back(assignment_.share(i));
    }
    results.share_mismatch_p = detail::share_mismatch_p(counts, shares);
    least_mismatch_p_ = std::fmin(least_mismatch_p_, detail::sequential_mismatch_p(counts, shares));
    results.sequential_mismatch_p = least_mismatch_p_;
    results.final = *std::min_element(counts.begin(), counts.end()) >= options_.planned_requests;
    const bool at_planned = options_.planned_requests > 0 && results.final;
    results.trustworthy =
        least_mismatch_p_ >= 0.001 && !(at_planned && results.share_mismatch_p < 0.001);
    for (std::size_t i = 1; i < seen.size(); ++i) results.comparisons.push_back(compare(seen, i));
    if (results.final && results.trustworthy) decide(results.comparisons);
    write_sentences(results);
    if (at_planned) decided_ = std::make_unique<ab_results>(results);
    return results;
  }

 private:
  struct arm_state {
    std::array<ab_moments, num_ab_metrics> moments;
    detail::poisson_bootstrap<num_ab_metrics> bootstrap;
  };
  struct arm {
    arm(const ab_options& options, std::size_t index)
        : state{{},
                detail::poisson_bootstrap<num_ab_metrics>(
                    options.bootstrap_replicates,
                    detail::mix_bits(options.bootstrap_seed) + index)} {}
    std::mutex mutex;
    arm_state state;
  };

  /// All looks at one metric of one variant.
  struct looks {
    double least_p = 1.0;
    double low = -std::numeric_limits<double>::infinity();  ///< of what their intervals share
    double high = std::numeric_limits<double>::infinity();
  };

  /// So that no product of two variances overflows.
  static constexpr double largest_value = 1e60;

  /// Means are normal enough from here on; the sequential test begins.
  static constexpr std::uint64_t least_requests = 50;

  /// Level of the first, hardest of Holm's steps: every metric of every variant that is compared.
  double strictest_alpha() const noexcept {
    return options_.alpha / static_cast<double>(std::max<std::size_t>(num_tests(), 1));
  }

  /// Fixed from the start: if the number of tests grew with the variants seen, what was found could
  /// be taken back.
  std::size_t num_tests() const noexcept {
    std::size_t tests = 0;
    for (std::size_t i = 1; i < arms_.size(); ++i)
      if (!assignment_.variants()[i].shadow) tests += num_ab_metrics;
    return tests;
  }

  static double effect_of(ab_metric metric, double control, double variant) {
    if (metric == ab_metric::savings) return variant - control;
    return (variant - control) / std::fabs(control);
  }

  ab_comparison compare(const std::vector<arm_state>& seen, std::size_t index) {
    const ab_variant& variant = assignment_.variants()[index];
    ab_comparison result;
    result.variant = variant.name;
    result.shadow = variant.shadow;
    result.control_requests = seen[0].moments[0].count;
    result.variant_requests = seen[index].moments[0].count;
    for (std::size_t m = 0; m < num_ab_metrics; ++m) {
      const auto metric = static_cast<ab_metric>(m);
      const ab_moments& a = seen[0].moments[m];
      const ab_moments& b = seen[index].moments[m];
      ab_effect& e = result.effects[m];
      e.control_mean = a.mean;
      e.variant_mean = b.mean;
      const double unit = metric == ab_metric::savings ? 1.0 : std::fabs(a.mean);
      if (variant.shadow || a.count < 2 || b.count < 2 || !(unit > 0.0)) continue;
      e.compared = true;
      e.effect = effect_of(metric, a.mean, b.mean);
      e.welch_p = detail::welch_p(a, b);
      const double prior = options_.expected_effect * unit;
      const double v = a.variance_of_mean() + b.variance_of_mean();
      e.detectable =
          (options_.planned_requests > 0
               ? detail::detectable_difference(v, strictest_alpha(), options_.power)
               : detail::detectable_in_sequence(v, prior, strictest_alpha(), options_.power)) /
          unit;
      looks& past = looks_[index][m];
      if ((std::min)(a.count, b.count) >= least_requests) {
        past.least_p = std::fmin(past.least_p, detail::sequential_p(a, b, prior));
        // A ratio's spread holds the control's own, by the delta method.
        const double ratio = metric == ab_metric::savings ? 1.0 : b.mean / a.mean;
        const double spread = b.variance_of_mean() + ratio * ratio * a.variance_of_mean();
        const double margin = detail::sequential_margin(spread, prior, options_.alpha) / unit;
        past.low = std::fmax(past.low, e.effect - margin);
        past.high = std::fmin(past.high, e.effect + margin);
        const bool share = past.low <= past.high;
        e.sequential_low = share ? past.low : e.effect - margin;
        e.sequential_high = share ? past.high : e.effect + margin;
      }
      e.sequential_p = past.least_p;
      set_interval(e, metric, seen[0].bootstrap, seen[index].bootstrap);
    }
    return result;
  }

  template <class Bootstrap>
  void set_interval(ab_effect& e, ab_metric metric, const Bootstrap& a, const Bootstrap& b) const {
    std::vector<double> effects;
    for (std::size_t r = 0; r < a.replicates(); ++r) {
      const auto m = static_cast<std::size_t>(metric);
      const double effect = effect_of(metric, a.mean(r, m), b.mean(r, m));
      if (std::isfinite(effect)) effects.push_back(effect);
    }
    if (effects.empty()) return;
    std::sort(effects.begin(), effects.end());
    const auto at = [&](double share) {
      return effects[static_cast<std::size_t>(
          std::lround(share * static_cast<double>(effects.size() - 1)))];
    };
    e.low = at(options_.alpha / 2.0);
    e.high = at(1.0 - options_.alpha / 2.0);
  }

  /// Holm's step-down correction ("A simple sequentially rejective procedure", 1979).
  void decide(std::vector<ab_comparison>& comparisons) const {
    std::vector<std::pair<double, ab_effect*>> tests;
    for (ab_comparison& c : comparisons)
      for (ab_effect& e : c.effects)
        if (e.compared)
          tests.emplace_back(options_.planned_requests > 0 ? e.welch_p : e.sequential_p, &e);
    std::sort(tests.begin(), tests.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t i = 0; i < tests.size(); ++i) {
      if (tests[i].first > options_.alpha / static_cast<double>(num_tests() - i)) return;
      tests[i].second->found = true;
    }
  }

  static std::string percent(double share, const char* unit = "%") {
    std::string text = std::signbit(share) ? "" : "+";
    detail::append_decimals(text, 100.0 * share, 1);
    return text + unit;
  }

  /// `decided`: whether a metric that was not found may be said to show no difference.
  std::string describe(ab_metric metric, const ab_effect& e, bool decided) const {
    static constexpr const char* names[] = {"latency ", "savings ", "quality "};
    const std::string name = names[static_cast<std::size_t>(metric)];
    if (!e.compared) return name + "not comparable";
    const char* unit = metric == ab_metric::savings ? " points" : "%";
    const bool once = options_.planned_requests > 0;
    const double low = once ? e.low : e.sequential_low;
    const double high = once ? e.high : e.sequential_high;
    if (!std::isfinite(low)) return name + "too few requests";
    const std::string numbers =
        percent(e.effect, unit) + " [" + percent(low, "") + ", " + percent(high, unit) + "]";
    if (e.found || !decided) return name + numbers;
    return name + "no difference found (" + numbers + "; one of " +
           percent(e.detectable, unit).substr(1) + " would be seen)";
  }

  void write_sentences(ab_results& results) const {
    for (ab_comparison& c : results.comparisons) {
      c.sentence = c.variant + ": ";
      if (c.variant_requests < 2 || c.control_requests < 2) {
        c.sentence += "too few requests";
      } else if (c.shadow) {
        c.sentence += "would save " + percent(c.of(ab_metric::savings).variant_mean).substr(1) +
                      " of expert calls (shadow: latency and quality unknown)";
      } else {
        for (std::size_t m = 0; m < num_ab_metrics; ++m)
          c.sentence += (m > 0 ? ", " : "") + describe(static_cast<ab_metric>(m), c.effects[m],
                                                       results.final && results.trustworthy);
      }
      results.sentence += (results.sentence.empty() ? "" : "; ") + c.sentence;
    }
    if (!results.trustworthy)
      results.sentence =
          "not to be trusted, requests are not shared out as planned: " + results.sentence;
    else if (!results.final)
      results.sentence = "too early to decide: " + results.sentence;
  }

  ab_assignment assignment_;
  ab_options options_;
  std::vector<std::unique_ptr<arm>> arms_;
  std::mutex look_mutex_;
  std::vector<std::array<looks, num_ab_metrics>> looks_;  ///< [variants]
  double least_mismatch_p_ = 1.0;                         ///< over all looks
  std::unique_ptr<ab_results> decided_;
  std::atomic<std::uint64_t> refused_{0};
};

ADAPTIVE_K_NAMESPACE_END
