// Selection: the best experts of a token by their keys, descending, equal ones by lower index.
// Vectors (host/simd/top_k.hpp) and kernels (cuda/) select by code of their own, in the same order.
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

/// The best expert of every slot of one lane.
template <int Slots>
struct slot_leaders {
  std::uint32_t key[Slots];
  int expert[Slots];
};

/// Experts in selection order, one `next()` at a time. The order is total, so any other algorithm
/// gives the same ids. Costs one pass over the keys, then 32 slots and one slot's rows per expert.
template <class Tile, int MaxRows>
class selection {
  static constexpr int slots = Tile::slots_per_lane;

 public:
  /// Takes experts from `keys` as `next()` returns them.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE selection(const Tile& tile, expert_keys<Tile, MaxRows>& keys,
                                            int rows) noexcept
      : tile_(tile), keys_(keys), rows_(rows) {
    tile_.for_each_lane([&](int lane) {
      slot_leaders<slots>& leaders = leaders_[lane];
      for (int slot = 0; slot < slots; ++slot) {
        leaders.key[slot] = keys_[lane].at[0][slot];
        leaders.expert[slot] = lane * slots + slot;
      }
      for (int row = 1; row < rows_; ++row) {
        for (int slot = 0; slot < slots; ++slot) {
          const std::uint32_t key = keys_[lane].at[row][slot];
          const bool better = key > leaders.key[slot];
          leaders.key[slot] = better ? key : leaders.key[slot];
          leaders.expert[slot] =
              better ? row * Tile::row_width + lane * slots + slot : leaders.expert[slot];
        }
      }
    });
  }

  /// The best expert left; call it at most as often as there are experts with a key.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE keyed_expert next() noexcept {
    typename Tile::template per_lane<std::uint32_t> lane_key;
    tile_.for_each_lane([&](int lane) {
      std::uint32_t best = 0;
      for (int slot = 0; slot < slots; ++slot) {
        const std::uint32_t key = leaders_[lane].key[slot];
        best = key > best ? key : best;
      }
      lane_key[lane] = best;
    });
    const std::uint32_t best_key = tile_.reduce_max(lane_key);
    typename Tile::template per_lane<int> lane_expert;
    tile_.for_each_lane([&](int lane) {
      int lowest = max_experts;
      for (int slot = 0; slot < slots; ++slot) {
        const int expert = leaders_[lane].expert[slot];
        const int candidate = leaders_[lane].key[slot] == best_key ? expert : max_experts;
        lowest = candidate < lowest ? candidate : lowest;
      }
      lane_expert[lane] = lowest;
    });
    const int winner = tile_.reduce_min(lane_expert);
    remove(winner);
    return {best_key, winner};
  }

 private:
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE void remove(int expert) noexcept {
    const int owner = expert % Tile::row_width / slots;
    const int slot = expert % slots;
    tile_.for_each_lane([&](int lane) {
      if (lane != owner) return;
      keys_[lane].at[expert / Tile::row_width][slot] = no_expert_key;
      std::uint32_t best = no_expert_key;
      int leader = expert;
      for (int row = 0; row < rows_; ++row) {
        const std::uint32_t key = keys_[lane].at[row][slot];
        if (key > best) {
          best = key;
          leader = row * Tile::row_width + lane * slots + slot;
        }
      }
      leaders_[lane].key[slot] = best;
      leaders_[lane].expert[slot] = leader;
    });
  }

  const Tile& tile_;
  expert_keys<Tile, MaxRows>& keys_;
  int rows_;
  typename Tile::template per_lane<slot_leaders<slots>> leaders_;
};

/// Takes the best `top_k` experts out of `keys`, in order. Tiles whose lanes hold keys in registers
/// overload this.
template <int MaxRows, int MaxTopK, int Lanes, int RowWidth>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void select_experts(
    const host_warp<Lanes, RowWidth>& tile, expert_keys<host_warp<Lanes, RowWidth>, MaxRows>& keys,
    int rows, int top_k, keyed_expert (&best)[MaxTopK]) noexcept {
  selection<host_warp<Lanes, RowWidth>, MaxRows> order(tile, keys, rows);
  for (int j = 0; j < top_k; ++j) best[j] = order.next();
}

inline constexpr int max_groups = 32;

/// f(lane, i, group) for the groups that each lane keeps: group i * lanes + lane.
template <int Held, class Tile, class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void for_each_held_group(const Tile& tile, F f) noexcept {
  tile.for_each_lane([&](int lane) {
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Held; ++i) f(lane, i, i * Tile::lanes + lane);
  });
}

/// The two largest keys among experts [first, first + count); `no_expert_key` where there is none.
struct best_two {
  std::uint32_t first;
  std::uint32_t second;
};

