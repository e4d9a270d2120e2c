// fp16 and bf16 as values: exact to double, and rounded once from double.
#pragma once

#include <cstdint>

namespace ptx {

enum class rounding : std::uint8_t { nearest_even, toward_zero, down, up, nearest_away };

/// A binary format of 16 bits: sign, exponent, `fraction` bits.
struct small_format {
  int fraction;
  int bias;
  int exponent_bits;
  std::uint16_t canonical_nan;
};
inline constexpr small_format half_format{10, 15, 5, 0x7fff};
inline constexpr small_format bfloat_format{7, 127, 8, 0x7fff};

double widen(const small_format& format, std::uint16_t bits);
std::uint16_t round_to(const small_format& format, double value, rounding mode);

/// a + b, a * b, a * b + c rounded to odd in double, so that a second rounding to a small format
/// is as good as one.
double add_to_odd(double a, double b);
double fma_to_odd(double a, double b, double c);

}  // namespace ptx
