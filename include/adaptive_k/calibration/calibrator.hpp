// Finds a K policy for a target from measurement, and says where a plain smaller K does as well.
//
//   calibrator search{target_savings(0.4)};
//   calibration_result found = search.calibrate(model, text);  // or {{"novels", &text}, ...}
//   router adaptive(gating, found.policies.layers, {}, found.policies.tables);
//
// `model` is any type with
//   const gating& router_gating() const;
//   int num_layers() const;
//   int window_length(const Dataset&) const;  // tokens
//   std::int64_t num_windows(const Dataset&) const;
//   std::vector<window_outcome> run(const Dataset&, window_range, const layer_route&,
//                                   const block_observer&);  // see calibration_source
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/domain_fit.hpp"
#include "adaptive_k/calibration/fitting/super_experts.hpp"
#include "adaptive_k/calibration/search/calibration_runs.hpp"
#include "adaptive_k/calibration/search/calibration_study.hpp"
#include "adaptive_k/calibration/search/rule_choice.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What a policy must meet; among those that do, the best one is chosen. See the functions below.
struct calibration_target {
  /// What `value` bounds.
  enum class kind { savings, max_kl, max_perplexity_increase };
  kind what = kind::savings;  ///< what `value` bounds
  double value = 0.0;         ///< a share, or nats
};

/// Share of expert calls to save, against K0, in (0, 1).
inline calibration_target target_savings(double share) {
  return {calibration_target::kind::savings, share};
}
/// Mean KL to full K that may not be exceeded, nats.
inline calibration_target max_kl(double nats) {
  return {calibration_target::kind::max_kl, nats};
}
/// Relative rise of perplexity that may not be exceeded: 0.01 is one percent.
inline calibration_target max_perplexity_increase(double share) {
  return {calibration_target::kind::max_perplexity_increase, share};
}

/// What a calibration found.
struct calibration_result {
  calibration_rule rule = calibration_rule::fixed;  ///< that won
  policy_set policies;                              ///< [num_layers]
  double mass_exponent = 0.0;                       ///< a in [0, 1]
  double mean_k = 0.0;               ///< on the choice windows; predicted where from a trace
  double expert_savings = 0.0;       ///< 1 - mean K / K0
  bool quality_known = false;        ///< false from a trace: it holds no outputs
  paired_estimate mean_kl;           ///< on the choice windows, nats
  paired_estimate against_fixed;     ///< KL of this minus fixed K's at equal mean K, same windows
  double perplexity_ratio = 0.0;     ///< to full K
  std::int64_t tokens_analyzed = 0;  ///< read to find it
  /// q: psi and distortion weigh a layer by g^q; 1 where no rule weighs layers (from a trace).
  double sensitivity_exponent = 1.0;
  std::vector<exponent_trial> exponent_trials;  ///< what q was chosen by; empty where it was not
  /// Share of the choice windows' tokens that are out of the domain of `policies`, over all layers.
  double out_of_domain = 0.0;
  std::vector<super_expert> super_experts;  ///< that `policies` keep, if they adapt
  std::string sentence;                     ///< what was found, in words
  std::vector<frontier_point> candidates;   ///< every rule that was weighed, on the choice windows
  /// Every rule, controls and oracle included, at the mean K's asked for, on the choice windows.
  std::vector<frontier_point> frontier;
};

/// Binds a model to a text.
template <class Model, class Dataset>
calibration_source bind_source(Model& model, const Dataset& data, std::string name) {
  calibration_source source;
  source.name = std::move(name);
  source.model = model.router_gating();
  source.num_layers = model.num_layers();
  source.num_windows = model.num_windows(data);
  source.window_length = model.window_length(data);
  source.run = [&model, &data](window_range range, const layer_route& route,
                               const block_observer& observe) {
    return model.run(data, range, route, observe);
  };
  return source;
}

