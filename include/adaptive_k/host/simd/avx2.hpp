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

struct avx2_mask : mask_operators<avx2_mask, 8> {
  __m256i bits;  ///< all ones or all zeros in each lane

  avx2_mask() = default;
  explicit avx2_mask(__m256i b) noexcept : bits(b) {}
  static std::uint32_t to_bits(avx2_mask m) noexcept {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.bits)));
  }
};

struct avx2_u32 : u32_operators<avx2_u32> {
  using f32 = struct avx2_f32;
  using u32 = avx2_u32;
  using mask = avx2_mask;
  typedef std::uint32_t vector __attribute__((vector_size(32)));  // NOLINT(modernize-use-using)
  typedef std::int32_t signed_vector
      __attribute__((vector_size(32)));  // NOLINT(modernize-use-using)
  vector value;

  avx2_u32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx2_u32(__m256i v) noexcept : value(reinterpret_cast<vector>(v)) {}
  avx2_u32(std::uint32_t v) noexcept : u32(_mm256_set1_epi32(static_cast<int>(v))) {}
  avx2_u32(int v) noexcept : u32(_mm256_set1_epi32(v)) {}
  // NOLINTEND(google-explicit-constructor)
  __m256i raw() const noexcept { return reinterpret_cast<__m256i>(value); }

  static mask equal(u32 a, u32 b) noexcept { return mask(_mm256_cmpeq_epi32(a.raw(), b.raw())); }
  /// Of integers below 2^31: there is only a signed comparison.
  static mask greater(u32 a, u32 b) noexcept { return mask(_mm256_cmpgt_epi32(a.raw(), b.raw())); }
  static u32 maximum(u32 a, u32 b) noexcept { return _mm256_max_epu32(a.raw(), b.raw()); }
  static u32 minimum(u32 a, u32 b) noexcept { return _mm256_min_epu32(a.raw(), b.raw()); }
  static u32 select(mask m, u32 a, u32 b) noexcept {
    return _mm256_blendv_epi8(b.raw(), a.raw(), m.bits);
  }
  /// (a & ~low) | index
  static u32 replace_low(u32 a, u32 low, u32 index) noexcept {
    return _mm256_or_si256(_mm256_andnot_si256(low.raw(), a.raw()), index.raw());
  }
  /// The number of each lane.
  static u32 lane() noexcept { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
};

struct avx2_f32 : f32_operators<avx2_f32, avx2_u32> {
  using f32 = avx2_f32;
  using u32 = avx2_u32;
  using integers = u32;
  using mask = avx2_mask;
  static constexpr int lanes = 8;
  __m256 value;

  avx2_f32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  avx2_f32(__m256 v) noexcept : value(v) {}
  avx2_f32(float v) noexcept : value(_mm256_set1_ps(v)) {}
  // NOLINTEND(google-explicit-constructor)

  template <int Predicate>
  static mask compare(f32 a, f32 b) noexcept {
    return mask(_mm256_castps_si256(_mm256_cmp_ps(a.value, b.value, Predicate)));
  }
  static mask equal(f32 a, f32 b) noexcept { return compare<_CMP_EQ_OQ>(a, b); }
  static mask differ(f32 a, f32 b) noexcept { return compare<_CMP_NEQ_UQ>(a, b); }
  static mask greater(f32 a, f32 b) noexcept { return compare<_CMP_GT_OQ>(a, b); }
  static mask at_least(f32 a, f32 b) noexcept { return compare<_CMP_GE_OQ>(a, b); }

  static f32 fma(f32 a, f32 b, f32 c) noexcept {
    return _mm256_fmadd_ps(a.value, b.value, c.value);
  }
  static f32 sqrt(f32 a) noexcept {
    // Not by the compiler's own: clang may estimate it under -funsafe-math-optimizations.
    __m256 root;
    __asm__("vsqrtps %1, %0" : "=x"(root) : "x"(a.value));
    return root;
  }
  /// a > b ? a : b, for NaN too.
  static f32 maximum(f32 a, f32 b) noexcept { return _mm256_max_ps(a.value, b.value); }
  static f32 minimum(f32 a, f32 b) noexcept { return _mm256_min_ps(a.value, b.value); }
  static f32 select(mask m, f32 a, f32 b) noexcept {
    return _mm256_blendv_ps(b.value, a.value, _mm256_castsi256_ps(m.bits));
  }
  static f32 gather(const float* table, u32 index) noexcept {
    const __m256 whole = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), table, index.raw(), whole, 4);
  }

  using f32_operators::load;
  static f32 load(const bfloat16* from) noexcept {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return from_bits(u32(_mm256_cvtepu16_epi32(halves)) << 16);
  }
  static f32 load(const float16* from) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static f32 load_first(const float* from, int count) noexcept {
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(u32(count).raw(), u32::lane().raw()));
  }
  /// Quarters of four floats, from rows 0 and 4.
  static f32 load_quarters(const float* from, std::int64_t stride) noexcept {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)),
                                _mm_loadu_ps(from + 4 * stride), 1);
  }
  static void store_quarters(float* to, std::int64_t stride, f32 a) noexcept {
    _mm_storeu_ps(to, _mm256_castps256_ps128(a.value));
    _mm_storeu_ps(to + 4 * stride, _mm256_extractf128_ps(a.value, 1));
  }
  /// Transposes the 4 x 4 floats in each quarter of four vectors.
  static void transpose_quarters(f32 (&v)[4]) noexcept {
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
  static std::int64_t sum_truncated(f32 a) noexcept {
    float each[lanes];
    store(each, a);
    std::int64_t sum = 0;
    for (const float one : each) sum += static_cast<std::int64_t>(one);
    return sum;
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static f32 shuffle_xor(f32 a) noexcept {
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
  __attribute__((noinline, flatten)) static auto run(Arguments... arguments) noexcept {
    return Body<avx2>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_AVX2_END
ADAPTIVE_K_NAMESPACE_END

#endif
