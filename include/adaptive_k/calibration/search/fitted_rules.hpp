// The rules as one set of recorded tokens sets them: each rule's policies for a mean K.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/calibration/fitting/sensitivity_fit.hpp"
#include "adaptive_k/calibration/search/calibration_runs.hpp"
#include "adaptive_k/calibration/search/rule_choice.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What follows from recorded tokens alone, without a run. Fits are made when they are first
/// needed, and kept.
class fitted_rules {
 public:
  /// `records` [num_layers], one or more, with distortions; `sensitivities` [num_layers] > 0, as
  /// measured.
  fitted_rules(std::vector<layer_record> records, std::vector<double> sensitivities)
      : records_(std::move(records)), sensitivities_(std::move(sensitivities)) {
    shrink(1.0);
  }

  /// K0.
  int top_k() const noexcept { return records_.front().top_k(); }
  /// What was recorded, [num_layers].
  const std::vector<layer_record>& records() const noexcept { return records_; }
  /// g of each layer, [num_layers], as measured.
  const std::vector<double>& sensitivities() const noexcept { return sensitivities_; }
  /// g^q of each layer, [num_layers]: what psi, distortion and the oracle weigh a layer by. Static
  /// K's take the sensitivities as measured, since nothing else makes them.
  const std::vector<double>& layer_weights() const noexcept { return layer_weights_; }
  /// q in [0, 1].
  void shrink(double exponent) { layer_weights_ = shrunk_sensitivities(sensitivities_, exponent); }

  /// The policies that give the recorded tokens this mean K. Not for `oracle`; static rules round
  /// down.
  policy_set policies(calibration_rule rule, double mean_k, double mass_exponent) const {
    switch (rule) {
      case calibration_rule::fixed:
      case calibration_rule::oracle: {
        const int k = std::clamp(static_cast<int>(std::floor(mean_k + 1e-6)), 1, top_k());
        return same_policy(k_policy::fixed(k), mass_exponent, records_.size());
      }
      case calibration_rule::static_per_layer:
        return static_policies(truth(mass_exponent), sensitivities_, mass_exponent, mean_k,
                               top_k());
      case calibration_rule::entropy:
        return entropy_policies(records_, mass_exponent, mean_k);
      case calibration_rule::score_ratio:
        return score_ratio_policies(records_, mass_exponent, mean_k);
      case calibration_rule::skipping:
        return skipping_policies(records_, mass_exponent, mean_k);
      case calibration_rule::top_p:
        return top_p_policies(records_, mass_exponent, mean_k);
      case calibration_rule::psi:
      case calibration_rule::distortion:
      case calibration_rule::head:
      case calibration_rule::random_mix:
      case calibration_rule::inverted:
        break;
    }
    const auto& fitted = fit(rule, mass_exponent);
    return distortion_policies(fitted, layer_weights_,
                               price_for(fitted->predicted, layer_weights_, mean_k, top_k()));
  }

  /// The price at which the true distortions give the recorded tokens this mean K.
  double oracle_price(double mean_k, double mass_exponent) const {
    return price_for(truth(mass_exponent), layer_weights_, mean_k, top_k());
  }

 private:
  const std::shared_ptr<const fitted_distortion>& fit(calibration_rule rule,
                                                      double mass_exponent) const {
    if (rule != calibration_rule::psi && rule != calibration_rule::head)
      rule = calibration_rule::distortion;
    auto& known = fits_[{rule, mass_exponent}];
    if (!known) known = fit_layers(records_, mass_exponent, rule);
    return known;
  }

  const detail::distortion_arrays& truth(double mass_exponent) const {
    detail::distortion_arrays& known = truths_[mass_exponent];
    if (known.empty()) known = true_distortions(records_, mass_exponent);
    return known;
  }

  std::vector<layer_record> records_;
  std::vector<double> sensitivities_;
  std::vector<double> layer_weights_;
  // By rule (psi, distortion, head) and mass exponent.
  mutable std::map<std::pair<calibration_rule, double>, std::shared_ptr<const fitted_distortion>>
      fits_;
  mutable std::map<double, detail::distortion_arrays> truths_;
};

ADAPTIVE_K_NAMESPACE_END
