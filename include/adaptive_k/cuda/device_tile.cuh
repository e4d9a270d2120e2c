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

/// Every lane of the warp must take part in every operation. `ByLogitOnly` leaves out selection by
/// bias and groups. A lane's slots are chunks of what one load of 16 bytes brings; neighbouring
/// lanes hold neighbouring chunks, so that a warp's load is one stretch of memory.
template <int Lanes, int RowWidth, bool ByLogitOnly, class Logit>
struct device_tile {
  static_assert(Lanes >= 1 && Lanes <= 32 && (Lanes & (Lanes - 1)) == 0 && Lanes <= RowWidth,
                "lanes must be a power of two up to the row's width");
  using logit_type = Logit;
  static constexpr int lanes = Lanes;
  static constexpr int row_width = RowWidth;
  static constexpr int slots_per_lane = RowWidth / Lanes;
  static constexpr int most_a_load = 16 / static_cast<int>(sizeof(Logit));
  static constexpr int chunk = slots_per_lane < most_a_load ? slots_per_lane : most_a_load;
  static constexpr int chunks = slots_per_lane / chunk;
  static constexpr bool unrolled = true;
  static constexpr bool by_logit_only = ByLogitOnly;
  static constexpr bool keeps_pairs = ByLogitOnly && sizeof(Logit) == 2 && chunk >= 2;
  static constexpr unsigned whole_warp = 0xFFFFFFFFu;

  template <class T>
  struct per_lane {
    T value;
    __device__ ADAPTIVE_K_INLINE T& operator[](int) noexcept { return value; }
    __device__ ADAPTIVE_K_INLINE const T& operator[](int) const noexcept { return value; }
  };

  /// 16-bit logits as loaded, two in a word, and whether all of the warp's are finite.
  template <int MaxRows>
  struct row_cache {
    std::uint32_t pairs[keeps_pairs ? MaxRows : 1][keeps_pairs ? slots_per_lane / 2 : 1];
    bool all_finite;
  };

  __device__ static ADAPTIVE_K_INLINE int lane() noexcept {
    return static_cast<int>(threadIdx.x) & (Lanes - 1);
  }
  __device__ static ADAPTIVE_K_INLINE constexpr int expert_at(int lane, int row,
                                                              int slot) noexcept {
    return row * RowWidth + slot / chunk * (Lanes * chunk) + lane * chunk + slot % chunk;
  }
  __device__ static ADAPTIVE_K_INLINE constexpr int owner_of(int expert) noexcept {
    return expert / chunk % Lanes;
  }

  template <class F>
  __device__ static ADAPTIVE_K_INLINE void for_each_lane(F f) noexcept {
    f(lane());
  }

  template <class T, class Combine>
  __device__ static ADAPTIVE_K_INLINE T reduce(T value, Combine combine) noexcept {
    ADAPTIVE_K_UNROLL
    for (int offset = 1; offset < Lanes; offset *= 2)
      value = combine(value, __shfl_xor_sync(whole_warp, value, offset));
    return value;
  }

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
  __device__ static ADAPTIVE_K_INLINE float reduce_max(const per_lane<float>& values) noexcept {
    return reduce(values.value, [](float a, float b) { return math::larger(a, b); });
  }
  __device__ static ADAPTIVE_K_INLINE std::uint32_t reduce_max(
      const per_lane<std::uint32_t>& values) noexcept {
    return reduce(values.value, [](std::uint32_t a, std::uint32_t b) { return a > b ? a : b; });
  }
  __device__ static ADAPTIVE_K_INLINE int reduce_min(const per_lane<int>& values) noexcept {
    return reduce(values.value, [](int a, int b) { return a < b ? a : b; });
  }
  __device__ static ADAPTIVE_K_INLINE int reduce_sum(const per_lane<int>& values) noexcept {
    return reduce(values.value, [](int a, int b) { return a + b; });
  }

  template <class T>
  __device__ static ADAPTIVE_K_INLINE T broadcast(const per_lane<T>& values, int lane) noexcept {
    return __shfl_sync(whole_warp, values.value, lane, Lanes);
  }
};

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
