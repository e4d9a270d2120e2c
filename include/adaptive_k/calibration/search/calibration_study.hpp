// What a calibration knows of a model, and the rules it sets and measures with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/sensitivity_fit.hpp"
#include "adaptive_k/calibration/search/calibration_runs.hpp"
#include "adaptive_k/calibration/search/rule_choice.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How much of the text is used for what.
struct study_options {
  std::int64_t fit_tokens = 16384;         ///< recorded under full K; at most 3/4 of the text
  std::int64_t choice_tokens = 8192;       ///< on which exponents and rules are chosen
  std::int64_t sensitivity_tokens = 4096;  ///< on which the layers' sensitivities are measured
  int sensitivity_passes = 14;             ///< with random K's per layer
  std::vector<double> mass_exponents = {0.0, 0.3, 0.5, 0.7, 1.0};  ///< that are tried, in [0, 1]
  std::uint64_t seed = 1;                                          ///< of the random K's
};

/// One measured point: a rule set to a mean K, on one text.
struct frontier_point {
  calibration_rule rule = calibration_rule::fixed;  ///< what set the K's
  std::string split;                                ///< "calibration", "test", "other domain"
  double target_mean_k = 0.0;                       ///< asked for; the outcome has what came
  double mass_exponent = 0.0;                       ///< a in [0, 1]
  routing_outcome outcome;                          ///< measured, by window
};

/// A text that rules are reported on.
struct report_text {
  std::string split;                           ///< "calibration", "test", "other domain"
  const calibration_runner* runner = nullptr;  ///< borrowed
  window_range range;                          ///< of the runner's text
};

/// Fits on the first windows of `runner`'s text, chooses on the next. Deterministic.
class calibration_study {
 public:
  /// Records and fits at once. Throws std::runtime_error for a text of fewer than 4 windows.
  calibration_study(const calibration_runner& runner, study_options options)
      : runner_(runner), options_(std::move(options)) {
    const calibration_source& source = runner_.source();
    if (source.num_windows < 4)
      throw std::runtime_error("calibration: the text has " + std::to_string(source.num_windows) +
                               " windows of " + std::to_string(source.window_length) +
                               " tokens, expected 4 or more");
    fit_.count = windows_of(options_.fit_tokens, source.num_windows * 3 / 4);
    choice_.first = fit_.count;
    choice_.count = windows_of(options_.choice_tokens, source.num_windows - fit_.count);
    records_ = runner_.record(fit_);
    fit_sensitivities();
  }

  /// The runner of the text that it fits on.
  const calibration_runner& runner() const noexcept { return runner_; }
  /// K0.
  int top_k() const noexcept { return runner_.source().model.top_k; }
  /// Tokens of the windows for fitting and for choosing.
  std::int64_t tokens_analyzed() const noexcept {
    return (fit_.count + choice_.count) * runner_.source().window_length;
  }
  /// Windows on which exponents and rules are chosen; none of them were fitted on.
  window_range choice_windows() const noexcept { return choice_; }
  /// g of each layer, [num_layers].
  const std::vector<double>& sensitivities() const noexcept { return sensitivities_; }
  /// The records of the windows for fitting, under full K, [num_layers].
  const std::vector<layer_record>& records() const noexcept { return records_; }

  /// The policies that give the recorded tokens this mean K. Not for `oracle`; static rules round
  /// down.
  policy_set policies(calibration_rule rule, double mean_k, double mass_exponent) const {
    const auto layers = records_.size();
    switch (rule) {
      case calibration_rule::fixed:
      case calibration_rule::oracle:
        return same_policy(k_policy::fixed(whole_k(mean_k)), mass_exponent, layers);
      case calibration_rule::static_per_layer:
        return static_policies(truth(mass_exponent), sensitivities_, mass_exponent, mean_k,
                               top_k());
      case calibration_rule::entropy:
        return entropy_policies(records_, mass_exponent, mean_k);
      case calibration_rule::score_ratio:
        return score_ratio_policies(records_, mass_exponent, mean_k);
      case calibration_rule::top_p:
        return top_p_policies(records_, mass_exponent, mean_k);
      case calibration_rule::distortion:
      case calibration_rule::random_mix:
      case calibration_rule::inverted:
        break;
    }
    return distortion_policies(
        fit(mass_exponent), sensitivities_,
        price_for(fit(mass_exponent)->predicted, sensitivities_, mean_k, top_k()));
  }

  /// The same, corrected so that the choice windows get this mean K when K is really applied:
  /// skipped experts change the logits of later layers.
  policy_set settled_policies(calibration_rule rule, double mean_k, double mass_exponent) const {
    policy_set result = policies(rule, mean_k, mass_exponent);
    if (rule == calibration_rule::fixed || rule == calibration_rule::static_per_layer ||
        rule == calibration_rule::oracle)
      return result;
    double nominal = mean_k;
    for (int i = 0; i < 2; ++i) {
      const double off = mean_k - runner_.run(result, choice_).mean_k();
      if (std::fabs(off) < 0.002 * top_k()) break;
      nominal = std::clamp(nominal + off, 1.0, static_cast<double>(top_k()));
      result = policies(rule, nominal, mass_exponent);
    }
    return result;
  }

