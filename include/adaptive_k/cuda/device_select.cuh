// How a warp tile selects: sorting networks in each lane, then merges across lanes.
#pragma once

#include <cstdint>
#include <utility>

#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/core/sorting_network.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/cuda/warp_ops.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Keys that carry the inverted id, so that all of them are different.
template <class Key, int Count>
struct sorted_list {
  Key at[Count];  ///< descending

  /// Keeps the best Count of both lists; `other` is read backwards through `other_at(i)`.
  template <class OtherAt>
  __device__ ADAPTIVE_K_INLINE void keep_best(OtherAt other_at) noexcept {
    Key theirs[Count];
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Count; ++i) theirs[i] = other_at(Count - 1 - i);
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Count; ++i) at[i] = at[i] > theirs[i] ? at[i] : theirs[i];
    detail::merge_descending(at);
  }
};

/// 64-bit keys: the whole order key above the inverted id.
struct wide_key {
  /// Larger is better.
  using type = unsigned long long;
  /// Of an order key and an expert: equal keys go by the lower expert. 0 for no expert.
  __device__ static ADAPTIVE_K_INLINE type pack(std::uint32_t key, int expert) noexcept {
    const type packed = static_cast<type>(key) << 32 | ~static_cast<std::uint32_t>(expert);
    return key == adaptive_k::detail::no_expert_key ? 0u : packed;
  }
  /// The order key.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t key(type packed) noexcept {
    return static_cast<std::uint32_t>(packed >> 32);
  }
  /// The value that was ranked by.
  __device__ static ADAPTIVE_K_INLINE float value(type packed) noexcept {
    return detail::key_value(key(packed));
  }
  /// The expert.
  __device__ static ADAPTIVE_K_INLINE int expert(type packed) noexcept {
    return static_cast<int>(~static_cast<std::uint32_t>(packed));
  }
};

/// One of a lane's keys, 0 past the last.
template <class Tile, int MaxRows, class Key, int At, class KeyAt>
__device__ ADAPTIVE_K_INLINE Key key_number(KeyAt key_at) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  if constexpr (At < MaxRows * slots)
    return key_at(constant<At / slots>{}, constant<At % slots>{});
  else
    return 0;
}

/// A lane's keys from number `Start` on, as many as a list holds, sorted.
template <class Tile, int MaxRows, class Key, int Start, class KeyAt, int... I>
__device__ ADAPTIVE_K_INLINE sorted_list<Key, sizeof...(I)> sorted_part(
    KeyAt key_at, std::integer_sequence<int, I...>) noexcept {
  sorted_list<Key, sizeof...(I)> part = {{key_number<Tile, MaxRows, Key, Start + I>(key_at)...}};
  detail::sort_descending(part.at);
  return part;
}

/// The best of a lane's keys from number `Start` on.
template <class Tile, int MaxRows, int MaxTopK, class Key, int Start, class KeyAt>
__device__ ADAPTIVE_K_INLINE void keep_best_of_lane(KeyAt key_at,
                                                    sorted_list<Key, MaxTopK>& winners) noexcept {
  if constexpr (Start < MaxRows * Tile::slots_per_lane) {
    const auto part =
        sorted_part<Tile, MaxRows, Key, Start>(key_at, std::make_integer_sequence<int, MaxTopK>{});
    if constexpr (Start == 0)
      winners = part;
    else
      winners.keep_best([&](int i) { return part.at[i]; });
    keep_best_of_lane<Tile, MaxRows, MaxTopK, Key, Start + MaxTopK>(key_at, winners);
  }
}

/// Sorts chunks of each lane's keys, keeps the best MaxTopK of them, and merges the lanes' lists:
/// every lane ends with the tile's best. `key_at(row, slot)` packs this lane's key, both indices
/// being `constant`; `finish(key)` may add what is the same for all of a lane's keys.
template <class Tile, int MaxRows, int MaxTopK, class Key, class KeyAt, class Finish>
__device__ ADAPTIVE_K_INLINE sorted_list<Key, MaxTopK> best_of_tile(KeyAt key_at,
                                                                    Finish finish) noexcept {
  sorted_list<Key, MaxTopK> winners;
  keep_best_of_lane<Tile, MaxRows, MaxTopK, Key, 0>(key_at, winners);
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < MaxTopK; ++i) winners.at[i] = finish(winners.at[i]);
  const auto merge = [&](int offset) {
    winners.keep_best(
        [&](int i) { return __shfl_xor_sync(Tile::whole_warp, winners.at[i], offset); });
  };
  if constexpr (MaxTopK <= 8) {
    ADAPTIVE_K_UNROLL
    for (int offset = 1; offset < Tile::lanes; offset *= 2) merge(offset);
  } else {  // unrolled, long lists would take ptxas minutes
#pragma unroll 1
    for (int offset = 1; offset < Tile::lanes; offset *= 2) merge(offset);
  }
  return winners;
}

/// The device's core `select_experts`: by keys of any origin.
template <int MaxRows, int MaxTopK, int Lanes, int RowWidth, class Logit>
__device__ ADAPTIVE_K_INLINE void select_experts(
    const device_tile<Lanes, RowWidth, Logit>&,
    const expert_keys<device_tile<Lanes, RowWidth, Logit>, MaxRows>& keys, int, int,
    keyed_expert (&best)[MaxTopK]) noexcept {
  using tile = device_tile<Lanes, RowWidth, Logit>;
  const auto winners = best_of_tile<tile, MaxRows, MaxTopK, wide_key::type>(
      [&](int row, int slot) {
        return wide_key::pack(keys[0].at[row][slot], tile::expert_at(tile::lane(), row, slot));
      },
      [](wide_key::type key) { return key; });
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j)
    best[j] = {wide_key::key(winners.at[j]), wide_key::expert(winners.at[j])};
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
