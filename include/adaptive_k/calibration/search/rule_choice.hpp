// The rules a calibration compares, each set to a mean K by its own parameter on recorded tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/distortion_fit.hpp"
#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/calibration/search/calibration_runs.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What sets the K's in a calibration: rules, controls and the oracle.
enum class calibration_rule {
  fixed,             ///< one K for every token and layer
  static_per_layer,  ///< one K a layer, from the layers' mean distortions
  entropy,           ///< the published rule: one set of thresholds on the softmax entropy
  score_ratio,       ///< one ratio for all layers
  skipping,          ///< a ratio a layer, so that all layers have the same mean K (NAEE)
  top_p,             ///< one mass for all layers
  psi,               ///< psi of distortion_ref alone, with one scale a layer
  distortion,        ///< predicted distortion
  head,              ///< the same, predicted with a router head
  random_mix,        ///< distortion's K's, assigned at random
  inverted,          ///< distortion's K's, the surest token with the most
  oracle,            ///< the true distortion: the upper bound, not a rule that can run
};

/// In the order of reports.
inline constexpr calibration_rule all_calibration_rules[] = {
    calibration_rule::fixed,       calibration_rule::static_per_layer, calibration_rule::entropy,
    calibration_rule::score_ratio, calibration_rule::skipping,         calibration_rule::top_p,
    calibration_rule::psi,         calibration_rule::distortion,       calibration_rule::head,
    calibration_rule::random_mix,  calibration_rule::inverted,         calibration_rule::oracle,
};

/// As reports and files spell it. Static text.
inline const char* to_string(calibration_rule rule) {
  constexpr const char* names[] = {
      "fixed", "static_per_layer", "entropy", "score_ratio", "skipping", "top_p",
      "psi",   "distortion",       "head",    "random_mix",  "inverted", "oracle"};
  return names[static_cast<std::size_t>(rule)];
}

