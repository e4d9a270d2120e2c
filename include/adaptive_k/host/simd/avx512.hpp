// 16 floats in a register: the value type of core/math.hpp for AVX-512.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>
#include <cstring>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

// Functions for instructions that the build does not assume cannot be forced into core/'s
// templates, which are compiled for the build's own target. They need no force: they are inlined
// where the templates were, into a function for this target.
#if ADAPTIVE_K_BUILT_FOR_AVX512
#define ADAPTIVE_K_AVX512
#define ADAPTIVE_K_AVX512_INLINE ADAPTIVE_K_INLINE
#else
#define ADAPTIVE_K_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")))
#define ADAPTIVE_K_AVX512_INLINE ADAPTIVE_K_AVX512 inline
#endif

/// The first lanes of a register, by a plain copy: g++ 12 warns of its own cast.
template <class Part, class Whole>
ADAPTIVE_K_AVX512_INLINE Part low_part(Whole whole) noexcept {
  Part part;
  std::memcpy(&part, &whole, sizeof part);
  return part;
}

struct avx512_f32;

struct avx512_mask {
  __mmask16 bits;

  friend ADAPTIVE_K_AVX512_INLINE avx512_mask operator|(avx512_mask a, avx512_mask b) noexcept {
    return {static_cast<__mmask16>(a.bits | b.bits)};
  }
  friend ADAPTIVE_K_AVX512_INLINE avx512_mask operator&(avx512_mask a, avx512_mask b) noexcept {
    return {static_cast<__mmask16>(a.bits & b.bits)};
  }
  static ADAPTIVE_K_AVX512_INLINE bool any(avx512_mask m) noexcept { return m.bits != 0; }
  static ADAPTIVE_K_AVX512_INLINE bool all(avx512_mask m) noexcept { return m.bits == 0xFFFFu; }
  static ADAPTIVE_K_AVX512_INLINE std::uint32_t to_bits(avx512_mask m) noexcept { return m.bits; }
};

/// Unsigned 32-bit integers.
struct avx512_u32 {
  using f32 = avx512_f32;
  using u32 = avx512_u32;
  __m512i value;

