// What a calibration knows of a model, and the rules it sets and measures with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/sensitivity_fit.hpp"
#include "adaptive_k/calibration/fitting/super_experts.hpp"
#include "adaptive_k/calibration/search/calibration_runs.hpp"
#include "adaptive_k/calibration/search/fitted_rules.hpp"
#include "adaptive_k/calibration/search/rule_choice.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How much of the text is used for what; of several texts, each gives an equal part.
struct study_options {
  std::int64_t fit_tokens = 16384;         ///< recorded under full K; at most 3/4 of the text
  std::int64_t choice_tokens = 8192;       ///< on which exponents and rules are chosen
  std::int64_t sensitivity_tokens = 4096;  ///< on which the layers' sensitivities are measured
  int sensitivity_passes = 14;             ///< with random K's per layer
  std::vector<double> mass_exponents = {0.0, 0.3, 0.5, 0.7, 1.0};  ///< that are tried, in [0, 1]
  std::uint64_t seed = 1;                                          ///< of the random K's
  /// Whether router heads can be fitted, calibration_rule::head: the router's inputs are kept, 4 H
  /// more bytes a token and layer.
  bool head = false;
  /// q of `shrunk_sensitivities`, in [0, 1]. Without one: of several texts the one that serves each
  /// text best after a calibration on the others, of a single text 0.5.
  std::optional<double> sensitivity_exponent = std::nullopt;
};

/// One measured point: a rule set to a mean K, on one text.
struct frontier_point {
  calibration_rule rule = calibration_rule::fixed;  ///< what set the K's
  std::string split;                                ///< the text's
  double target_mean_k = 0.0;                       ///< asked for; the outcome has what came
  double mass_exponent = 0.0;                       ///< a in [0, 1]
  routing_outcome outcome;                          ///< measured, by window
};

/// A text that rules are reported on.
struct report_text {
  std::string split;                           ///< "calibration", "test", a domain's name, ...
  const calibration_runner* runner = nullptr;  ///< borrowed
  window_range range;                          ///< of the runner's text
};

/// A text that is calibrated on.
struct calibration_domain {
  std::string name;                            ///< "" where there is only one
  const calibration_runner* runner = nullptr;  ///< borrowed; all domains are of one model
};

/// What an exponent of the sensitivities costs a text that was left out of the calibration.
struct exponent_trial {
  double exponent = 0.0;    ///< q in [0, 1]
  std::string held_out;     ///< the domain
  routing_outcome outcome;  ///< of `distortion`, calibrated on the other domains
};

/// A rule on texts that it was not set on.
struct held_outcome {
  routing_outcome as_set;  ///< the mean K is what came
  routing_outcome held;    ///< with the mean K that was asked for, to 0.002 K0 where three runs do
};

/// Fits on the first windows of each domain's text, chooses on the next. Deterministic.
class calibration_study {
 public:
  /// On one text.
  calibration_study(const calibration_runner& runner, study_options options)
      : calibration_study(std::vector<calibration_domain>{{"", &runner}}, std::move(options)) {}

  /// Records and fits at once. Throws std::runtime_error for a text of fewer than 4 windows, and
  /// for an exponent outside [0, 1].
  calibration_study(const std::vector<calibration_domain>& domains, study_options options)
      : options_(std::move(options)) {
    if (domains.empty()) throw std::runtime_error("calibration: no text, expected one or more");
    const std::optional<double>& asked = options_.sensitivity_exponent;
    if (asked && !(*asked >= 0.0 && *asked <= 1.0))
      throw std::runtime_error("calibration: the sensitivity exponent is " +
                               std::to_string(*asked) + ", expected 0..1");
    for (const calibration_domain& domain : domains) {
      for (const part& before : parts_)
        if (before.domain.name == domain.name)
          throw std::runtime_error("calibration: two texts have the name '" + domain.name +
                                   "', expected names that differ");
      parts_.push_back(recorded(domain, static_cast<std::int64_t>(domains.size())));
    }
    measure_sensitivities();
    whole_ = std::make_unique<fitted_rules>(fitted_without(parts_.size()));
    super_experts_ = find_super_experts(whole_->records());
    sensitivity_exponent_ = asked ? *asked : chosen_exponent();
    whole_->shrink(sensitivity_exponent_);
  }

