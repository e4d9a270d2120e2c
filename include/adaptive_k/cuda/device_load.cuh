// How a warp tile takes in a row: wide loads into words, and the words as logits.
#pragma once

#include <cstdint>
#include <cstring>

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

/// Arithmetic on what a 32-bit word holds: one fp32 logit, or two of 16 bits, the first in its low
/// half. `has_pair_arithmetic`: the architecture computes on both halves at once.
template <class Logit>
struct logit_word;

/// A float: a word each.
template <>
struct logit_word<float> {
  static constexpr int size = 1;                      ///< logits in a word
  static constexpr bool has_pair_arithmetic = false;  ///< whether two are worked on at once
  static constexpr std::uint32_t minus_infinity = 0xFF800000u;  ///< in every half
  /// The logit as a float.
  __device__ static ADAPTIVE_K_INLINE float at(std::uint32_t word, int) noexcept {
    return __uint_as_float(word);
  }
};

/// Two bfloat16 in a word.
template <>
struct logit_word<bfloat16> {
  static constexpr int size = 2;                                ///< logits in a word
  static constexpr std::uint32_t minus_infinity = 0xFF80FF80u;  ///< in every half
  static constexpr std::uint32_t lowest = 0xFF7FFF7Fu;          ///< of the finite ones
  static constexpr std::uint32_t one = 0x3F803F80u;             ///< in every half
  static constexpr std::uint32_t infinity_bits = 0x7F80u;  ///< of the exponent, in the lower half
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  static constexpr bool has_pair_arithmetic = true;
#else
  static constexpr bool has_pair_arithmetic = false;  ///< whether two are worked on at once
#endif
  /// Half 0 or 1 as a float.
  __device__ static ADAPTIVE_K_INLINE float at(std::uint32_t word, int half) noexcept {
    float logit;  // written as a float at once: no move between registers
    if (half == 0)
      asm("shl.b32 %0, %1, 16;" : "=f"(logit) : "r"(word));
    else
      asm("and.b32 %0, %1, 0xFFFF0000;" : "=f"(logit) : "r"(word));
    return logit;
  }
  /// a * b + c, each half rounded once.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t fma(std::uint32_t a, std::uint32_t b,
                                                        std::uint32_t c) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
#endif
    return result;
  }
  /// NaN where either is.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t maximum(std::uint32_t a,
                                                            std::uint32_t b) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
  }
  /// The smaller of each half; NaN where either is.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t minimum(std::uint32_t a,
                                                            std::uint32_t b) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
  }
};

/// Two float16 in a word.
template <>
struct logit_word<float16> {
  static constexpr int size = 2;                                ///< logits in a word
  static constexpr std::uint32_t minus_infinity = 0xFC00FC00u;  ///< in every half
  static constexpr std::uint32_t lowest = 0xFBFFFBFFu;          ///< of the finite ones
  static constexpr std::uint32_t one = 0x3C003C00u;             ///< in every half
  static constexpr std::uint32_t infinity_bits = 0x7C00u;  ///< of the exponent, in the lower half
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  static constexpr bool has_pair_arithmetic = true;
#else
  static constexpr bool has_pair_arithmetic = false;  ///< whether two are worked on at once
#endif
  /// Half 0 or 1 as a float.
  __device__ static ADAPTIVE_K_INLINE float at(std::uint32_t word, int half) noexcept {
    return to_float(float16{static_cast<std::uint16_t>(half == 0 ? word & 0xFFFFu : word >> 16)});
  }
  /// a * b + c of each half, rounded once.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t fma(std::uint32_t a, std::uint32_t b,
                                                        std::uint32_t c) noexcept {
    std::uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
  }
  /// The larger of each half; NaN where either is.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t maximum(std::uint32_t a,
                                                            std::uint32_t b) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
  }
  /// The smaller of each half; NaN where either is.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t minimum(std::uint32_t a,
                                                            std::uint32_t b) noexcept {
    std::uint32_t result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
  }
};

