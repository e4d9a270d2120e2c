// One token of the usual call (core/usual_call.hpp) with K0 = 2: two outcomes, of which one is
// picked at the end.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/usual_call.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/row.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Sums over the lanes of two vectors, in all lanes.
template <class Reals>
ADAPTIVE_K_INLINE score_sums<Reals> fold_lanes(const Reals& score, const Reals& log) noexcept {
  if constexpr (Reals::lanes == 8) {
    const Reals pairs = Reals::add_neighbours(score, log);
    const Reals halves = pairs + Reals::template exchange<1>(pairs);
    const Reals both = halves + Reals::template exchange<4>(halves);
    return {Reals::template each_first<0>(both), Reals::template each_first<2>(both)};
  } else {
    return {sum_of_lanes(score), sum_of_lanes(log)};
  }
}

/// `count` logits, and -inf in the lanes past them; reads nothing past them.
template <class Reals>
ADAPTIVE_K_INLINE Reals load_tail(const float* from, int count) noexcept {
  using words = typename Reals::words;
  return Reals::select(words::lane() < words(count), Reals::load_first(from, count),
                       -math::infinity);
}

/// The two largest of a vector's lanes, in all lanes.
template <class Reals>
struct largest_two {
  Reals first;
  Reals second;
};
template <int Distance, class Reals>
ADAPTIVE_K_INLINE largest_two<Reals> largest_two_of_lanes(const largest_two<Reals>& a) noexcept {
  if constexpr (Distance < Reals::lanes) {
    const Reals first = Reals::template exchange<Distance>(a.first);
    const Reals beaten = Reals::smaller(a.first, first);
    const Reals second =
        Distance == 1
            ? beaten
            : Reals::larger(beaten,
                            Reals::larger(a.second, Reals::template exchange<Distance>(a.second)));
    return largest_two_of_lanes<2 * Distance>(
        largest_two<Reals>{Reals::larger(a.first, first), second});
  } else {
    return a;
  }
}

/// A row's entropy and second score, in all lanes, and its two best experts. The first score is 1.
template <class Reals>
struct ranked_pair {
  Reals entropy;
  Reals second;
  std::uint64_t expert[2];  ///< as wide as addresses, so that none need be widened

  /// Ranks a row that fits one vector; Experts is E where it is known to the compiler, else 0.
  /// False: a logit is not as Logits says.
  template <int Experts, logits_are Logits>
  ADAPTIVE_K_INLINE bool rank(const float* row, int num_experts) noexcept {
    using words [[maybe_unused]] = typename Reals::words;
    constexpr bool whole = Experts == Reals::lanes;
    const Reals logit = whole ? Reals::load(row) : load_tail<Reals>(row, num_experts);
    const auto best = largest_two_of_lanes<1>(largest_two<Reals>{logit, logit});
    Reals distance = logit - best.first;
    const auto fits = distance >= Reals(least_distance<Logits>);
    if (Reals::mask::to_bits(fits) != (1u << num_experts) - 1u) return false;
    if constexpr (!whole)  // where there is no expert the score is 0
      distance = Reals::select(words::lane() < words(num_experts), distance, math::exp_floor);
    const auto s = score_of_distance<Logits>(distance);
    const auto sums = fold_lanes<Reals>(s.score, Reals::fma(s.score, s.log_score, 0.0f));
    entropy = entropy_nats(sums.score, sums.score_log_score);
    const std::uint64_t first = Reals::mask::to_bits(logit == best.first);
    const std::uint64_t others =
        Reals::mask::to_bits(logit == best.second) & ~(first & (0u - first));
    expert[0] = Reals::lowest_bit(first);
    expert[1] = Reals::lowest_bit(others);
    second = Reals::broadcast(s.score, static_cast<std::uint32_t>(expert[1]));
    return true;
  }
};

/// A decided row.
template <class Reals>
struct decided_pair {
  Reals weight;         ///< rank j in lane j, 0 past k_t
  std::uint64_t extra;  ///< k_t - 1
  float signal;
  std::uint64_t expert[2];

  int k() const noexcept { return static_cast<int>(extra) + 1; }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
