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

struct generic_reals;

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
struct generic_words {
  using reals = generic_reals;
  using words = generic_words;
  four_words value;

  generic_words() = default;
  ADAPTIVE_K_INLINE generic_words(four_words v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_words(std::uint32_t v) noexcept : value(four_words{v, v, v, v}) {}
  ADAPTIVE_K_INLINE generic_words(int v) noexcept : words(static_cast<std::uint32_t>(v)) {}

  friend ADAPTIVE_K_INLINE words operator+(words a, words b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_INLINE words operator-(words a, words b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_INLINE words operator&(words a, words b) noexcept { return a.value & b.value; }
  friend ADAPTIVE_K_INLINE words operator|(words a, words b) noexcept { return a.value | b.value; }
  friend ADAPTIVE_K_INLINE words operator^(words a, words b) noexcept { return a.value ^ b.value; }
  friend ADAPTIVE_K_INLINE words operator<<(words a, int count) noexcept {
    return a.value << static_cast<std::uint32_t>(count);
  }
  /// Each lane by its own count; 0 from 32 on.
  static ADAPTIVE_K_INLINE words shift_left(words a, words count) noexcept {
    return select(count < words(32), words(a.value << (count.value & 31u)), words(0));
  }
  friend ADAPTIVE_K_INLINE generic_mask operator==(words a, words b) noexcept {
    return {a.value == b.value};
  }
  friend ADAPTIVE_K_INLINE generic_mask operator<(words a, words b) noexcept {
    return {a.value < b.value};
  }
  static ADAPTIVE_K_INLINE generic_mask unsigned_less(words a, words b) noexcept { return a < b; }
  friend ADAPTIVE_K_INLINE generic_mask operator>(words a, words b) noexcept {
    return {a.value > b.value};
  }
  static ADAPTIVE_K_INLINE words larger(words a, words b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE words smaller(words a, words b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE words select(generic_mask m, words a, words b) noexcept {
    const auto chosen = reinterpret_cast<four_words>(m.bits);
    return (a.value & chosen) | (b.value & ~chosen);
  }
  /// (a & ~low) | index
  static ADAPTIVE_K_INLINE words replace_low(words a, words low, words index) noexcept {
    return (a.value & ~low.value) | index.value;
  }
  /// (~a & high) | index
  static ADAPTIVE_K_INLINE words invert_high(words a, words high, words index) noexcept {
    return (~a.value & high.value) | index.value;
  }
  /// ~a & b
  static ADAPTIVE_K_INLINE words and_not(words a, words b) noexcept { return ~a.value & b.value; }
  /// a | (b & c)
  static ADAPTIVE_K_INLINE words add_bits(words a, words b, words c) noexcept {
    return a.value | (b.value & c.value);
  }
  static ADAPTIVE_K_INLINE words load(const std::uint32_t* from) noexcept {
    words a;
    std::memcpy(&a.value, from, sizeof a.value);
    return a;
  }
  static ADAPTIVE_K_INLINE void store(std::uint32_t* to, words a) noexcept {
    std::memcpy(to, &a.value, sizeof a.value);
  }
  static ADAPTIVE_K_INLINE std::uint32_t first(words a) noexcept { return a.value[0]; }
  /// `a` from lane First on, `b` before.
  template <int First>
  static ADAPTIVE_K_INLINE words lanes_from(words a, words b) noexcept {
    for (int lane = 0; lane < First && lane < 4; ++lane) a.value[lane] = b.value[lane];
    return a;
  }
  /// The number of each lane.
  static ADAPTIVE_K_INLINE words lane() noexcept { return four_words{0, 1, 2, 3}; }
};

struct generic_reals {
  using integers = generic_words;
  using words = generic_words;
  using mask = generic_mask;
  using reals = generic_reals;
  static constexpr int lanes = 4;
  four_floats value;

  generic_reals() = default;
  ADAPTIVE_K_INLINE generic_reals(four_floats v) noexcept : value(v) {}
  ADAPTIVE_K_INLINE generic_reals(float v) noexcept : value(four_floats{v, v, v, v}) {}

  friend ADAPTIVE_K_INLINE reals operator+(reals a, reals b) noexcept { return a.value + b.value; }
  friend ADAPTIVE_K_INLINE reals operator-(reals a, reals b) noexcept { return a.value - b.value; }
  friend ADAPTIVE_K_INLINE reals operator*(reals a, reals b) noexcept { return a.value * b.value; }
  friend ADAPTIVE_K_INLINE reals operator-(reals a) noexcept { return -a.value; }
  friend ADAPTIVE_K_INLINE mask operator==(reals a, reals b) noexcept {
    return {a.value == b.value};
  }
  friend ADAPTIVE_K_INLINE mask operator!=(reals a, reals b) noexcept {
    return {a.value != b.value};
  }
  friend ADAPTIVE_K_INLINE mask operator<(reals a, reals b) noexcept { return {a.value < b.value}; }
  friend ADAPTIVE_K_INLINE mask operator<=(reals a, reals b) noexcept {
    return {a.value <= b.value};
  }
  friend ADAPTIVE_K_INLINE mask operator>(reals a, reals b) noexcept { return {a.value > b.value}; }
  friend ADAPTIVE_K_INLINE mask operator>=(reals a, reals b) noexcept {
    return {a.value >= b.value};
  }

  static ADAPTIVE_K_INLINE reals fma(reals a, reals b, reals c) noexcept {
    const four_floats x = a.value, y = b.value, z = c.value;
    return four_floats{math::fma(x[0], y[0], z[0]), math::fma(x[1], y[1], z[1]),
                       math::fma(x[2], y[2], z[2]), math::fma(x[3], y[3], z[3])};
  }
  static ADAPTIVE_K_INLINE reals divide(reals a, reals b) noexcept { return a.value / b.value; }
  static ADAPTIVE_K_INLINE reals square_root(reals a) noexcept {
    const four_floats v = a.value;
    return four_floats{__builtin_sqrtf(v[0]), __builtin_sqrtf(v[1]), __builtin_sqrtf(v[2]),
                       __builtin_sqrtf(v[3])};
  }
  static ADAPTIVE_K_INLINE reals larger(reals a, reals b) noexcept { return select(a > b, a, b); }
  static ADAPTIVE_K_INLINE reals smaller(reals a, reals b) noexcept { return select(a < b, a, b); }
  static ADAPTIVE_K_INLINE reals magnitude(reals a) noexcept {
    return from_bits(to_bits(a) & 0x7FFFFFFFu);
  }
  static ADAPTIVE_K_INLINE words to_bits(reals a) noexcept {
    return reinterpret_cast<four_words>(a.value);
  }
  static ADAPTIVE_K_INLINE reals from_bits(words a) noexcept {
    return reinterpret_cast<four_floats>(a.value);
  }
  static ADAPTIVE_K_INLINE reals from_integer(words a) noexcept {
    return __builtin_convertvector(reinterpret_cast<four_ints>(a.value), four_floats);
  }
  /// Rounded towards zero, below 2^31.
  static ADAPTIVE_K_INLINE words truncate(reals a) noexcept {
    return reinterpret_cast<four_words>(__builtin_convertvector(a.value, four_ints));
  }
  static ADAPTIVE_K_INLINE reals select(mask m, reals a, reals b) noexcept {
    return from_bits(words::select(m, to_bits(a), to_bits(b)));
  }
  static ADAPTIVE_K_INLINE reals look_up(const float* table, words index) noexcept {
    return four_floats{table[index.value[0]], table[index.value[1]], table[index.value[2]],
                       table[index.value[3]]};
  }
  /// Row index[lane] of columns[][lanes], each lane in its own column.
  static ADAPTIVE_K_INLINE reals pick(const float* columns, words index) noexcept {
    return look_up(columns, (index << 2) + words::lane());
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_INLINE words to_order(reals a) noexcept {
    const auto bits = reinterpret_cast<four_ints>(a.value);
    return reinterpret_cast<four_words>(bits ^ ((bits >> 31) | INT32_MIN));
  }

  static ADAPTIVE_K_INLINE reals load(const float* from) noexcept {
    reals a;
    std::memcpy(&a.value, from, sizeof a.value);
    return a;
  }
  template <class Logit>
  static ADAPTIVE_K_INLINE reals load(const Logit* from) noexcept {
    return four_floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
  }
  static ADAPTIVE_K_INLINE void store(float* to, reals a) noexcept {
    std::memcpy(to, &a.value, sizeof a.value);
  }

  /// A quarter of four floats, from row 0; wider vectors have one of each fourth row.
  static ADAPTIVE_K_INLINE reals load_quarters(const float* from, std::int64_t) noexcept {
    return load(from);
  }
  static ADAPTIVE_K_INLINE void store_quarters(float* to, std::int64_t, reals a) noexcept {
    store(to, a);
  }
  /// Transposes 4 x 4 floats.
  static ADAPTIVE_K_INLINE void transpose_quarters(reals (&v)[4]) noexcept {
    const four_floats a = v[0].value, b = v[1].value, c = v[2].value, d = v[3].value;
    for (int i = 0; i < 4; ++i) v[i] = four_floats{a[i], b[i], c[i], d[i]};
  }
  /// Interleaves two vectors: a0 b0 a1 b1 in a, the rest in b.
  static ADAPTIVE_K_INLINE void interleave(reals& a, reals& b) noexcept {
    const four_floats x = a.value, y = b.value;
    a = four_floats{x[0], y[0], x[1], y[1]};
    b = four_floats{x[2], y[2], x[3], y[3]};
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_INLINE std::int64_t sum_truncated(reals a) noexcept {
    std::int64_t sum = 0;
    for (int lane = 0; lane < lanes; ++lane) sum += static_cast<std::int64_t>(a.value[lane]);
    return sum;
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static ADAPTIVE_K_INLINE reals load_first(const float* from, int count) noexcept {
    reals a = 0.0f;
    for (int lane = 0; lane < count; ++lane) a.value[lane] = from[lane];
    return a;
  }
  static ADAPTIVE_K_INLINE float first(reals a) noexcept { return a.value[0]; }
  /// `a` from lane First on, `b` before.
  template <int First>
  static ADAPTIVE_K_INLINE reals lanes_from(reals a, reals b) noexcept {
    return from_bits(words::template lanes_from<First>(to_bits(a), to_bits(b)));
  }
  /// The first Count lanes, of 4 bytes each.
  template <int Count>
  static ADAPTIVE_K_INLINE void store_first(void* to, reals a) noexcept {
    std::memcpy(to, &a.value, Count * sizeof(float));
  }
  static ADAPTIVE_K_INLINE reals now(reals a) noexcept { return a; }
  /// The place of the lowest bit of a, which is not 0.
  static ADAPTIVE_K_INLINE std::uint64_t lowest_bit(std::uint64_t a) noexcept {
    return static_cast<std::uint64_t>(__builtin_ctzll(a));
  }
  /// One lane in all.
  static ADAPTIVE_K_INLINE reals broadcast(reals a, std::uint32_t lane) noexcept {
    return a.value[lane];
  }
  static ADAPTIVE_K_INLINE reals broadcast(const float* from) noexcept { return *from; }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static ADAPTIVE_K_INLINE reals exchange(reals a) noexcept {
    const four_floats v = a.value;
    if constexpr (Distance == 1) return four_floats{v[1], v[0], v[3], v[2]};
    if constexpr (Distance == 2) return four_floats{v[2], v[3], v[0], v[1]};
    return a;
  }
};

/// Runs Body<generic>::run in a function of its own.
struct generic {
  using reals = generic_reals;
  using row_reals = generic_reals;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline)) static auto run(Arguments... arguments) noexcept {
    return Body<generic>::run(arguments...);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
