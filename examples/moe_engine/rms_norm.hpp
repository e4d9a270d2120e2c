// Root-mean-square normalisation of one vector.
#pragma once

#include <Eigen/Core>
#include <cmath>

namespace moe_engine {

/// y [size] = x / sqrt(mean(x^2) + epsilon) * weight; y may be x.
inline void rms_norm_row(const float* x, const float* weight, Eigen::Index size, float epsilon,
                         float* y) {
  const Eigen::Map<const Eigen::VectorXf> in(x, size);
  const Eigen::Map<const Eigen::VectorXf> scale(weight, size);
  const float mean_square = in.squaredNorm() / static_cast<float>(size);
  Eigen::Map<Eigen::VectorXf>(y, size) =
      in.cwiseProduct(scale) * (1.0f / std::sqrt(mean_square + epsilon));
}

}  // namespace moe_engine
