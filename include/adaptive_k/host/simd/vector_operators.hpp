// What the vectors of every instruction set have in common, on vector types of the compiler's own.
// No function here is compiled for a set: it becomes part of one that is, behind Set::run. So none
// takes a bare vector by value, whose passing depends on the set.
#pragma once

#include <cstdint>
#include <cstring>

#include "adaptive_k/host/simd/target.hpp"
#if ADAPTIVE_K_SIMD
ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Of a mask that has `bits` and to_bits().
template <class Set>
struct mask_operators {
  using mask = typename Set::mask;
  friend ADAPTIVE_K_INLINE mask operator|(const mask& a, const mask& b) {
    mask either = a;
    either.bits |= b.bits;
    return either;
  }
  friend ADAPTIVE_K_INLINE mask operator&(const mask& a, const mask& b) {
    mask both = a;
    both.bits &= b.bits;
    return both;
  }
  static ADAPTIVE_K_INLINE bool any(const mask& m) { return mask::to_bits(m) != 0; }
  static ADAPTIVE_K_INLINE bool all(const mask& m) {
    return mask::to_bits(m) == (1u << Set::lanes) - 1u;
  }
};

/// Of a Vec of Elements, 32 bits each. Comparisons are here, as g++ compiles no friend that is
/// defined in a class for the instructions of ADAPTIVE_K_TARGET_BEGIN.
template <class Set, class Vec, class Element>
struct vector_operators {
  using f32_vec = typename Set::f32_vec;
  using u32_vec = typename Set::u32_vec;
  using mask = typename Set::mask;
  static constexpr int lanes = Set::lanes;
  // NOLINTNEXTLINE(modernize-use-using)
  typedef Element vector __attribute__((vector_size(4 * Set::lanes)));
  vector value;

  /// The bits of any vector of that size.
  template <class Value>
  static ADAPTIVE_K_INLINE Vec of(const Value& bits) {
    static_assert(sizeof bits == sizeof(vector), "another number of lanes");
    Vec made;
    std::memcpy(&made.value, &bits, sizeof bits);
    return made;
  }
  friend ADAPTIVE_K_INLINE Vec operator+(const Vec& a, const Vec& b) {
    return of(a.value + b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator-(const Vec& a, const Vec& b) {
    return of(a.value - b.value);
  }
  friend ADAPTIVE_K_INLINE mask operator==(const Vec& a, const Vec& b) { return Vec::equal(a, b); }
  friend ADAPTIVE_K_INLINE mask operator>(const Vec& a, const Vec& b) { return Vec::greater(a, b); }
  friend ADAPTIVE_K_INLINE mask operator<(const Vec& a, const Vec& b) { return Vec::greater(b, a); }
  static ADAPTIVE_K_INLINE Vec load(const Element* from) {
    Vec loaded;
    std::memcpy(&loaded.value, from, sizeof(vector));
    return loaded;
  }
  static ADAPTIVE_K_INLINE void store(Element* to, const Vec& a) {
    std::memcpy(to, &a.value, sizeof(vector));
  }
  static ADAPTIVE_K_INLINE Element first(const Vec& a) { return a.value[0]; }
};

/// Of unsigned integers.
template <class Set>
struct u32_operators : vector_operators<Set, typename Set::u32_vec, std::uint32_t> {
  using vec = typename Set::u32_vec;
  // NOLINTNEXTLINE(modernize-use-using)
  typedef std::int32_t signed_vector __attribute__((vector_size(4 * Set::lanes)));
  friend ADAPTIVE_K_INLINE vec operator&(const vec& a, const vec& b) {
    return vec::of(a.value & b.value);
  }
  friend ADAPTIVE_K_INLINE vec operator|(const vec& a, const vec& b) {
    return vec::of(a.value | b.value);
  }
  friend ADAPTIVE_K_INLINE vec operator^(const vec& a, const vec& b) {
    return vec::of(a.value ^ b.value);
  }
  friend ADAPTIVE_K_INLINE vec operator<<(const vec& a, int count) {
    return vec::of(a.value << static_cast<std::uint32_t>(count));
  }
};

/// Of floats.
template <class Set>
struct f32_operators : vector_operators<Set, typename Set::f32_vec, float> {
  using vec = typename Set::f32_vec;
  using integers = typename Set::u32_vec;
  friend ADAPTIVE_K_INLINE vec operator*(const vec& a, const vec& b) {
    return vec::of(a.value * b.value);
  }
  friend ADAPTIVE_K_INLINE vec operator-(const vec& a) { return vec::of(-a.value); }
  friend ADAPTIVE_K_INLINE auto operator!=(const vec& a, const vec& b) { return vec::differ(a, b); }
  friend ADAPTIVE_K_INLINE auto operator>=(const vec& a, const vec& b) {
    return vec::at_least(a, b);
  }
  friend ADAPTIVE_K_INLINE auto operator<=(const vec& a, const vec& b) {
    return vec::at_least(b, a);
  }
  static ADAPTIVE_K_INLINE vec divide(const vec& a, const vec& b) {
    return vec::of(a.value / b.value);
  }
  static ADAPTIVE_K_INLINE integers to_bits(const vec& a) { return integers::of(a.value); }
  static ADAPTIVE_K_INLINE vec from_bits(const integers& a) { return vec::of(a.value); }
  static ADAPTIVE_K_INLINE vec abs(const vec& a) { return from_bits(to_bits(a) & 0x7FFFFFFFu); }
  static ADAPTIVE_K_INLINE vec from_integer(const integers& a) {
    const auto bits = reinterpret_cast<typename integers::signed_vector>(a.value);
    return vec::of(__builtin_convertvector(bits, typename f32_operators::vector));
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_INLINE integers to_order(const vec& a) {
    const auto bits = reinterpret_cast<typename integers::signed_vector>(a.value);
    return integers::of(bits ^ ((bits >> 31) | INT32_MIN));
  }
  /// Sum of the lanes, each truncated to an integer.
  static ADAPTIVE_K_INLINE std::int64_t sum_truncated(const vec& a) {
    float each[Set::lanes];
    vec::store(each, a);
    std::int64_t sum = 0;
    for (const float one : each) sum += static_cast<std::int64_t>(one);
    return sum;
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
#endif