namespace detail {

/// d [T, K0 - 1] of every layer, predicted or true.
using distortion_arrays = std::vector<std::vector<float>>;

inline double mean_k_at_price(const distortion_arrays& d, const std::vector<double>& sensitivities,
                              double lambda, int top_k) {
  const auto width = static_cast<std::size_t>(top_k - 1);
  double sum = 0.0, count = 0.0;
  for (std::size_t l = 0; l < d.size(); ++l)
    for (std::size_t at = 0; at + width <= d[l].size(); at += width) {
      double least = lambda * top_k;
      int chosen = top_k;
      for (int k = top_k - 1; k >= 1; --k) {
        const double cost =
            sensitivities[l] * static_cast<double>(d[l][at + static_cast<std::size_t>(k) - 1]) +
            lambda * k;
        if (cost < least) {
          least = cost;
          chosen = k;
        }
      }
      sum += chosen;
      count += 1.0;
    }
  return count > 0.0 ? sum / count : top_k;
}

/// Bisects a parameter whose growth lowers the mean K.
template <class MeanK>
double bisect(double low, double high, double mean_k, const MeanK& mean_k_at) {
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (low + high);
    (mean_k_at(middle) > mean_k ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

}  // namespace detail

/// Price of an expert at which `d` gives this mean K.
inline double price_for(const detail::distortion_arrays& d,
                        const std::vector<double>& sensitivities, double mean_k, int top_k) {
  const double log_price = detail::bisect(-30.0, 5.0, mean_k, [&](double x) {
    return detail::mean_k_at_price(d, sensitivities, std::exp(x), top_k);
  });
  return detail::rounded(std::exp(log_price));
}

/// d(k) of every recorded token, [T, K0 - 1] a layer, from the experts' outputs.
inline detail::distortion_arrays true_distortions(const std::vector<layer_record>& records,
                                                  double mass_exponent) {
  detail::distortion_arrays result;
  for (const layer_record& record : records) {
    result.emplace_back();
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      for (int k = 1; k < record.top_k(); ++k)
        result.back().push_back(static_cast<float>(record.distortion(t, k, mass_exponent)));
  }
  return result;
}

/// Fits of all layers under one mass exponent, and what they predict for the recorded tokens.
struct fitted_distortion {
  double mass_exponent = 0.0;             ///< a in [0, 1] that it was fitted for
  std::vector<distortion_tables> layers;  ///< [num_layers]
  detail::distortion_arrays predicted;    ///< [T, K0 - 1] a layer
};

/// Fits every layer on its own record; `rule` is distortion, psi or head.
inline std::shared_ptr<const fitted_distortion> fit_layers(
    const std::vector<layer_record>& records, double mass_exponent,
    calibration_rule rule = calibration_rule::distortion) {
  auto fit = std::make_shared<fitted_distortion>();
  fit->mass_exponent = mass_exponent;
  for (const layer_record& record : records) {
    fit->layers.push_back(rule == calibration_rule::psi    ? fit_psi(record, mass_exponent)
                          : rule == calibration_rule::head ? fit_head(record, mass_exponent)
                                                           : fit_distortion(record, mass_exponent));
    fit->predicted.emplace_back();
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      for (int k = 1; k < record.top_k(); ++k)
        fit->predicted.back().push_back(static_cast<float>(
            predicted_distortion(fit->layers.back(), record, t, k, mass_exponent)));
  }
  return fit;
}

/// A policy for each layer of `fit`, which they keep alive; `sensitivities` [num_layers] > 0,
/// `lambda` >= 0.
inline policy_set distortion_policies(const std::shared_ptr<const fitted_distortion>& fit,
                                      const std::vector<double>& sensitivities, double lambda) {
  policy_set result;
  for (std::size_t l = 0; l < fit->layers.size(); ++l) {
    result.layers.push_back(k_policy::min_distortion(fit->layers[l].ref(sensitivities[l], lambda)));
    result.layers.back().mass_exponent = static_cast<float>(fit->mass_exponent);
  }
  result.tables = fit;
  return result;
}

/// `policy` for every layer, with this mass exponent.
inline policy_set same_policy(k_policy policy, double mass_exponent, std::size_t num_layers) {
  policy.mass_exponent = static_cast<float>(mass_exponent);
  return {std::vector<k_policy>(num_layers, policy), nullptr};
}

/// Least k whose mass reaches p, with p such that the recorded tokens get this mean K.
inline policy_set top_p_policies(const std::vector<layer_record>& records, double mass_exponent,
                                 double mean_k) {
  const int top_k = records.front().top_k();
  const double p = detail::bisect(0.0, 1.0, -mean_k, [&](double mass) {
    double sum = 0.0, count = 0.0;
    for (const layer_record& record : records)
      for (std::int64_t t = 0; t < record.num_tokens(); ++t, count += 1.0) {
        double kept = 0.0;
        int k = 0;
        while (k < top_k && (k == 0 || kept < mass))
          kept += static_cast<double>(record.weights(t)[k++]);
        sum += k;
      }
    return -sum / count;
  });
  return same_policy(k_policy::top_p(static_cast<float>(detail::rounded(p)), top_k), mass_exponent,
                     records.size());
}

namespace detail {

/// Share of the best expert's score such that keeping those that reach it gives the tokens of
/// `records` this mean K.
inline double score_ratio_for(const std::vector<const layer_record*>& records, double mean_k) {
  const double ratio = bisect(0.0, 1.0, mean_k, [&](double limit) {
    double sum = 0.0, count = 0.0;
    for (const layer_record* record : records)
      for (std::int64_t t = 0; t < record->num_tokens(); ++t, count += 1.0) {
        const float* w = record->weights(t);
        int k = 1;
        while (k < record->top_k() &&
               static_cast<double>(w[k]) >= limit * static_cast<double>(w[0]))
          ++k;
        sum += k;
      }
    return sum / count;
  });
  return rounded(ratio);
}

}  // namespace detail

/// Experts with at least a share of the best one's score.
inline policy_set score_ratio_policies(const std::vector<layer_record>& records,
                                       double mass_exponent, double mean_k) {
  std::vector<const layer_record*> all;
  for (const layer_record& record : records) all.push_back(&record);
  const auto ratio = static_cast<float>(detail::score_ratio_for(all, mean_k));
  return same_policy(k_policy::score_ratio(ratio, records.front().top_k()), mass_exponent,
                     records.size());
}

/// The same with a share for each layer, so that all layers have this mean K. With K0 = 2 and a
/// mean K of 1.5 that is the second expert dropped below the layer's median of w_2 / w_1, as in
/// arXiv 2402.14800.
inline policy_set skipping_policies(const std::vector<layer_record>& records, double mass_exponent,
                                    double mean_k) {
  policy_set result;
  for (const layer_record& record : records) {
    const auto ratio = static_cast<float>(detail::score_ratio_for({&record}, mean_k));
    result.layers.push_back(k_policy::score_ratio(ratio, record.top_k()));
    result.layers.back().mass_exponent = static_cast<float>(mass_exponent);
  }
  return result;
}

/// Three neighbouring K's (two at the ends), with half of the tokens at the middle one; thresholds
/// are quantiles of the softmax entropy over all layers.
inline policy_set entropy_policies(const std::vector<layer_record>& records, double mass_exponent,
                                   double mean_k) {
  const int top_k = records.front().top_k();
  std::vector<float> entropies;
  for (const layer_record& record : records)
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      entropies.push_back(record.softmax_entropy(t));
  std::sort(entropies.begin(), entropies.end());
  const auto quantile = [&](double share) {
    const auto last = static_cast<double>(entropies.size() - 1);
    return entropies[static_cast<std::size_t>(std::clamp(share, 0.0, 1.0) * last)];
  };
  std::vector<int> values;
  std::vector<float> limits;
  const int middle = static_cast<int>(std::lround(mean_k));
  if (middle > 1 && middle < top_k) {
    const double off = mean_k - middle;
    values = {middle - 1, middle, middle + 1};
    limits = {quantile(0.25 - 0.5 * off), quantile(0.75 - 0.5 * off)};
  } else {
    const int low = std::clamp(static_cast<int>(std::floor(mean_k)), 1, (std::max)(1, top_k - 1));
    values = {low, low + 1};
    limits = {quantile(1.0 - (mean_k - low))};
  }
  if (limits.size() == 2 && !(limits[0] < limits[1])) {  // a router that is always equally sure
    values.pop_back();
    limits.pop_back();
  }
  k_policy policy;
  policy.set_thresholds(signal_kind::softmax_entropy, values.data(),
                        static_cast<int>(values.size()), limits.data(),
                        static_cast<int>(limits.size()));
  return same_policy(policy, mass_exponent, records.size());
}

/// Starts from one expert a layer and gives the next one to the layer where g_l times the mean
/// distortion falls most, as long as the layers' mean K is at most `mean_k`.
inline policy_set static_policies(const detail::distortion_arrays& d,
                                  const std::vector<double>& sensitivities, double mass_exponent,
                                  double mean_k, int top_k) {
  const auto width = static_cast<std::size_t>(top_k - 1);
  std::vector<std::vector<double>> mean_d(d.size(),
                                          std::vector<double>(static_cast<std::size_t>(top_k)));
  for (std::size_t l = 0; l < d.size(); ++l)
    for (std::size_t i = 0; i < d[l].size(); ++i)
      mean_d[l][i % width] += static_cast<double>(d[l][i]) * static_cast<double>(width) /
                              static_cast<double>(d[l].size());
  std::vector<int> ks(d.size(), 1);
  const auto budget = static_cast<int>(std::floor(mean_k * static_cast<double>(d.size()) + 1e-6));
  for (int given = static_cast<int>(d.size()); given < budget; ++given) {
    std::size_t best = d.size();
    double most = -1.0;
    for (std::size_t l = 0; l < d.size(); ++l) {
      if (ks[l] >= top_k) continue;
      const auto k = static_cast<std::size_t>(ks[l]);
      const double gain = sensitivities[l] * (mean_d[l][k - 1] - mean_d[l][k]);
      if (gain > most) {
        most = gain;
        best = l;
      }
    }
    if (best == d.size()) break;
    ++ks[best];
  }
  policy_set result;
  for (const int k : ks) {
    result.layers.push_back(k_policy::fixed(k));
    result.layers.back().mass_exponent = static_cast<float>(mass_exponent);
  }
  return result;
}

ADAPTIVE_K_NAMESPACE_END