template <class Tile, int MaxRows, class Rows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE best_two best_two_keys(const Tile& tile,
                                                       const expert_keys<Tile, MaxRows>& keys,
                                                       Rows rows, int first, int count) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  typename Tile::template per_lane<std::uint32_t> lane_first;
  typename Tile::template per_lane<std::uint32_t> lane_second;
  typename Tile::template per_lane<int> lane_expert;
  tile.for_each_lane([&](int lane) {
    best_two best = {no_expert_key, no_expert_key};
    int leader = max_experts;
    ADAPTIVE_K_UNROLL
    for (int row = 0; row < rows; ++row) {
      if (!Tile::unrolled &&
          ((row + 1) * Tile::row_width <= first || row * Tile::row_width >= first + count))
        continue;
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < slots; ++slot) {
        const int expert = Tile::expert_at(lane, row, slot);
        const bool inside = static_cast<unsigned>(expert - first) < static_cast<unsigned>(count);
        const std::uint32_t key = inside ? keys[lane].at[row][slot] : no_expert_key;
        const bool leads = key > best.first;
        const std::uint32_t loser = leads ? best.first : key;
        best.first = leads ? key : best.first;
        best.second = loser > best.second ? loser : best.second;
        leader = leads ? expert : leader;
      }
    }
    lane_first[lane] = best.first;
    lane_second[lane] = best.second;
    lane_expert[lane] = leader;
  });
  const std::uint32_t first_key = tile.reduce_max(lane_first);
  tile.for_each_lane([&](int lane) {
    if (lane_first[lane] != first_key) lane_expert[lane] = max_experts;
  });
  // The lane of the best offers its runner-up, every other lane its best.
  const int leader = tile.reduce_min(lane_expert);
  tile.for_each_lane([&](int lane) {
    if (lane_expert[lane] != leader) lane_second[lane] = lane_first[lane];
  });
  return {first_key, tile.reduce_max(lane_second)};
}

/// Group-limited selection: empties the keys of all but the topk_group best groups of neighbours.
/// Equal groups by lower index; a NaN in a group counts as -inf. Without `limited` all stay.
template <class Tile, int MaxRows, class Rows>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void keep_best_groups(const Tile& tile,
                                                      expert_keys<Tile, MaxRows>& keys,
                                                      const gating& g, Rows rows,
                                                      bool limited) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  constexpr int held =
      max_groups / Tile::lanes;  // lane l keeps the keys of groups l, l + lanes, ...
  const int group_size = g.num_experts / g.n_group;
  typename Tile::template per_lane<expert_block<std::uint32_t, 1, held>> group_keys;
  for_each_held_group<held>(
      tile, [&](int lane, int i, int) { group_keys[lane].at[0][i] = no_expert_key; });
  for (int group = 0; group < g.n_group; ++group) {
    const best_two best =
        best_two_keys<Tile, MaxRows>(tile, keys, rows, group * group_size, group_size);
    float value = key_value(best.first);
    if (g.group_rank == group_score::top2_sum && group_size > 1) value += key_value(best.second);
    const std::uint32_t key = order_key(value);
    for_each_held_group<held>(tile, [&](int lane, int i, int at) {
      if (at == group) group_keys[lane].at[0][i] = key;
    });
  }
  std::uint32_t kept = 0;  // one bit a group
  for (int round = 0; round < g.topk_group; ++round) {
    typename Tile::template per_lane<std::uint32_t> lane_key;
    tile.for_each_lane([&](int lane) { lane_key[lane] = no_expert_key; });
    for_each_held_group<held>(tile, [&](int lane, int i, int) {
      const std::uint32_t key = group_keys[lane].at[0][i];
      lane_key[lane] = key > lane_key[lane] ? key : lane_key[lane];
    });
    const std::uint32_t best_key = tile.reduce_max(lane_key);
    typename Tile::template per_lane<int> lane_group;
    tile.for_each_lane([&](int lane) { lane_group[lane] = max_groups; });
    for_each_held_group<held>(tile, [&](int lane, int i, int at) {
      const bool lower = group_keys[lane].at[0][i] == best_key && at < lane_group[lane];
      lane_group[lane] = lower ? at : lane_group[lane];
    });
    const int best = tile.reduce_min(lane_group);
    kept |= 1u << best;
    for_each_held_group<held>(tile, [&](int lane, int i, int at) {
      if (at == best) group_keys[lane].at[0][i] = no_expert_key;
    });
  }
  tile.for_each_lane([&](int lane) {
    ADAPTIVE_K_UNROLL
    for (int row = 0; row < rows; ++row) {
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < slots; ++slot) {
        const int group = Tile::expert_at(lane, row, slot) / group_size;
        if (limited && (group >= g.n_group || (kept >> group & 1u) == 0))
          keys[lane].at[row][slot] = no_expert_key;
      }
    }
  });
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
