// The warp tile: `Lanes` neighbouring lanes of a warp decide one token, their experts in registers.
// The device twin of core/host_warp.hpp; what differs is only how lanes talk, load and select.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

using detail::expert_keys;
using detail::keyed_expert;
using detail::slot_sums;
using detail::token_state;

/// Every lane of the warp must take part in every operation. A lane's slots are chunks of what one
/// load of 16 bytes brings; neighbouring lanes hold neighbouring chunks, so that a warp's load is
/// one stretch of memory.
template <int Lanes, int RowWidth, class Logit>
struct device_tile {
  static_assert(Lanes >= 1 && Lanes <= 32 && (Lanes & (Lanes - 1)) == 0 && Lanes <= RowWidth,
                "lanes must be a power of two up to the row's width");
  /// How logits are stored.
  using logit_type = Logit;
  static constexpr int lanes = Lanes;                      ///< that decide one token together
  static constexpr int row_width = RowWidth;               ///< experts in a row of the tile
  static constexpr int slots_per_lane = RowWidth / Lanes;  ///< experts of a lane in a row
  /// Logits in a load of 16 bytes.
  static constexpr int most_a_load = 16 / static_cast<int>(sizeof(Logit));
  /// Experts of a lane that lie side by side.
  static constexpr int chunk = slots_per_lane < most_a_load ? slots_per_lane : most_a_load;
  static constexpr int chunks = slots_per_lane / chunk;  ///< of a lane in a row
  static constexpr bool unrolled = true;                 ///< loops over slots are
  static constexpr int words =
      (slots_per_lane * static_cast<int>(sizeof(Logit)) + 3) / 4;  ///< of 32 bits, in a row
  static constexpr unsigned whole_warp = 0xFFFFFFFFu;              ///< mask of all 32 lanes

  /// A value that every lane has its own of.
  template <class T>
  struct per_lane {
    T value;  ///< of this lane
    /// Of this lane, whichever is asked for.
    __device__ ADAPTIVE_K_INLINE T& operator[](int) noexcept { return value; }
    /// Of this lane, whichever is asked for.
    __device__ ADAPTIVE_K_INLINE const T& operator[](int) const noexcept { return value; }
  };

  /// This lane, 0..lanes - 1.
  __device__ static ADAPTIVE_K_INLINE int lane() noexcept {
    return static_cast<int>(threadIdx.x) & (Lanes - 1);
  }
  /// The expert at a lane's slot of a row.
  __device__ static ADAPTIVE_K_INLINE constexpr int expert_at(int lane, int row,
                                                              int slot) noexcept {
    return row * RowWidth + slot / chunk * (Lanes * chunk) + lane * chunk + slot % chunk;
  }
  /// The lane that has an expert.
  __device__ static ADAPTIVE_K_INLINE constexpr int owner_of(int expert) noexcept {
    return expert / chunk % Lanes;
  }

  /// Calls f(lane) in each lane.
  template <class F>
  __device__ static ADAPTIVE_K_INLINE void for_each_lane(F f) noexcept {
    f(lane());
  }

  /// `combine` over all lanes, in a fixed order, the same in each.
  template <class T, class Combine>
  __device__ static ADAPTIVE_K_INLINE T reduce(T value, Combine combine) noexcept {
    ADAPTIVE_K_UNROLL
    for (int offset = 1; offset < Lanes; offset *= 2)
      value = combine(value, __shfl_xor_sync(whole_warp, value, offset));
    return value;
  }

  /// The sum over lanes and slots, in the order of the host's.
  __device__ static ADAPTIVE_K_INLINE float sum_slots(
      const per_lane<slot_sums<slots_per_lane>>& sums) noexcept {
    float totals[chunks];
    ADAPTIVE_K_UNROLL
    for (int c = 0; c < chunks; ++c) {
      float part[chunk];
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < chunk; ++i) part[i] = sums.value.at[c * chunk + i];
      totals[c] = reduce(detail::fold_neighbours(part), [](float a, float b) { return a + b; });
    }
    return detail::fold_neighbours(totals);
  }
  /// The largest of all lanes, in each.
  __device__ static ADAPTIVE_K_INLINE float reduce_max(const per_lane<float>& values) noexcept {
    return reduce(values.value, [](float a, float b) { return math::maximum(a, b); });
  }
  /// The largest of all lanes, in each.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t reduce_max(
      const per_lane<std::uint32_t>& values) noexcept {
    return reduce(values.value, [](std::uint32_t a, std::uint32_t b) { return a > b ? a : b; });
  }
  /// The smallest of all lanes, in each.
  __device__ static ADAPTIVE_K_INLINE int reduce_min(const per_lane<int>& values) noexcept {
    return reduce(values.value, [](int a, int b) { return a < b ? a : b; });
  }
  /// The sum over all lanes, in each.
  __device__ static ADAPTIVE_K_INLINE int reduce_sum(const per_lane<int>& values) noexcept {
    return reduce(values.value, [](int a, int b) { return a + b; });
  }

  /// One lane's value, in each.
  template <class T>
  __device__ static ADAPTIVE_K_INLINE T broadcast(const per_lane<T>& values, int lane) noexcept {
    return __shfl_sync(whole_warp, values.value, lane, Lanes);
  }
};

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
