// Arithmetic with one result everywhere: host or device, any optimisation level, with or without
// FMA hardware.
//
// Two rules keep it so. Every operation is rounded once (+, -, *, fma, divide, sqrt). And no
// product feeds an addition except through fma(): compilers may fuse `a * b + c`, so core/ never
// writes it. Modes that read subnormals as zeros (DAZ) are not supported: paths that compare logits
// as integers would rank subnormal ones, others not.
//
// The decision is written once for any value type: float, or a vector of floats with one token in
// each lane (host/simd/). A vector type converts from a float, has the operators, and has the
// operations below as static members of the same names; its comparisons give a mask for `select`.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace math {

inline constexpr float infinity = std::numeric_limits<float>::infinity();      ///< +inf
inline constexpr float largest_finite = 3.40282347e38f;                        ///< 2^128 - 2^104
inline constexpr float smallest_normal = (std::numeric_limits<float>::min)();  ///< 2^-126

/// Whether the build may use fused multiply-add as an instruction.
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
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float sqrt(float a) noexcept {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

/// The larger; b where either is NaN.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float maximum(float a, float b) noexcept {
  return a > b ? a : b;
}
/// The smaller; b where either is NaN.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float minimum(float a, float b) noexcept {
  return a < b ? a : b;
}
/// |a|, the sign bit cleared.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float abs(float a) noexcept {
#if defined(__CUDA_ARCH__)
  return ::fabsf(a);  // one instruction
#else
  return detail::bit_cast<float>(detail::bit_cast<std::uint32_t>(a) & 0x7FFFFFFFu);
#endif
}

/// The bits of a float and back, and the float nearest to a two's complement integer.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE std::uint32_t to_bits(float a) noexcept {
  return detail::bit_cast<std::uint32_t>(a);
}
/// See to_bits.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float from_bits(std::uint32_t bits) noexcept {
  return detail::bit_cast<float>(bits);
}
/// See to_bits.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float from_integer(std::uint32_t integer) noexcept {
  return static_cast<float>(static_cast<std::int32_t>(integer));
}

/// a where `condition` holds, else b.
template <class T>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE T select(bool condition, T a, T b) noexcept {
  return condition ? a : b;
}
/// Whether a condition holds anywhere, everywhere.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool any(bool condition) noexcept {
  return condition;
}
/// See any.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool all(bool condition) noexcept {
  return condition;
}

/// The integers that belong to a value type: ids, ranks, k.
template <class F>
struct integers_of {
  using type = typename F::integers;  ///< of a pack
};
/// Of a single float: int.
template <>
struct integers_of<float> {
  using type = int;  ///< of a float
};
/// The integers that belong to F.
template <class F>
using integers = typename integers_of<F>::type;

/// table[i], in every lane.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float gather(const float* table, int i) noexcept {
  return table[i];
}

// The same for packs. The first argument determines the type, so that the others may be floats.
/// F where it is a pack of floats, else no overload.
template <class F>
using only = std::enable_if_t<std::is_class_v<F>, F>;

/// a * b + c in each lane, rounded once.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> fma(const F& a, const only<F>& b,
                                            const only<F>& c) noexcept {
  return F::fma(a, b, c);
}
/// a / b in each lane, rounded once.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> divide(const F& a, const only<F>& b) noexcept {
  return F::divide(a, b);
}
/// The square root of each lane, rounded once.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> sqrt(const F& a) noexcept {
  return F::sqrt(a);
}
/// The larger in each lane; b's where either is NaN.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> maximum(const F& a, const only<F>& b) noexcept {
  return F::maximum(a, b);
}
/// The smaller in each lane; b's where either is NaN.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> minimum(const F& a, const only<F>& b) noexcept {
  return F::minimum(a, b);
}
/// |a| in each lane.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<F> abs(const F& a) noexcept {
  return F::abs(a);
}
/// The bits of each lane.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto to_bits(const F& a) noexcept -> typename F::integers {
  return F::to_bits(a);
}
/// The floats of these bits.
template <class I>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto from_bits(const I& bits) noexcept -> typename I::f32_vec {
  return I::f32_vec::from_bits(bits);
}
/// The float nearest to each lane's two's complement integer.
template <class I>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto from_integer(const I& integer) noexcept ->
    typename I::f32_vec {
  return I::f32_vec::from_integer(integer);
}
/// table[i] of each lane's i.
template <class I>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto gather(const float* table, const I& i) noexcept ->
    typename I::f32_vec {
  return I::f32_vec::gather(table, i);
}
/// a in the lanes where `condition` holds, b in the others.
template <class M, class T>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE only<T> select(const M& condition, const T& a,
                                               const only<T>& b) noexcept {
  return T::select(condition, a, b);
}
/// Whether a condition holds in any lane.
template <class M>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto any(const M& condition) noexcept
    -> decltype(M::any(condition)) {
  return M::any(condition);
}
/// Whether a condition holds in every lane.
template <class M>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE auto all(const M& condition) noexcept
    -> decltype(M::all(condition)) {
  return M::all(condition);
}

/// p * 2^(n - 127) for n in the low bits of `shifted`; 0 for n = 0. Exact, so it may be fused with
/// an addition.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F times_power(const F& p, const F& shifted) noexcept {
  return p * from_bits(to_bits(shifted) << 23);
}
/// Arguments of exp() are raised to this, where it is 0. No result is subnormal, so flush-to-zero
/// modes change none.
inline constexpr float exp_floor = -87.3f;