/// The least and the largest of a lane's logits; NaN where one of them is.
template <class Logit, bool Pairs>
class logit_range {
 public:
  /// How logits come.
  using word = logit_word<Logit>;
  /// Takes a word's logits in.
  __device__ ADAPTIVE_K_INLINE void see(std::uint32_t bits) noexcept {
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < word::size; ++i) {
      const float logit = word::at(bits, i);
      least_ = minimum(logit, least_);
      largest_ = maximum(logit, largest_);
    }
  }
  /// The smallest seen; NaN where one was.
  __device__ ADAPTIVE_K_INLINE float least() const noexcept { return least_; }
  /// The largest seen; NaN where one was.
  __device__ ADAPTIVE_K_INLINE float largest() const noexcept { return largest_; }

  /// The larger; NaN where either is.
  __device__ static ADAPTIVE_K_INLINE float maximum(float a, float b) noexcept {
    float result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
#else
    result = a > b || a != a ? a : b;
#endif
    return result;
  }
  /// The smaller; NaN where either is.
  __device__ static ADAPTIVE_K_INLINE float minimum(float a, float b) noexcept {
    float result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
#else
    result = a < b || a != a ? a : b;
#endif
    return result;
  }

 private:
  float least_ = math::largest_finite;
  float largest_ = -math::largest_finite;
};

/// The same, two at once.
template <class Logit>
class logit_range<Logit, true> {
 public:
  /// How logits come.
  using word = logit_word<Logit>;
  /// The one for single logits.
  using single = logit_range<Logit, false>;
  /// Takes a word's logits in.
  __device__ ADAPTIVE_K_INLINE void see(std::uint32_t bits) noexcept {
    least_ = word::minimum(bits, least_);
    largest_ = word::maximum(bits, largest_);
  }
  /// The smallest seen; NaN where one was.
  __device__ ADAPTIVE_K_INLINE float least() const noexcept {
    return single::minimum(word::at(least_, 0), word::at(least_, 1));
  }
  /// The largest seen; NaN where one was.
  __device__ ADAPTIVE_K_INLINE float largest() const noexcept {
    return single::maximum(word::at(largest_, 0), word::at(largest_, 1));
  }

 private:
  std::uint32_t least_ = word::lowest ^ 0x80008000u;
  std::uint32_t largest_ = word::lowest;
};

/// A lane's share of a row, as loaded; slots past E hold -inf.
template <class Tile, int MaxRows>
struct loaded_row {
  /// How logits are stored.
  using logit = typename Tile::logit_type;
  /// How they come.
  using word = logit_word<logit>;
  std::uint32_t words[MaxRows][Tile::words];  ///< this lane's logits
  float least;    ///< of this lane's logits, and `largest`; either is NaN where one of them is
  float largest;  ///< see least

  /// The logit of a slot, as a float.
  __device__ ADAPTIVE_K_INLINE float logit_at(int row, int slot) const noexcept {
    return word::at(words[row][slot / word::size], slot % word::size);
  }
};

namespace load_detail {
template <int Bytes>
struct wide_load;
template <>
struct wide_load<4> {
  using type = unsigned;
};
template <>
struct wide_load<8> {
  using type = uint2;
};
template <>
struct wide_load<16> {
  using type = uint4;
};

/// `Width` neighbouring logits with one load each. `Experts` is E where the compiler knows it, else
/// 0. `Shared`: the row lies in shared memory.
template <int Width, int Experts, bool Shared, class Tile, int MaxRows, class Logit>
__device__ ADAPTIVE_K_INLINE void fetch_by(loaded_row<Tile, MaxRows>& fetched, const Logit* data,
                                           int num_experts) noexcept {
  using word = logit_word<Logit>;
  const int lane_offset = Tile::expert_at(Tile::lane(), 0, 0);
  const Logit* own = data + lane_offset;
  logit_range<Logit, word::has_pair_arithmetic> range;
  ADAPTIVE_K_UNROLL
  for (int row = 0; row < MaxRows; ++row) {
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < Tile::slots_per_lane; slot += Width) {
      const int offset = Tile::expert_at(0, row, slot);
      const bool exists = Tile::expert_at(Tile::lanes - 1, row, slot) < Experts ||
                          offset + lane_offset < (Experts > 0 ? Experts : num_experts);
      std::uint32_t* to = &fetched.words[row][slot / word::size];
      if constexpr (Width * sizeof(Logit) >= 4) {
        using wide = typename wide_load<Width * sizeof(Logit)>::type;
        constexpr int count = static_cast<int>(sizeof(wide)) / 4;
        if (exists) {
          const wide* const from = reinterpret_cast<const wide*>(own + offset);
          const wide loaded = *from;  // __ldg would not be safe where launches overlap
          std::uint32_t bits[count];
          std::memcpy(bits, &loaded, sizeof loaded);
          ADAPTIVE_K_UNROLL
          for (int i = 0; i < count; ++i) {
            to[i] = bits[i];
            range.see(bits[i]);
          }
        } else {
          ADAPTIVE_K_UNROLL
          for (int i = 0; i < count; ++i) to[i] = word::minus_infinity;
        }
      } else {
        const std::uint32_t bits = exists ? own[offset].bits : word::minus_infinity & 0xFFFFu;
        if (exists) range.see(bits | bits << 16);
        *to = slot % 2 == 0 ? bits : *to | bits << 16;
      }
    }
  }
  fetched.least = range.least();
  fetched.largest = range.largest();
}
}  // namespace load_detail