  /// K0.
  int top_k() const noexcept { return whole_->top_k(); }
  /// Tokens of the windows for fitting and for choosing.
  std::int64_t tokens_analyzed() const noexcept {
    std::int64_t tokens = 0;
    for (const part& each : parts_) tokens += tokens_of(each);
    return tokens;
  }
  /// The same of each domain, in the order given.
  std::vector<std::int64_t> tokens_by_domain() const {
    std::vector<std::int64_t> tokens;
    for (const part& each : parts_) tokens.push_back(tokens_of(each));
    return tokens;
  }
  /// Windows on which exponents and rules are chosen, of each domain; none of them were fitted on.
  const std::vector<report_text>& choice_texts() const noexcept { return choice_; }
  /// g of each layer, [num_layers], as measured.
  const std::vector<double>& sensitivities() const noexcept { return whole_->sensitivities(); }
  /// Whether a rule can be set: a head needs study_options::head.
  bool can_set(calibration_rule rule) const noexcept {
    return rule != calibration_rule::head || options_.head;
  }
  /// q: psi, distortion and the oracle weigh a layer by g^q.
  double sensitivity_exponent() const noexcept { return sensitivity_exponent_; }
  /// Another q, in [0, 1].
  void set_sensitivity_exponent(double exponent) {
    sensitivity_exponent_ = exponent;
    whole_->shrink(exponent);
  }
  /// What q was chosen by; empty where it was not.
  const std::vector<exponent_trial>& exponent_trials() const noexcept { return trials_; }
  /// The records of the windows for fitting, under full K, [num_layers]; domain after domain.
  const std::vector<layer_record>& records() const noexcept { return whole_->records(); }

  /// Experts that may be super experts, by find_super_experts: every rule that adapts to the token
  /// keeps them.
  const std::vector<super_expert>& super_experts() const noexcept { return super_experts_; }

  /// The policies that give the recorded tokens this mean K, or more where they keep super experts.
  /// Not for `oracle`; static rules round down.
  policy_set policies(calibration_rule rule, double mean_k, double mass_exponent) const {
    policy_set set = whole_->policies(rule, mean_k, mass_exponent);
    if (is_static(rule)) return set;
    for (const super_expert& each : super_experts_) {
      k_policy& layer = set.layers[static_cast<std::size_t>(each.layer)];
      layer.super_experts[layer.num_super_experts++] = static_cast<std::uint16_t>(each.expert);
    }
    return set;
  }

  /// The same, corrected so that the choice windows get this mean K when K is really applied:
  /// skipped experts change the logits of later layers.
  policy_set settled_policies(calibration_rule rule, double mean_k, double mass_exponent) const {
    return settled(rule, mean_k, mass_exponent).policies;
  }

  /// Runs policies over texts; the windows of the first come first.
  static routing_outcome run(const policy_set& policies, const std::vector<report_text>& texts,
                             k_assignment assignment = k_assignment::chosen,
                             std::uint64_t seed = 1) {
    std::vector<routing_outcome> outcomes;
    for (const report_text& text : texts)
      outcomes.push_back(text.runner->run(policies, text.range, assignment, seed));
    return joined(outcomes);
  }

