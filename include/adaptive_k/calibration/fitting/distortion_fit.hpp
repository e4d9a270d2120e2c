// Fits the predicted distortion of a layer to its record: a ridge regression of ln d for every k.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// One layer's coefficients and tables, laid out as distortion_ref reads them.
struct distortion_tables {
  std::vector<float> coefficients;  ///< [K0 - 1, 5]
  std::vector<float> first_expert;  ///< [K0 - 1, E], or empty: zeros
  std::vector<float> next_expert;   ///< [K0 - 1, E], or empty: zeros

  /// These tables as a policy reads them; they must outlive it. `sensitivity` > 0, `lambda` >= 0.
  distortion_ref ref(double sensitivity, double lambda) const {
    distortion_ref result;
    result.coefficients = coefficients.data();
    result.first_expert = first_expert.empty() ? nullptr : first_expert.data();
    result.next_expert = next_expert.empty() ? nullptr : next_expert.data();
    result.sensitivity = static_cast<float>(sensitivity);
    result.lambda = static_cast<float>(lambda);
    return result;
  }
};

namespace detail {

/// What ln d(k) is linear in; see distortion_ref.
inline void distortion_features(const layer_record& record, std::int64_t t, int k,
                                double mass_exponent, double* features) {
  constexpr double least = 7.888609052210118e-31;  // 2^-100
  const float* w = record.weights(t);
  double kept = 0.0, kept_squares = 0.0, dropped = 0.0, dropped_squares = 0.0;
  for (int j = 0; j < record.top_k(); ++j) {
    const auto weight = static_cast<double>(w[j]);
    (j < k ? kept : dropped) += weight;
    (j < k ? kept_squares : dropped_squares) += weight * weight;
  }
  const double stretch = std::pow(std::fmin(std::fmax(kept, least), 1.0), -mass_exponent) - 1.0;
  features[0] = 1.0;
  features[1] = std::log(std::fmax(dropped, least));
  features[2] = std::log(std::fmax(stretch * stretch * kept_squares + dropped_squares, least));
  features[3] = std::log(std::fmax(static_cast<double>(w[0]), least));
  features[4] = std::log(std::fmax(static_cast<double>(record.topk_share(t)), least));
}

/// Rounded to five decimals, so that a file holds exactly what was measured.
inline float rounded_coefficient(double value) {
  return static_cast<float>(std::round(value * 1e5) / 1e5);
}

/// Rounded to six significant digits, for numbers of any size.
inline double rounded(double value) {
  if (!(std::fabs(value) > 0.0) || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, 5.0 - std::floor(std::log10(std::fabs(value))));
  return std::round(value * scale) / scale;
}

}  // namespace detail

/// exp(ln d_hat(k)) of a token, k in 1..K0-1.
inline double predicted_distortion(const distortion_tables& fit, const layer_record& record,
                                   std::int64_t t, int k, double mass_exponent) {
  constexpr int num_features = distortion_ref::num_features;
  double features[num_features];
  detail::distortion_features(record, t, k, mass_exponent, features);
  const auto row = static_cast<std::size_t>(k - 1);
  const auto experts = static_cast<std::size_t>(record.num_experts());
  const auto id = [&](int j) { return static_cast<std::size_t>(record.experts(t)[j]); };
  double log_d = 0.0;
  if (!fit.first_expert.empty())
    log_d += static_cast<double>(fit.first_expert[row * experts + id(0)]);
  if (!fit.next_expert.empty())
    log_d += static_cast<double>(fit.next_expert[row * experts + id(k)]);
  for (std::size_t i = 0; i < num_features; ++i)
    log_d += static_cast<double>(fit.coefficients[row * num_features + i]) * features[i];
  return std::exp(std::fmin(log_d, 80.0));
}

