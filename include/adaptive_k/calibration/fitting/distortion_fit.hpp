// Fits the predicted distortion of a layer to its record: a ridge regression of ln d for every k.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
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
  std::vector<float> head;          ///< [K0 - 1, hidden_size], or empty: no head
  int hidden_size = 0;              ///< of the head's input

  /// These tables as a policy reads them; they must outlive it. `sensitivity` > 0, `lambda` >= 0.
  distortion_ref ref(double sensitivity, double lambda) const {
    distortion_ref result;
    result.coefficients = coefficients.data();
    result.first_expert = first_expert.empty() ? nullptr : first_expert.data();
    result.next_expert = next_expert.empty() ? nullptr : next_expert.data();
    result.head = head.empty() ? nullptr : head.data();
    result.hidden_size = hidden_size;
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
  if (!fit.head.empty()) {
    const float* u = fit.head.data() + (k - 1) * fit.hidden_size;
    const float* x = record.input(t);
    for (int i = 0; i < fit.hidden_size; ++i)
      log_d += static_cast<double>(u[i]) * static_cast<double>(x[i]);
  }
  return std::exp(std::fmin(log_d, 80.0));
}

namespace detail {

/// Scales d_hat(k) by sum d / sum d_hat, `sum_d` being the former, since the exponential of a mean
/// log is too small.
inline void scale_to_mean(const layer_record& record, int k, double mass_exponent, double sum_d,
                          distortion_tables& fit) {
  double sum_predicted = 0.0;
  for (std::int64_t t = 0; t < record.num_tokens(); ++t)
    sum_predicted += predicted_distortion(fit, record, t, k, mass_exponent);
  if (!(sum_d > 0.0 && sum_predicted > 0.0)) return;
  const auto constant = static_cast<std::size_t>(k - 1) * distortion_ref::num_features;
  fit.coefficients[constant] = rounded_coefficient(static_cast<double>(fit.coefficients[constant]) +
                                                   std::log(sum_d / sum_predicted));
}

inline constexpr double least_distortion = 1e-12;  ///< what ln d counts it as at least

}  // namespace detail

/// Per k: minimises sum (ln d - ln d_hat)^2 + ridge * N * |coefficients|^2, the constant free, then
/// scales d_hat by sum d / sum d_hat, since the exponential of a mean log is too small.
/// Time O(T K0 + K0 E^3); the record must have distortions.
inline distortion_tables fit_distortion(const layer_record& record, double mass_exponent,
                                        double ridge = 1e-3) {
  constexpr int num_features = distortion_ref::num_features;
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
      const double log_d = std::log(std::fmax(d, detail::least_distortion));
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
    detail::scale_to_mean(record, k, mass_exponent, sum_d, fit);
  }
  return fit;
}

/// The same with a router head: ln d_hat(k) = c_k . (1, ln(1 - r_k)) + u_k . x, the ridge on u and
/// on the slope. Other terms of distortion_ref add nothing beside a head (bench/docs/calibrate.md).
/// Time O(T H (H + K0) + K0 H^3); the record must have distortions and inputs.
inline distortion_tables fit_head(const layer_record& record, double mass_exponent,
                                  double ridge = 1e-2) {
  constexpr int num_features = distortion_ref::num_features;
  constexpr std::int64_t block = 1024;  // tokens
  if (!record.has_inputs())
    throw std::runtime_error("a router head is fitted to the router's inputs, which were not kept");
  const int hidden = record.hidden_size();
  const int ks = record.top_k() - 1;
  distortion_tables fit;
  fit.hidden_size = hidden;
  // Of all k at once: x, then 1, the slopes' feature of each k, and ln d of each k.
  const Eigen::Index columns = hidden + 1 + 2 * ks;
  Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(columns, columns);
  std::vector<double> sum_d(static_cast<std::size_t>(ks), 0.0);
  for (std::int64_t first = 0; first < record.num_tokens(); first += block) {
    const std::int64_t count = (std::min)(block, record.num_tokens() - first);
    Eigen::MatrixXd rows(count, columns);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t t = first + i;
      for (int c = 0; c < hidden; ++c) rows(i, c) = static_cast<double>(record.input(t)[c]);
      rows(i, hidden) = 1.0;
      for (int k = 1; k <= ks; ++k) {
        double features[num_features];
        detail::distortion_features(record, t, k, mass_exponent, features);
        const double d = record.distortion(t, k, mass_exponent);
        rows(i, hidden + k) = features[1];
        rows(i, hidden + ks + k) = std::log(std::fmax(d, detail::least_distortion));
        sum_d[static_cast<std::size_t>(k - 1)] += d;
      }
    }
    gram.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
  }
  const Eigen::MatrixXd sums = gram.selfadjointView<Eigen::Lower>();
  const Eigen::Index unknowns = hidden + 2;
  for (int k = 1; k <= ks; ++k) {
    std::vector<Eigen::Index> used;  // x, 1, the slope's feature
    for (Eigen::Index c = 0; c <= hidden; ++c) used.push_back(c);
    used.push_back(hidden + k);
    Eigen::MatrixXd normal(unknowns, unknowns);
    Eigen::VectorXd target(unknowns);
    for (Eigen::Index i = 0; i < unknowns; ++i) {
      for (Eigen::Index j = 0; j < unknowns; ++j)
        normal(i, j) = sums(used[static_cast<std::size_t>(i)], used[static_cast<std::size_t>(j)]);
      target[i] = sums(used[static_cast<std::size_t>(i)], hidden + ks + k);
      if (i != hidden) normal(i, i) += ridge * static_cast<double>(record.num_tokens());
    }
    const Eigen::VectorXd solution = normal.ldlt().solve(target);
    for (const double c : {solution[hidden], solution[hidden + 1], 0.0, 0.0, 0.0})
      fit.coefficients.push_back(detail::rounded_coefficient(c));
    for (int c = 0; c < hidden; ++c) fit.head.push_back(detail::rounded_coefficient(solution[c]));
    detail::scale_to_mean(record, k, mass_exponent, sum_d[static_cast<std::size_t>(k - 1)], fit);
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
