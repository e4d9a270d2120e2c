// 8 floats in a register: the value type of core/math.hpp for AVX2 with FMA.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_AVX2 || ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>
#include <cstring>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

// See avx512.hpp on why these are not forced inline where the build does not assume AVX2.
#if ADAPTIVE_K_BUILT_FOR_AVX2
#define ADAPTIVE_K_AVX2
#define ADAPTIVE_K_AVX2_INLINE ADAPTIVE_K_INLINE
#else
#define ADAPTIVE_K_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
#define ADAPTIVE_K_AVX2_INLINE ADAPTIVE_K_AVX2 inline
#endif

struct avx2_f32;

struct avx2_mask {
  __m256i bits;  ///< all ones or all zeros in each lane

  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator|(avx2_mask a, avx2_mask b) noexcept {
    return {_mm256_or_si256(a.bits, b.bits)};
  }
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator&(avx2_mask a, avx2_mask b) noexcept {
    return {_mm256_and_si256(a.bits, b.bits)};
  }
  static ADAPTIVE_K_AVX2_INLINE std::uint32_t to_bits(avx2_mask m) noexcept {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.bits)));
  }
  static ADAPTIVE_K_AVX2_INLINE bool any(avx2_mask m) noexcept { return to_bits(m) != 0; }
  static ADAPTIVE_K_AVX2_INLINE bool all(avx2_mask m) noexcept { return to_bits(m) == 0xFFu; }
};

/// Unsigned 32-bit integers.
struct avx2_u32 {
  using f32 = avx2_f32;
  using u32 = avx2_u32;
  __m256i value;

