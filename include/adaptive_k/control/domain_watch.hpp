// Says when what is routed no longer looks like what the policy was calibrated on.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What is expected of tokens within the domain. Ranges are in `domain_watch::validity`.
struct domain_expectation {
  /// Share of them that are outside nevertheless, in (0, 0.5): `measured.out_of_domain` of a
  /// preset.
  double share = 0.02;
  /// Above 1: text is outside where more than this times as many are, and within again below the
  /// middle between 1 and this.
  double factor = 2.0;
  /// Tokens between two decisions, summed over layers, 1 to 2^48; fewer only gather.
  std::uint64_t decision_tokens = 16384;
};

/// What `domain_watch::observe` has found.
enum class domain_change : std::uint8_t {
  none,     ///< nothing new
  left,     ///< the text is now outside: worth a warning
  returned  ///< the text is within again
};

/// Fed with the metrics of routing calls whose policies have a `domain`. It changes no routing:
/// outside its domain a calibrated policy may lose more than its preset says, and an operator
/// should know. Deterministic; O(1) a call.
class domain_watch {
 public:
  /// With an expectation that `validity` refuses nothing is ever outside.
  explicit domain_watch(const domain_expectation& expected) noexcept
      : expected_(expected), validity_(check(expected)) {}

  /// Refuses expectations out of range; the message names the field and the range.
  [[nodiscard]] const status& validity() const noexcept { return validity_; }

  /// Adds what was routed since the last call.
  domain_change observe(const routing_metrics& since_last) noexcept {
    if (!validity_.ok() || since_last.out_of_domain > since_last.tokens ||
        since_last.tokens > most_tokens)
      return domain_change::none;
    tokens_ += since_last.tokens;
    outside_tokens_ += since_last.out_of_domain;
    if (tokens_ < expected_.decision_tokens) return domain_change::none;
    share_ = static_cast<double>(outside_tokens_) / static_cast<double>(tokens_);
    tokens_ = outside_tokens_ = 0;
    const bool was_outside = outside_;
    const double limit = was_outside ? 0.5 * (1.0 + expected_.factor) : expected_.factor;
    outside_ = share_ > limit * expected_.share;
    if (outside_ == was_outside) return domain_change::none;
    return outside_ ? domain_change::left : domain_change::returned;
  }

  /// Whether the text was outside at the last decision.
  bool outside() const noexcept { return outside_; }
  /// Share of the tokens out of domain at the last decision; 0 before the first.
  double share() const noexcept { return share_; }

 private:
  static constexpr std::uint64_t most_tokens = std::uint64_t{1} << 48;

  static status check(const domain_expectation& e) noexcept {
    const auto invalid = status_code::invalid_argument;
    if (!(e.share > 0.0 && e.share < 0.5))
      return status::error(invalid, "`share` is %g, expected above 0, below 0.5", e.share);
    if (!(e.factor > 1.0 && e.factor <= 1000.0))
      return status::error(invalid, "`factor` is %g, expected above 1, at most 1000", e.factor);
    if (e.decision_tokens < 1 || e.decision_tokens > most_tokens)
      return status::error(invalid, "`decision_tokens` is %llu, expected 1..2^48",
                           static_cast<unsigned long long>(e.decision_tokens));
    return {};
  }

  domain_expectation expected_;
  status validity_;
  std::uint64_t tokens_ = 0;
  std::uint64_t outside_tokens_ = 0;
  double share_ = 0.0;
  bool outside_ = false;
};

ADAPTIVE_K_NAMESPACE_END
