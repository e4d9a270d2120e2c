// The warp tile: `Lanes` neighbouring lanes of a warp decide one token, their experts in registers.
// The device twin of core/host_warp.hpp; what differs is only how lanes talk and how they select.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/core/top_k.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

using detail::expert_block;
using detail::expert_keys;
using detail::keyed_expert;
using detail::token_state;

/// Every lane of the warp must take part in every operation. `ByLogitOnly` leaves out selection by
/// bias and groups; then logits of 16 bits (`NarrowLogits`) and their ids fit 32-bit keys.
template <int Lanes, int RowWidth, bool ByLogitOnly, bool NarrowLogits>
struct device_tile {
  static_assert(Lanes >= 1 && Lanes <= 32 && (Lanes & (Lanes - 1)) == 0 && Lanes <= RowWidth,
                "lanes must be a power of two up to the row's width");
  static constexpr int lanes = Lanes;
  static constexpr int row_width = RowWidth;
  static constexpr int slots_per_lane = RowWidth / Lanes;
  static constexpr bool unrolled = true;
  static constexpr bool by_logit_only = ByLogitOnly;
  static constexpr bool narrow_keys = ByLogitOnly && NarrowLogits;
  static constexpr unsigned whole_warp = 0xFFFFFFFFu;

  template <class T>
  struct per_lane {
    T value;
    __device__ ADAPTIVE_K_INLINE T& operator[](int) noexcept { return value; }
    __device__ ADAPTIVE_K_INLINE const T& operator[](int) const noexcept { return value; }
  };

  __device__ static ADAPTIVE_K_INLINE int lane() noexcept {
    return static_cast<int>(threadIdx.x) & (Lanes - 1);
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

  __device__ static ADAPTIVE_K_INLINE float reduce_add(const per_lane<float>& sums) noexcept {
    return reduce(sums.value, [](float a, float b) { return a + b; });
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

/// One row of logits and the widest load that its address, stride and length allow.
template <class Logit>
struct device_row {
  const Logit* data;  ///< [E]
  int load_width;     ///< elements a load: 1, or a power of two that divides E
};

namespace detail_load {
template <int Bytes>
struct words;
template <>
struct words<4> {
  using type = unsigned;
};
template <>
struct words<8> {
  using type = uint2;
};
template <>
struct words<16> {
  using type = uint4;
};
}  // namespace detail_load

/// `Width` neighbouring experts of every chunk with one load each.
template <int Width, class Tile, int MaxRows, class Logit>
__device__ ADAPTIVE_K_INLINE void fetch_by(token_state<Tile, MaxRows>& token,
                                           const Logit* data) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  ADAPTIVE_K_UNROLL
  for (int row = 0; row < MaxRows; ++row) {
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < slots; slot += Width) {
      const int expert = row * Tile::row_width + Tile::lane() * slots + slot;
      Logit chunk[Width];
      if constexpr (Width * sizeof(Logit) >= 4) {
        using word = typename detail_load::words<Width * sizeof(Logit)>::type;
        word bits = {};
        if (expert < token.num_experts) bits = __ldg(reinterpret_cast<const word*>(data + expert));
        std::memcpy(chunk, &bits, sizeof bits);
      } else {
        if (expert < token.num_experts) chunk[0] = data[expert];
      }
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < Width; ++i)
        token.logits[0].at[row][slot + i] =
            expert < token.num_experts ? to_float(chunk[i]) : -math::infinity;
    }
  }
}