  /// Runs a rule, set to a mean K on the choice windows, over texts.
  routing_outcome measure(calibration_rule rule, double mean_k, double mass_exponent,
                          const std::vector<report_text>& texts) const {
    if (rule == calibration_rule::oracle)
      return run_oracle(whole_->oracle_price(mean_k, mass_exponent), mass_exponent, texts);
    if (is_static(rule)) return measure_static(rule, mean_k, mass_exponent, texts);
    const bool dealt = rule == calibration_rule::random_mix || rule == calibration_rule::inverted;
    const policy_set set =
        settled_policies(dealt ? calibration_rule::distortion : rule, mean_k, mass_exponent);
    const k_assignment assignment = rule == calibration_rule::random_mix ? k_assignment::shuffled
                                    : rule == calibration_rule::inverted ? k_assignment::inverted
                                                                         : k_assignment::chosen;
    return run(set, texts, assignment, options_.seed);
  }
  /// The same over one text.
  routing_outcome measure(calibration_rule rule, double mean_k, double mass_exponent,
                          const calibration_runner& on, window_range range) const {
    return measure(rule, mean_k, mass_exponent, {{"", &on, range}});
  }

  /// Runs a rule over texts as it is set on the choice windows, and then with its parameter set
  /// anew so that these texts themselves get the mean K, as a controller would hold it, by K alone.
  /// Not for the rules that deal out K's of another.
  held_outcome measure_held(calibration_rule rule, double mean_k, double mass_exponent,
                            const std::vector<report_text>& texts) const {
    if (is_static(rule)) {
      const routing_outcome only = measure_static(rule, mean_k, mass_exponent, texts);
      return {only, only};
    }
    if (rule != calibration_rule::oracle)
      return held_at(
          settled(rule, mean_k, mass_exponent).nominal_mean_k, mean_k,
          [&](double nominal) { return run(policies(rule, nominal, mass_exponent), texts); });
    return held_at(mean_k, mean_k, [&](double nominal) {
      return run_oracle(whole_->oracle_price(nominal, mass_exponent), mass_exponent, texts);
    });
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
      all.push_back({exponent, measure(rule, mean_k, exponent, choice_)});
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

  /// Every rule that can be set, at every mean K on every text. At one mean K all have the exponent
  /// that suits `distortion` best, so that rules differ in their K's alone.
  std::vector<frontier_point> frontier(const std::vector<calibration_rule>& rules,
                                       const std::vector<double>& mean_ks,
                                       const std::vector<report_text>& texts) const {
    std::vector<frontier_point> points;
    for (const double mean_k : mean_ks) {
      const double exponent = best_mass_exponent(calibration_rule::distortion, mean_k);
      for (const report_text& text : texts)
        for (const calibration_rule rule : rules)
          if (can_set(rule))
            points.push_back(
                {rule, text.split, mean_k, exponent, measure(rule, mean_k, exponent, {text})});
    }
    return points;
  }

 private:
  struct part {
    calibration_domain domain;
    window_range fit, choice, sensitivity;
    std::vector<layer_record> records;
    // Of windows under random K's per layer: their distortions at full K, [n][layers], and KL.
    std::vector<std::vector<double>> mean_distortion;
    std::vector<double> kl;
  };
  struct settled_rule {
    policy_set policies;
    double nominal_mean_k = 0.0;  ///< that the recorded tokens get
  };

  static bool is_static(calibration_rule rule) {
    return rule == calibration_rule::fixed || rule == calibration_rule::static_per_layer;
  }

  static std::int64_t tokens_of(const part& each) {
    return (each.fit.count + each.choice.count) * each.domain.runner->source().window_length;
  }

  /// A `share`-th of the options' tokens of one text.
  part recorded(const calibration_domain& domain, std::int64_t share) {
    const calibration_source& source = domain.runner->source();
    if (source.num_windows < 4)
      throw std::runtime_error(
          "calibration: the text " + (domain.name.empty() ? "" : domain.name + " ") + "has " +
          std::to_string(source.num_windows) + " windows of " +
          std::to_string(source.window_length) + " tokens, expected 4 or more");
    const auto windows_of = [&](std::int64_t tokens, std::int64_t most) {
      return std::clamp<std::int64_t>(tokens / share / source.window_length, 1,
                                      std::max<std::int64_t>(most, 1));
    };
    part result;
    result.domain = domain;
    result.fit = {0, windows_of(options_.fit_tokens, source.num_windows * 3 / 4)};
    result.choice = {result.fit.count,
                     windows_of(options_.choice_tokens, source.num_windows - result.fit.count)};
    result.sensitivity = {0, windows_of(options_.sensitivity_tokens, result.fit.count)};
    result.records = domain.runner->record(result.fit, options_.head);
    choice_.push_back(
        {domain.name.empty() ? "calibration" : domain.name, domain.runner, result.choice});
    return result;
  }

  /// What all domains but one give together; `left_out` may be none of them.
  fitted_rules fitted_without(std::size_t left_out) const {
    std::vector<layer_record> records;
    std::vector<std::vector<double>> mean_distortion;
    std::vector<double> kl;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      if (i == left_out) continue;
      const part& each = parts_[i];
      if (records.empty())
        records = each.records;
      else
        for (std::size_t l = 0; l < records.size(); ++l) records[l].add(each.records[l]);
      mean_distortion.insert(mean_distortion.end(), each.mean_distortion.begin(),
                             each.mean_distortion.end());
      kl.insert(kl.end(), each.kl.begin(), each.kl.end());
    }
    std::vector<double> sensitivities(records.size(), 1.0);
    if (!kl.empty()) sensitivities = fit_sensitivities(mean_distortion, kl);
    return {std::move(records), std::move(sensitivities)};
  }