/// e^x for x in [exp_floor, 88]; 0 below -86.99. Within 2 + |x| / 25 ULP (one product with ln 2
/// costs the last part).
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F exp_above_floor(const F& x) noexcept {
  constexpr float round_to_integer =
      12583038.0f;  // 1.5 * 2^23 + 126: leaves n + 126 in the low bits
  const F shifted = fma(x, 1.44269504f, round_to_integer);
  const F n = shifted - round_to_integer;
  const F r = fma(n, -0.693147182f, x);
  F p = 0.0165792685f;  // minimax for 2 e^r, |r| <= ln(2) / 2, relative error 9.2e-8
  p = fma(p, r, 0.0837963521f);
  p = fma(p, r, 0.333352983f);
  p = fma(p, r, 0.999982953f);
  p = fma(p, r, 1.9999994f);
  p = fma(p, r, 2.0f);
  return times_power(p, shifted);
}

#if defined(__CUDA_ARCH__)
// The same in the device's own words: PTX needs neither constants in registers nor moves between
// integer and float ones.
__device__ ADAPTIVE_K_INLINE float exp_above_floor(float x) noexcept {
  float result;
  asm("{ .reg .f32 s, r, p; .reg .b32 power;"
      "fma.rn.f32 s, %1, 0f3FB8AA3B, 0f4B40007E;"
      "add.rn.f32 r, s, 0fCB40007E;"
      "fma.rn.f32 r, r, 0fBF317218, %1;"
      "fma.rn.f32 p, r, 0f3C87D13F, 0f3DAB9D6C;"
      "fma.rn.f32 p, p, r, 0f3EAAAD3E;"
      "fma.rn.f32 p, p, r, 0f3F7FFEE2;"
      "fma.rn.f32 p, p, r, 0f3FFFFFFB;"
      "fma.rn.f32 p, p, r, 0f40000000;"
      "shl.b32 power, s, 23;"
      "mul.rn.f32 %0, p, power; }"
      : "=f"(result)
      : "f"(x));
  return result;
}
#endif

/// e^x for x <= 88, as exp_above_floor; 0 for NaN.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F exp(const F& x) noexcept {
  return exp_above_floor(maximum(x, exp_floor));
}

/// Natural logarithm of a positive normal number. At most 1 ULP from the true value.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F log(const F& x) noexcept {
  const auto bits = to_bits(x);
  const auto exponent = (bits - 0x3F2AAAABu) & 0xFF800000u;  // x = m * 2^n, m in [2/3, 4/3)
  const F n = from_integer(exponent);                        // 2^23 times that
  const F f = from_bits(bits - exponent) - 1.0f;
  F q = -0.128858328f;  // minimax for (ln(1 + f) - f + f^2 / 2) / f^3, relative error 4.6e-9
  q = fma(q, f, 0.139867067f);
  q = fma(q, f, -0.121856809f);
  q = fma(q, f, 0.140053406f);
  q = fma(q, f, -0.166803777f);
  q = fma(q, f, 0.200104445f);
  q = fma(q, f, -0.249998003f);
  q = fma(q, f, 0.333332151f);
  q = fma(q, f, -0.5f);
  const F log_m = fma(f * f, q, f);
  return fma(n, 8.26295832e-8f, log_m);  // ln 2 * 2^-23
}

#if defined(__CUDA_ARCH__)
// See exp_above_floor.
__device__ ADAPTIVE_K_INLINE float log(float x) noexcept {
  float result;
  asm("{ .reg .b32 b, e; .reg .f32 n, f, q, g;"
      "mov.b32 b, %1;"
      "add.s32 e, b, -1059760811;"
      "and.b32 e, e, 0xFF800000;"
      "cvt.rn.f32.s32 n, e;"
      "sub.s32 b, b, e;"
      "mov.b32 f, b;"
      "add.rn.f32 f, f, 0fBF800000;"
      "fma.rn.f32 q, f, 0fBE03F370, 0f3E0F3950;"
      "fma.rn.f32 q, q, f, 0fBDF99010;"
      "fma.rn.f32 q, q, f, 0f3E0F6A29;"
      "fma.rn.f32 q, q, f, 0fBE2ACE9C;"
      "fma.rn.f32 q, q, f, 0f3E4CE82E;"
      "fma.rn.f32 q, q, f, 0fBE7FFF7A;"
      "fma.rn.f32 q, q, f, 0f3EAAAA83;"
      "fma.rn.f32 q, q, f, 0fBF000000;"
      "mul.rn.f32 g, f, f;"
      "fma.rn.f32 q, g, q, f;"
      "fma.rn.f32 %0, n, 0f33B17218, q; }"
      : "=f"(result)
      : "f"(x));
  return result;
}
#endif

/// ln(1 + t) for t in [0, 1], within 2 ULP (the rounding of 1 + t is put back).
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F log1p(const F& t) noexcept {
  const F u = t + 1.0f;
  return log(u) + divide(t - (u - 1.0f), u);
}

/// 1 / (1 + e^-x), within 5 ULP, 3.5 for |x| < 10; 0 for x < -86.99.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F sigmoid(const F& x) noexcept {
  const F t = exp(-abs(x));
  return divide(select(x < 0.0f, t, F(1.0f)), t + 1.0f);
}

/// ln(1 + e^x), within 5 ULP; 0 for x < -86.99.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F softplus(const F& x) noexcept {
  return maximum(x, 0.0f) + log1p(exp(-abs(x)));
}

}  // namespace math

namespace detail {

/// The order of selection as unsigned integers: larger key first. Keys are in the order of the
/// floats, infinities included; -0 equals +0, NaN lies below -inf, and 0 means "no expert here".
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
