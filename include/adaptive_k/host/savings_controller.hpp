// Holds a target saving while the input drifts, by one scale over the policies' own thresholds.
#pragma once

#include <cmath>
#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

struct savings_target {
  double expert_savings = 0.0;  ///< share of expert calls to save, in (0, 1)
  /// Off by no more than this, nothing moves.
  double hysteresis = 0.002;
  /// Tokens between two decisions, summed over layers; fewer only gather.
  std::uint64_t decision_tokens = 4096;
  /// How strongly an error of the saving moves ln(scale) per decision.
  double gain = 6.0;
  /// Calibrated bounds of the scale.
  double lowest_scale = 1.0 / 16.0;
  double highest_scale = 16.0;
};

/// One number, the scale, starts at 1 and multiplies each layer's lambda (distortion policies) or
/// moves its thresholds (see `apply`), so that layers keep their proportions. Fed with the metrics
/// of routing calls it answers whether the policies are to be written again, to the router or to
/// the device. Deterministic: equal metrics in equal order give equal scales. O(1) a call.
///
/// A latency budget is held the same way: `expert_savings` is then the saving that meets it, set
/// anew by `retarget` as the time of a step is measured.
class savings_controller {
 public:
  explicit savings_controller(const savings_target& target) noexcept : target_(target) {}

  /// Refuses targets out of range; the message names the field and the range.
  status validity() const noexcept {
    const auto invalid = status_code::invalid_argument;
    if (!(target_.expert_savings > 0.0 && target_.expert_savings < 1.0))
      return status::error(invalid, "expert_savings is %g, expected above 0 and below 1",
                           target_.expert_savings);
    if (!(target_.hysteresis >= 0.0 && target_.hysteresis < 1.0))
      return status::error(invalid, "hysteresis is %g, expected 0 or more and below 1",
                           target_.hysteresis);
    if (!(target_.gain > 0.0 && target_.gain < 1e3))
      return status::error(invalid, "gain is %g, expected above 0 and below 1000", target_.gain);
    if (!(target_.lowest_scale > 0.0 && target_.lowest_scale <= 1.0 &&
          target_.highest_scale >= 1.0 && target_.highest_scale < 1e6))
      return status::error(invalid,
                           "lowest_scale is %g and highest_scale %g, expected 0 < lowest "
                           "<= 1 <= highest < 1e6",
                           target_.lowest_scale, target_.highest_scale);
    return {};
  }

  /// Adds what was routed since the last call. True when the scale has moved.
  bool observe(const routing_metrics& since_last) noexcept {
    return observe(since_last.expert_calls, since_last.full_expert_calls, since_last.tokens);
  }

  bool observe(std::uint64_t expert_calls, std::uint64_t full_expert_calls,
               std::uint64_t tokens) noexcept {
    calls_ += expert_calls;
    full_calls_ += full_expert_calls;
    tokens_ += tokens;
    if (tokens_ < target_.decision_tokens || full_calls_ == 0) return false;
    const double saved = 1.0 - static_cast<double>(calls_) / static_cast<double>(full_calls_);
    calls_ = full_calls_ = tokens_ = 0;
    const double error = target_.expert_savings - saved;
    if (error <= target_.hysteresis && error >= -target_.hysteresis) return false;
    // At most a factor e a decision: one odd batch cannot throw the scale to its bound.
    double step = target_.gain * error;
    step = step > 1.0 ? 1.0 : (step < -1.0 ? -1.0 : step);
    const double moved = scale_ * static_cast<double>(math::exp(static_cast<float>(step)));
    const double before = scale_;
    scale_ = moved < target_.lowest_scale
                 ? target_.lowest_scale
                 : (moved > target_.highest_scale ? target_.highest_scale : moved);
    return scale_ != before;
  }

  double scale() const noexcept { return scale_; }
  /// True where the scale stands at a bound: the target cannot be met within what was calibrated.
  bool at_bound() const noexcept {
    return scale_ == target_.lowest_scale || scale_ == target_.highest_scale;
  }
  void retarget(double expert_savings) noexcept { target_.expert_savings = expert_savings; }

  /// The policy at the present scale; `layer_scale` is the layer's own share of the movement, 1
  /// for all by default. Larger scales save more: lambda and score ratios
  /// are multiplied (ratios kept within 1), entropy thresholds by the fourth root, for a little
  /// moves them far; a mass p and a margin become p / (p + scale (1 - p)).
  k_policy apply(k_policy policy, double layer_scale = 1.0) const noexcept {
    const double by = scale_ * layer_scale;
    if (policy.rule == k_rule::distortion)
      policy.distortion.lambda =
          static_cast<float>(static_cast<double>(policy.distortion.lambda) * by);
    if (policy.rule != k_rule::thresholds) return policy;
    for (int i = 0; i + 1 < policy.num_k_values; ++i) {
      const auto t = static_cast<double>(policy.thresholds[i]);
      double moved = t * (detail::is_per_rank(policy.signal) ? by : std::sqrt(std::sqrt(by)));
      if (detail::high_is_sure(policy.signal))
        moved = t > 0.0 && t < 1.0 ? t / std::fma(by, 1.0 - t, t) : t;
      else if (detail::is_per_rank(policy.signal) && moved > 1.0)
        moved = 1.0;
      policy.thresholds[i] = static_cast<float>(moved);
    }
    return policy;
  }

 private:
  savings_target target_;
  double scale_ = 1.0;
  std::uint64_t calls_ = 0;
  std::uint64_t full_calls_ = 0;
  std::uint64_t tokens_ = 0;
};

ADAPTIVE_K_NAMESPACE_END