  /// The exponent after which a text that was not calibrated on has the least KL, in the geometric
  /// mean over texts, at half of K0 or so; the least where several are equal.
  double chosen_exponent() {
    constexpr double mass_exponent = 0.5;
    constexpr double of_one_text = 0.5;
    constexpr double tried[] = {0.0, 0.25, 0.5, 0.75, 1.0};
    const double mean_k = 0.5 * (1.0 + top_k());
    if (parts_.size() < 2 || top_k() < 2 || parts_.front().records.size() < 2) return of_one_text;
    double best = of_one_text, least = std::numeric_limits<double>::infinity();
    std::vector<fitted_rules> others;
    for (std::size_t i = 0; i < parts_.size(); ++i) others.push_back(fitted_without(i));
    for (const double exponent : tried) {
      double log_kl = 0.0;
      for (std::size_t i = 0; i < parts_.size(); ++i) {
        others[i].shrink(exponent);
        trials_.push_back(
            {exponent, parts_[i].domain.name,
             held_at(mean_k, mean_k, [&](double nominal) {
               return run(others[i].policies(calibration_rule::distortion, nominal, mass_exponent),
                          {choice_[i]});
             }).held});
        log_kl += std::log(trials_.back().outcome.mean_kl());
      }
      if (log_kl < least) {
        least = log_kl;
        best = exponent;
      }
    }
    return best;
  }

  /// Sets a parameter by the mean K that comes of it, in at most three runs, the first at `nominal`
  /// and the third by the line through the others; the closest is kept. `run` gets a nominal mean
  /// K.
  template <class Run>
  held_outcome held_at(double nominal, double mean_k, const Run& run) const {
    held_outcome result;
    double before = 0.0, off_before = 0.0, least_off = 0.0;
    for (int i = 0;; ++i) {
      routing_outcome outcome = run(nominal);
      const double off = mean_k - outcome.mean_k();
      if (i == 0) result.as_set = outcome;
      if (i == 0 || std::fabs(off) < least_off) {
        result.held = std::move(outcome);
        least_off = std::fabs(off);
      }
      if (i == 2 || least_off < 0.002 * top_k()) return result;
      const double slope = i == 0 ? 1.0 : (off_before - off) / (nominal - before);
      before = nominal;
      off_before = off;
      nominal = std::clamp(nominal + (slope > 0.0 ? off / slope : off), 1.0,
                           static_cast<double>(top_k()));
      if (nominal == before) return result;
    }
  }

