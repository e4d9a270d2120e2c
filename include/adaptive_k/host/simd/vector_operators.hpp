// What the vectors of every instruction set write alike, on vector types of the compiler's own.
// No function here is compiled for a set: it becomes part of one that is, behind Set::run. So none
// takes a bare vector by value, whose passing depends on the set.
#pragma once

#include <cstdint>
#include <cstring>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Of a mask that has `bits` and to_bits().
template <class Mask, int Lanes>
struct mask_operators {
  friend ADAPTIVE_K_INLINE Mask operator|(const Mask& a, const Mask& b) noexcept {
    Mask either = a;
    either.bits |= b.bits;
    return either;
  }
  friend ADAPTIVE_K_INLINE Mask operator&(const Mask& a, const Mask& b) noexcept {
    Mask both = a;
    both.bits &= b.bits;
    return both;
  }
  static ADAPTIVE_K_INLINE bool any(const Mask& m) noexcept { return Mask::to_bits(m) != 0; }
  static ADAPTIVE_K_INLINE bool all(const Mask& m) noexcept {
    return Mask::to_bits(m) == (1u << Lanes) - 1u;
  }
};

/// Of a Vec whose `value` is a vector of Element. Comparisons are here by name alone, as g++
/// compiles no friend that is defined in a class for the instructions of ADAPTIVE_K_TARGET_BEGIN.
template <class Vec, class Element>
struct vector_operators {
  template <class Value>
  static ADAPTIVE_K_INLINE Vec of(const Value& value) noexcept {
    static_assert(sizeof value == sizeof Vec::value, "another vector's lanes");
    Vec made;
    std::memcpy(&made.value, &value, sizeof value);
    return made;
  }
  friend ADAPTIVE_K_INLINE Vec operator+(const Vec& a, const Vec& b) noexcept {
    return of(a.value + b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator-(const Vec& a, const Vec& b) noexcept {
    return of(a.value - b.value);
  }
  friend ADAPTIVE_K_INLINE auto operator==(const Vec& a, const Vec& b) noexcept {
    return Vec::equal(a, b);
  }
  friend ADAPTIVE_K_INLINE auto operator>(const Vec& a, const Vec& b) noexcept {
    return Vec::greater(a, b);
  }
  friend ADAPTIVE_K_INLINE auto operator<(const Vec& a, const Vec& b) noexcept {
    return Vec::greater(b, a);
  }
  static ADAPTIVE_K_INLINE Vec load(const Element* from) noexcept {
    Vec loaded;
    std::memcpy(&loaded.value, from, sizeof loaded.value);
    return loaded;
  }
  static ADAPTIVE_K_INLINE void store(Element* to, const Vec& a) noexcept {
    std::memcpy(to, &a.value, sizeof a.value);
  }
  static ADAPTIVE_K_INLINE Element first(const Vec& a) noexcept { return a.value[0]; }
};

/// Of unsigned 32-bit integers.
template <class Vec>
struct u32_operators : vector_operators<Vec, std::uint32_t> {
  using vector_operators<Vec, std::uint32_t>::of;
  friend ADAPTIVE_K_INLINE Vec operator&(const Vec& a, const Vec& b) noexcept {
    return of(a.value & b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator|(const Vec& a, const Vec& b) noexcept {
    return of(a.value | b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator^(const Vec& a, const Vec& b) noexcept {
    return of(a.value ^ b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator<<(const Vec& a, int count) noexcept {
    return of(a.value << static_cast<std::uint32_t>(count));
  }
};

/// Of floats. `U32Vec` has as many lanes; its `signed_value` is a vector of signed integers.
template <class Vec, class U32Vec>
struct f32_operators : vector_operators<Vec, float> {
  using vector_operators<Vec, float>::of;
  friend ADAPTIVE_K_INLINE Vec operator*(const Vec& a, const Vec& b) noexcept {
    return of(a.value * b.value);
  }
  friend ADAPTIVE_K_INLINE Vec operator-(const Vec& a) noexcept { return of(-a.value); }
  friend ADAPTIVE_K_INLINE auto operator!=(const Vec& a, const Vec& b) noexcept {
    return Vec::differ(a, b);
  }
  friend ADAPTIVE_K_INLINE auto operator>=(const Vec& a, const Vec& b) noexcept {
    return Vec::at_least(a, b);
  }
  friend ADAPTIVE_K_INLINE auto operator<=(const Vec& a, const Vec& b) noexcept {
    return Vec::at_least(b, a);
  }
  static ADAPTIVE_K_INLINE Vec divide(const Vec& a, const Vec& b) noexcept {
    return of(a.value / b.value);
  }
  static ADAPTIVE_K_INLINE U32Vec to_bits(const Vec& a) noexcept { return U32Vec::of(a.value); }
  static ADAPTIVE_K_INLINE Vec from_bits(const U32Vec& a) noexcept { return of(a.value); }
  static ADAPTIVE_K_INLINE Vec abs(const Vec& a) noexcept {
    return from_bits(to_bits(a) & 0x7FFFFFFFu);
  }
  static ADAPTIVE_K_INLINE Vec from_integer(const U32Vec& a) noexcept {
    return of(__builtin_convertvector(reinterpret_cast<typename U32Vec::signed_vector>(a.value),
                                      decltype(Vec::value)));
  }
  /// Unsigned integers in the order of finite floats; -0 comes before +0.
  static ADAPTIVE_K_INLINE U32Vec to_order(const Vec& a) noexcept {
    const auto bits = reinterpret_cast<typename U32Vec::signed_vector>(a.value);
    return U32Vec::of(bits ^ ((bits >> 31) | INT32_MIN));
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
