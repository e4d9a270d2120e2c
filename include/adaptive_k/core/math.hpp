// Arithmetic with one result everywhere: host or device, any optimisation level, with or without
// FMA hardware.
//
// Two rules keep it so. Every operation is rounded once (+, -, *, fma, divide, square_root). And no
// product feeds an addition except through fma(): compilers may fuse `a * b + c`, so core/ never
// writes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace math {

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float largest_finite = 3.40282347e38f;

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__) || \
    (defined(_MSC_VER) && defined(__AVX2__))
inline constexpr bool has_fma_instruction = true;
#else
inline constexpr bool has_fma_instruction = false;
#endif

/// fma for targets without the instruction: exact product in double, sum rounded to odd, then to
/// float (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). Exact
/// result, branch-free, about 15 operations; no libm call.
ADAPTIVE_K_INLINE float software_fma(float a, float b, float c) noexcept {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  const double sum = product + addend;
  const double rounded_addend = sum - product;
  const double error = (product - (sum - rounded_addend)) + (addend - rounded_addend);
  const auto bits = detail::bit_cast<std::uint64_t>(sum);
  const bool inexact = error > 0.0 || error < 0.0;
  const bool away_from_zero = (error > 0.0) == (sum > 0.0);
  const std::uint64_t odd = away_from_zero ? bits + 1 : bits - 1;
  return static_cast<float>(detail::bit_cast<double>(inexact && (bits & 1u) == 0 ? odd : bits));
}

/// a * b + c, rounded once.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float fma(float a, float b, float c) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  if constexpr (has_fma_instruction) {
    return std::fma(a, b, c);
  } else {
    return software_fma(a, b, c);
  }
#endif
}

/// a / b, rounded once.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float divide(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Square root of a >= 0, rounded once.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float square_root(float a) noexcept {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

ADAPTIVE_K_HD ADAPTIVE_K_INLINE float larger(float a, float b) noexcept {
  return a > b ? a : b;
}
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float smaller(float a, float b) noexcept {
  return a < b ? a : b;
}
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float magnitude(float a) noexcept {
  return detail::bit_cast<float>(detail::bit_cast<std::uint32_t>(a) & 0x7FFFFFFFu);
}

/// Arguments of exp() are raised to this, where it is 0. No result is subnormal, so flush-to-zero
/// modes change none.
inline constexpr float exp_floor = -87.3f;

/// e^x for x in [exp_floor, 88]; 0 below -86.99. Within 2 + |x| / 25 ULP (one product with ln 2
/// costs the last part). Its last product is with a power of two and so exact: it may be fused with
/// an addition.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float exp_above_floor(float x) noexcept {
  constexpr float round_to_integer =
      12583038.0f;  // 1.5 * 2^23 + 126: leaves n + 126 in the low bits
  const float shifted = fma(x, 1.44269504f, round_to_integer);
  const float n = shifted - round_to_integer;
  const float r = fma(n, -0.693147182f, x);
  float p = 0.0165792685f;  // minimax for 2 e^r, |r| <= ln(2) / 2, relative error 9.2e-8
  p = fma(p, r, 0.0837963521f);
  p = fma(p, r, 0.333352983f);
  p = fma(p, r, 0.999982953f);
  p = fma(p, r, 1.9999994f);
  p = fma(p, r, 2.0f);
  return p * detail::bit_cast<float>(detail::bit_cast<std::uint32_t>(shifted) << 23);
}

/// e^x for x <= 88, as exp_above_floor; 0 for NaN.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float exp(float x) noexcept {
  return exp_above_floor(larger(x, exp_floor));
}

/// Natural logarithm of a positive normal number. At most 1 ULP from the true value.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float log(float x) noexcept {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x);
  const std::uint32_t exponent =
      (bits - 0x3F2AAAABu) & 0xFF800000u;  // x = m * 2^n, m in [2/3, 4/3)
  const float n = static_cast<float>(static_cast<std::int32_t>(exponent)) * 1.1920929e-7f;  // 2^-23
  const float f = detail::bit_cast<float>(bits - exponent) - 1.0f;
  float q = -0.128858328f;  // minimax for (ln(1 + f) - f + f^2 / 2) / f^3, relative error 4.6e-9
  q = fma(q, f, 0.139867067f);
  q = fma(q, f, -0.121856809f);
  q = fma(q, f, 0.140053406f);
  q = fma(q, f, -0.166803777f);
  q = fma(q, f, 0.200104445f);
  q = fma(q, f, -0.249998003f);
  q = fma(q, f, 0.333332151f);
  q = fma(q, f, -0.5f);
  const float log_m = fma(f * f, q, f);
  return fma(n, 0.693147182f, log_m);
}

/// ln(1 + t) for t in [0, 1], within 2 ULP (the rounding of 1 + t is put back).
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float log1p(float t) noexcept {
  const float u = 1.0f + t;
  return log(u) + divide(t - (u - 1.0f), u);
}

/// 1 / (1 + e^-x), within 5 ULP, 3.5 for |x| < 10; 0 for x < -86.99.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float sigmoid(float x) noexcept {
  const float t = exp(-magnitude(x));
  return divide(x < 0.0f ? t : 1.0f, 1.0f + t);
}

/// ln(1 + e^x), within 5 ULP; 0 for x < -86.99.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float softplus(float x) noexcept {
  return larger(x, 0.0f) + log1p(exp(-magnitude(x)));
}

}  // namespace math

namespace detail {

/// Order of selection as unsigned integers: larger key first. Keys of the reals and infinities
/// are their order, -0 equals +0, NaN lies below -inf, and 0 is left for "no expert here".
inline constexpr std::uint32_t no_expert_key = 0;
inline constexpr std::uint32_t nan_key = 1;

ADAPTIVE_K_HD ADAPTIVE_K_INLINE std::uint32_t order_key(float value) noexcept {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t positive = bits | 0x80000000u;
  const std::uint32_t key = bits > 0x80000000u ? ~bits : positive;  // -0 joins the positive side
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? nan_key : key;
}

/// The value behind a key; -inf for NaN's.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float key_value(std::uint32_t key) noexcept {
  const std::uint32_t bits = (key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key;
  return key == nan_key ? -math::infinity : bit_cast<float>(bits);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