/// Per k: minimises sum (ln d - ln d_hat)^2 + ridge * N * |coefficients|^2, the constant free, then
/// scales d_hat by sum d / sum d_hat, since the exponential of a mean log is too small.
/// Time O(T K0 + K0 E^3); the record must have distortions.
inline distortion_tables fit_distortion(const layer_record& record, double mass_exponent,
                                        double ridge = 1e-3) {
  constexpr int num_features = distortion_ref::num_features;
  constexpr double least_d = 1e-12;
  const int experts = record.num_experts();
  const int columns = num_features + 2 * experts;
  const auto count = static_cast<double>(record.num_tokens());
  distortion_tables fit;
  for (int k = 1; k < record.top_k(); ++k) {
    // Normal equations; a row has 5 features and two ones.
    Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(columns, columns);
    Eigen::VectorXd target = Eigen::VectorXd::Zero(columns);
    double sum_d = 0.0;
    for (std::int64_t t = 0; t < record.num_tokens(); ++t) {
      double value[num_features + 2];
      int column[num_features + 2];
      detail::distortion_features(record, t, k, mass_exponent, value);
      for (int i = 0; i < num_features; ++i) column[i] = i;
      value[num_features] = value[num_features + 1] = 1.0;
      column[num_features] = num_features + record.experts(t)[0];
      column[num_features + 1] = num_features + experts + record.experts(t)[k];
      const double d = record.distortion(t, k, mass_exponent);
      const double log_d = std::log(std::fmax(d, least_d));
      sum_d += d;
      for (int i = 0; i < num_features + 2; ++i) {
        target[column[i]] += value[i] * log_d;
        for (int j = 0; j < num_features + 2; ++j)
          gram(column[i], column[j]) += value[i] * value[j];
      }
    }
    for (int i = 1; i < columns; ++i) gram(i, i) += ridge * count;
    const Eigen::VectorXd solution = gram.ldlt().solve(target);
    for (int i = 0; i < num_features; ++i)
      fit.coefficients.push_back(detail::rounded_coefficient(solution[i]));
    for (int e = 0; e < experts; ++e) {
      fit.first_expert.push_back(detail::rounded_coefficient(solution[num_features + e]));
      fit.next_expert.push_back(detail::rounded_coefficient(solution[num_features + experts + e]));
    }
    double sum_predicted = 0.0;
    for (std::int64_t t = 0; t < record.num_tokens(); ++t)
      sum_predicted += predicted_distortion(fit, record, t, k, mass_exponent);
    if (sum_d > 0.0 && sum_predicted > 0.0) {
      const auto constant = static_cast<std::size_t>(k - 1) * num_features;
      fit.coefficients[constant] = detail::rounded_coefficient(
          static_cast<double>(fit.coefficients[constant]) + std::log(sum_d / sum_predicted));
    }
  }
  return fit;
}

/// d_hat(k) = scale * psi_k: what the weights alone say (see distortion_ref), with one scale a
/// layer, sum d / sum psi over all tokens and k; no tables. The record must have distortions.
inline distortion_tables fit_psi(const layer_record& record, double mass_exponent) {
  constexpr int num_features = distortion_ref::num_features;
  double sum_d = 0.0, sum_psi = 0.0;
  for (std::int64_t t = 0; t < record.num_tokens(); ++t)
    for (int k = 1; k < record.top_k(); ++k) {
      double features[num_features];
      detail::distortion_features(record, t, k, mass_exponent, features);
      sum_d += record.distortion(t, k, mass_exponent);
      sum_psi += std::exp(features[2]);
    }
  const double scale = sum_d > 0.0 && sum_psi > 0.0 ? sum_d / sum_psi : 1.0;
  distortion_tables fit;
  for (int k = 1; k < record.top_k(); ++k)
    for (const double c : {std::log(scale), 0.0, 1.0, 0.0, 0.0})
      fit.coefficients.push_back(detail::rounded_coefficient(c));
  return fit;
}

ADAPTIVE_K_NAMESPACE_END
