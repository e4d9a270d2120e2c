// 8 floats in a register: the value type of core/math.hpp for AVX2 with FMA.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/vector_operators.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_AVX2 || ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if ADAPTIVE_K_BUILT_FOR_AVX2
#define ADAPTIVE_K_AVX2_BEGIN
#define ADAPTIVE_K_AVX2_END
#else
#define ADAPTIVE_K_AVX2_BEGIN ADAPTIVE_K_TARGET_BEGIN("avx2,fma,f16c,bmi,bmi2")
#define ADAPTIVE_K_AVX2_END ADAPTIVE_K_TARGET_END
#endif

ADAPTIVE_K_NAMESPACE_BEGIN
ADAPTIVE_K_AVX2_BEGIN

namespace detail {

/// Runs Body<avx2>::run in a function compiled for AVX2.
struct avx2 {
  using f32_vec = struct avx2_f32_vec;
  using u32_vec = struct avx2_u32_vec;
  using mask = struct avx2_mask;
  static constexpr int lanes = 8;
  using narrow = avx2;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) static auto run(Arguments... arguments) noexcept {
    return Body<avx2>::run(arguments...);
  }
};

struct avx2_mask : mask_operators<avx2> {
  __m256i bits;  ///< all ones or all zeros in each lane

  avx2_mask() = default;
  explicit avx2_mask(__m256i b) : bits(b) {}
  static std::uint32_t to_bits(avx2_mask m) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.bits)));
  }
};

struct avx2_u32_vec : u32_operators<avx2> {
  avx2_u32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx2_u32_vec(__m256i v) { value = reinterpret_cast<vector>(v); }
  avx2_u32_vec(std::uint32_t v) : u32_vec(_mm256_set1_epi32(static_cast<int>(v))) {}
  avx2_u32_vec(int v) : u32_vec(_mm256_set1_epi32(v)) {}
  // NOLINTEND(google-explicit-constructor)
  __m256i raw() const { return reinterpret_cast<__m256i>(value); }

  static mask equal(u32_vec a, u32_vec b) { return mask(_mm256_cmpeq_epi32(a.raw(), b.raw())); }
  /// Of integers below 2^31: there is only a signed comparison.
  static mask greater(u32_vec a, u32_vec b) { return mask(_mm256_cmpgt_epi32(a.raw(), b.raw())); }
  static u32_vec maximum(u32_vec a, u32_vec b) { return _mm256_max_epu32(a.raw(), b.raw()); }
  static u32_vec minimum(u32_vec a, u32_vec b) { return _mm256_min_epu32(a.raw(), b.raw()); }
  static u32_vec select(mask m, u32_vec a, u32_vec b) {
    return _mm256_blendv_epi8(b.raw(), a.raw(), m.bits);
  }
  /// (a & ~low) | index
  static u32_vec replace_low(u32_vec a, u32_vec low, u32_vec index) {
    return _mm256_or_si256(_mm256_andnot_si256(low.raw(), a.raw()), index.raw());
  }
  /// The number of each lane.
  static u32_vec lane() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
};

struct avx2_f32_vec : f32_operators<avx2> {
  avx2_f32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx2_f32_vec(__m256 v) { value = v; }
  avx2_f32_vec(float v) { value = _mm256_set1_ps(v); }
  // NOLINTEND(google-explicit-constructor)

  template <int Predicate>
  static mask compare(f32_vec a, f32_vec b) {
    return mask(_mm256_castps_si256(_mm256_cmp_ps(a.value, b.value, Predicate)));
  }
  static mask equal(f32_vec a, f32_vec b) { return compare<_CMP_EQ_OQ>(a, b); }
  static mask differ(f32_vec a, f32_vec b) { return compare<_CMP_NEQ_UQ>(a, b); }
  static mask greater(f32_vec a, f32_vec b) { return compare<_CMP_GT_OQ>(a, b); }
  static mask at_least(f32_vec a, f32_vec b) { return compare<_CMP_GE_OQ>(a, b); }

  static f32_vec fma(f32_vec a, f32_vec b, f32_vec c) {
    return _mm256_fmadd_ps(a.value, b.value, c.value);
  }
  static f32_vec sqrt(f32_vec a) {
    // Not by the compiler's own: clang may estimate it under -funsafe-math-optimizations.
    __m256 root;
    __asm__("vsqrtps %1, %0" : "=x"(root) : "x"(a.value));
    return root;
  }
  /// a > b ? a : b, for NaN too.
  static f32_vec maximum(f32_vec a, f32_vec b) { return _mm256_max_ps(a.value, b.value); }
  static f32_vec minimum(f32_vec a, f32_vec b) { return _mm256_min_ps(a.value, b.value); }
  static f32_vec select(mask m, f32_vec a, f32_vec b) {
    return _mm256_blendv_ps(b.value, a.value, _mm256_castsi256_ps(m.bits));
  }
  static f32_vec gather(const float* table, u32_vec index) {
    const __m256 whole = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), table, index.raw(), whole, 4);
  }

  using f32_operators::load;
  static f32_vec load(const bfloat16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return from_bits(u32_vec(_mm256_cvtepu16_epi32(halves)) << 16);
  }
  static f32_vec load(const float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static f32_vec load_first(const float* from, int count) {
    return _mm256_maskload_ps(from,
                              _mm256_cmpgt_epi32(u32_vec(count).raw(), u32_vec::lane().raw()));
  }
  /// Quarters of four floats, from rows 0 and 4.
  static f32_vec load_quarters(const float* from, std::int64_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)),
                                _mm_loadu_ps(from + 4 * stride), 1);
  }
  static void store_quarters(float* to, std::int64_t stride, f32_vec a) {
    _mm_storeu_ps(to, _mm256_castps256_ps128(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm256_extractf128_ps(a.value, 1));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static void transpose_quarters(f32_vec (&v)[4]) {
    const __m256 a = _mm256_unpacklo_ps(v[0].value, v[1].value);
    const __m256 b = _mm256_unpackhi_ps(v[0].value, v[1].value);
    const __m256 c = _mm256_unpacklo_ps(v[2].value, v[3].value);
    const __m256 d = _mm256_unpackhi_ps(v[2].value, v[3].value);
    v[0] = _mm256_shuffle_ps(a, c, 0x44);
    v[1] = _mm256_shuffle_ps(a, c, 0xEE);
    v[2] = _mm256_shuffle_ps(b, d, 0x44);
    v[3] = _mm256_shuffle_ps(b, d, 0xEE);
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static f32_vec shuffle_xor(f32_vec a) {
    if constexpr (Distance == 1) return _mm256_permute_ps(a.value, 0xB1);
    if constexpr (Distance == 2) return _mm256_permute_ps(a.value, 0x4E);
    if constexpr (Distance == 4) return _mm256_permute2f128_ps(a.value, a.value, 0x01);
    return a;
  }
};

}  // namespace detail

ADAPTIVE_K_AVX2_END
ADAPTIVE_K_NAMESPACE_END

#endif
