// 16 floats in a register: the value type of core/math.hpp for AVX-512.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/vector_operators.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if ADAPTIVE_K_BUILT_FOR_AVX512
#define ADAPTIVE_K_AVX512_BEGIN
#define ADAPTIVE_K_AVX512_END
#else
#define ADAPTIVE_K_AVX512_BEGIN \
  ADAPTIVE_K_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#define ADAPTIVE_K_AVX512_END ADAPTIVE_K_TARGET_END
#endif

ADAPTIVE_K_NAMESPACE_BEGIN
ADAPTIVE_K_AVX512_BEGIN

namespace detail {

// g++ 12 warns of intrinsics without a mask, and of its own cast to the first lanes of a register.
inline constexpr __mmask16 all16 = 0xFFFF;
template <class Part, class Whole>
Part low_part(Whole whole) {
  Part part;
  std::memcpy(&part, &whole, sizeof part);
  return part;
}

/// Runs Body<avx512>::run in a function compiled for AVX-512.
struct avx512 {
  using f32_vec = struct avx512_f32_vec;
  using u32_vec = struct avx512_u32_vec;
  using mask = struct avx512_mask;
  static constexpr int lanes = 16;
  using narrow = avx2;  // for rows that fit its vectors
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) static auto run(Arguments... arguments) noexcept {
    return Body<avx512>::run(arguments...);
  }
};

struct avx512_mask : mask_operators<avx512> {
  __mmask16 bits;

  avx512_mask() = default;
  explicit avx512_mask(__mmask16 b) : bits(b) {}
  static std::uint32_t to_bits(avx512_mask m) { return m.bits; }
};

struct avx512_u32_vec : u32_operators<avx512> {
  avx512_u32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx512_u32_vec(__m512i v) { value = reinterpret_cast<vector>(v); }
  avx512_u32_vec(std::uint32_t v) : u32_vec(_mm512_set1_epi32(static_cast<int>(v))) {}
  avx512_u32_vec(int v) : u32_vec(_mm512_set1_epi32(v)) {}
  // NOLINTEND(google-explicit-constructor)
  __m512i raw() const { return reinterpret_cast<__m512i>(value); }

  static mask equal(u32_vec a, u32_vec b) {
    return mask(_mm512_cmpeq_epu32_mask(a.raw(), b.raw()));
  }
  static mask greater(u32_vec a, u32_vec b) {
    return mask(_mm512_cmpgt_epu32_mask(a.raw(), b.raw()));
  }
  static u32_vec maximum(u32_vec a, u32_vec b) {
    return _mm512_maskz_max_epu32(all16, a.raw(), b.raw());
  }
  static u32_vec minimum(u32_vec a, u32_vec b) {
    return _mm512_maskz_min_epu32(all16, a.raw(), b.raw());
  }
  static u32_vec select(mask m, u32_vec a, u32_vec b) {
    return _mm512_mask_blend_epi32(m.bits, b.raw(), a.raw());
  }
  /// (a & ~low) | index
  static u32_vec replace_low(u32_vec a, u32_vec low, u32_vec index) {
    return _mm512_ternarylogic_epi32(a.raw(), low.raw(), index.raw(), 0xBA);
  }
  /// The number of each lane.
  static u32_vec lane() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
};

struct avx512_f32_vec : f32_operators<avx512> {
  avx512_f32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx512_f32_vec(__m512 v) { value = v; }
  avx512_f32_vec(float v) { value = _mm512_set1_ps(v); }
  // NOLINTEND(google-explicit-constructor)

  template <int Predicate>
  static mask compare(f32_vec a, f32_vec b) {
    return mask(_mm512_cmp_ps_mask(a.value, b.value, Predicate));
  }
  static mask equal(f32_vec a, f32_vec b) { return compare<_CMP_EQ_OQ>(a, b); }
  static mask differ(f32_vec a, f32_vec b) { return compare<_CMP_NEQ_UQ>(a, b); }
  static mask greater(f32_vec a, f32_vec b) { return compare<_CMP_GT_OQ>(a, b); }
  static mask at_least(f32_vec a, f32_vec b) { return compare<_CMP_GE_OQ>(a, b); }

