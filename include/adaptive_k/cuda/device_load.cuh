// How a warp tile takes in a row: wide loads, and its largest logit and finiteness on the way.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/cuda/device_tile.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// One row of logits and the widest load that its address, stride and length allow.
template <class Logit>
struct device_row {
  const Logit* data;  ///< [E]
  int load_width;     ///< elements a load: 1, or a power of two that divides E
};

/// Two 16-bit logits in a word, the first in its low half.
template <class Logit>
struct logit_pair;

template <>
struct logit_pair<bfloat16> {
  static constexpr std::uint32_t minus_infinities = 0xFF80FF80u;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  static constexpr bool has_arithmetic = true;
#else
  static constexpr bool has_arithmetic = false;
#endif
  __device__ static ADAPTIVE_K_INLINE float low(std::uint32_t pair) noexcept {
    return __uint_as_float(pair << 16);
  }
  __device__ static ADAPTIVE_K_INLINE float high(std::uint32_t pair) noexcept {
    return __uint_as_float(pair & 0xFFFF0000u);
  }
  /// pair * factor + addend, each half rounded once.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t fma(std::uint32_t pair, std::uint32_t factor,
                                                        std::uint32_t addend) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(factor), "r"(addend));
#endif
    return result;
  }
  static constexpr std::uint32_t ones = 0x3F803F80u;
};

template <>
struct logit_pair<float16> {
  static constexpr std::uint32_t minus_infinities = 0xFC00FC00u;
  static constexpr bool has_arithmetic = true;
  __device__ static ADAPTIVE_K_INLINE float low(std::uint32_t pair) noexcept {
    return to_float(float16{static_cast<std::uint16_t>(pair)});
  }
  __device__ static ADAPTIVE_K_INLINE float high(std::uint32_t pair) noexcept {
    return to_float(float16{static_cast<std::uint16_t>(pair >> 16)});
  }
  __device__ static ADAPTIVE_K_INLINE std::uint32_t fma(std::uint32_t pair, std::uint32_t factor,
                                                        std::uint32_t addend) noexcept {
    std::uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(factor), "r"(addend));
    return result;
  }
  static constexpr std::uint32_t ones = 0x3C003C00u;
};

namespace load_detail {
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

/// `Width` neighbouring experts of every chunk with one load each.
template <class Logit>
inline constexpr std::uint32_t minus_infinity = logit_pair<Logit>::minus_infinities;
template <>
inline constexpr std::uint32_t minus_infinity<float> = 0xFF800000u;

/// The i-th word of a load: one logit or two.
template <class Logit, class Tile, int MaxRows>
__device__ ADAPTIVE_K_INLINE void keep_word(token_state<Tile, MaxRows>& token, int row, int slot,
                                            int i, std::uint32_t word) noexcept {
  if constexpr (sizeof(Logit) == 4) {
    token.logits[0].at[row][slot + i] = __uint_as_float(word);
  } else {
    token.logits[0].at[row][slot + 2 * i] = logit_pair<Logit>::low(word);
    token.logits[0].at[row][slot + 2 * i + 1] = logit_pair<Logit>::high(word);
    if constexpr (Tile::keeps_pairs) token.cache.pairs[row][slot / 2 + i] = word;
  }
}

/// NaN as soon as a logit was not finite: inf * 0 and NaN * 0 are NaN.
struct poison {
  std::uint32_t pair = 0;
  float single = 0.0f;

