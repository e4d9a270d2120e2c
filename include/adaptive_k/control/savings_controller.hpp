// Holds a target saving while the input drifts, by one scale over the policies' own thresholds.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What to hold, and how. Ranges are in `savings_controller::validity`.
struct savings_target {
  double expert_savings = 0.0;  ///< share of expert calls to save, in (0, 1)
  /// Off by no more than this, nothing moves.
  double hysteresis = 0.002;
  /// Tokens between two decisions, summed over layers, at most 2^48; fewer only gather.
  std::uint64_t decision_tokens = 4096;
  /// How strongly an error of the saving moves ln(scale) per decision.
  double gain = 6.0;
  /// Calibrated bounds of the scale, in 1e-6..1 and 1..1e6.
  double lowest_scale = 1.0 / 16.0;
  double highest_scale = 16.0;  ///< see lowest_scale
};

/// Where a controller stands, to be stored and given to `resume`: after a restart it goes on as if
/// nothing had been. Ranges are those of the controller's own fields.
struct controller_state {
  double scale = 1.0;                   ///< of the policies now
  std::uint64_t expert_calls = 0;       ///< gathered since the last decision
  std::uint64_t full_expert_calls = 0;  ///< likewise
  std::uint64_t tokens = 0;             ///< likewise
  int phase = 0;                        ///< 0 following, 1 closing in on a jump, 2 resting there
  int reversals = 0;                    ///< of the error, those far apart counted as 4
  double last_scale = 0.0;              ///< of the last decision that was off its target
  double last_error = 0.0;              ///< target minus saving; 0: none
  double other_scale = 0.0;             ///< of the jump's other side; 0: none
  double other_error = 0.0;             ///< of the jump's other side
};

/// One number, the scale, starts at 1 and multiplies each layer's lambda (distortion policies) or
/// moves its thresholds (see `apply`), so that layers keep their proportions. Fed with the metrics
/// of routing calls it answers whether the policies are to be written again, to the router or to
/// the device. Deterministic: equal metrics in equal order give equal scales. O(1) a call.
///
/// Where the saving jumps over the target, so that no scale meets it, the scale closes in on the
/// jump and rests at the side that is nearer to the target, until the saving there changes.
///
/// A latency budget is held the same way: `expert_savings` is then the saving that meets it, set
/// anew by `retarget` as the time of a step is measured.
class savings_controller {
 public:
  /// With a target that `validity` refuses the scale stays 1.
  explicit savings_controller(const savings_target& target) noexcept
      : target_(target), validity_(check(target)) {}

  /// Refuses targets out of range; the message names the field and the range.
  [[nodiscard]] const status& validity() const noexcept { return validity_; }

  /// Adds what was routed since the last call. True when the scale has moved.
  bool observe(const routing_metrics& since_last) noexcept {
    return observe(since_last.expert_calls, since_last.full_expert_calls, since_last.tokens);
  }

  /// Counts that no routing gives, more expert calls than full K or more of those than max_top_k a
  /// token, are left out.
  bool observe(std::uint64_t expert_calls, std::uint64_t full_expert_calls,
               std::uint64_t tokens) noexcept {
    if (!validity_.ok() || expert_calls > full_expert_calls || tokens > most_tokens ||
        full_expert_calls > tokens * max_top_k)
      return false;
    calls_ += expert_calls;
    full_calls_ += full_expert_calls;
    tokens_ += tokens;
    if (tokens_ < target_.decision_tokens || full_calls_ == 0) return false;
    const double saved = 1.0 - static_cast<double>(calls_) / static_cast<double>(full_calls_);
    calls_ = full_calls_ = tokens_ = 0;
    const double before = scale_;
    decide(target_.expert_savings - saved);
    return scale_ != before;
  }

  /// The number that multiplies; 1 at the start, within the target's bounds.
  double scale() const noexcept { return scale_; }
  /// True where the scale stands at a bound: the target cannot be met within what was calibrated.
  bool at_bound() const noexcept {
    return scale_ == target_.lowest_scale || scale_ == target_.highest_scale;
  }
  /// True where the scale rests beside a jump of the saving over the target.
  bool at_jump() const noexcept { return phase_ == phase::resting; }

