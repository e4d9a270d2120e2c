// 4 floats in a vector of the compiler's own: the value type of core/math.hpp where there are no
// intrinsics for more, on NEON above all.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/vector_operators.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_GENERIC

#include <cstdint>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

typedef float four_floats __attribute__((vector_size(16)));         // NOLINT(modernize-use-using)
typedef std::int32_t four_ints __attribute__((vector_size(16)));    // NOLINT(modernize-use-using)
typedef std::uint32_t four_words __attribute__((vector_size(16)));  // NOLINT(modernize-use-using)

struct generic_mask : mask_operators<generic_mask, 4> {
  four_ints bits;  ///< of a lane: all or none

  generic_mask() = default;
  explicit ADAPTIVE_K_INLINE generic_mask(four_ints b) noexcept : bits(b) {}
  static ADAPTIVE_K_INLINE std::uint32_t to_bits(generic_mask m) noexcept {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < 4; ++lane) bits |= m.bits[lane] != 0 ? 1u << lane : 0u;
    return bits;
  }
};

struct generic_u32 : u32_operators<generic_u32> {
  using f32 = struct generic_f32;
  using u32 = generic_u32;
  using mask = generic_mask;
  using signed_vector = four_ints;
  four_words value;

  generic_u32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_INLINE generic_u32(four_words v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_u32(std::uint32_t v) noexcept : value(four_words{v, v, v, v}) {}
  ADAPTIVE_K_INLINE generic_u32(int v) noexcept : u32(static_cast<std::uint32_t>(v)) {}
  // NOLINTEND(google-explicit-constructor)

  static ADAPTIVE_K_INLINE mask equal(u32 a, u32 b) noexcept { return mask(a.value == b.value); }
  static ADAPTIVE_K_INLINE mask greater(u32 a, u32 b) noexcept { return mask(a.value > b.value); }
  static ADAPTIVE_K_INLINE u32 maximum(u32 a, u32 b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE u32 minimum(u32 a, u32 b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE u32 select(mask m, u32 a, u32 b) noexcept {
    const auto chosen = reinterpret_cast<four_words>(m.bits);
    return (a.value & chosen) | (b.value & ~chosen);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_INLINE u32 replace_low(u32 a, u32 low, u32 index) noexcept {
    return (a.value & ~low.value) | index.value;
  }
  /// The number of each lane.
  static ADAPTIVE_K_INLINE u32 lane() noexcept { return four_words{0, 1, 2, 3}; }
};

struct generic_f32 : f32_operators<generic_f32, generic_u32> {
  using f32 = generic_f32;
  using u32 = generic_u32;
  using integers = u32;
  using mask = generic_mask;
  static constexpr int lanes = 4;
  four_floats value;

  generic_f32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_INLINE generic_f32(four_floats v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_f32(float v) noexcept : value(four_floats{v, v, v, v}) {}
  // NOLINTEND(google-explicit-constructor)

  static ADAPTIVE_K_INLINE mask equal(f32 a, f32 b) noexcept { return mask(a.value == b.value); }
  static ADAPTIVE_K_INLINE mask differ(f32 a, f32 b) noexcept { return mask(a.value != b.value); }
  static ADAPTIVE_K_INLINE mask greater(f32 a, f32 b) noexcept { return mask(a.value > b.value); }
  static ADAPTIVE_K_INLINE mask at_least(f32 a, f32 b) noexcept { return mask(a.value >= b.value); }

  static ADAPTIVE_K_INLINE f32 fma(f32 a, f32 b, f32 c) noexcept {
    for (int i = 0; i < lanes; ++i) a.value[i] = math::fma(a.value[i], b.value[i], c.value[i]);
    return a;
  }
  static ADAPTIVE_K_INLINE f32 sqrt(f32 a) noexcept {
    for (int i = 0; i < lanes; ++i) a.value[i] = __builtin_sqrtf(a.value[i]);
    return a;
  }
  static ADAPTIVE_K_INLINE f32 maximum(f32 a, f32 b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE f32 minimum(f32 a, f32 b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE f32 select(mask m, f32 a, f32 b) noexcept {
    return from_bits(u32::select(m, to_bits(a), to_bits(b)));
  }
  static ADAPTIVE_K_INLINE f32 gather(const float* table, u32 index) noexcept {
    const four_words i = index.value;
    return four_floats{table[i[0]], table[i[1]], table[i[2]], table[i[3]]};
  }

  using f32_operators::load;
  template <class Logit>
  static ADAPTIVE_K_INLINE f32 load(const Logit* from) noexcept {
    return four_floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_INLINE f32 load_first(const float* from, int count) noexcept {
    f32 a = 0.0f;
    for (int lane = 0; lane < count; ++lane) a.value[lane] = from[lane];
    return a;
  }
  /// A quarter of four floats, from row 0; wider vectors have one of each fourth row.
  static ADAPTIVE_K_INLINE f32 load_quarters(const float* from, std::int64_t) noexcept {
    return load(from);
  }
  static ADAPTIVE_K_INLINE void store_quarters(float* to, std::int64_t, f32 a) noexcept {
    store(to, a);
  }
  /// Transposes 4 x 4 floats.
  static ADAPTIVE_K_INLINE void transpose_quarters(f32 (&v)[4]) noexcept {
    const four_floats a = v[0].value, b = v[1].value, c = v[2].value, d = v[3].value;
    for (int i = 0; i < 4; ++i) v[i] = four_floats{a[i], b[i], c[i], d[i]};
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_INLINE std::int64_t sum_truncated(f32 a) noexcept {
    std::int64_t sum = 0;
    for (int lane = 0; lane < lanes; ++lane) sum += static_cast<std::int64_t>(a.value[lane]);
    return sum;
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static ADAPTIVE_K_INLINE f32 shuffle_xor(f32 a) noexcept {
    const four_floats v = a.value;
    if constexpr (Distance == 1) return four_floats{v[1], v[0], v[3], v[2]};
    if constexpr (Distance == 2) return four_floats{v[2], v[3], v[0], v[1]};
    return a;
  }
};

/// Runs Body<generic>::run in a function of its own.
struct generic {
  using f32 = generic_f32;
  using narrow = generic;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline)) static auto run(Arguments... arguments) noexcept {
    return Body<generic>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