  static f32_vec fma(f32_vec a, f32_vec b, f32_vec c) {
    return _mm512_fmadd_ps(a.value, b.value, c.value);
  }
  static f32_vec sqrt(f32_vec a) {
    // Not by the compiler's own: clang may estimate it under -funsafe-math-optimizations.
    __m512 root;
    __asm__("vsqrtps %1, %0" : "=v"(root) : "v"(a.value));
    return root;
  }
  /// a > b ? a : b, for NaN too.
  static f32_vec maximum(f32_vec a, f32_vec b) {
    return _mm512_maskz_max_ps(all16, a.value, b.value);
  }
  static f32_vec minimum(f32_vec a, f32_vec b) {
    return _mm512_maskz_min_ps(all16, a.value, b.value);
  }
  static f32_vec select(mask m, f32_vec a, f32_vec b) {
    return _mm512_mask_blend_ps(m.bits, b.value, a.value);
  }
  static f32_vec gather(const float* table, u32_vec index) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), all16, index.raw(), table, 4);
  }

  using f32_operators::load;
  static f32_vec load(const bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return from_bits(u32_vec(_mm512_maskz_cvtepu16_epi32(all16, halves)) << 16);
  }
  static f32_vec load(const float16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_maskz_cvtph_ps(all16, halves);
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static f32_vec load_first(const float* from, int count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
  }
  /// Quarters of four floats, from rows 0, 4, 8, 12.
  static f32_vec load_quarters(const float* from, std::int64_t stride) {
    __m512 a = _mm512_maskz_broadcast_f32x4(all16, _mm_loadu_ps(from));
    a = _mm512_mask_broadcast_f32x4(a, 0x00F0, _mm_loadu_ps(from + 4 * stride));
    a = _mm512_mask_broadcast_f32x4(a, 0x0F00, _mm_loadu_ps(from + 8 * stride));
    return _mm512_mask_broadcast_f32x4(a, 0xF000, _mm_loadu_ps(from + 12 * stride));
  }
  static void store_quarters(float* to, std::int64_t stride, f32_vec a) {
    _mm_storeu_ps(to, low_part<__m128>(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 1));
    _mm_storeu_ps(to + 8 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 2));
    _mm_storeu_ps(to + 12 * stride, _mm512_maskz_extractf32x4_ps(0xF, a.value, 3));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static void transpose_quarters(f32_vec (&v)[4]) {
    const __m512 a = _mm512_maskz_unpacklo_ps(all16, v[0].value, v[1].value);
    const __m512 b = _mm512_maskz_unpackhi_ps(all16, v[0].value, v[1].value);
    const __m512 c = _mm512_maskz_unpacklo_ps(all16, v[2].value, v[3].value);
    const __m512 d = _mm512_maskz_unpackhi_ps(all16, v[2].value, v[3].value);
    v[0] = _mm512_maskz_shuffle_ps(all16, a, c, 0x44);
    v[1] = _mm512_maskz_shuffle_ps(all16, a, c, 0xEE);
    v[2] = _mm512_maskz_shuffle_ps(all16, b, d, 0x44);
    v[3] = _mm512_maskz_shuffle_ps(all16, b, d, 0xEE);
  }
  /// Sum of the lanes, each truncated to an integer.
  static std::int64_t sum_truncated(f32_vec a) {
    const __m256 high = _mm512_maskz_extractf32x8_ps(0xFF, a.value, 1);
    const __m512i low_sums = _mm512_maskz_cvttps_epi64(0xFF, low_part<__m256>(a.value));
    const __m512i sums = _mm512_add_epi64(low_sums, _mm512_maskz_cvttps_epi64(0xFF, high));
    std::int64_t each[8];
    _mm512_storeu_si512(each, sums);
    std::int64_t sum = 0;
    for (const std::int64_t one : each) sum += one;
    return sum;
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static f32_vec shuffle_xor(f32_vec a) {
    if constexpr (Distance == 1) return _mm512_maskz_permute_ps(all16, a.value, 0xB1);
    if constexpr (Distance == 2) return _mm512_maskz_permute_ps(all16, a.value, 0x4E);
    if constexpr (Distance == 4) return _mm512_maskz_shuffle_f32x4(all16, a.value, a.value, 0xB1);
    if constexpr (Distance == 8) return _mm512_maskz_shuffle_f32x4(all16, a.value, a.value, 0x4E);
    return a;
  }
};

}  // namespace detail

ADAPTIVE_K_AVX512_END
ADAPTIVE_K_NAMESPACE_END

#endif
