// The best of many keys: in every lane at once by sorting networks (no branch, no index), then of
// all lanes.
//
// A key is a value as an integer of the same order, its low bits replaced by the inverted index of
// the expert, so that equal values come in the order of their experts. Values that differ in
// nothing but those low bits may come in the wrong order; `ambiguous_ties` finds the lanes where
// that can have happened, and their tokens are decided without keys. Never for 16-bit logits (their
// low bits are zero), for fp32 in well under 1% of tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/sorting_network.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// f(0) to f(Count - 1), constants. No loop: g++ keeps arrays that loops write in memory.
template <class F, std::size_t... I>
ADAPTIVE_K_INLINE void unrolled_for(F f, std::index_sequence<I...>) noexcept {
  (f(std::integral_constant<int, static_cast<int>(I)>()), ...);
}
template <int Count, class F>
ADAPTIVE_K_INLINE void unrolled_for(F f) noexcept {
  unrolled_for(f, std::make_index_sequence<Count>());
}

template <auto Value>
using constant = std::integral_constant<decltype(Value), Value>;

/// f(N), a constant, with the least power of two that is not below `count` <= Max. For networks, a
/// function of its own each.
template <int Max, int N = 1, class F>
ADAPTIVE_K_INLINE void with_power_of_two_from(int count, F f) noexcept {
  if constexpr (N < Max)
    if (count > N) return with_power_of_two_from<Max, 2 * N>(count, f);
  f(constant<N>());
}

/// The smallest power of two that is not below `count`.
constexpr int power_of_two_from(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

constexpr int log2_of(int power) {
  int log = 0;
  while ((power >> log) > 1) ++log;
  return log;
}

/// Makes keys of values, and remembers whether low bits were lost.
template <class F32>
struct key_maker {
  using u32_vec = typename F32::u32_vec;
  u32_vec low;      ///< the bits that hold the index
  u32_vec dropped;  ///< those of the values that were not zero

  /// For indices below `num_indices`, a power of two.
  ADAPTIVE_K_INLINE explicit key_maker(int num_indices) noexcept
      : low(num_indices - 1), dropped(0) {}

  /// `inverted` is low minus the expert's index.
  ADAPTIVE_K_INLINE u32_vec key_of(const F32& value, const u32_vec& inverted) noexcept {
    const F32 canonical = value + F32(0.0f);  // -0 equals +0
    dropped = dropped | (F32::to_bits(canonical) & low);
    return u32_vec::replace_low(F32::to_order(canonical), low, inverted);
  }
  ADAPTIVE_K_INLINE u32_vec expert_of(const u32_vec& key) const noexcept {
    return low - (key & low);
  }

  /// Where neighbours among the first `count` of `best`, or the last of them and the best of the
  /// rest, may be in the wrong order.
  template <int N>
  ADAPTIVE_K_INLINE auto ambiguous_ties(const u32_vec (&best)[N], const u32_vec& best_rejected,
                                        int count) const noexcept {
    u32_vec least = ~0u;
    for (int j = 1; j < N && j < count; ++j) least = u32_vec::minimum(least, best[j - 1] ^ best[j]);
    const u32_vec& next = count < N ? best[count < N ? count : 0] : best_rejected;
    least = u32_vec::minimum(least, best[count - 1] ^ next);
    return (dropped > u32_vec(0)) & ((least & low) == least);
  }
};

/// Keeps in `best` the N best of `best` and `others`, both sorted; `best_rejected` becomes the best
/// of all that were dropped.
template <class U32, int N>
ADAPTIVE_K_INLINE void merge_top_k(U32 (&best)[N], const U32 (&others)[N],
                                   U32& best_rejected) noexcept {
  unrolled_for<N>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
    const U32& other = others[N - 1 - i];
    best_rejected = U32::maximum(best_rejected, U32::minimum(best[i], other));
    best[i] = U32::maximum(best[i], other);
  });
  merge_descending(best);
}

/// The N best, lane by lane, of `count` keys, a multiple of N: `keys.load(first, list)` loads N.
template <class U32, int N, class Keys>
ADAPTIVE_K_INLINE void top_k_of_lanes(Keys& keys, int count, U32 (&best)[N],
                                      U32& best_rejected) noexcept {
  keys.load(0, best);
  sort_descending(best);
  for (int first = N; first < count; first += N) {
    U32 others[N];
    keys.load(first, others);
    sort_descending(others);
    merge_top_k(best, others, best_rejected);
  }
}

/// Lane i of the result is lane i ^ Distance.
template <int Distance, class Vec>
ADAPTIVE_K_INLINE Vec shuffle_xor(const Vec& a) noexcept {
  using f32_vec = typename Vec::f32_vec;
  return Vec::of(f32_vec::template shuffle_xor<Distance>(f32_vec::of(a.value)).value);
}

/// All lanes joined by join(a, b), the same in each, nearest lanes first.
template <int Distance = 1, class Vec, class Join>
ADAPTIVE_K_INLINE Vec reduce_lanes(const Vec& a, Join join) noexcept {
  if constexpr (Distance < Vec::lanes)
    return reduce_lanes<Distance * 2>(join(a, shuffle_xor<Distance>(a)), join);
  else
    return a;
}
template <class F32>
ADAPTIVE_K_INLINE F32 sum_of_lanes(const F32& a) noexcept {
  return reduce_lanes(a, [](const F32& b, const F32& c) ADAPTIVE_K_INLINE_LAMBDA { return b + c; });
}
template <class F32>
ADAPTIVE_K_INLINE F32 largest_of_lanes(const F32& a) noexcept {
  return reduce_lanes(
      a, [](const F32& b, const F32& c) ADAPTIVE_K_INLINE_LAMBDA { return F32::maximum(b, c); });
}

/// From the L best of each lane to the N best of all lanes, the same in each.
template <int N, int Distance = 1, class U32, int L>
ADAPTIVE_K_INLINE void merge_lanes(U32 (&list)[L], U32 (&best)[N], U32& best_rejected) noexcept {
  if constexpr (Distance == U32::lanes) {
    static_assert(L == N, "fewer keys than asked for");
    for (int i = 0; i < N; ++i) best[i] = list[i];
  } else if constexpr (L < N) {
    U32 longer[2 * L];
    for (int i = 0; i < L; ++i) {
      longer[i] = list[i];
      longer[2 * L - 1 - i] = shuffle_xor<Distance>(list[i]);
    }
    merge_descending(longer);
    merge_lanes<N, Distance * 2>(longer, best, best_rejected);
  } else {
    U32 others[L];
    for (int i = 0; i < L; ++i) others[i] = shuffle_xor<Distance>(list[i]);
    best_rejected = U32::maximum(best_rejected, shuffle_xor<Distance>(best_rejected));
    merge_top_k(list, others, best_rejected);
    merge_lanes<N, Distance * 2>(list, best, best_rejected);
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