  /// Runs a rule at a mean K over windows of a text.
  routing_outcome measure(calibration_rule rule, double mean_k, double mass_exponent,
                          const calibration_runner& on, window_range range) const {
    if (rule == calibration_rule::oracle) {
      const double price = price_for(truth(mass_exponent), sensitivities_, mean_k, top_k());
      return on.run_oracle(sensitivities_, price, mass_exponent, range);
    }
    if (rule == calibration_rule::fixed || rule == calibration_rule::static_per_layer) {
      // Whole K's: what lies between two of them is a mixture of windows.
      const double steps =
          rule == calibration_rule::fixed ? 1.0 : static_cast<double>(records_.size());
      const double low = std::floor(mean_k * steps + 1e-6) / steps;
      const double share = (mean_k - low) * steps;
      const routing_outcome at_low = on.run(policies(rule, low, mass_exponent), range);
      if (share < 1e-5) return at_low;
      return mixed(at_low, on.run(policies(rule, low + 1.0 / steps, mass_exponent), range), share);
    }
    const bool dealt = rule == calibration_rule::random_mix || rule == calibration_rule::inverted;
    const policy_set set =
        settled_policies(dealt ? calibration_rule::distortion : rule, mean_k, mass_exponent);
    const k_assignment assignment = rule == calibration_rule::random_mix ? k_assignment::shuffled
                                    : rule == calibration_rule::inverted ? k_assignment::inverted
                                                                         : k_assignment::chosen;
    return on.run(set, range, assignment, options_.seed);
  }

  /// The exponent under which the rule has the least KL on the choice windows. One that needs no
  /// exponential (0, 0.5, 1) is kept unless another is better by two standard errors.
  double best_mass_exponent(calibration_rule rule, double mean_k) const {
    struct candidate {
      double exponent;
      routing_outcome outcome;
    };
    std::vector<candidate> all;
    for (const double exponent : options_.mass_exponents)
      all.push_back({exponent, measure(rule, mean_k, exponent, runner_, choice_)});
    const candidate* best = &all.front();
    const candidate* cheap = nullptr;
    for (const candidate& each : all) {
      const double kl = each.outcome.mean_kl();
      if (kl < best->outcome.mean_kl()) best = &each;
      if (std::fmod(each.exponent, 0.5) == 0.0 &&
          (cheap == nullptr || kl < cheap->outcome.mean_kl()))
        cheap = &each;
    }
    if (cheap == nullptr) return best->exponent;
    const paired_estimate gain = kl_difference(best->outcome, &cheap->outcome);
    return gain.value + 2.0 * gain.se < 0.0 ? best->exponent : cheap->exponent;
  }

  /// Every rule at every mean K on every text. At one mean K all have the exponent that suits
  /// `distortion` best, so that rules differ in their K's alone.
  std::vector<frontier_point> frontier(const std::vector<calibration_rule>& rules,
                                       const std::vector<double>& mean_ks,
                                       const std::vector<report_text>& texts) const {
    std::vector<frontier_point> points;
    for (const double mean_k : mean_ks) {
      const double exponent = best_mass_exponent(calibration_rule::distortion, mean_k);
      for (const report_text& text : texts)
        for (const calibration_rule rule : rules)
          points.push_back({rule, text.split, mean_k, exponent,
                            measure(rule, mean_k, exponent, *text.runner, text.range)});
    }
    return points;
  }

 private:
  std::int64_t windows_of(std::int64_t tokens, std::int64_t most) const {
    const std::int64_t length = runner_.source().window_length;
    return std::clamp<std::int64_t>(tokens / length, 1, std::max<std::int64_t>(most, 1));
  }

  int whole_k(double mean_k) const {
    return std::clamp(static_cast<int>(std::floor(mean_k + 1e-6)), 1, top_k());
  }

  policy_set fixed_policies(int k, double mass_exponent) const {
    return same_policy(k_policy::fixed(k), mass_exponent, records_.size());
  }

  const std::shared_ptr<const fitted_distortion>& fit(double mass_exponent) const {
    auto& known = fits_[mass_exponent];
    if (!known) known = fit_layers(records_, mass_exponent);
    return known;
  }

  const detail::distortion_arrays& truth(double mass_exponent) const {
    detail::distortion_arrays& known = truths_[mass_exponent];
    if (known.empty()) known = true_distortions(records_, mass_exponent);
    return known;
  }

  /// KL of windows under random K's per layer against their mean distortions at full K.
  void fit_sensitivities() {
    constexpr double mass_exponent = 0.5;
    const std::int64_t length = runner_.source().window_length;
    const window_range range = {0, windows_of(options_.sensitivity_tokens, fit_.count)};
    sensitivities_.assign(records_.size(), 1.0);
    if (top_k() < 3) return;
    integer_rng rng(options_.seed);
    std::vector<std::vector<double>> mean_distortion;
    std::vector<double> kl;
    for (int pass = 0; pass < options_.sensitivity_passes; ++pass) {
      policy_set set = fixed_policies(1, mass_exponent);
      for (k_policy& layer : set.layers)
        layer.k_values[0] = static_cast<std::uint8_t>(
            2 + rng.below(static_cast<std::uint64_t>(top_k() - 1)));  // 2..K0
      const routing_outcome outcome = runner_.run(set, range);
      for (std::int64_t w = 0; w < range.count; ++w) {
        std::vector<double> row;
        for (std::size_t l = 0; l < records_.size(); ++l) {
          double sum = 0.0;
          for (std::int64_t t = w * length; t < (w + 1) * length; ++t)
            sum += records_[l].distortion(t, set.layers[l].k_values[0], mass_exponent);
          row.push_back(sum / static_cast<double>(length));
        }
        mean_distortion.push_back(std::move(row));
        kl.push_back(outcome.windows[static_cast<std::size_t>(w)].kl);
      }
    }
    sensitivities_ = adaptive_k::fit_sensitivities(mean_distortion, kl);
  }

  const calibration_runner& runner_;
  study_options options_;
  window_range fit_;
  window_range choice_;
  std::vector<layer_record> records_;
  std::vector<double> sensitivities_;
  mutable std::map<double, std::shared_ptr<const fitted_distortion>> fits_;
  mutable std::map<double, detail::distortion_arrays> truths_;
};

ADAPTIVE_K_NAMESPACE_END