  settled_rule settled(calibration_rule rule, double mean_k, double mass_exponent) const {
    settled_rule result = {policies(rule, mean_k, mass_exponent), mean_k};
    if (is_static(rule) || rule == calibration_rule::oracle) return result;
    for (int i = 0; i < 2; ++i) {
      const double off = mean_k - run(result.policies, choice_).mean_k();
      if (std::fabs(off) < 0.002 * top_k()) break;
      result.nominal_mean_k =
          std::clamp(result.nominal_mean_k + off, 1.0, static_cast<double>(top_k()));
      result.policies = policies(rule, result.nominal_mean_k, mass_exponent);
    }
    return result;
  }

  /// Whole K's: what lies between two of them is a mixture of windows.
  routing_outcome measure_static(calibration_rule rule, double mean_k, double mass_exponent,
                                 const std::vector<report_text>& texts) const {
    const double steps =
        rule == calibration_rule::fixed ? 1.0 : static_cast<double>(records().size());
    const double low = std::floor(mean_k * steps + 1e-6) / steps;
    const double share = (mean_k - low) * steps;
    const routing_outcome at_low = run(policies(rule, low, mass_exponent), texts);
    if (share < 1e-5) return at_low;
    return mixed(at_low, run(policies(rule, low + 1.0 / steps, mass_exponent), texts), share);
  }

  routing_outcome run_oracle(double price, double mass_exponent,
                             const std::vector<report_text>& texts) const {
    std::vector<routing_outcome> outcomes;
    for (const report_text& text : texts)
      outcomes.push_back(
          text.runner->run_oracle(whole_->layer_weights(), price, mass_exponent, text.range));
    return joined(outcomes);
  }

  /// KL of windows under random K's per layer against their mean distortions at full K.
  void measure_sensitivities() {
    constexpr double mass_exponent = 0.5;
    const std::size_t layers = parts_.front().records.size();
    const int top_k = parts_.front().records.front().top_k();
    if (top_k < 2) return;
    const int least = top_k == 2 ? 1 : 2;  // a single expert is far from what the rules do, mostly
    integer_rng rng(options_.seed);
    for (int pass = 0; pass < options_.sensitivity_passes; ++pass) {
      policy_set set = same_policy(k_policy::fixed(1), mass_exponent, layers);
      for (k_policy& layer : set.layers)
        layer.k_values[0] = static_cast<std::uint8_t>(
            least + static_cast<int>(rng.below(static_cast<std::uint64_t>(top_k - least + 1))));
      for (part& each : parts_) add_pass(set, mass_exponent, each);
    }
  }

  static void add_pass(const policy_set& set, double mass_exponent, part& to) {
    const std::int64_t length = to.domain.runner->source().window_length;
    const routing_outcome outcome = to.domain.runner->run(set, to.sensitivity);
    for (std::int64_t w = 0; w < to.sensitivity.count; ++w) {
      std::vector<double> row;
      for (std::size_t l = 0; l < to.records.size(); ++l) {
        double sum = 0.0;
        for (std::int64_t t = w * length; t < (w + 1) * length; ++t)
          sum += to.records[l].distortion(t, set.layers[l].k_values[0], mass_exponent);
        row.push_back(sum / static_cast<double>(length));
      }
      to.mean_distortion.push_back(std::move(row));
      to.kl.push_back(outcome.windows[static_cast<std::size_t>(w)].kl);
    }
  }

  study_options options_;
  std::vector<part> parts_;
  std::vector<report_text> choice_;  // [parts_]
  std::unique_ptr<fitted_rules> whole_;
  std::vector<super_expert> super_experts_;
  double sensitivity_exponent_ = 1.0;
  std::vector<exponent_trial> trials_;
};

ADAPTIVE_K_NAMESPACE_END
