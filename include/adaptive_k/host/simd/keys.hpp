// Keys that carry their expert: one integer to sort by, exact except where it says so.
//
// A key is a value as an integer of the same order, its low bits replaced by the inverted index of
// the expert, so that equal values come in the order of their experts. Values that differ in
// nothing but those low bits would come in the wrong order; `key_order::uncertain` finds the lanes
// where that can have happened, and their tokens are decided without keys. Never for 16-bit logits
// (their low bits are zero), for fp32 in well under 1% of tokens.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// The smallest power of two that is not below `count`.
constexpr int power_of_two_from(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

constexpr int power_of_two_log(int power) {
  int log = 0;
  while ((power >> log) > 1) ++log;
  return log;
}

/// Makes keys of values, and remembers whether low bits were lost.
template <class Reals>
struct key_maker {
  using words = typename Reals::words;
  words low;      ///< the bits that hold the index
  words dropped;  ///< those of the values that were not zero

  /// For indices below `num_indices`, a power of two.
  ADAPTIVE_K_INLINE explicit key_maker(int num_indices) noexcept
      : low(num_indices - 1), dropped(0) {}

  /// `inverted` is low minus the expert's index.
  ADAPTIVE_K_INLINE words key_of(const Reals& value, const words& inverted) noexcept {
    const Reals canonical = value + Reals(0.0f);  // -0 equals +0
    dropped = words::add_bits(dropped, Reals::to_bits(canonical), low);
    return words::replace_low(Reals::to_order(canonical), low, inverted);
  }
  ADAPTIVE_K_INLINE words expert_of(const words& key) const noexcept { return low - (key & low); }

  /// Where neighbours among the first `count` of `best`, or the last of them and the best of the
  /// rest, may be in the wrong order.
  template <int N>
  ADAPTIVE_K_INLINE auto uncertain(const words (&best)[N], const words& lost,
                                   int count) const noexcept {
    words least = ~0u;
    for (int j = 1; j < count; ++j) least = words::smaller(least, best[j - 1] ^ best[j]);
    least =
        words::smaller(least, best[count - 1] ^ (count < N ? best[count < N ? count : 0] : lost));
    return (dropped > words(0)) & ((least & low) == least);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
