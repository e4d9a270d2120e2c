// A tile: the lanes that decide one token together, and how expert data lies in them.
//
// The sums over experts have one shape on every machine: expert e adds into slot e mod 32, in order
// of e, and the 32 slots are summed as a binary tree, neighbours first. A tile of L lanes gives
// each lane 32 / L neighbouring slots, so the tree's first levels are in a lane and its last across
// lanes, and the bits do not depend on L.
//
// Tile, as the rest of core/ uses it:
//   lanes, slots_per_lane          compile-time ints
//   per_lane<T>                    one T in each lane, indexed by lane
//   for_each_lane(f)               f(lane) in every lane
//   reduce_add(per_lane<float>)    sum over lanes, neighbours first; the same value everywhere
//   reduce_max / reduce_min / reduce_or  exact, so of any shape
//   broadcast(per_lane<T>, lane)   one lane's value, everywhere
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline constexpr int reduction_slots = 32;

/// `Lanes` lanes as arrays: the host twin of a warp tile. One lane is what the router runs; more
/// are there to show that the bits do not depend on them.
template <int Lanes>
struct host_warp {
  static_assert(Lanes >= 1 && Lanes <= reduction_slots && (Lanes & (Lanes - 1)) == 0,
                "lanes must be a power of two up to 32");
  static constexpr int lanes = Lanes;
  static constexpr int slots_per_lane = reduction_slots / Lanes;

  template <class T>
  struct per_lane {
    T values[Lanes];
    ADAPTIVE_K_HD ADAPTIVE_K_INLINE T& operator[](int lane) noexcept { return values[lane]; }
    ADAPTIVE_K_HD ADAPTIVE_K_INLINE const T& operator[](int lane) const noexcept {
      return values[lane];
    }
  };

  template <class F>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE void for_each_lane(F f) noexcept {
    for (int lane = 0; lane < Lanes; ++lane) f(lane);
  }

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE float reduce_add(per_lane<float> sums) noexcept {
    for (int count = Lanes / 2; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    return sums[0];
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

  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE std::uint32_t reduce_or(
      const per_lane<std::uint32_t>& values) noexcept {
    std::uint32_t bits = values[0];
    for (int lane = 1; lane < Lanes; ++lane) bits |= values[lane];
    return bits;
  }

  template <class T>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE T broadcast(const per_lane<T>& values, int lane) noexcept {
    return values[lane];
  }
};

/// One lane's share of a row of experts: its slots, `MaxRows` times. Expert e is in row e / 32.
template <class T, int MaxRows, int Slots>
struct expert_block {
  T at[MaxRows][Slots];
};

/// Sum of one lane's slots, neighbours first; destroys them.
template <int Slots>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float fold_slots(float (&slots)[Slots]) noexcept {
  for (int count = Slots / 2; count > 0; count /= 2)
    for (int i = 0; i < count; ++i) slots[i] = slots[2 * i] + slots[2 * i + 1];
  return slots[0];
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
