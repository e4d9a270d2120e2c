// Selection: the best experts of a token, score descending, equal scores by lower index.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/math.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

  namespace detail {

  template <class Tile, int MaxRows>
  using expert_keys =
      typename Tile::template per_lane<expert_block<std::uint32_t, MaxRows, Tile::slots_per_lane>>;

  struct keyed_expert {
    std::uint32_t key;
    int expert;
  };

  /// The best expert within [first, first + count) and its key; `no_expert_key` when none is left.
  /// Rounds of this are O(K0 * E); the total order makes any other algorithm give the same ids.
  template <class Tile, int MaxRows>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE keyed_expert best_expert(const Tile& tile,
                                                           const expert_keys<Tile, MaxRows>& keys,
                                                           int first, int count) noexcept {
    constexpr int slots = Tile::slots_per_lane;
    const int first_row = first / reduction_slots;
    const int end_row = (first + count + reduction_slots - 1) / reduction_slots;
    const auto end = static_cast<unsigned>(count);
    typename Tile::template per_lane<std::uint32_t> lane_key;
    tile.for_each_lane([&](int lane) {
      std::uint32_t slot_best[slots] = {};
      for (int row = first_row; row < end_row; ++row) {
        for (int slot = 0; slot < slots; ++slot) {
          const int expert = row * reduction_slots + lane * slots + slot;
          const bool inside = static_cast<unsigned>(expert - first) < end;
          const std::uint32_t key = inside ? keys[lane].at[row][slot] : no_expert_key;
          slot_best[slot] = key > slot_best[slot] ? key : slot_best[slot];
        }
      }
      std::uint32_t best = slot_best[0];
      for (int slot = 1; slot < slots; ++slot)
        best = slot_best[slot] > best ? slot_best[slot] : best;
      lane_key[lane] = best;
    });
    const std::uint32_t best_key = tile.reduce_max(lane_key);

    typename Tile::template per_lane<int> lane_expert;
    tile.for_each_lane([&](int lane) {
      int lowest = max_experts;
      for (int row = first_row; row < end_row; ++row) {
        for (int slot = 0; slot < slots; ++slot) {
          const int expert = row * reduction_slots + lane * slots + slot;
          const bool hit =
              keys[lane].at[row][slot] == best_key && static_cast<unsigned>(expert - first) < end;
          const int candidate = hit ? expert : max_experts;
          lowest = candidate < lowest ? candidate : lowest;
        }
      }
      lane_expert[lane] = lowest;
    });
    return {best_key, tile.reduce_min(lane_expert)};
  }

  template <class Tile, int MaxRows>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE void remove_expert(const Tile& tile,
                                                     expert_keys<Tile, MaxRows>& keys,
                                                     int expert) noexcept {
    constexpr int slots = Tile::slots_per_lane;
    const int owner = expert % reduction_slots / slots;
    tile.for_each_lane([&](int lane) {
      if (lane == owner) keys[lane].at[expert / reduction_slots][expert % slots] = no_expert_key;
    });
  }

  /// Group-limited selection: empties the keys of all but the topk_group best groups of neighbours.
  /// Equal groups by lower index; a NaN in a group counts as -inf.
  template <class Tile, int MaxRows>
  ADAPTIVE_K_HD inline void keep_best_groups(const Tile& tile, expert_keys<Tile, MaxRows>& keys,
                                             const gating& g, int rows) noexcept {
    constexpr int slots = Tile::slots_per_lane;
    const int group_size = g.num_experts / g.n_group;
    std::uint32_t group_key[max_top_k] = {};
    for (int group = 0; group < g.n_group; ++group) {
      const int first = group * group_size;
      const keyed_expert best = best_expert<Tile, MaxRows>(tile, keys, first, group_size);
      float value = key_value(best.key);
      if (g.group_rank == group_score::top2_sum && group_size > 1) {
        // The runner-up is the best of what lies on either side of the best.
        const int left = best.expert - first;
        const keyed_expert below = best_expert<Tile, MaxRows>(tile, keys, first, left);
        const keyed_expert above =
            best_expert<Tile, MaxRows>(tile, keys, best.expert + 1, group_size - left - 1);
        value += key_value(below.key > above.key ? below.key : above.key);
      }
      group_key[group] = order_key(value);
    }
    std::uint32_t kept = 0;  // one bit a group
    for (int round = 0; round < g.topk_group; ++round) {
      int best = -1;
      for (int group = 0; group < g.n_group; ++group)
        if ((kept >> group & 1u) == 0 && (best < 0 || group_key[group] > group_key[best]))
          best = group;
      kept |= 1u << best;
    }
    tile.for_each_lane([&](int lane) {
      for (int row = 0; row < rows; ++row)
        for (int slot = 0; slot < slots; ++slot) {
          const int group = (row * reduction_slots + lane * slots + slot) / group_size;
          if (group >= g.n_group || (kept >> group & 1u) == 0)
            keys[lane].at[row][slot] = no_expert_key;
        }
    });
  }

  }  // namespace detail

ADAPTIVE_K_NAMESPACE_END
