// How a warp tile selects: sorting networks in each lane, then merges across lanes.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_tile.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Keys that carry the inverted id, so that all of them are different.
template <class Key, int Count>
struct sorted_list {
  Key at[Count];  ///< descending

  __device__ static ADAPTIVE_K_INLINE void compare(Key& first, Key& second) noexcept {
    const Key larger = first > second ? first : second;
    second = first > second ? second : first;
    first = larger;
  }

  /// Batcher's odd-even merge sort, spelled out by the compiler: a loop this deep is not unrolled.
  __device__ ADAPTIVE_K_INLINE void sort() noexcept { merge_sort<1>(); }

  /// Keeps the best Count of both lists; `other` is read backwards through `other_at(i)`.
  template <class OtherAt>
  __device__ ADAPTIVE_K_INLINE void keep_best(OtherAt other_at) noexcept {
    Key theirs[Count];
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Count; ++i) theirs[i] = other_at(Count - 1 - i);
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Count; ++i) at[i] = at[i] > theirs[i] ? at[i] : theirs[i];
    ADAPTIVE_K_UNROLL
    for (int half = Count / 2; half >= 1; half /= 2) {
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < Count; ++i)
        if ((i & half) == 0) compare(at[i], at[i + half]);
    }
  }

 private:
  template <int P>
  __device__ ADAPTIVE_K_INLINE void merge_sort() noexcept {
    if constexpr (P < Count) {
      merge<P, P>();
      merge_sort<2 * P>();
    }
  }

  template <int P, int K>
  __device__ ADAPTIVE_K_INLINE void merge() noexcept {
    if constexpr (K >= 1) {
      compare_all<P, K>(std::make_integer_sequence<int, Count>{});
      merge<P, K / 2>();
    }
  }

  template <int P, int K, int... I>
  __device__ ADAPTIVE_K_INLINE void compare_all(std::integer_sequence<int, I...>) noexcept {
    (compare_one<P, K, I>(), ...);
  }

  template <int P, int K, int I>
  __device__ ADAPTIVE_K_INLINE void compare_one() noexcept {
    constexpr int first = K % P;
    if constexpr (I >= first && I + K < Count)
      if constexpr ((I - first) % (2 * K) < K && I / (2 * P) == (I + K) / (2 * P))
        compare(at[I], at[I + K]);
  }
};

/// 32-bit keys of 16-bit logits: the order of the logit above, the inverted id below.
template <class Logit>
struct narrow_key {
  using type = std::uint32_t;
  static constexpr std::uint32_t nan_order = 1;
  static constexpr std::uint32_t infinity = logit_pair<Logit>::minus_infinities & 0x7FFFu;

  /// Both orders of a pair of finite logits; -0 as +0.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order_finite(std::uint32_t pair) noexcept {
    const std::uint32_t positive_zero = logit_pair<Logit>::fma(pair, logit_pair<Logit>::ones, 0);
    const std::uint32_t signs = __byte_perm(positive_zero, 0, 0xBB99);  // each sign, sixteen times
    return positive_zero ^ (signs | 0x80008000u);
  }
  /// One logit, of any value.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order(std::uint32_t bits) noexcept {
    const std::uint32_t upper = bits | 0x8000u;  // -0 joins the positive side
    const std::uint32_t key = bits > 0x8000u ? ~bits & 0xFFFFu : upper;
    return (bits & 0x7FFFu) > infinity ? nan_order : key;
  }
  __device__ static ADAPTIVE_K_INLINE float value(type packed) noexcept {
    const std::uint32_t key = packed >> 16;
    const std::uint32_t bits = (key & 0x8000u) != 0 ? key & 0x7FFFu : ~key & 0xFFFFu;
    return key == nan_order ? -math::infinity : logit_pair<Logit>::low(bits);
  }
  __device__ static ADAPTIVE_K_INLINE int expert(type packed) noexcept {
    return static_cast<int>(~packed & 0xFFFFu);
  }
};

