// The statistics of an A/B test: the summary that each arm keeps, and the tests of two arms.
#pragma once

#include <array>
#include <boost/math/distributions/chi_squared.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <boost/math/special_functions/gamma.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/ab_assignment.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Mean and spread of a stream, by Welford's updates.
struct ab_moments {
  std::uint64_t count = 0;  ///< of values
  double mean = 0.0;        ///< 0 before the first value
  double squares = 0.0;     ///< sum of squared distances from the mean

  /// Adds a value.
  void add(double value) noexcept {
    ++count;
    const double off = value - mean;
    mean += off / static_cast<double>(count);
    squares += off * (value - mean);
  }
  /// Unbiased variance of the values; 0 for fewer than two.
  double variance() const noexcept {
    return count > 1 ? squares / static_cast<double>(count - 1) : 0.0;
  }
  /// Variance of their mean; 0 for fewer than two.
  double variance_of_mean() const noexcept {
    return count > 1 ? variance() / static_cast<double>(count) : 0.0;
  }
};

namespace detail {

/// Bootstrap of a stream in bounded memory: in every replicate each observation counts a Poisson(1)
/// number of times (Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012).
template <std::size_t Metrics>
class poisson_bootstrap {
 public:
  explicit poisson_bootstrap(std::size_t replicates, std::uint64_t seed)
      : sums_(replicates), seed_(seed) {}

  void add(const std::array<double, Metrics>& values) noexcept {
    const std::uint64_t stream = mix_bits(seed_ ^ mix_bits(++drawn_));
    for (std::size_t r = 0; r < sums_.size(); ++r) {
      const int times = poisson(static_cast<std::uint32_t>(mix_bits(stream + r) >> 32));
      if (times == 0) continue;
      sums_[r].weight += times;
      for (std::size_t m = 0; m < Metrics; ++m) sums_[r].total[m] += times * values[m];
    }
  }

  std::size_t replicates() const noexcept { return sums_.size(); }
  /// Mean of a metric in a replicate; NaN where the replicate drew no observation.
  double mean(std::size_t replicate, std::size_t metric) const noexcept {
    return sums_[replicate].total[metric] / sums_[replicate].weight;
  }

 private:
  struct replicate_sums {
    double weight = 0.0;
    std::array<double, Metrics> total = {};
  };

  /// Inverse of the distribution function at `u` / 2^32.
  static int poisson(std::uint32_t u) noexcept {
    // 2^32 times P(X <= 0), P(X <= 1), ... of Poisson(1)
    constexpr std::uint32_t below[] = {1580030168u, 3160060337u, 3950075421u, 4213413783u,
                                       4279248373u, 4292415291u, 4294609777u, 4294923276u,
                                       4294962463u, 4294966817u, 4294967252u, 4294967292u};
    int x = 0;
    for (const std::uint32_t bound : below) {
      if (u < bound) return x;
      ++x;
    }
    return x;
  }

