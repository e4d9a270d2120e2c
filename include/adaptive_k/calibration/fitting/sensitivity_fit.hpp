// How much each layer's distortion matters to the model's output: KL = sum of g_l * mean d_l.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "adaptive_k/calibration/fitting/distortion_fit.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// argmin over x >= 0 of |A x - b|^2 by coordinate descent, which ends at the minimum: the problem
/// is convex and its constraints are one per coordinate.
inline Eigen::VectorXd nonnegative_least_squares(const Eigen::MatrixXd& a,
                                                 const Eigen::VectorXd& b) {
  const Eigen::MatrixXd gram = a.transpose() * a;
  const Eigen::VectorXd target = a.transpose() * b;
  Eigen::VectorXd x = Eigen::VectorXd::Zero(gram.cols());
  for (int sweep = 0; sweep < 100000; ++sweep) {
    double largest_step = 0.0;
    for (Eigen::Index i = 0; i < x.size(); ++i) {
      if (!(gram(i, i) > 0.0)) continue;
      const double step = (target[i] - gram.row(i).dot(x)) / gram(i, i);
      const double moved = std::fmax(x[i] + step, 0.0) - x[i];
      x[i] += moved;
      largest_step = std::fmax(largest_step, std::fabs(moved));
    }
    if (largest_step <= 1e-12 * x.lpNorm<Eigen::Infinity>()) break;
  }
  return x;
}

}  // namespace detail

/// mean_distortion [n][layers] and kl [n] of windows run with K's that differ by layer; weights
/// 1 / (KL + 0.1 mean KL). A layer that the fit gives 0 gets a twentieth of the mean, as no layer
/// is free. Scaled to mean 1 and rounded.
inline std::vector<double> fit_sensitivities(
    const std::vector<std::vector<double>>& mean_distortion, const std::vector<double>& kl) {
  const auto rows = static_cast<Eigen::Index>(kl.size());
  const auto layers = static_cast<Eigen::Index>(mean_distortion.front().size());
  double mean_kl = 0.0;
  for (const double value : kl) mean_kl += value / static_cast<double>(rows);
  Eigen::MatrixXd a(rows, layers);
  Eigen::VectorXd b(rows);
  for (Eigen::Index i = 0; i < rows; ++i) {
    const double weight = 1.0 / (kl[static_cast<std::size_t>(i)] + 0.1 * mean_kl + 1e-30);
    for (Eigen::Index l = 0; l < layers; ++l)
      a(i, l) = weight * mean_distortion[static_cast<std::size_t>(i)][static_cast<std::size_t>(l)];
    b[i] = weight * kl[static_cast<std::size_t>(i)];
  }
  Eigen::VectorXd g = detail::nonnegative_least_squares(a, b);
  const double mean = g.mean();
  if (!(mean > 0.0)) return std::vector<double>(static_cast<std::size_t>(layers), 1.0);
  std::vector<double> result;
  for (Eigen::Index l = 0; l < layers; ++l)
    result.push_back(detail::rounded((std::max)(g[l] / mean, 0.05)));
  return result;
}

/// g^exponent of each layer, scaled to mean 1 and rounded; with exponent 1 the sensitivities as
/// they are. They are those of the text that they were measured on and do not hold as well on
/// others: an exponent in [0, 1] below 1 trusts them less, and 0 not at all. All above 0.
inline std::vector<double> shrunk_sensitivities(const std::vector<double>& sensitivities,
                                                double exponent) {
  if (exponent == 1.0) return sensitivities;
  std::vector<double> result;
  double mean = 0.0;
  for (const double g : sensitivities) {
    result.push_back(std::pow(g, exponent));
    mean += result.back() / static_cast<double>(sensitivities.size());
  }
  for (double& g : result) g = detail::rounded(g / mean);
  return result;
}

ADAPTIVE_K_NAMESPACE_END