/// 64-bit keys: the whole order key above the inverted id.
struct wide_key {
  using type = unsigned long long;
  __device__ static ADAPTIVE_K_INLINE type pack(std::uint32_t key, int expert) noexcept {
    const type packed = static_cast<type>(key) << 32 | ~static_cast<std::uint32_t>(expert);
    return key == adaptive_k::detail::no_expert_key ? 0u : packed;
  }
  __device__ static ADAPTIVE_K_INLINE std::uint32_t key(type packed) noexcept {
    return static_cast<std::uint32_t>(packed >> 32);
  }
  __device__ static ADAPTIVE_K_INLINE float value(type packed) noexcept {
    return detail::key_value(key(packed));
  }
  __device__ static ADAPTIVE_K_INLINE int expert(type packed) noexcept {
    return static_cast<int>(~static_cast<std::uint32_t>(packed));
  }
};

/// Sorts chunks of each lane's keys, keeps the best MaxTopK of them, and merges the lanes' lists:
/// every lane ends with the tile's best. `key_at(row, slot)` packs this lane's key; `finish(key)`
/// may add what is the same for all of a lane's keys.
template <class Tile, int MaxRows, int MaxTopK, class Key, class KeyAt, class Finish>
__device__ ADAPTIVE_K_INLINE sorted_list<Key, MaxTopK> best_of_tile(KeyAt key_at,
                                                                    Finish finish) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  constexpr int count = MaxRows * slots;
  sorted_list<Key, MaxTopK> winners;
  ADAPTIVE_K_UNROLL
  for (int start = 0; start < count; start += MaxTopK) {
    sorted_list<Key, MaxTopK> part;
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < MaxTopK; ++i) {
      const int at = start + i;
      part.at[i] = at < count ? key_at(at / slots, at % slots) : Key{0};
    }
    part.sort();
    if (start == 0)
      winners = part;
    else
      winners.keep_best([&](int i) { return part.at[i]; });
  }
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < MaxTopK; ++i) winners.at[i] = finish(winners.at[i]);
  ADAPTIVE_K_UNROLL
  for (int offset = 1; offset < Tile::lanes; offset *= 2)
    winners.keep_best(
        [&](int i) { return __shfl_xor_sync(Tile::whole_warp, winners.at[i], offset); });
  return winners;
}

/// The device's core `select_experts`: by keys of any origin.
template <int MaxRows, int MaxTopK, int Lanes, int RowWidth, bool ByLogitOnly, class Logit>
__device__ ADAPTIVE_K_INLINE void select_experts(
    const device_tile<Lanes, RowWidth, ByLogitOnly, Logit>&,
    const expert_keys<device_tile<Lanes, RowWidth, ByLogitOnly, Logit>, MaxRows>& keys, int, int,
    keyed_expert (&best)[MaxTopK]) noexcept {
  using tile = device_tile<Lanes, RowWidth, ByLogitOnly, Logit>;
  const auto winners = best_of_tile<tile, MaxRows, MaxTopK, wide_key::type>(
      [&](int row, int slot) {
        return wide_key::pack(keys[0].at[row][slot], tile::expert_at(tile::lane(), row, slot));
      },
      [](wide_key::type key) { return key; });
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j)
    best[j] = {wide_key::key(winners.at[j]), wide_key::expert(winners.at[j])};
}

/// Scores the ranks, each in the lane that will write it, and hands all scores to all lanes.
template <gating_kind Kind, class Coding, class Tile, int MaxRows, int MaxTopK>
__device__ ADAPTIVE_K_INLINE void score_ranks(
    const token_state<Tile, MaxRows>& token,
    const sorted_list<typename Coding::type, MaxTopK>& winners, int top_k,
    detail::ranked_experts<MaxTopK>& ranked) noexcept {
  using key = typename Coding::type;
  constexpr int sharing = Tile::lanes < MaxTopK ? Tile::lanes : MaxTopK;
  constexpr int own = MaxTopK / sharing;
  const int lane = Tile::lane();
  float scores[own];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < own; ++i) {
    key packed = winners.at[i];
    ADAPTIVE_K_UNROLL
    for (int from = 1; from < sharing; ++from)
      packed = lane == from ? winners.at[from * own + i] : packed;
    const float score = detail::score_of<Kind>(Coding::value(packed), token.largest).score;
    scores[i] = lane * own + i < top_k ? score : 0.0f;
  }
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j) {
    ranked.expert[j] = Coding::expert(winners.at[j]);
    ranked.score[j] = sharing == 1
                          ? scores[j % own]
                          : __shfl_sync(Tile::whole_warp, scores[j % own], j / own, Tile::lanes);
    const float log_score =
        detail::score_of<Kind>(Coding::value(winners.at[j]), token.largest).log_score;
    ranked.log_score[j] = j < top_k ? log_score : 0.0f;
  }
}

