// Sorting networks over keys in registers, for SIMD lanes and for CUDA lanes. Templates unroll
// them, as an array that a loop indexes would be kept in memory.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Unsigned integers, or vectors of them that bring `maximum` and `minimum`.
template <class Key>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void compare_exchange(Key& first, Key& second) noexcept {
  if constexpr (std::is_integral_v<Key>) {
    const Key larger = first > second ? first : second;
    second = first > second ? second : first;
    first = larger;
  } else {
    const Key larger = Key::maximum(first, second);
    second = Key::minimum(first, second);
    first = larger;
  }
}

template <int P, int K, int I, class Key, int N>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void sort_pair([[maybe_unused]] Key (&keys)[N]) noexcept {
  constexpr int first = K % P;
  if constexpr (I >= first && I + K < N)
    if constexpr ((I - first) % (2 * K) < K && I / (2 * P) == (I + K) / (2 * P))
      compare_exchange(keys[I], keys[I + K]);
}
template <int P, int K, class Key, int N, std::size_t... I>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void sort_step(Key (&keys)[N],
                                               std::index_sequence<I...> all) noexcept {
  (sort_pair<P, K, static_cast<int>(I)>(keys), ...);
  if constexpr (K > 1)
    sort_step<P, K / 2>(keys, all);
  else if constexpr (2 * P < N)
    sort_step<2 * P, 2 * P>(keys, all);
}

/// Sorts N keys, a power of two, largest first: Batcher's odd-even merge sort (Batcher, "Sorting
/// networks and their applications", 1968).
template <class Key, int N>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void sort_descending(Key (&keys)[N]) noexcept {
  if constexpr (N > 1) sort_step<1, 1>(keys, std::make_index_sequence<N>());
}

template <int Half, class Key, int N, std::size_t... I>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void merge_step(Key (&keys)[N],
                                                std::index_sequence<I...> all) noexcept {
  ((void)((I & Half) == 0 ? compare_exchange(keys[I], keys[(I + Half) % N]) : void()), ...);
  if constexpr (Half > 1) merge_step<Half / 2>(keys, all);
}

/// Sorts N keys, a power of two, that rise and then fall or fall and then rise, largest first.
template <class Key, int N>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void merge_descending(Key (&keys)[N]) noexcept {
  if constexpr (N > 1) merge_step<N / 2>(keys, std::make_index_sequence<N>());
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