/// `FullRow`: the E that is compiled for; others are served too.
template <int MaxRows, int FullRow, class Tile, bool Shared = false, class Logit>
__device__ ADAPTIVE_K_INLINE loaded_row<Tile, MaxRows> fetch_row(const device_row<Logit>& source,
                                                                 int num_experts) noexcept {
  constexpr int half = Tile::chunk >= 2 ? Tile::chunk / 2 : 1;
  constexpr int full_width = FullRow % Tile::chunk == 0 ? Tile::chunk : half;
  loaded_row<Tile, MaxRows> row;
  if (source.load_width >= full_width && num_experts == FullRow)
    load_detail::fetch_by<full_width, FullRow, Shared>(row, source.data, num_experts);
  else if (source.load_width >= Tile::chunk && !Shared)
    load_detail::fetch_by<Tile::chunk, 0, Shared>(row, source.data, num_experts);
  else if (source.load_width >= half)
    load_detail::fetch_by<half, 0, Shared>(row, source.data, num_experts);
  else
    load_detail::fetch_by<1, 0, Shared>(row, source.data, num_experts);
  return row;
}

/// Rows of a warp on their way in: copied as they lie, in loads of 16 bytes side by side, where the
/// tiles' own loads would fetch sectors twice.
template <class Tile, int MaxExperts>
struct staged_rows {
  /// How logits are stored.
  using logit = typename Tile::logit_type;
  /// A warp's rows.
  static constexpr int bytes = 32 / Tile::lanes * MaxExperts * static_cast<int>(sizeof(logit));
  static constexpr bool fit = bytes <= 4096;  ///< whether they are staged at all
  uint4 words[fit ? (bytes + 15) / 16 : 1];   ///< the rows, one behind the other

  /// `rows` rows of E logits from `data` on, which is 16-byte aligned; every lane takes part.
  __device__ ADAPTIVE_K_INLINE void copy_in(const logit* data, int rows, int num_experts) noexcept {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int count = rows * num_experts;
    constexpr int width = 16 / static_cast<int>(sizeof(logit));
    const int wide = count / width;
    __syncwarp();  // the round before may still read
    for (int i = lane; i < wide; i += 32) words[i] = reinterpret_cast<const uint4*>(data)[i];
    logit* const to = reinterpret_cast<logit*>(words);
    for (int i = wide * width + lane; i < count; i += 32) to[i] = data[i];
    __syncwarp();
  }
  /// A row that was staged.
  __device__ ADAPTIVE_K_INLINE const logit* row(int index, int num_experts) const noexcept {
    return reinterpret_cast<const logit*>(words) + index * num_experts;
  }
};

/// Unpacks a row into the state that core/ works on.
template <int MaxRows, class Tile>
__device__ ADAPTIVE_K_INLINE void unpack(const loaded_row<Tile, MaxRows>& row, int num_experts,
                                         token_state<Tile, MaxRows>& token) noexcept {
  token.num_experts = num_experts;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < MaxRows; ++r) {
    ADAPTIVE_K_UNROLL
    for (int slot = 0; slot < Tile::slots_per_lane; ++slot)
      token.logits[0].at[r][slot] = row.logit_at(r, slot);
  }
}

/// Core's `load_logits` for this tile.
template <int MaxRows, int Lanes, int RowWidth, class Logit>
__device__ ADAPTIVE_K_INLINE void load_logits(
    const device_tile<Lanes, RowWidth, Logit>& tile,
    token_state<device_tile<Lanes, RowWidth, Logit>, MaxRows>& token, int num_experts,
    const device_row<Logit>& source) noexcept {
  using tile_type = device_tile<Lanes, RowWidth, Logit>;
  unpack(fetch_row<MaxRows, MaxRows * RowWidth, tile_type>(source, num_experts), num_experts,
         token);
  detail::examine_logits(tile, token);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