  std::vector<replicate_sums> sums_;
  std::uint64_t seed_;
  std::uint64_t drawn_ = 0;
};

/// Two-sided p of Welch's t (Welch, 1947): unequal variances, one look at the data.
inline double welch_p(const ab_moments& a, const ab_moments& b) {
  const double va = a.variance_of_mean(), vb = b.variance_of_mean();
  const double difference = b.mean - a.mean, v = va + vb;
  if (a.count < 2 || b.count < 2) return 1.0;
  if (!(v > 0.0)) return difference == 0.0 ? 1.0 : 0.0;
  const double share = va / v;  // squares of variances themselves could leave a double's range
  const double freedom = 1.0 / (share * share / static_cast<double>(a.count - 1) +
                                (1.0 - share) * (1.0 - share) / static_cast<double>(b.count - 1));
  const boost::math::students_t distribution(freedom);
  return 2.0 * cdf(complement(distribution, std::fabs(difference) / std::sqrt(v)));
}

/// One over the mixture likelihood ratio of a difference with normal prior N(0, prior^2): its least
/// value over all looks is a p that stays below a with probability a at most, however often one
/// looks (mixture sequential probability ratio test; Johari, Koomen, Pekelis and Walsh, "Peeking at
/// A/B Tests", 2017). Normality of the means is assumed: many requests.
inline double sequential_p(const ab_moments& a, const ab_moments& b, double prior) {
  const double v = a.variance_of_mean() + b.variance_of_mean();
  const double difference = b.mean - a.mean;
  if (a.count < 2 || b.count < 2) return 1.0;
  if (!(v > 0.0)) return difference == 0.0 ? 1.0 : 0.0;
  const double with_prior = v + prior * prior;
  const double log_ratio = 0.5 * std::log(v / with_prior) +
                           0.5 * (difference * difference / v) * (prior * prior / with_prior);
  return std::fmin(1.0, std::exp(-log_ratio));
}

/// Half the width of the interval at 1 - `alpha` that goes with `sequential_p`: it holds the true
/// difference at every look at once with that probability (as an asymptotic confidence sequence;
/// Waudby-Smith et al., "Time-uniform central limit theory", 2024). `v`: variance of the
/// difference.
inline double sequential_margin(double v, double prior, double alpha) {
  if (!(v > 0.0)) return 0.0;
  const double ratio = (v + prior * prior) / v;
  return std::sqrt((v + prior * prior) * v / (prior * prior) *
                   (std::log(ratio) - 2.0 * std::log(alpha)));
}

/// Difference that a single look by Welch's t finds with probability `power` at level `alpha`.
inline double detectable_difference(double v, double alpha, double power) {
  const boost::math::normal unit;
  return (quantile(complement(unit, alpha / 2.0)) + quantile(unit, power)) * std::sqrt(v);
}

/// The same for one look by the sequential test. Earlier looks only add to the probability.
inline double detectable_in_sequence(double v, double prior, double alpha, double power) {
  const boost::math::normal unit;
  return sequential_margin(v, prior, alpha) + quantile(unit, power) * std::sqrt(v);
}

/// p of counts as far from the shares as these, by Pearson's chi-squared: one look. 1 where a
/// variant is expected to have fewer than 5, too few for that distribution.
inline double share_mismatch_p(const std::vector<std::uint64_t>& counts,
                               const std::vector<double>& shares) {
  double total = 0.0, statistic = 0.0;
  for (const std::uint64_t n : counts) total += static_cast<double>(n);
  if (!(total > 0.0) || counts.size() < 2) return 1.0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * shares[i];
    if (!(expected >= 5.0)) return 1.0;
    const double off = static_cast<double>(counts[i]) - expected;
    statistic += off * off / expected;
  }
  const boost::math::chi_squared distribution(static_cast<double>(counts.size() - 1));
  return cdf(complement(distribution, statistic));
}

/// The same for any number of looks, exact for any counts: one over the likelihood ratio of a
/// Dirichlet mixture around the shares to the shares (Lindon and Malek, "Anytime-Valid Inference
/// for Multinomial Count Data", 2022). Its least value over all looks is below a with probability
/// a at most.
inline double sequential_mismatch_p(const std::vector<std::uint64_t>& counts,
                                    const std::vector<double>& shares) {
  using boost::math::lgamma;               // std::lgamma writes a global
  constexpr double concentration = 100.0;  // sharpest for shares that are off by about a tenth
  double total = 0.0, log_ratio = 0.0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const auto n = static_cast<double>(counts[i]);
    const double prior = concentration * shares[i];
    if (n > 0.0) log_ratio += lgamma(prior + n) - lgamma(prior) - n * std::log(shares[i]);
    total += n;
  }
  log_ratio -= lgamma(concentration + total) - lgamma(concentration);
  return std::fmin(1.0, std::exp(-log_ratio));
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