  template <class Logit>
  __device__ ADAPTIVE_K_INLINE void see(std::uint32_t word) noexcept {
    if constexpr (sizeof(Logit) == 4) {
      single = math::fma(__uint_as_float(word), 0.0f, single);
    } else if constexpr (logit_pair<Logit>::has_arithmetic) {
      pair = logit_pair<Logit>::fma(word, 0, pair);
    } else {
      single = math::fma(logit_pair<Logit>::low(word), 0.0f, single);
      single = math::fma(logit_pair<Logit>::high(word), 0.0f, single);
    }
  }
  __device__ ADAPTIVE_K_INLINE bool seen() const noexcept {
    return single != single || (pair & 0x7FFF7FFFu) != 0;
  }
};

/// `Width` neighbouring experts of every chunk with one load each. Slots past E get -inf.
template <int Width, class Tile, int MaxRows, class Logit>
__device__ ADAPTIVE_K_INLINE bool fetch_by(token_state<Tile, MaxRows>& token,
                                           const Logit* data) noexcept {
  constexpr int slots = Tile::slots_per_lane;
  poison nonfinite;
  const Logit* own = data + Tile::expert_at(Tile::lane(), 0, 0);
  ADAPTIVE_K_UNROLL
  for (int row = 0; row < MaxRows; ++row) {
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < slots; slot += Width) {
      const int offset = Tile::expert_at(0, row, slot);
      const bool exists = offset + Tile::expert_at(Tile::lane(), 0, 0) < token.num_experts;
      if constexpr (Width * sizeof(Logit) >= 4) {
        using wide = typename words<Width * sizeof(Logit)>::type;
        std::uint32_t bits[sizeof(wide) / 4];
        if (exists) {
          const wide loaded = __ldg(reinterpret_cast<const wide*>(own + offset));
          std::memcpy(bits, &loaded, sizeof loaded);
          ADAPTIVE_K_UNROLL
          for (const std::uint32_t word : bits) nonfinite.template see<Logit>(word);
        } else {
          ADAPTIVE_K_UNROLL
          for (std::uint32_t& word : bits) word = minus_infinity<Logit>;
        }
        ADAPTIVE_K_UNROLL
        for (int i = 0; i < static_cast<int>(sizeof(wide) / 4); ++i)
          keep_word<Logit>(token, row, slot, i, bits[i]);
      } else {
        std::uint32_t bits = minus_infinity<Logit> & 0xFFFFu;
        if (exists) {
          bits = own[offset].bits;
          nonfinite.template see<Logit>(bits);
        }
        token.logits[0].at[row][slot] = logit_pair<Logit>::low(bits);
        if constexpr (Tile::keeps_pairs) {
          std::uint32_t& pair = token.cache.pairs[row][slot / 2];
          pair = slot % 2 == 0 ? bits : pair | bits << 16;
        }
      }
    }
  }
  return nonfinite.seen();
}
}  // namespace load_detail

/// The device's core `load_logits`.
template <int MaxRows, int Lanes, int RowWidth, bool ByLogitOnly, class Logit>
__device__ ADAPTIVE_K_INLINE void load_logits(
    const device_tile<Lanes, RowWidth, ByLogitOnly, Logit>& tile,
    token_state<device_tile<Lanes, RowWidth, ByLogitOnly, Logit>, MaxRows>& token, int num_experts,
    const device_row<Logit>& source) noexcept {
  using tile_type = device_tile<Lanes, RowWidth, ByLogitOnly, Logit>;
  constexpr int slots = tile_type::slots_per_lane;
  constexpr int half = tile_type::chunk >= 2 ? tile_type::chunk / 2 : 1;
  token.num_experts = num_experts;
  bool nonfinite;
  if (source.load_width >= tile_type::chunk)
    nonfinite = load_detail::fetch_by<tile_type::chunk>(token, source.data);
  else if (source.load_width >= half)
    nonfinite = load_detail::fetch_by<half>(token, source.data);
  else
    nonfinite = load_detail::fetch_by<1>(token, source.data);
  token.cache.all_finite = !__any_sync(tile_type::whole_warp, nonfinite);
  if (!token.cache.all_finite) {
    detail::examine_logits(tile, token);
    return;
  }
  float largest[slots];
  ADAPTIVE_K_UNROLL
  for (int row = 0; row < MaxRows; ++row) {
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < slots; ++slot) {
      const float logit = token.logits[0].at[row][slot];
      largest[slot] = row == 0 ? logit : math::larger(logit, largest[slot]);
    }
  }
  ADAPTIVE_K_UNROLL
  for (int slot = 1; slot < slots; ++slot) largest[0] = math::larger(largest[slot], largest[0]);
  token.largest = tile.reduce_max({largest[0]});
  token.has_finite = true;
  token.has_nonfinite = false;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