/// Core's ranking for tiles that rank by logit alone.
template <gating_kind Kind, int MaxRows, int MaxTopK, int Lanes, int RowWidth, class Logit>
__device__ ADAPTIVE_K_INLINE void rank_by_logit(
    std::integral_constant<gating_kind, Kind>, const device_tile<Lanes, RowWidth, true, Logit>&,
    const token_state<device_tile<Lanes, RowWidth, true, Logit>, MaxRows>& token, int top_k,
    detail::ranked_experts<MaxTopK>& ranked) noexcept {
  using tile = device_tile<Lanes, RowWidth, true, Logit>;
  if constexpr (tile::keeps_pairs) {
    using coding = narrow_key<Logit>;
    // The lane's bits of an id are the same in all its keys: they join once the lane has selected.
    const std::uint32_t lane_bits = static_cast<std::uint32_t>(tile::expert_at(tile::lane(), 0, 0));
    const auto join = [=](std::uint32_t key) { return key ^ lane_bits; };
    sorted_list<std::uint32_t, MaxTopK> winners;
    if (logit_pair<Logit>::has_arithmetic && token.cache.all_finite) {
      std::uint32_t orders[MaxRows][tile::slots_per_lane / 2];
      ADAPTIVE_K_UNROLL
      for (int row = 0; row < MaxRows; ++row) {
        ADAPTIVE_K_UNROLL
        for (int i = 0; i < tile::slots_per_lane / 2; ++i)
          orders[row][i] = coding::order_finite(token.cache.pairs[row][i]);
      }
      winners = best_of_tile<tile, MaxRows, MaxTopK, std::uint32_t>(
          [&](int row, int slot) {
            const std::uint32_t inverted =
                ~static_cast<std::uint32_t>(tile::expert_at(0, row, slot));
            return __byte_perm(orders[row][slot / 2], inverted, slot % 2 == 0 ? 0x1054 : 0x3254);
          },
          join);
    } else {
      winners = best_of_tile<tile, MaxRows, MaxTopK, std::uint32_t>(
          [&](int row, int slot) {
            const std::uint32_t pair = token.cache.pairs[row][slot / 2];
            const std::uint32_t bits = slot % 2 == 0 ? pair & 0xFFFFu : pair >> 16;
            const std::uint32_t order = token.has_finite ? coding::order(bits) : 0x8000u;
            const int expert = tile::expert_at(0, row, slot);
            const bool exists = expert + tile::expert_at(tile::lane(), 0, 0) < token.num_experts;
            return (exists ? order << 16 : 0u) | (~static_cast<std::uint32_t>(expert) & 0xFFFFu);
          },
          join);
    }
    score_ranks<Kind, coding, tile>(token, winners, top_k, ranked);
  } else {
    const auto winners = best_of_tile<tile, MaxRows, MaxTopK, wide_key::type>(
        [&](int row, int slot) {
          const int expert = tile::expert_at(tile::lane(), row, slot);
          const std::uint32_t key = detail::order_key(token.logits[0].at[row][slot]);
          return wide_key::pack(expert < token.num_experts ? key : detail::no_expert_key, expert);
        },
        [](wide_key::type key) { return key; });
    score_ranks<Kind, wide_key, tile>(token, winners, top_k, ranked);
  }
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
