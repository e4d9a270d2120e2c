// 4 floats in a vector of the compiler's own: the value type of core/math.hpp where there are no
// intrinsics for more, on NEON above all.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_GENERIC

#include <cstdint>
#include <cstring>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

typedef float four_floats __attribute__((vector_size(16)));         // NOLINT(modernize-use-using)
typedef std::int32_t four_ints __attribute__((vector_size(16)));    // NOLINT(modernize-use-using)
typedef std::uint32_t four_words __attribute__((vector_size(16)));  // NOLINT(modernize-use-using)

struct generic_f32;

struct generic_mask {
  four_ints bits;  ///< of a lane: all or none

  friend ADAPTIVE_K_INLINE generic_mask operator|(generic_mask a, generic_mask b) noexcept {
    return {a.bits | b.bits};
  }
  friend ADAPTIVE_K_INLINE generic_mask operator&(generic_mask a, generic_mask b) noexcept {
    return {a.bits & b.bits};
  }
  static ADAPTIVE_K_INLINE std::uint32_t to_bits(generic_mask m) noexcept {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < 4; ++lane) bits |= m.bits[lane] != 0 ? 1u << lane : 0u;
    return bits;
  }
  static ADAPTIVE_K_INLINE bool any(generic_mask m) noexcept { return to_bits(m) != 0; }
  static ADAPTIVE_K_INLINE bool all(generic_mask m) noexcept { return to_bits(m) == 0xFu; }
};

/// Unsigned 32-bit integers.
struct generic_u32 {
  using f32 = generic_f32;
  using u32 = generic_u32;
  four_words value;