template <int MaxRows, int Lanes, int RowWidth, bool ByLogitOnly, bool NarrowLogits, class Logit>
__device__ ADAPTIVE_K_INLINE void fetch_logits(
    const device_tile<Lanes, RowWidth, ByLogitOnly, NarrowLogits>&,
    token_state<device_tile<Lanes, RowWidth, ByLogitOnly, NarrowLogits>, MaxRows>& token,
    const device_row<Logit>& source) noexcept {
  constexpr int slots = RowWidth / Lanes;
  constexpr int most = 16 / static_cast<int>(sizeof(Logit));
  constexpr int widest = slots < most ? slots : most;
  constexpr int half = widest >= 2 ? widest / 2 : 1;
  if (source.load_width >= widest)
    fetch_by<widest>(token, source.data);
  else if (source.load_width >= half)
    fetch_by<half>(token, source.data);
  else
    fetch_by<1>(token, source.data);
}

/// Selection in registers: sorts chunks of each lane's keys, keeps the best MaxTopK of them, and
/// merges the lanes' lists. The keys carry the inverted id, so they are all different.
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

/// 32-bit keys: a 16-bit logit's order key has 19 significant bits, the id takes the other 13.
struct narrow_key {
  using type = std::uint32_t;
  static constexpr std::uint32_t id_mask = 0x1FFFu;
  __device__ static ADAPTIVE_K_INLINE type pack(std::uint32_t key, int expert) noexcept {
    const std::uint32_t packed = (key & ~id_mask) | (id_mask - static_cast<std::uint32_t>(expert));
    return key == adaptive_k::detail::no_expert_key ? 0u : packed;
  }
  __device__ static ADAPTIVE_K_INLINE keyed_expert unpack(type packed) noexcept {
    const std::uint32_t high = packed & ~id_mask;
    const std::uint32_t key = (high & 0x80000000u) != 0 ? high : high | id_mask;
    return {high == 0 ? adaptive_k::detail::nan_key : key,
            static_cast<int>(id_mask - (packed & id_mask))};
  }
};

/// 64-bit keys: the whole order key above the inverted id.
struct wide_key {
  using type = unsigned long long;
  __device__ static ADAPTIVE_K_INLINE type pack(std::uint32_t key, int expert) noexcept {
    const type packed =
        static_cast<type>(key) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(expert));
    return key == adaptive_k::detail::no_expert_key ? 0u : packed;
  }
  __device__ static ADAPTIVE_K_INLINE keyed_expert unpack(type packed) noexcept {
    return {static_cast<std::uint32_t>(packed >> 32),
            static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(packed))};
  }
};

template <int MaxRows, int MaxTopK, int Lanes, int RowWidth, bool ByLogitOnly, bool NarrowLogits>
__device__ ADAPTIVE_K_INLINE void select_experts(
    const device_tile<Lanes, RowWidth, ByLogitOnly, NarrowLogits>&,
    const expert_keys<device_tile<Lanes, RowWidth, ByLogitOnly, NarrowLogits>, MaxRows>& keys, int,
    int, keyed_expert (&best)[MaxTopK]) noexcept {
  using tile = device_tile<Lanes, RowWidth, ByLogitOnly, NarrowLogits>;
  using coding = std::conditional_t<tile::narrow_keys, narrow_key, wide_key>;
  using list = sorted_list<typename coding::type, MaxTopK>;
  constexpr int slots = tile::slots_per_lane;
  constexpr int count = MaxRows * slots;
  list winners;
  ADAPTIVE_K_UNROLL
  for (int start = 0; start < count; start += MaxTopK) {
    list chunk;
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < MaxTopK; ++i) {
      const int at = start + i;
      const int row = at / slots;
      const int slot = at % slots;
      chunk.at[i] = at < count ? coding::pack(keys[0].at[row][slot],
                                              row * RowWidth + tile::lane() * slots + slot)
                               : 0u;
    }
    chunk.sort();
    if (start == 0)
      winners = chunk;
    else
      winners.keep_best([&](int i) { return chunk.at[i]; });
  }
  ADAPTIVE_K_UNROLL
  for (int offset = 1; offset < Lanes; offset *= 2)
    winners.keep_best(
        [&](int i) { return __shfl_xor_sync(tile::whole_warp, winners.at[i], offset); });
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j) best[j] = coding::unpack(winners.at[j]);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