  /// Refuses what is not above 0 and below 1; the target is then the one before.
  status retarget(double expert_savings) noexcept {
    savings_target changed = target_;
    changed.expert_savings = expert_savings;
    const status checked = check(changed);
    if (!checked.ok()) return checked;
    target_ = changed;
    validity_ = {};
    follow();
    return {};
  }

  /// What `resume` takes.
  controller_state state() const noexcept {
    return {scale_,     calls_,      full_calls_, tokens_,      static_cast<int>(phase_),
            reversals_, last_.scale, last_.error, other_.scale, other_.error};
  }
  /// Goes on from a stored state. Refuses, and stays as it was, where a field is out of range, as a
  /// scale outside this target's bounds is; the message names the field.
  status resume(const controller_state& from) noexcept {
    const auto invalid = status_code::invalid_argument;
    if (!validity_.ok()) return validity_;
    if (!(from.scale >= target_.lowest_scale && from.scale <= target_.highest_scale))
      return status::error(invalid, "`scale` is %g, expected %g..%g", from.scale,
                           target_.lowest_scale, target_.highest_scale);
    if (from.tokens > most_tokens || from.full_expert_calls > from.tokens * max_top_k ||
        from.expert_calls > from.full_expert_calls)
      return status::error(invalid,
                           "`expert_calls`, `full_expert_calls` and `tokens` are %llu, %llu and "
                           "%llu, expected what routing gives",
                           static_cast<unsigned long long>(from.expert_calls),
                           static_cast<unsigned long long>(from.full_expert_calls),
                           static_cast<unsigned long long>(from.tokens));
    if (from.phase < 0 || from.phase > 2)
      return status::error(invalid, "`phase` is %d, expected 0..2", from.phase);
    if (from.reversals < 0 || from.reversals > 2 * most_reversals)
      return status::error(invalid, "`reversals` is %d, expected 0..%d", from.reversals,
                           2 * most_reversals);
    for (const side& each :
         {side{from.last_scale, from.last_error}, side{from.other_scale, from.other_error}}) {
      const bool none = each.error == 0.0;
      if (!(each.error > -1.0 && each.error < 1.0) ||
          (!none && !(each.scale >= 1e-6 && each.scale <= 1e6)))
        return status::error(invalid,
                             "a side of a jump has scale %g and error %g, expected 1e-6..1e6 and "
                             "an error within -1..1",
                             each.scale, each.error);
    }
    if (from.phase != 0 && (from.last_error == 0.0 || from.other_error == 0.0))
      return status::error(invalid, "`phase` is %d, and a side of the jump is missing", from.phase);
    scale_ = from.scale;
    calls_ = from.expert_calls;
    full_calls_ = from.full_expert_calls;
    tokens_ = from.tokens;
    phase_ = static_cast<phase>(from.phase);
    reversals_ = from.reversals;
    last_ = {from.last_scale, from.last_error};
    other_ = {from.other_scale, from.other_error};
    return {};
  }

  /// The policy at the present scale, as `scaled` moves it; `layer_scale`, above 0 and finite, is
  /// the layer's own share of the movement, 1 for all by default. With one out of range what moves
  /// becomes NaN, which `validate` refuses.
  k_policy apply(const k_policy& policy, double layer_scale = 1.0) const noexcept {
    return scaled(policy, scale_ * layer_scale);
  }

 private:
  static constexpr std::uint64_t most_tokens = std::uint64_t{1} << 48;  ///< of a decision: no wrap
  /// So many reversals without once meeting the target are a jump. One by more than noise would
  /// make counts fourfold.
  static constexpr int most_reversals = 32;
  static constexpr double closest = 0.01;  ///< ln(scale) across which a jump is closed in on

