// Signals: how sure the router is of a token, as one number that K policies compare.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// p: the scores of all E experts, normalised to sum 1 (softmax, or normalised sigmoid scores).
/// w: the scores of the top K0 experts, in rank order, normalised to sum 1.
enum class signal_kind : std::uint8_t {
  none,                ///< not computed; reported as 0
  softmax_entropy,     ///< -sum p ln p, nats in [0, ln E]; low is sure. The published one
  normalized_entropy,  ///< softmax_entropy / ln E in [0, 1]; low is sure
  topk_entropy,        ///< -sum w ln w, nats in [0, ln K0]; low is sure
  topk_mass,           ///< w_1 + ... + w_k in (0, 1]; high is sure. Reported at k = 1
  score_ratio,         ///< s_(k+1) / s_1 in [0, 1024]; low is sure. Reported at k = 1
  margin,              ///< w_1 - w_2 in [-1, 1]; high is sure
};

/// How many values there are: 0 to one less.
constexpr int num_values(signal_kind) noexcept {
  return static_cast<int>(signal_kind::margin) + 1;
}
/// The word of calibration files and the command line; "?" for no such value. Static text.
inline const char* to_string(signal_kind kind) noexcept {
  switch (kind) {
    case signal_kind::none:
      return "none";
    case signal_kind::softmax_entropy:
      return "softmax_entropy";
    case signal_kind::normalized_entropy:
      return "normalized_entropy";
    case signal_kind::topk_entropy:
      return "topk_entropy";
    case signal_kind::topk_mass:
      return "topk_mass";
    case signal_kind::score_ratio:
      return "score_ratio";
    case signal_kind::margin:
      return "margin";
  }
  return "?";
}

namespace detail {

ADAPTIVE_K_HD constexpr bool high_is_sure(signal_kind kind) {
  return kind == signal_kind::topk_mass || kind == signal_kind::margin;
}

/// Whether the signal has a value for each rank, so that each K is compared with its own.
ADAPTIVE_K_HD constexpr bool is_per_rank(signal_kind kind) {
  return kind == signal_kind::topk_mass || kind == signal_kind::score_ratio;
}

ADAPTIVE_K_HD constexpr bool is_full_entropy(signal_kind kind) {
  return kind == signal_kind::softmax_entropy || kind == signal_kind::normalized_entropy;
}

/// The top K0 experts of one token, best first, and the sums over them that the policies share.
/// Where loops are unrolled (on the device), entries past K0 have score 0 and add nothing.
template <int MaxTopK, class F = float>
struct ranked_experts {
  math::integers<F> expert[MaxTopK];  ///< ids, all different
  F score[MaxTopK];                   ///< s, up to a common factor
  F log_score[MaxTopK];               ///< ln s, finite
  F mass[MaxTopK];                    ///< s_1 + ... + s_j, summed in rank order
  F total;                            ///< the last of them: S_K0
};

/// Signals are summed in steps of 2^-24, exactly and so in any order.
inline constexpr double signal_scale = 16777216.0;

ADAPTIVE_K_HD ADAPTIVE_K_INLINE std::int64_t signal_to_fixed(float signal) noexcept {
  return static_cast<std::int64_t>(signal * 16777216.0f);
}

/// Entropy in nats of scores with sum `total` and weighted logarithms `sum s ln s`.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F entropy_nats(const F& total, const F& score_log_score) noexcept {
  const F entropy = math::log(total) - math::divide(score_log_score, total);
  return math::maximum(entropy, 0.0f);
}

template <int MaxTopK, class F, class Ranks>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F topk_entropy_nats(const ranked_experts<MaxTopK, F>& ranked,
                                                    Ranks ranks) noexcept {
  F score_log_score = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < ranks; ++j)
    score_log_score = math::fma(ranked.score[j], ranked.log_score[j], score_log_score);
  return entropy_nats(ranked.total, score_log_score);
}

/// The value reported for a signal; `full_entropy` is -sum p ln p where the kind asks for it.
/// `ranks` is a loop_count of K0.
template <int MaxTopK, class F, class Ranks>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F signal_value(signal_kind kind, const F& full_entropy,
                                               float inverse_log_experts,
                                               const ranked_experts<MaxTopK, F>& ranked,
                                               Ranks ranks) noexcept {
  F second = 0.0f;
  if (MaxTopK > 1 && ranks > 1) second = ranked.score[MaxTopK > 1 ? 1 : 0];
  switch (kind) {
    case signal_kind::none:
      return 0.0f;
    case signal_kind::softmax_entropy:
      return full_entropy;
    case signal_kind::normalized_entropy:
      return math::minimum(full_entropy * inverse_log_experts, 1.0f);
    case signal_kind::topk_entropy:
      return topk_entropy_nats(ranked, ranks);
    case signal_kind::topk_mass:
      return math::divide(ranked.score[0], ranked.total);
    case signal_kind::score_ratio:
      return math::minimum(math::divide(second, ranked.score[0]), 1024.0f);  // s_1 may be 0
    case signal_kind::margin:
      return math::divide(ranked.score[0] - second, ranked.total);
  }
  return 0.0f;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
