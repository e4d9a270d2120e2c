#include "small_float.hpp"

#include <cmath>
#include <limits>

#include "types.hpp"

namespace ptx {

double widen(const small_format& format, std::uint16_t bits) {
  const int exponent_mask = (1 << format.exponent_bits) - 1;
  const int exponent = (bits >> format.fraction) & exponent_mask;
  const int fraction = bits & ((1 << format.fraction) - 1);
  double value;
  if (exponent == exponent_mask) {
    value = fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                          : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<double>(fraction), 1 - format.bias - format.fraction);
  } else {
    value = std::ldexp(static_cast<double>(fraction | (1 << format.fraction)),
                       exponent - format.bias - format.fraction);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

std::uint16_t round_to(const small_format& format, double value, rounding mode) {
  if (value != value) return format.canonical_nan;
  const bool negative = std::signbit(value);
  const auto sign = static_cast<std::uint16_t>(negative ? 0x8000 : 0);
  const int exponent_mask = (1 << format.exponent_bits) - 1;
  const auto infinity = static_cast<std::uint16_t>(exponent_mask << format.fraction);
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | infinity;
  if (magnitude == 0) return sign;
  // One unit in the last place of the result, subnormals included.
  const int exponent = std::max(std::ilogb(magnitude), 1 - format.bias);
  const double units = std::ldexp(magnitude, format.fraction - exponent);
  const double whole = std::floor(units);
  const double rest = units - whole;
  const bool odd = std::fmod(whole, 2.0) != 0;
  bool up = false;
  switch (mode) {
    case rounding::nearest_even:
      up = rest > 0.5 || (rest == 0.5 && odd);
      break;
    case rounding::nearest_away:
      up = rest >= 0.5;
      break;
    case rounding::toward_zero:
      break;
    case rounding::down:
      up = negative && rest > 0;
      break;
    case rounding::up:
      up = !negative && rest > 0;
      break;
  }
  // Exponent and fraction are one number: a carry out of the fraction raises the exponent, and a
  // full subnormal becomes the least normal.
  const int biased = exponent + format.bias;
  auto code = static_cast<std::int64_t>(whole) + (up ? 1 : 0) +
              ((static_cast<std::int64_t>(biased) - 1) << format.fraction);
  if (code >= infinity) {
    const bool to_infinity = mode == rounding::nearest_even || mode == rounding::nearest_away ||
                             (mode == rounding::up && !negative) ||
                             (mode == rounding::down && negative);
    code = to_infinity ? infinity : infinity - 1;
  }
  return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(code));
}

namespace {

/// `sum` is the rounded result and `error` what rounding took from it.
double make_odd(double sum, double error) {
  if (error == 0 || !std::isfinite(sum)) return sum;
  const auto bits = bits_as<std::uint64_t>(sum);
  if ((bits & 1) != 0) return sum;
  return std::nextafter(sum, error > 0 ? std::numeric_limits<double>::infinity()
                                       : -std::numeric_limits<double>::infinity());
}

}  // namespace

double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double t = sum - a;
  return make_odd(sum, (a - (sum - t)) + (b - t));
}

double fma_to_odd(double a, double b, double c) {
  return add_to_odd(a * b, c);
}

}  // namespace ptx