  avx2_u32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_AVX2_INLINE avx2_u32(__m256i v) noexcept : value(v) {}
  ADAPTIVE_K_AVX2_INLINE avx2_u32(std::uint32_t v) noexcept
      : value(_mm256_set1_epi32(static_cast<int>(v))) {}
  ADAPTIVE_K_AVX2_INLINE avx2_u32(int v) noexcept : value(_mm256_set1_epi32(v)) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_AVX2_INLINE u32 operator+(u32 a, u32 b) noexcept {
    return _mm256_add_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE u32 operator-(u32 a, u32 b) noexcept {
    return _mm256_sub_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE u32 operator&(u32 a, u32 b) noexcept {
    return _mm256_and_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE u32 operator|(u32 a, u32 b) noexcept {
    return _mm256_or_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE u32 operator^(u32 a, u32 b) noexcept {
    return _mm256_xor_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE u32 operator<<(u32 a, int count) noexcept {
    return _mm256_slli_epi32(a.value, count);
  }
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator==(u32 a, u32 b) noexcept {
    return {_mm256_cmpeq_epi32(a.value, b.value)};
  }
  /// Of integers below 2^31: there is only a signed comparison.
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator>(u32 a, u32 b) noexcept {
    return {_mm256_cmpgt_epi32(a.value, b.value)};
  }
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator<(u32 a, u32 b) noexcept { return b > a; }
  static ADAPTIVE_K_AVX2_INLINE u32 maximum(u32 a, u32 b) noexcept {
    return _mm256_max_epu32(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE u32 minimum(u32 a, u32 b) noexcept {
    return _mm256_min_epu32(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE u32 select(avx2_mask m, u32 a, u32 b) noexcept {
    return _mm256_blendv_epi8(b.value, a.value, m.bits);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_AVX2_INLINE u32 replace_low(u32 a, u32 low, u32 index) noexcept {
    return _mm256_or_si256(_mm256_andnot_si256(low.value, a.value), index.value);
  }
  static ADAPTIVE_K_AVX2_INLINE u32 load(const std::uint32_t* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static ADAPTIVE_K_AVX2_INLINE void store(std::uint32_t* to, u32 a) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE std::uint32_t first(u32 a) noexcept {
    return static_cast<std::uint32_t>(_mm256_cvtsi256_si32(a.value));
  }
  /// The number of each lane.
  static ADAPTIVE_K_AVX2_INLINE u32 lane() noexcept {
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  }
};

struct avx2_f32 {
  using integers = avx2_u32;
  using u32 = avx2_u32;
  using mask = avx2_mask;
  using f32 = avx2_f32;
  static constexpr int lanes = 8;
  __m256 value;

  avx2_f32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_AVX2_INLINE avx2_f32(__m256 v) noexcept : value(v) {}
  ADAPTIVE_K_AVX2_INLINE avx2_f32(float v) noexcept : value(_mm256_set1_ps(v)) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_AVX2_INLINE f32 operator+(f32 a, f32 b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_AVX2_INLINE f32 operator-(f32 a, f32 b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_AVX2_INLINE f32 operator*(f32 a, f32 b) noexcept { return a.value * b.value; }
  friend ADAPTIVE_K_AVX2_INLINE f32 operator-(f32 a) noexcept {
    return from_bits(to_bits(a) ^ 0x80000000u);
  }
  template <int Predicate>
  static ADAPTIVE_K_AVX2_INLINE mask compare(f32 a, f32 b) noexcept {
    return {_mm256_castps_si256(_mm256_cmp_ps(a.value, b.value, Predicate))};
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator==(f32 a, f32 b) noexcept {
    return compare<_CMP_EQ_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator!=(f32 a, f32 b) noexcept {
    return compare<_CMP_NEQ_UQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator<(f32 a, f32 b) noexcept {
    return compare<_CMP_LT_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator<=(f32 a, f32 b) noexcept {
    return compare<_CMP_LE_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator>(f32 a, f32 b) noexcept {
    return compare<_CMP_GT_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator>=(f32 a, f32 b) noexcept {
    return compare<_CMP_GE_OQ>(a, b);
  }

  static ADAPTIVE_K_AVX2_INLINE f32 fma(f32 a, f32 b, f32 c) noexcept {
    return _mm256_fmadd_ps(a.value, b.value, c.value);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 divide(f32 a, f32 b) noexcept { return a.value / b.value; }
  static ADAPTIVE_K_AVX2_INLINE f32 sqrt(f32 a) noexcept {
    // Not by the compiler's own: clang may estimate it under -funsafe-math-optimizations.
    __m256 root;
    __asm__("vsqrtps %1, %0" : "=x"(root) : "x"(a.value));
    return root;
  }
  static ADAPTIVE_K_AVX2_INLINE f32 maximum(f32 a, f32 b) noexcept {
    return _mm256_max_ps(a.value, b.value);  // a > b ? a : b, for NaN too
  }
  static ADAPTIVE_K_AVX2_INLINE f32 minimum(f32 a, f32 b) noexcept {
    return _mm256_min_ps(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 abs(f32 a) noexcept {
    return from_bits(to_bits(a) & 0x7FFFFFFFu);
  }
  static ADAPTIVE_K_AVX2_INLINE u32 to_bits(f32 a) noexcept { return _mm256_castps_si256(a.value); }
  static ADAPTIVE_K_AVX2_INLINE f32 from_bits(u32 a) noexcept {
    return _mm256_castsi256_ps(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 from_integer(u32 a) noexcept {
    return _mm256_cvtepi32_ps(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 select(mask m, f32 a, f32 b) noexcept {
    return _mm256_blendv_ps(b.value, a.value, _mm256_castsi256_ps(m.bits));
  }
  static ADAPTIVE_K_AVX2_INLINE f32 gather(const float* table, u32 index) noexcept {
    const __m256 whole = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), table, index.value, whole, 4);
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_AVX2_INLINE u32 to_order(f32 a) noexcept {
    const __m256i bits = _mm256_castps_si256(a.value);
    const __m256i sign = _mm256_srai_epi32(bits, 31);
    return _mm256_xor_si256(bits, _mm256_or_si256(sign, _mm256_set1_epi32(INT32_MIN)));
  }

  static ADAPTIVE_K_AVX2_INLINE f32 load(const float* from) noexcept {
    return _mm256_loadu_ps(from);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 load(const bfloat16* from) noexcept {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return from_bits(u32(_mm256_cvtepu16_epi32(halves)) << 16);
  }
  static ADAPTIVE_K_AVX2_INLINE f32 load(const float16* from) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static ADAPTIVE_K_AVX2_INLINE void store(float* to, f32 a) noexcept {
    _mm256_storeu_ps(to, a.value);
  }

  /// Quarters of four floats, from rows 0 and 4.
  static ADAPTIVE_K_AVX2_INLINE f32 load_quarters(const float* from, std::int64_t stride) noexcept {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)),
                                _mm_loadu_ps(from + 4 * stride), 1);
  }
  static ADAPTIVE_K_AVX2_INLINE void store_quarters(float* to, std::int64_t stride,
                                                    f32 a) noexcept {
    _mm_storeu_ps(to, _mm256_castps256_ps128(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm256_extractf128_ps(a.value, 1));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static ADAPTIVE_K_AVX2_INLINE void transpose_quarters(f32 (&v)[4]) noexcept {
    const __m256 a = _mm256_unpacklo_ps(v[0].value, v[1].value);
    const __m256 b = _mm256_unpackhi_ps(v[0].value, v[1].value);
    const __m256 c = _mm256_unpacklo_ps(v[2].value, v[3].value);
    const __m256 d = _mm256_unpackhi_ps(v[2].value, v[3].value);
    v[0] = _mm256_shuffle_ps(a, c, 0x44);
    v[1] = _mm256_shuffle_ps(a, c, 0xEE);
    v[2] = _mm256_shuffle_ps(b, d, 0x44);
    v[3] = _mm256_shuffle_ps(b, d, 0xEE);
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_AVX2_INLINE std::int64_t sum_truncated(f32 a) noexcept {
    float each[lanes];
    store(each, a);
    std::int64_t sum = 0;
    for (const float one : each) sum += static_cast<std::int64_t>(one);
    return sum;
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_AVX2_INLINE f32 load_first(const float* from, int count) noexcept {
    const __m256i read = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), u32::lane().value);
    return _mm256_maskload_ps(from, read);
  }
  static ADAPTIVE_K_AVX2_INLINE float first(f32 a) noexcept { return _mm256_cvtss_f32(a.value); }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static ADAPTIVE_K_AVX2_INLINE f32 shuffle_xor(f32 a) noexcept {
    if constexpr (Distance == 1) return _mm256_permute_ps(a.value, 0xB1);
    if constexpr (Distance == 2) return _mm256_permute_ps(a.value, 0x4E);
    if constexpr (Distance == 4) return _mm256_permute2f128_ps(a.value, a.value, 0x01);
    return a;
  }
};

/// Runs Body<avx2>::run in a function compiled for AVX2.
struct avx2 {
  using f32 = avx2_f32;
  using narrow = avx2;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) ADAPTIVE_K_AVX2 static auto run(
      Arguments... arguments) noexcept {
    return Body<avx2>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