  generic_u32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_INLINE generic_u32(four_words v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_u32(std::uint32_t v) noexcept : value(four_words{v, v, v, v}) {}
  ADAPTIVE_K_INLINE generic_u32(int v) noexcept : u32(static_cast<std::uint32_t>(v)) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_INLINE u32 operator+(u32 a, u32 b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_INLINE u32 operator-(u32 a, u32 b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_INLINE u32 operator&(u32 a, u32 b) noexcept { return a.value & b.value; }
  friend ADAPTIVE_K_INLINE u32 operator|(u32 a, u32 b) noexcept { return a.value | b.value; }
  friend ADAPTIVE_K_INLINE u32 operator^(u32 a, u32 b) noexcept { return a.value ^ b.value; }
  friend ADAPTIVE_K_INLINE u32 operator<<(u32 a, int count) noexcept {
    return a.value << static_cast<std::uint32_t>(count);
  }
  friend ADAPTIVE_K_INLINE generic_mask operator==(u32 a, u32 b) noexcept {
    return {a.value == b.value};
  }
  friend ADAPTIVE_K_INLINE generic_mask operator<(u32 a, u32 b) noexcept {
    return {a.value < b.value};
  }
  friend ADAPTIVE_K_INLINE generic_mask operator>(u32 a, u32 b) noexcept {
    return {a.value > b.value};
  }
  static ADAPTIVE_K_INLINE u32 maximum(u32 a, u32 b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE u32 minimum(u32 a, u32 b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE u32 select(generic_mask m, u32 a, u32 b) noexcept {
    const auto chosen = reinterpret_cast<four_words>(m.bits);
    return (a.value & chosen) | (b.value & ~chosen);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_INLINE u32 replace_low(u32 a, u32 low, u32 index) noexcept {
    return (a.value & ~low.value) | index.value;
  }
  static ADAPTIVE_K_INLINE u32 load(const std::uint32_t* from) noexcept {
    u32 a;
    std::memcpy(&a.value, from, sizeof a.value);
    return a;
  }
  static ADAPTIVE_K_INLINE void store(std::uint32_t* to, u32 a) noexcept {
    std::memcpy(to, &a.value, sizeof a.value);
  }
  static ADAPTIVE_K_INLINE std::uint32_t first(u32 a) noexcept { return a.value[0]; }
  /// The number of each lane.
  static ADAPTIVE_K_INLINE u32 lane() noexcept { return four_words{0, 1, 2, 3}; }
};

struct generic_f32 {
  using integers = generic_u32;
  using u32 = generic_u32;
  using mask = generic_mask;
  using f32 = generic_f32;
  static constexpr int lanes = 4;
  four_floats value;

  generic_f32() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  ADAPTIVE_K_INLINE generic_f32(four_floats v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_f32(float v) noexcept : value(four_floats{v, v, v, v}) {}
  // NOLINTEND(google-explicit-constructor)

  friend ADAPTIVE_K_INLINE f32 operator+(f32 a, f32 b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_INLINE f32 operator-(f32 a, f32 b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_INLINE f32 operator*(f32 a, f32 b) noexcept { return a.value * b.value; }
  friend ADAPTIVE_K_INLINE f32 operator-(f32 a) noexcept { return -a.value; }
  friend ADAPTIVE_K_INLINE mask operator==(f32 a, f32 b) noexcept { return {a.value == b.value}; }
  friend ADAPTIVE_K_INLINE mask operator!=(f32 a, f32 b) noexcept { return {a.value != b.value}; }
  friend ADAPTIVE_K_INLINE mask operator<(f32 a, f32 b) noexcept { return {a.value < b.value}; }
  friend ADAPTIVE_K_INLINE mask operator<=(f32 a, f32 b) noexcept { return {a.value <= b.value}; }
  friend ADAPTIVE_K_INLINE mask operator>(f32 a, f32 b) noexcept { return {a.value > b.value}; }
  friend ADAPTIVE_K_INLINE mask operator>=(f32 a, f32 b) noexcept { return {a.value >= b.value}; }

  static ADAPTIVE_K_INLINE f32 fma(f32 a, f32 b, f32 c) noexcept {
    const four_floats x = a.value, y = b.value, z = c.value;
    return four_floats{math::fma(x[0], y[0], z[0]), math::fma(x[1], y[1], z[1]),
                       math::fma(x[2], y[2], z[2]), math::fma(x[3], y[3], z[3])};
  }
  static ADAPTIVE_K_INLINE f32 divide(f32 a, f32 b) noexcept { return a.value / b.value; }
  static ADAPTIVE_K_INLINE f32 sqrt(f32 a) noexcept {
    const four_floats v = a.value;
    return four_floats{__builtin_sqrtf(v[0]), __builtin_sqrtf(v[1]), __builtin_sqrtf(v[2]),
                       __builtin_sqrtf(v[3])};
  }
  static ADAPTIVE_K_INLINE f32 maximum(f32 a, f32 b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE f32 minimum(f32 a, f32 b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE f32 abs(f32 a) noexcept { return from_bits(to_bits(a) & 0x7FFFFFFFu); }
  static ADAPTIVE_K_INLINE u32 to_bits(f32 a) noexcept {
    return reinterpret_cast<four_words>(a.value);
  }
  static ADAPTIVE_K_INLINE f32 from_bits(u32 a) noexcept {
    return reinterpret_cast<four_floats>(a.value);
  }
  static ADAPTIVE_K_INLINE f32 from_integer(u32 a) noexcept {
    return __builtin_convertvector(reinterpret_cast<four_ints>(a.value), four_floats);
  }
  static ADAPTIVE_K_INLINE f32 select(mask m, f32 a, f32 b) noexcept {
    return from_bits(u32::select(m, to_bits(a), to_bits(b)));
  }
  static ADAPTIVE_K_INLINE f32 gather(const float* table, u32 index) noexcept {
    return four_floats{table[index.value[0]], table[index.value[1]], table[index.value[2]],
                       table[index.value[3]]};
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_INLINE u32 to_order(f32 a) noexcept {
    const auto bits = reinterpret_cast<four_ints>(a.value);
    return reinterpret_cast<four_words>(bits ^ ((bits >> 31) | INT32_MIN));
  }

  static ADAPTIVE_K_INLINE f32 load(const float* from) noexcept {
    f32 a;
    std::memcpy(&a.value, from, sizeof a.value);
    return a;
  }
  template <class Logit>
  static ADAPTIVE_K_INLINE f32 load(const Logit* from) noexcept {
    return four_floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
  }
  static ADAPTIVE_K_INLINE void store(float* to, f32 a) noexcept {
    std::memcpy(to, &a.value, sizeof a.value);
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
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_INLINE f32 load_first(const float* from, int count) noexcept {
    f32 a = 0.0f;
    for (int lane = 0; lane < count; ++lane) a.value[lane] = from[lane];
    return a;
  }
  static ADAPTIVE_K_INLINE float first(f32 a) noexcept { return a.value[0]; }
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
