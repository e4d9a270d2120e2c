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

struct avx2_reals;

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
struct avx2_words {
  using reals = avx2_reals;
  using words = avx2_words;
  __m256i value;

  avx2_words() = default;
  ADAPTIVE_K_AVX2_INLINE avx2_words(__m256i v) noexcept : value(v) {}
  ADAPTIVE_K_AVX2_INLINE avx2_words(std::uint32_t v) noexcept
      : value(_mm256_set1_epi32(static_cast<int>(v))) {}
  ADAPTIVE_K_AVX2_INLINE avx2_words(int v) noexcept : value(_mm256_set1_epi32(v)) {}

  friend ADAPTIVE_K_AVX2_INLINE words operator+(words a, words b) noexcept {
    return _mm256_add_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE words operator-(words a, words b) noexcept {
    return _mm256_sub_epi32(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE words operator&(words a, words b) noexcept {
    return _mm256_and_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE words operator|(words a, words b) noexcept {
    return _mm256_or_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE words operator^(words a, words b) noexcept {
    return _mm256_xor_si256(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE words operator<<(words a, int count) noexcept {
    return _mm256_slli_epi32(a.value, count);
  }
  /// Each lane by its own count; 0 from 32 on.
  static ADAPTIVE_K_AVX2_INLINE words shift_left(words a, words count) noexcept {
    return _mm256_sllv_epi32(a.value, count.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator==(words a, words b) noexcept {
    return {_mm256_cmpeq_epi32(a.value, b.value)};
  }
  /// Of integers below 2^31: there is only a signed comparison.
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator>(words a, words b) noexcept {
    return {_mm256_cmpgt_epi32(a.value, b.value)};
  }
  friend ADAPTIVE_K_AVX2_INLINE avx2_mask operator<(words a, words b) noexcept { return b > a; }
  /// a < b for any integers, b not 0.
  static ADAPTIVE_K_AVX2_INLINE avx2_mask unsigned_less(words a, words b) noexcept {
    return smaller(a, b - words(1)) == a;
  }
  static ADAPTIVE_K_AVX2_INLINE words larger(words a, words b) noexcept {
    return _mm256_max_epu32(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE words smaller(words a, words b) noexcept {
    return _mm256_min_epu32(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE words select(avx2_mask m, words a, words b) noexcept {
    return _mm256_blendv_epi8(b.value, a.value, m.bits);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_AVX2_INLINE words replace_low(words a, words low, words index) noexcept {
    return _mm256_or_si256(_mm256_andnot_si256(low.value, a.value), index.value);
  }
  /// (~a & high) | index
  static ADAPTIVE_K_AVX2_INLINE words invert_high(words a, words high, words index) noexcept {
    return _mm256_or_si256(_mm256_andnot_si256(a.value, high.value), index.value);
  }
  /// ~a & b
  static ADAPTIVE_K_AVX2_INLINE words and_not(words a, words b) noexcept {
    return _mm256_andnot_si256(a.value, b.value);
  }
  /// a | (b & c)
  static ADAPTIVE_K_AVX2_INLINE words add_bits(words a, words b, words c) noexcept {
    return a | (b & c);
  }
  static ADAPTIVE_K_AVX2_INLINE words load(const std::uint32_t* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static ADAPTIVE_K_AVX2_INLINE void store(std::uint32_t* to, words a) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE std::uint32_t first(words a) noexcept {
    return static_cast<std::uint32_t>(_mm256_cvtsi256_si32(a.value));
  }
  /// `a` from lane First on, `b` before.
  template <int First>
  static ADAPTIVE_K_AVX2_INLINE words lanes_from(words a, words b) noexcept {
    return _mm256_blend_epi32(b.value, a.value, 0xFF << First & 0xFF);
  }
  /// The number of each lane.
  static ADAPTIVE_K_AVX2_INLINE words lane() noexcept {
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  }
};

struct avx2_reals {
  using integers = avx2_words;
  using words = avx2_words;
  using mask = avx2_mask;
  using reals = avx2_reals;
  static constexpr int lanes = 8;
  __m256 value;

  avx2_reals() = default;
  ADAPTIVE_K_AVX2_INLINE avx2_reals(__m256 v) noexcept : value(v) {}
  ADAPTIVE_K_AVX2_INLINE avx2_reals(float v) noexcept : value(_mm256_set1_ps(v)) {}

  friend ADAPTIVE_K_AVX2_INLINE reals operator+(reals a, reals b) noexcept {
    return _mm256_add_ps(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE reals operator-(reals a, reals b) noexcept {
    return _mm256_sub_ps(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE reals operator*(reals a, reals b) noexcept {
    return _mm256_mul_ps(a.value, b.value);
  }
  friend ADAPTIVE_K_AVX2_INLINE reals operator-(reals a) noexcept {
    return from_bits(to_bits(a) ^ 0x80000000u);
  }
  template <int Predicate>
  static ADAPTIVE_K_AVX2_INLINE mask compare(reals a, reals b) noexcept {
    return {_mm256_castps_si256(_mm256_cmp_ps(a.value, b.value, Predicate))};
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator==(reals a, reals b) noexcept {
    return compare<_CMP_EQ_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator!=(reals a, reals b) noexcept {
    return compare<_CMP_NEQ_UQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator<(reals a, reals b) noexcept {
    return compare<_CMP_LT_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator<=(reals a, reals b) noexcept {
    return compare<_CMP_LE_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator>(reals a, reals b) noexcept {
    return compare<_CMP_GT_OQ>(a, b);
  }
  friend ADAPTIVE_K_AVX2_INLINE mask operator>=(reals a, reals b) noexcept {
    return compare<_CMP_GE_OQ>(a, b);
  }

  static ADAPTIVE_K_AVX2_INLINE reals fma(reals a, reals b, reals c) noexcept {
    return _mm256_fmadd_ps(a.value, b.value, c.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals divide(reals a, reals b) noexcept {
    return _mm256_div_ps(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals square_root(reals a) noexcept {
    return _mm256_sqrt_ps(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals larger(reals a, reals b) noexcept {
    return _mm256_max_ps(a.value, b.value);  // a > b ? a : b, for NaN too
  }
  static ADAPTIVE_K_AVX2_INLINE reals smaller(reals a, reals b) noexcept {
    return _mm256_min_ps(a.value, b.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals magnitude(reals a) noexcept {
    return from_bits(to_bits(a) & 0x7FFFFFFFu);
  }
  static ADAPTIVE_K_AVX2_INLINE words to_bits(reals a) noexcept {
    return _mm256_castps_si256(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals from_bits(words a) noexcept {
    return _mm256_castsi256_ps(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals from_integer(words a) noexcept {
    return _mm256_cvtepi32_ps(a.value);
  }
  /// Rounded towards zero, below 2^31.
  static ADAPTIVE_K_AVX2_INLINE words truncate(reals a) noexcept {
    return _mm256_cvttps_epi32(a.value);
  }
  static ADAPTIVE_K_AVX2_INLINE reals select(mask m, reals a, reals b) noexcept {
    return _mm256_blendv_ps(b.value, a.value, _mm256_castsi256_ps(m.bits));
  }
  static ADAPTIVE_K_AVX2_INLINE reals look_up(const float* table, words index) noexcept {
    const __m256 whole = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), table, index.value, whole, 4);
  }
  /// Row index[lane] of columns[][lanes], each lane in its own column.
  static ADAPTIVE_K_AVX2_INLINE reals pick(const float* columns, words index) noexcept {
    return look_up(columns, (index << 3) + words::lane());
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_AVX2_INLINE words to_order(reals a) noexcept {
    const __m256i bits = _mm256_castps_si256(a.value);
    const __m256i sign = _mm256_srai_epi32(bits, 31);
    return _mm256_xor_si256(bits, _mm256_or_si256(sign, _mm256_set1_epi32(INT32_MIN)));
  }

  static ADAPTIVE_K_AVX2_INLINE reals load(const float* from) noexcept {
    return _mm256_loadu_ps(from);
  }
  static ADAPTIVE_K_AVX2_INLINE reals load(const bfloat16* from) noexcept {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return from_bits(words(_mm256_cvtepu16_epi32(halves)) << 16);
  }
  static ADAPTIVE_K_AVX2_INLINE reals load(const float16* from) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static ADAPTIVE_K_AVX2_INLINE void store(float* to, reals a) noexcept {
    _mm256_storeu_ps(to, a.value);
  }

  /// Quarters of four floats, from rows 0 and 4.
  static ADAPTIVE_K_AVX2_INLINE reals load_quarters(const float* from,
                                                    std::int64_t stride) noexcept {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)),
                                _mm_loadu_ps(from + 4 * stride), 1);
  }
  static ADAPTIVE_K_AVX2_INLINE void store_quarters(float* to, std::int64_t stride,
                                                    reals a) noexcept {
    _mm_storeu_ps(to, _mm256_castps256_ps128(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm256_extractf128_ps(a.value, 1));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static ADAPTIVE_K_AVX2_INLINE void transpose_quarters(reals (&v)[4]) noexcept {
    const __m256 a = _mm256_unpacklo_ps(v[0].value, v[1].value);
    const __m256 b = _mm256_unpackhi_ps(v[0].value, v[1].value);
    const __m256 c = _mm256_unpacklo_ps(v[2].value, v[3].value);
    const __m256 d = _mm256_unpackhi_ps(v[2].value, v[3].value);
    v[0] = _mm256_shuffle_ps(a, c, 0x44);
    v[1] = _mm256_shuffle_ps(a, c, 0xEE);
    v[2] = _mm256_shuffle_ps(b, d, 0x44);
    v[3] = _mm256_shuffle_ps(b, d, 0xEE);
  }
  /// Interleaves two vectors: a0 b0 a1 b1 ... in a, the rest in b.
  static ADAPTIVE_K_AVX2_INLINE void interleave(reals& a, reals& b) noexcept {
    const __m256 low = _mm256_unpacklo_ps(a.value, b.value);
    const __m256 high = _mm256_unpackhi_ps(a.value, b.value);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_AVX2_INLINE std::int64_t sum_truncated(reals a) noexcept {
    float each[lanes];
    store(each, a);
    std::int64_t sum = 0;
    for (const float one : each) sum += static_cast<std::int64_t>(one);
    return sum;
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_AVX2_INLINE reals load_first(const float* from, int count) noexcept {
    const __m256i read = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), words::lane().value);
    return _mm256_maskload_ps(from, read);
  }
  /// Sums of neighbours, by half: a0 + a1, a2 + a3, b0 + b1, b2 + b3, then those of lanes 4 to 7.
  /// Not by the one instruction, which is slower.
  static ADAPTIVE_K_AVX2_INLINE reals add_neighbours(reals a, reals b) noexcept {
    return _mm256_add_ps(_mm256_shuffle_ps(a.value, b.value, 0x88),
                         _mm256_shuffle_ps(a.value, b.value, 0xDD));
  }
  /// Lane `Lane` of each half, in all of that half.
  template <int Lane>
  static ADAPTIVE_K_AVX2_INLINE reals each_first(reals a) noexcept {
    return _mm256_permute_ps(a.value, Lane * 0x55);
  }
  static ADAPTIVE_K_AVX2_INLINE float first(reals a) noexcept { return _mm256_cvtss_f32(a.value); }
  /// `a` from lane First on, `b` before.
  template <int First>
  static ADAPTIVE_K_AVX2_INLINE reals lanes_from(reals a, reals b) noexcept {
    return _mm256_blend_ps(b.value, a.value, 0xFF << First & 0xFF);
  }
  /// The first Count lanes, of 4 bytes each.
  template <int Count>
  static ADAPTIVE_K_AVX2_INLINE void store_first(void* to, reals a) noexcept {
    std::memcpy(to, &a.value, Count * sizeof(float));
  }
  /// `a`, worked out at this place: of two chains of operations the longer one is to begin first,
  /// where a compiler might put it off.
  static ADAPTIVE_K_AVX2_INLINE reals now(reals a) noexcept {
    __asm__("" : "+x"(a.value));
    return a;
  }
  /// The place of the lowest bit of a, which is not 0.
  static ADAPTIVE_K_AVX2_INLINE std::uint64_t lowest_bit(std::uint64_t a) noexcept {
#if ADAPTIVE_K_BUILT_FOR_AVX2 && !defined(__BMI__)
    return static_cast<std::uint64_t>(__builtin_ctzll(a));
#else
    return _tzcnt_u64(a);
#endif
  }
  /// One lane in all.
  static ADAPTIVE_K_AVX2_INLINE reals broadcast(reals a, std::uint32_t lane) noexcept {
    return _mm256_permutevar8x32_ps(a.value, _mm256_set1_epi32(static_cast<int>(lane)));
  }
  static ADAPTIVE_K_AVX2_INLINE reals broadcast(const float* from) noexcept {
    __m256 a = _mm256_broadcast_ss(from);
    __asm__("" : "+x"(a));  // else g++ would add up single floats and broadcast each sum
    return a;
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static ADAPTIVE_K_AVX2_INLINE reals exchange(reals a) noexcept {
    if constexpr (Distance == 1) return _mm256_permute_ps(a.value, 0xB1);
    if constexpr (Distance == 2) return _mm256_permute_ps(a.value, 0x4E);
    if constexpr (Distance == 4) return _mm256_permute2f128_ps(a.value, a.value, 0x01);
    return a;
  }
};

/// Runs Body<avx2>::run in a function compiled for AVX2.
struct avx2 {
  using reals = avx2_reals;
  using row_reals = avx2_reals;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) ADAPTIVE_K_AVX2 static auto run(
      Arguments... arguments) noexcept {
    return Body<avx2>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
