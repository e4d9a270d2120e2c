// A tile: the lanes that decide one token together, and how expert data lies in them.
//
// The sums over experts have one shape on every machine: expert e adds into slot e mod 32, in order
// of e, and the 32 slots are summed as a binary tree, neighbours first. A tile of L lanes gives
// each lane 32 / L neighbouring slots, so the tree's first levels are in a lane and its last across
// lanes, and the bits do not depend on L.
//
// Tile, as the rest of core/ uses it:
//   lanes, row_width, slots_per_lane  compile-time ints; a row of experts has row_width slots
//   unrolled                       loops run over all that fits, so that arrays stay in registers
//   per_lane<T>                    one T in each lane, indexed by lane
//   for_each_lane(f)               f(lane) in every lane
//   expert_at(lane, row, slot)     the expert there; owner_of(expert): the lane that has it
//   sum_slots(per_lane<float[]>)   sum over all slots, neighbours first; the same value everywhere
//   reduce_max / reduce_min / reduce_sum  exact, so of any shape
//   broadcast(per_lane<T>, lane)   one lane's value, everywhere
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline constexpr int reduction_slots = 32;

/// Sum of neighbouring slots as a binary tree, neighbours first; destroys them.
template <class F, int Count>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F fold_neighbours(F (&slots)[Count]) noexcept {
  ADAPTIVE_K_UNROLL
  for (int count = Count / 2; count > 0; count /= 2) {
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < count; ++i) slots[i] = slots[2 * i] + slots[2 * i + 1];
  }
  return slots[0];
}

/// One lane's partial sums, one a slot.
template <int Slots>
struct slot_sums {
  float at[Slots];
};

/// `Lanes` lanes as arrays: the host twin of a warp tile. One lane is what the router runs; more
/// are there to show that the bits do not depend on them. Rows narrower than 32 are for E up to
/// their width: the slots left out would only add +0.
template <int Lanes, int RowWidth = reduction_slots>
struct host_warp {
  static_assert(Lanes >= 1 && Lanes <= RowWidth && (Lanes & (Lanes - 1)) == 0,
                "lanes must be a power of two up to the row's width");
  static constexpr int lanes = Lanes;
  static constexpr int row_width = RowWidth;
  static constexpr int slots_per_lane = RowWidth / Lanes;
  static constexpr bool unrolled = false;

  template <class T>
  struct per_lane {
    T values[Lanes];
    ADAPTIVE_K_HD ADAPTIVE_K_INLINE T& operator[](int lane) noexcept { return values[lane]; }
    ADAPTIVE_K_HD ADAPTIVE_K_INLINE const T& operator[](int lane) const noexcept {
      return values[lane];
    }
  };

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE constexpr int expert_at(int lane, int row,
                                                                 int slot) noexcept {
    return row * RowWidth + lane * slots_per_lane + slot;
  }
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE constexpr int owner_of(int expert) noexcept {
    return expert % RowWidth / slots_per_lane;
  }

  template <class F>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE void for_each_lane(F f) noexcept {
    for (int lane = 0; lane < Lanes; ++lane) f(lane);
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE float sum_slots(
      per_lane<slot_sums<slots_per_lane>>& sums) noexcept {
    float lane_sums[Lanes];
    for (int lane = 0; lane < Lanes; ++lane) lane_sums[lane] = fold_neighbours(sums[lane].at);
    return fold_neighbours(lane_sums);
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE float reduce_max(const per_lane<float>& values) noexcept {
    float best = values[0];
    for (int lane = 1; lane < Lanes; ++lane) best = values[lane] > best ? values[lane] : best;
    return best;
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE std::uint32_t reduce_max(
      const per_lane<std::uint32_t>& values) noexcept {
    std::uint32_t best = values[0];
    for (int lane = 1; lane < Lanes; ++lane) best = values[lane] > best ? values[lane] : best;
    return best;
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE int reduce_min(const per_lane<int>& values) noexcept {
    int best = values[0];
    for (int lane = 1; lane < Lanes; ++lane) best = values[lane] < best ? values[lane] : best;
    return best;
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE int reduce_sum(const per_lane<int>& values) noexcept {
    int sum = values[0];
    for (int lane = 1; lane < Lanes; ++lane) sum += values[lane];
    return sum;
  }

  template <class T>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE T broadcast(const per_lane<T>& values, int lane) noexcept {
    return values[lane];
  }
};

/// How often a loop runs: `Max`, known to the compiler, where loops are unrolled, else `count`.
/// Stands in for an int.
template <bool Unrolled, int Max>
struct loop_count {
  int count;
  // NOLINTNEXTLINE(google-explicit-constructor)
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE constexpr operator int() const noexcept { return count; }
};
template <int Max>
struct loop_count<true, Max> {
  // NOLINTNEXTLINE(google-explicit-constructor)
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE constexpr loop_count(int) noexcept {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE constexpr operator int() const noexcept { return Max; }
};

/// One lane's share of a row of experts: its slots, `MaxRows` times. Expert e is in row e / 32.
template <class T, int MaxRows, int Slots>
struct expert_block {
  T at[MaxRows][Slots];
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
