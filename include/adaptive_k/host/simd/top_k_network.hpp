// The best N of many keys in every lane at once, by sorting networks: no branch, no index.
#pragma once

#include <cstddef>
#include <utility>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Pairs of positions to be put in order, one after the other.
template <int Count>
struct comparators {
  int upper[Count > 0 ? Count : 1] = {};
  int lower[Count > 0 ? Count : 1] = {};
};

/// f(upper, lower) for each comparator of Batcher's odd-even merge sort of `size` keys.
template <class F>
constexpr void for_each_sort_comparator(int size, F& f) {
  for (int p = 1; p < size; p *= 2)
    for (int k = p; k >= 1; k /= 2)
      for (int j = k % p; j + k < size; j += 2 * k)
        for (int i = j; i < j + k && i + k < size; ++i)
          if (i / (2 * p) == (i + k) / (2 * p)) f.add(i, i + k);
}

/// The same for the merge of a bitonic sequence.
template <class F>
constexpr void for_each_merge_comparator(int size, F& f) {
  for (int half = size / 2; half >= 1; half /= 2)
    for (int i = 0; i < size; ++i)
      if ((i & half) == 0) f.add(i, i + half);
}

struct comparator_count {
  int count = 0;
  constexpr void add(int, int) { ++count; }
};
template <int Count>
struct comparator_list {
  comparators<Count> made;
  int count = 0;
  constexpr void add(int upper, int lower) {
    made.upper[count] = upper;
    made.lower[count] = lower;
    ++count;
  }
};

template <int N>
struct sort_network {
  static constexpr int size = [] {
    comparator_count counter;
    for_each_sort_comparator(N, counter);
    return counter.count;
  }();
  static constexpr comparators<size> pairs = [] {
    comparator_list<size> list;
    for_each_sort_comparator(N, list);
    return list.made;
  }();
};

template <int N>
struct merge_network {
  static constexpr int size = [] {
    comparator_count counter;
    for_each_merge_comparator(N, counter);
    return counter.count;
  }();
  static constexpr comparators<size> pairs = [] {
    comparator_list<size> list;
    for_each_merge_comparator(N, list);
    return list.made;
  }();
};

template <class Words>
ADAPTIVE_K_INLINE void put_in_order(Words& upper, Words& lower) noexcept {
  const Words larger = Words::larger(upper, lower);
  lower = Words::smaller(upper, lower);
  upper = larger;
}

template <class Network, class Words, int N, std::size_t... I>
ADAPTIVE_K_INLINE void apply(Words (&keys)[N], std::index_sequence<I...>) noexcept {
  (put_in_order(keys[Network::pairs.upper[I]], keys[Network::pairs.lower[I]]), ...);
}

/// Largest first.
template <class Words, int N>
ADAPTIVE_K_INLINE void sort_keys(Words (&keys)[N]) noexcept {
  apply<sort_network<N>>(keys, std::make_index_sequence<sort_network<N>::size>());
}

/// Largest first; `keys` must be bitonic.
template <class Words, int N>
ADAPTIVE_K_INLINE void merge_keys(Words (&keys)[N]) noexcept {
  apply<merge_network<N>>(keys, std::make_index_sequence<merge_network<N>::size>());
}

/// Keeps in `best` the N best of `best` and `others`, both sorted; `lost` becomes the best of all
/// that were dropped.
template <class Words, int N, std::size_t... I>
ADAPTIVE_K_INLINE void keep_best(Words (&best)[N], const Words (&others)[N], Words& lost,
                                 std::index_sequence<I...>) noexcept {
  ((lost = Words::larger(lost, Words::smaller(best[I], others[N - 1 - I])),
    best[I] = Words::larger(best[I], others[N - 1 - I])),
   ...);
  merge_keys(best);
}
template <class Words, int N>
ADAPTIVE_K_INLINE void keep_best(Words (&best)[N], const Words (&others)[N], Words& lost) noexcept {
  keep_best(best, others, lost, std::make_index_sequence<N>());
}

/// The N best, lane by lane, of `keys.at(0)` to `keys.at(count - 1)`; `count` a multiple of N.
template <class Words, int N, class Keys, std::size_t... I>
ADAPTIVE_K_INLINE void best_keys(Keys& keys, int count, Words (&best)[N], Words& lost,
                                 std::index_sequence<I...>) noexcept {
  ((best[I] = keys.at(static_cast<int>(I))), ...);
  sort_keys(best);
  for (int first = N; first < count; first += N) {
    Words others[N];
    ((others[I] = keys.at(first + static_cast<int>(I))), ...);
    sort_keys(others);
    keep_best(best, others, lost);
  }
}
template <class Words, int N, class Keys>
ADAPTIVE_K_INLINE void best_keys(Keys& keys, int count, Words (&best)[N], Words& lost) noexcept {
  best_keys(keys, count, best, lost, std::make_index_sequence<N>());
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