  avx512_u32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_AVX512_INLINE avx512_u32(__m512i v) noexcept : value(v) {}
  ADAPTIVE_K_AVX512_INLINE avx512_u32(std::uint32_t v) noexcept
      : value(_mm512_set1_epi32(static_cast<int>(v))) {}
  ADAPTIVE_K_AVX512_INLINE avx512_u32(int v) noexcept : value(_mm512_set1_epi32(v)) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_AVX512_INLINE u32 operator+(u32 a, u32 b) noexcept {
    return _mm512_add_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX512_INLINE u32 operator-(u32 a, u32 b) noexcept {
    return _mm512_sub_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX512_INLINE u32 operator&(u32 a, u32 b) noexcept {
    return _mm512_and_si512(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX512_INLINE u32 operator|(u32 a, u32 b) noexcept {
    return _mm512_or_si512(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX512_INLINE u32 operator^(u32 a, u32 b) noexcept {
    return _mm512_xor_si512(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX512_INLINE u32 operator<<(u32 a, int count) noexcept {
    return _mm512_maskz_slli_epi32(0xFFFF, a.value, static_cast<unsigned>(count));
  }
  friend ADAPTIVE_K_AVX512_INLINE avx512_mask operator==(u32 a, u32 b) noexcept {
    return {_mm512_cmpeq_epu32_mask(a.value, b.value)};
  }
  friend ADAPTIVE_K_AVX512_INLINE avx512_mask operator<(u32 a, u32 b) noexcept {
    return {_mm512_cmplt_epu32_mask(a.value, b.value)};
  }
  friend ADAPTIVE_K_AVX512_INLINE avx512_mask operator>(u32 a, u32 b) noexcept {
    return {_mm512_cmpgt_epu32_mask(a.value, b.value)};
  }
  static ADAPTIVE_K_AVX512_INLINE u32 maximum(u32 a, u32 b) noexcept {
    return _mm512_maskz_max_epu32(0xFFFF, a.value, b.value);
  }
  static ADAPTIVE_K_AVX512_INLINE u32 minimum(u32 a, u32 b) noexcept {
    return _mm512_maskz_min_epu32(0xFFFF, a.value, b.value);
  }
  static ADAPTIVE_K_AVX512_INLINE u32 select(avx512_mask m, u32 a, u32 b) noexcept {
    return _mm512_mask_blend_epi32(m.bits, b.value, a.value);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_AVX512_INLINE u32 replace_low(u32 a, u32 low, u32 index) noexcept {
    return _mm512_ternarylogic_epi32(a.value, low.value, index.value, 0xBA);
  }
  static ADAPTIVE_K_AVX512_INLINE u32 load(const std::uint32_t* from) noexcept {
    return _mm512_loadu_si512(from);
  }
  static ADAPTIVE_K_AVX512_INLINE void store(std::uint32_t* to, u32 a) noexcept {
    _mm512_storeu_si512(to, a.value);
  }
  static ADAPTIVE_K_AVX512_INLINE std::uint32_t first(u32 a) noexcept {
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(low_part<__m128i>(a.value)));
  }
  /// The number of each lane.
  static ADAPTIVE_K_AVX512_INLINE u32 lane() noexcept {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
};

struct avx512_f32 {
  using integers = avx512_u32;
  using u32 = avx512_u32;
  using mask = avx512_mask;
  using f32 = avx512_f32;
  static constexpr int lanes = 16;
  __m512 value;

  avx512_f32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_AVX512_INLINE avx512_f32(__m512 v) noexcept : value(v) {}
  ADAPTIVE_K_AVX512_INLINE avx512_f32(float v) noexcept : value(_mm512_set1_ps(v)) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_AVX512_INLINE f32 operator+(f32 a, f32 b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_AVX512_INLINE f32 operator-(f32 a, f32 b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_AVX512_INLINE f32 operator*(f32 a, f32 b) noexcept { return a.value * b.value; }
  friend ADAPTIVE_K_AVX512_INLINE f32 operator-(f32 a) noexcept {
    return from_bits(to_bits(a) ^ 0x80000000u);
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator==(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_EQ_OQ)};
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator!=(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_NEQ_UQ)};
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator<(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ)};
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator<=(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_LE_OQ)};
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator>(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_GT_OQ)};
  }
  friend ADAPTIVE_K_AVX512_INLINE mask operator>=(f32 a, f32 b) noexcept {
    return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_GE_OQ)};
  }

  static ADAPTIVE_K_AVX512_INLINE f32 fma(f32 a, f32 b, f32 c) noexcept {
    return _mm512_fmadd_ps(a.value, b.value, c.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 divide(f32 a, f32 b) noexcept { return a.value / b.value; }
  static ADAPTIVE_K_AVX512_INLINE f32 sqrt(f32 a) noexcept {
    // Not by the compiler's own: clang may estimate it under -funsafe-math-optimizations.
    __m512 root;
    __asm__("vsqrtps %1, %0" : "=v"(root) : "v"(a.value));
    return root;
  }
  static ADAPTIVE_K_AVX512_INLINE f32 maximum(f32 a, f32 b) noexcept {
    return _mm512_maskz_max_ps(0xFFFF, a.value, b.value);  // a > b ? a : b, for NaN too
  }
  static ADAPTIVE_K_AVX512_INLINE f32 minimum(f32 a, f32 b) noexcept {
    return _mm512_maskz_min_ps(0xFFFF, a.value, b.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 abs(f32 a) noexcept {
    return from_bits(to_bits(a) & 0x7FFFFFFFu);
  }
  static ADAPTIVE_K_AVX512_INLINE u32 to_bits(f32 a) noexcept {
    return _mm512_castps_si512(a.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 from_bits(u32 a) noexcept {
    return _mm512_castsi512_ps(a.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 from_integer(u32 a) noexcept {
    return _mm512_maskz_cvtepi32_ps(0xFFFF, a.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 select(mask m, f32 a, f32 b) noexcept {
    return _mm512_mask_blend_ps(m.bits, b.value, a.value);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 gather(const float* table, u32 index) noexcept {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xFFFF, index.value, table, 4);
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_AVX512_INLINE u32 to_order(f32 a) noexcept {
    const __m512i bits = _mm512_castps_si512(a.value);
    const __m512i sign = _mm512_maskz_srai_epi32(0xFFFF, bits, 31);
    return _mm512_ternarylogic_epi32(bits, sign, _mm512_set1_epi32(INT32_MIN), 0x1E);
  }

  static ADAPTIVE_K_AVX512_INLINE f32 load(const float* from) noexcept {
    return _mm512_loadu_ps(from);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 load(const bfloat16* from) noexcept {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return from_bits(u32(_mm512_maskz_cvtepu16_epi32(0xFFFF, halves)) << 16);
  }
  static ADAPTIVE_K_AVX512_INLINE f32 load(const float16* from) noexcept {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_maskz_cvtph_ps(0xFFFF, halves);
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_AVX512_INLINE f32 load_first(const float* from, int count) noexcept {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
  }
  static ADAPTIVE_K_AVX512_INLINE void store(float* to, f32 a) noexcept {
    _mm512_storeu_ps(to, a.value);
  }

  /// Quarters of four floats, from rows 0, 4, 8, 12.
  static ADAPTIVE_K_AVX512_INLINE f32 load_quarters(const float* from,
                                                    std::int64_t stride) noexcept {
    __m512 a = _mm512_maskz_broadcast_f32x4(0xFFFF, _mm_loadu_ps(from));
    a = _mm512_mask_broadcast_f32x4(a, 0x00F0, _mm_loadu_ps(from + 4 * stride));
    a = _mm512_mask_broadcast_f32x4(a, 0x0F00, _mm_loadu_ps(from + 8 * stride));
    return _mm512_mask_broadcast_f32x4(a, 0xF000, _mm_loadu_ps(from + 12 * stride));
  }
  static ADAPTIVE_K_AVX512_INLINE void store_quarters(float* to, std::int64_t stride,
                                                      f32 a) noexcept {
    _mm_storeu_ps(to, low_part<__m128>(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 1));
    _mm_storeu_ps(to + 8 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 2));
    _mm_storeu_ps(to + 12 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 3));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static ADAPTIVE_K_AVX512_INLINE void transpose_quarters(f32 (&v)[4]) noexcept {
    const __m512 a = _mm512_maskz_unpacklo_ps(0xFFFF, v[0].value, v[1].value);
    const __m512 b = _mm512_maskz_unpackhi_ps(0xFFFF, v[0].value, v[1].value);
    const __m512 c = _mm512_maskz_unpacklo_ps(0xFFFF, v[2].value, v[3].value);
    const __m512 d = _mm512_maskz_unpackhi_ps(0xFFFF, v[2].value, v[3].value);
    v[0] = _mm512_maskz_shuffle_ps(0xFFFF, a, c, 0x44);
    v[1] = _mm512_maskz_shuffle_ps(0xFFFF, a, c, 0xEE);
    v[2] = _mm512_maskz_shuffle_ps(0xFFFF, b, d, 0x44);
    v[3] = _mm512_maskz_shuffle_ps(0xFFFF, b, d, 0xEE);
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_AVX512_INLINE std::int64_t sum_truncated(f32 a) noexcept {
    const __m256 high = _mm512_maskz_extractf32x8_ps(0xFF, a.value, 1);
    const __m512i low_sums = _mm512_maskz_cvttps_epi64(0xFF, low_part<__m256>(a.value));
    const __m512i sums = _mm512_add_epi64(low_sums, _mm512_maskz_cvttps_epi64(0xFF, high));
    std::int64_t each[8];
    _mm512_storeu_si512(each, sums);
    std::int64_t sum = 0;
    for (const std::int64_t one : each) sum += one;
    return sum;
  }
  static ADAPTIVE_K_AVX512_INLINE float first(f32 a) noexcept { return a.value[0]; }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static ADAPTIVE_K_AVX512_INLINE f32 shuffle_xor(f32 a) noexcept {
    constexpr __mmask16 whole = 0xFFFF;
    if constexpr (Distance == 1) return _mm512_maskz_permute_ps(whole, a.value, 0xB1);
    if constexpr (Distance == 2) return _mm512_maskz_permute_ps(whole, a.value, 0x4E);
    if constexpr (Distance == 4) return _mm512_maskz_shuffle_f32x4(whole, a.value, a.value, 0xB1);
    if constexpr (Distance == 8) return _mm512_maskz_shuffle_f32x4(whole, a.value, a.value, 0x4E);
    return a;
  }
};

/// Runs Body<avx512>::run in a function compiled for AVX-512.
struct avx512 {
  using f32 = avx512_f32;
  using narrow = avx2;  // for rows that fit its vectors
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) ADAPTIVE_K_AVX512 static auto run(
      Arguments... arguments) noexcept {
    return Body<avx512>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
