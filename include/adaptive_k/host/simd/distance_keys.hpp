// Keys of softmax logits: how far each is below the largest of its row, and its expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/host/simd/top_k_network.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// 255, 254, ... 0.
struct descending_indices {
  alignas(64) std::uint32_t at[256] = {};
  constexpr descending_indices() noexcept {
    for (std::uint32_t i = 0; i < 256; ++i) at[i] = 255 - i;
  }
};
inline constexpr descending_indices descending;

/// The largest logit of each lane first, as keys: how far each is below it, inverted, the low bits
/// replaced by the inverted index of the expert. Cheaper than a key_maker's, as no sign is in the
/// way, but logits that differ may have equal distances: `same_distance` tells.
template <class Reals>
struct distance_keys {
  using words = typename Reals::words;
  int low_bits;
  words low;
  words high;

  ADAPTIVE_K_INLINE explicit distance_keys(int num_indices) noexcept
      : low_bits(num_indices - 1), low(num_indices - 1), high(~(num_indices - 1)) {}

  /// `inverted` is low minus the expert's index.
  ADAPTIVE_K_INLINE words key_of(const Reals& distance, const words& inverted) const noexcept {
    return words::invert_high(Reals::to_bits(distance), high, inverted);
  }
  /// Inverted indices in memory, at most 256 of them: a load costs less than a subtraction.
  ADAPTIVE_K_INLINE const std::uint32_t* inverted() const noexcept {
    return descending.at + (255 - low_bits);
  }
  ADAPTIVE_K_INLINE words expert_of(const words& key) const noexcept {
    return words::and_not(key, low);
  }
  /// Whether a key of at least `least` may be that of a logit that is not close, or a NaN.
  ADAPTIVE_K_INLINE auto any_far(const words& least) const noexcept {
    return words::unsigned_less(least, key_of(math::exp_floor, low));
  }
  ADAPTIVE_K_INLINE auto same_distance(const words& a, const words& b) const noexcept {
    return ((a ^ b) & high) == words(0u);
  }
};

/// The least distance that logits may have: of ordinary ones, none that overflows.
template <logits_are Logits>
inline constexpr float least_distance =
    Logits == logits_are::close ? math::exp_floor : -math::largest_finite;

/// What is added to a logit for its distance: minus the largest, and 0 where that is 0 of either
/// sign, so that no distance is -0, which keys tell from 0. Added, not subtracted: an addition
/// takes the logit from memory.
template <class Reals>
ADAPTIVE_K_INLINE Reals to_distances(const Reals& largest) noexcept {
  return Reals(0.0f) - largest;
}

template <class Reals>
struct distance_score {
  Reals score;
  Reals log_score;
  typename Reals::words key;
};

/// As score_of, with the key. Lanes with a NaN or an infinity are decided again.
template <logits_are Logits = logits_are::ordinary, class Reals>
ADAPTIVE_K_INLINE distance_score<Reals> score_and_key(
    const Reals& logit, const Reals& to_distance, const distance_keys<Reals>& keys,
    const typename Reals::words& inverted) noexcept {
  const Reals distance = logit + to_distance;
  const auto s = score_of_distance<Logits>(distance);
  return {s.score, s.log_score, keys.key_of(distance, inverted)};
}

template <int From, class Words, int Count, int N, std::size_t... I>
ADAPTIVE_K_INLINE void copy_keys(const Words (&from)[Count], Words (&to)[N],
                                 std::index_sequence<I...>) noexcept {
  ((to[I] = from[From + I]), ...);
}

/// Keeps in `best`, sorted, the N best of `keys` from `From` on and, unless these are the first, of
/// itself; `lost` becomes the best of all that were dropped, `least` the least of all.
template <int N, int From = 0, class Words, int Count>
ADAPTIVE_K_INLINE void keep_best_of(const Words (&keys)[Count], bool first, Words (&best)[N],
                                    Words& lost, Words& least) noexcept {
  static_assert(Count % N == 0, "whole lists");
  if constexpr (N == 2 && Count == 4) {  // in one list, of which three may be the best or lost
    Words list[4];
    copy_keys<0>(keys, list, std::make_index_sequence<4>());
    sort_keys(list);
    least = Words::smaller(least, list[3]);
    if (first) {
      best[0] = list[0];
      best[1] = list[1];
      lost = list[2];
    } else {
      put_in_order(best[0], list[0]);
      put_in_order(best[1], list[1]);
      put_in_order(best[1], list[0]);
      lost = Words::larger(Words::larger(lost, list[2]), list[0]);
    }
  } else if constexpr (From < Count) {
    Words list[N];
    copy_keys<From>(keys, list, std::make_index_sequence<N>());
    sort_keys(list);
    least = Words::smaller(least, list[N - 1]);
    if (first && From == 0)
      copy_keys<0>(list, best, std::make_index_sequence<N>());
    else
      keep_best(best, list, lost);
    keep_best_of<N, From + N>(keys, first, best, lost, least);
  }
}
template <int N, class Words, int Count>
ADAPTIVE_K_INLINE void keep_best_of(const Words (&keys)[Count], bool first, Words (&best)[N],
                                    Words& lost) noexcept {
  Words least = keys[0];
  keep_best_of(keys, first, best, lost, least);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