/// Chooses a policy for a target; see `calibrate`.
struct calibrator {
  calibration_target target;   ///< to hold
  study_options options = {};  ///< how much of the text is used for what
  /// Rules to choose from. An adaptive one must beat the best static one by two standard errors.
  std::vector<calibration_rule> rules = {calibration_rule::distortion, calibration_rule::top_p,
                                         calibration_rule::static_per_layer,
                                         calibration_rule::fixed};
  /// Mean K's of `calibration_result::frontier`, each 1 or more and below K0. None by default: each
  /// costs about as many runs as there are rules, and a dozen more.
  std::vector<double> frontier_mean_ks = {};

  /// Throws std::runtime_error: a target out of range, a text too short, a router's refusal.
  template <class Model, class Dataset>
  calibration_result calibrate(Model& model, const Dataset& data) const {
    check();
    const calibration_runner runner(bind_source(model, data, "data"));
    return choose(calibration_study(runner, options));
  }
  /// On several texts, each a domain with a name. Throws likewise.
  template <class Model, class Dataset>
  calibration_result calibrate(
      Model& model, const std::vector<std::pair<std::string, const Dataset*>>& texts) const {
    check();
    std::vector<calibration_runner> runners;
    for (const auto& [name, data] : texts) runners.emplace_back(bind_source(model, *data, name));
    std::vector<calibration_domain> domains;
    for (const calibration_runner& runner : runners)
      domains.push_back({runner.source().name, &runner});
    return choose(calibration_study(domains, options));
  }

  /// The same of a study, which the caller keeps.
  calibration_result choose(const calibration_study& study) const {
    check();
    const bool by_savings = target.what == calibration_target::kind::savings;
    const int top_k = study.top_k();
    for (const double mean_k : frontier_mean_ks)
      if (!(mean_k >= 1.0 && mean_k < top_k))
        refuse("frontier_mean_ks: %g, expected 1 or more and below %d", mean_k, top_k);
    const std::vector<report_text>& windows = study.choice_texts();
    const double middle = by_savings ? (1.0 - target.value) * top_k : 0.5 * (1.0 + top_k);
    const routing_outcome full = study.measure(calibration_rule::fixed, top_k, 0.0, windows);
    calibration_result result;
    for (const calibration_rule rule : rules) {
      if (!study.can_set(rule))
        throw std::runtime_error("calibration rules: head, expected study_options::head with it");
      const double exponent = study.best_mass_exponent(rule, std::fmax(middle, 1.0));
      double mean_k = std::fmax(middle, 1.0);
      if (!by_savings) mean_k = least_mean_k(study, rule, exponent, full);
      result.candidates.push_back(
          {rule, "calibration", mean_k, exponent, study.measure(rule, mean_k, exponent, windows)});
    }
    const std::size_t best = pick(result.candidates, by_savings);
    const frontier_point& chosen = result.candidates[best];
    result.rule = chosen.rule;
    result.mass_exponent = chosen.mass_exponent;
    result.policies =
        study.settled_policies(chosen.rule, chosen.target_mean_k, chosen.mass_exponent);
    for (std::size_t l = 0; l < result.policies.layers.size(); ++l) {
      k_policy& layer = result.policies.layers[l];
      layer.domain = fit_domain(study.records()[l], layer.signal);
    }
    result.super_experts = study.super_experts();
    for (const report_text& text : windows)
      result.out_of_domain += text.runner->out_of_domain_share(result.policies, text.range) /
                              static_cast<double>(windows.size());
    const routing_outcome own = calibration_study::run(result.policies, windows);  // fixed K: whole
    result.mean_k = own.mean_k();
    result.expert_savings = 1.0 - result.mean_k / top_k;
    result.quality_known = true;
    result.mean_kl = kl_difference(own);
    const routing_outcome fixed =
        study.measure(calibration_rule::fixed, result.mean_k, chosen.mass_exponent, windows);
    result.against_fixed = kl_difference(own, &fixed);
    result.perplexity_ratio = own.perplexity() / full.perplexity();
    result.tokens_analyzed = study.tokens_analyzed();
    result.sensitivity_exponent = study.sensitivity_exponent();
    result.exponent_trials = study.exponent_trials();
    result.sentence = sentence_of(result);
    const std::vector<calibration_rule> all(std::begin(all_calibration_rules),
                                            std::end(all_calibration_rules));
    result.frontier = study.frontier(all, frontier_mean_ks, windows);
    return result;
  }