  enum class phase : std::uint8_t {
    following,  ///< moves by the error
    closing,    ///< halves the way between a scale that saves too little and one that does too much
    resting,    ///< at the better of two such neighbours
  };

  /// One side of a jump.
  struct side {
    double scale = 0.0;
    double error = 0.0;
  };

  static status check(const savings_target& target) noexcept {
    const auto invalid = status_code::invalid_argument;
    if (!(target.expert_savings > 0.0 && target.expert_savings < 1.0))
      return status::error(invalid, "`expert_savings` is %g, expected above 0 and below 1",
                           target.expert_savings);
    if (!(target.hysteresis >= 0.0 && target.hysteresis < 1.0))
      return status::error(invalid, "`hysteresis` is %g, expected 0 or more and below 1",
                           target.hysteresis);
    if (target.decision_tokens > most_tokens)
      return status::error(invalid, "`decision_tokens` is %llu, expected 0..2^48",
                           static_cast<unsigned long long>(target.decision_tokens));
    if (!(target.gain > 0.0 && target.gain < 1e3))
      return status::error(invalid, "`gain` is %g, expected above 0 and below 1000", target.gain);
    if (!(target.lowest_scale >= 1e-6 && target.lowest_scale <= 1.0))
      return status::error(invalid, "`lowest_scale` is %g, expected 1e-6..1", target.lowest_scale);
    if (!(target.highest_scale >= 1.0 && target.highest_scale <= 1e6))
      return status::error(invalid, "`highest_scale` is %g, expected 1..1e6", target.highest_scale);
    return {};
  }

  void follow() noexcept {
    phase_ = phase::following;
    reversals_ = 0;
    last_ = {};
  }

  void decide(double error) noexcept {
    const double off = error < 0.0 ? -error : error;
    if (off <= target_.hysteresis) return follow();
    if (phase_ == phase::resting) {
      // What may change there without being a reason to search again.
      const double rested = last_.error < 0.0 ? -last_.error : last_.error;
      const double change = error < last_.error ? last_.error - error : error - last_.error;
      if (change <= target_.hysteresis || change <= 0.05 * rested) return;
      follow();
    }
    const bool reversed = last_.error != 0.0 && (last_.error < 0.0) != (error < 0.0);
    if (phase_ == phase::following) {
      const double apart = error < last_.error ? last_.error - error : error - last_.error;
      if (reversed) reversals_ += apart > 8.0 * target_.hysteresis ? 4 : 1;
      if (reversals_ >= most_reversals) {
        phase_ = phase::closing;
        other_ = last_;
      }
    } else if (reversed) {
      other_ = last_;
    }
    last_ = {scale_, error};
    if (phase_ == phase::following) {
      // At most a factor e a decision: one odd batch cannot throw the scale to its bound.
      double step = target_.gain * error;
      step = step > 1.0 ? 1.0 : (step < -1.0 ? -1.0 : step);
      move_to(scale_ * static_cast<double>(math::exp(static_cast<float>(step))));
      return;
    }
    const double ratio = scale_ < other_.scale ? other_.scale / scale_ : scale_ / other_.scale;
    if (ratio > 1.0 + closest) return move_to(std::sqrt(scale_ * other_.scale));
    phase_ = phase::resting;
    const double other_off = other_.error < 0.0 ? -other_.error : other_.error;
    if (other_off < off) {
      last_ = other_;
      move_to(other_.scale);
    }
  }

  void move_to(double scale) noexcept {
    scale_ = scale < target_.lowest_scale
                 ? target_.lowest_scale
                 : (scale > target_.highest_scale ? target_.highest_scale : scale);
  }

  savings_target target_;
  status validity_;
  double scale_ = 1.0;
  std::uint64_t calls_ = 0;
  std::uint64_t full_calls_ = 0;
  std::uint64_t tokens_ = 0;
  phase phase_ = phase::following;
  int reversals_ = 0;
  side last_;   ///< the last decision that was off; error 0: none
  side other_;  ///< closing: the nearest scale whose error has the other sign
};

ADAPTIVE_K_NAMESPACE_END