  /// From recorded router logits alone: top-p, set to a saving; its cost in quality stays unknown.
  /// Throws std::runtime_error for any target but savings.
  calibration_result calibrate_trace(const std::vector<layer_record>& records) const {
    check();
    if (target.what != calibration_target::kind::savings)
      throw std::runtime_error("a trace holds no outputs: only target_savings can be met from one");
    const int top_k = records.front().top_k();
    calibration_result result;
    result.rule = calibration_rule::top_p;
    result.mass_exponent = 0.5;
    result.mean_k = std::fmax((1.0 - target.value) * top_k, 1.0);
    result.policies = top_p_policies(records, result.mass_exponent, result.mean_k);
    result.expert_savings = 1.0 - result.mean_k / top_k;
    result.tokens_analyzed = records.front().num_tokens();
    result.sentence =
        "quality unknown: a trace tells what top-p saves, not what it costs, nor whether it is "
        "better than a fixed K";
    return result;
  }

 private:
  static bool is_static(calibration_rule rule) {
    return rule == calibration_rule::fixed || rule == calibration_rule::static_per_layer;
  }

  template <class... Values>
  [[noreturn]] static void refuse(const char* format, Values... values) {
    throw std::runtime_error(
        status::error(status_code::invalid_argument, format, values...).message());
  }

  void check() const {
    const bool is_share = target.what == calibration_target::kind::savings;
    if (!(target.value > 0.0) || !std::isfinite(target.value) || (is_share && target.value >= 1.0))
      refuse("calibration target: %g, expected above 0%s", target.value,
             is_share ? " and below 1" : "");
    if (rules.empty()) throw std::runtime_error("calibration rules: none, expected one or more");
  }

  /// Bisects the mean K, with K really applied at each.
  double least_mean_k(const calibration_study& study, calibration_rule rule, double exponent,
                      const routing_outcome& full) const {
    double low = 1.0, high = study.top_k();
    for (int i = 0; i < 7; ++i) {
      const double middle = 0.5 * (low + high);
      const routing_outcome outcome = study.measure(rule, middle, exponent, study.choice_texts());
      const double cost = target.what == calibration_target::kind::max_kl
                              ? outcome.mean_kl()
                              : outcome.perplexity() / full.perplexity() - 1.0;
      (cost > target.value ? low : high) = middle;
    }
    return high;
  }

  /// The candidate with the least KL at the mean K asked for, or the least mean K at the quality.
  static std::size_t pick(const std::vector<frontier_point>& candidates, bool by_savings) {
    const auto cost = [&](std::size_t i) {
      return by_savings ? candidates[i].outcome.mean_kl() : candidates[i].outcome.mean_k();
    };
    std::size_t best = 0;
    for (std::size_t i = 1; i < candidates.size(); ++i)
      if (cost(i) < cost(best)) best = i;
    if (is_static(candidates[best].rule) || !by_savings) return best;
    std::size_t best_static = candidates.size();
    for (std::size_t i = 0; i < candidates.size(); ++i)
      if (is_static(candidates[i].rule) &&
          (best_static == candidates.size() || cost(i) < cost(best_static)))
        best_static = i;
    if (best_static == candidates.size()) return best;
    const paired_estimate gain =
        kl_difference(candidates[best].outcome, &candidates[best_static].outcome);
    return gain.value + 2.0 * gain.se < 0.0 ? best : best_static;
  }

  static std::string sentence_of(const calibration_result& result) {
    const std::string name = to_string(result.rule);
    if (is_static(result.rule))
      return name + " wins: no rule that adapts to the token beats it by two standard errors";
    const bool beats = result.against_fixed.value + 2.0 * result.against_fixed.se < 0.0;
    return name + (beats ? " beats fixed K at equal mean K by more than two standard errors"
                         : " is not told apart from fixed K at equal mean K");
  }
};

ADAPTIVE_K_NAMESPACE_END
