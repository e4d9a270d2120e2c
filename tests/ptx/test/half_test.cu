// fp16 and bf16: every value is converted, arithmetic is compared with an independent rounding.
#include <algorithm>
#include <cmath>

#include "support.cuh"

namespace {

using u16 = std::uint16_t;
using u32 = std::uint32_t;

// All values of a format in ascending order of code, so that rounding can search them: slow, but
// it shares nothing with the interpreter.
template <int Fraction, int Bias>
struct format {
  static constexpr u16 infinity = static_cast<u16>(((1 << (15 - Fraction)) - 1) << Fraction);

  static long double value(u16 code) {
    const int exponent = (code & 0x7fff) >> Fraction;
    const int fraction = code & ((1 << Fraction) - 1);
    const long double v =
        exponent == 0 ? std::ldexp(static_cast<long double>(fraction), 1 - Bias - Fraction)
                      : std::ldexp(1.0L + std::ldexp(static_cast<long double>(fraction), -Fraction),
                                   exponent - Bias);
    return code & 0x8000 ? -v : v;
  }
  static bool is_nan(u16 code) { return (code & 0x7fff) > infinity; }
  static double number(u16 code) {
    if (is_nan(code)) return NAN;
    if ((code & 0x7fff) == infinity) return code & 0x8000 ? -INFINITY : INFINITY;
    return static_cast<double>(value(code));
  }
  /// To nearest even.
  static u16 round(long double v) {
    if (v != v) return 0x7fff;
    const u16 sign = std::signbit(v) ? 0x8000 : 0;
    const long double m = std::fabs(v);
    if (std::isinf(m)) return sign | infinity;
    u16 low = 0, high = infinity;  // value(low) <= m < value(high), the top as if it went on
    while (high - low > 1) {
      const u16 middle = static_cast<u16>((low + high) / 2);
      (value(middle) <= m ? low : high) = middle;
    }
    const long double below = m - value(low), above = value(high) - m;
    if (below < above || (below == above && low % 2 == 0)) return sign | low;
    return sign | high;
  }
};
using half = format<10, 15>;
using bfloat = format<7, 127>;

template <class F>
std::vector<u16> codes() {
  std::vector<u16> v;
  for (u32 i = 0; i < 0x8000; i += 397) v.push_back(static_cast<u16>(i));
  for (const u32 c : {0U, 1U, 2U, 3U, u32(F::infinity) - 1, u32(F::infinity), u32(F::infinity) + 1})
    v.push_back(static_cast<u16>(c));
  const std::size_t n = v.size();
  for (std::size_t i = 0; i < n; ++i) v.push_back(v[i] | 0x8000);
  return v;
}

}  // namespace

#define HALF2(name, F, op, expression)                                    \
  struct Half_##name {                                                    \
    static __device__ u16 run(u16 a, u16 b) {                             \
      u16 d;                                                              \
      asm volatile(op " %0, %1, %2;" : "=h"(d) : "h"(a), "h"(b));         \
      return d;                                                           \
    }                                                                     \
    static u16 expect(u16 ca, u16 cb) {                                   \
      const long double a = F::number(ca), b = F::number(cb);             \
      return F::round(expression);                                        \
    }                                                                     \
  };                                                                      \
  TEST(Half, name) {                                                      \
    ptx_test::check2<Half_##name, u16, u16, u16>(codes<F>(), codes<F>()); \
  }

HALF2(add_f16, half, "add.f16", a + b)
HALF2(sub_f16, half, "sub.f16", a - b)
HALF2(mul_f16, half, "mul.f16", a* b)

struct Half_fma_f16 {
  static __device__ u16 run(u16 a, u16 b, u16 c) {
    u16 d;
    asm volatile("fma.rn.f16 %0, %1, %2, %3;" : "=h"(d) : "h"(a), "h"(b), "h"(c));
    return d;
  }
  // 64 bits of fraction do not hold every sum; those few are left to the tests of rounding.
  static u16 expect(u16 a, u16 b, u16 c) {
    return half::round(static_cast<long double>(half::number(a)) * half::number(b) +
                       half::number(c));
  }
};
TEST(Half, fma_f16) {
  std::vector<u16> few = {0,      1,      0x3c00, 0x3c01, 0x4200, 0x7bff,
                          0x7c00, 0x7e00, 0x0400, 0x03ff, 0x3555, 0x1234};
  const std::size_t n = few.size();
  for (std::size_t i = 0; i < n; ++i) few.push_back(few[i] | 0x8000);
  ptx_test::check3<Half_fma_f16, u16, u16, u16, u16>(few, few, few);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HAS_BF16 1
#endif
struct Half_fma_bf16 {
  static __device__ u16 run(u16 a, u16 b, u16 c) {
#ifdef HAS_BF16
    u16 d;
    asm volatile("fma.rn.bf16 %0, %1, %2, %3;" : "=h"(d) : "h"(a), "h"(b), "h"(c));
    return d;
#else
    return a;
#endif
  }
  static u16 expect(u16 a, u16 b, u16 c) {
    return bfloat::round(static_cast<long double>(bfloat::number(a)) * bfloat::number(b) +
                         bfloat::number(c));
  }
};
TEST(Half, fma_bf16) {
  if (ptx::compute_capability() < 80) GTEST_SKIP() << "not on this target";
  std::vector<u16> few = {0,      0x3f80, 0x3f81, 0x4040, 0x4049,
                          0x3eaa, 0x7f7f, 0x7f80, 0x7fc0, 0x3f00};
  const std::size_t n = few.size();
  for (std::size_t i = 0; i < n; ++i) few.push_back(few[i] | 0x8000);
  ptx_test::check3<Half_fma_bf16, u16, u16, u16, u16>(few, few, few);
}

struct Half_pair_add {
  static __device__ u32 run(u32 a, u32 b) {
    u32 d;
    asm volatile("add.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
  static u32 expect(u32 a, u32 b) {
    u32 d = 0;
    for (int s = 0; s < 32; s += 16)
      d |= u32(half::round(static_cast<long double>(half::number(u16(a >> s))) +
                           half::number(u16(b >> s))))
           << s;
    return d;
  }
};
TEST(Half, add_f16x2) {
  ptx_test::check2<Half_pair_add, u32, u32, u32>(
      {0x3c003c00, 0x7bff0001, 0xfc007c00, 0x80000000, 0x12345678},
      {0x3c003c00, 0x7bff0001, 0x7e007c00, 0x00008000, 0x9abc3def});
}

#define TO_SMALL(name, F, op, needs)                                             \
  struct Half_##name {                                                           \
    static __device__ u16 run(float a);                                          \
    static u16 expect(float a) { return F::round(a); }                           \
  };                                                                             \
  TEST(Half, name) {                                                             \
    if (ptx::compute_capability() < needs) GTEST_SKIP() << "not on this target"; \
    ptx_test::check1<Half_##name, u16, float>();                                 \
  }
TO_SMALL(cvt_f16_f32, half, "cvt.rn.f16.f32", 75)
TO_SMALL(cvt_bf16_f32, bfloat, "cvt.rn.bf16.f32", 80)
__device__ u16 Half_cvt_f16_f32::run(float a) {
  u16 d;
  asm volatile("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(a));
  return d;
}
__device__ u16 Half_cvt_bf16_f32::run(float a) {
#ifdef HAS_BF16
  u16 d;
  asm volatile("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(a));
  return d;
#else
  return static_cast<u16>(a);
#endif
}

struct Half_cvt_f32_f16 {
  static __device__ float run(u16 a) {
    float d;
    asm volatile("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(a));
    return d;
  }
  static float expect(u16 a) {
    if (!half::is_nan(a)) return static_cast<float>(half::number(a));
    float v;
    const u32 bits = 0x7fffffff;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
};
TEST(Half, cvt_f32_f16_every_value) {
  std::vector<u16> all(65536);
  for (u32 i = 0; i < 65536; ++i) all[i] = static_cast<u16>(i);
  ptx_test::check1<Half_cvt_f32_f16, float, u16>(all);
}

struct Half_min_f16 {
  static __device__ u16 run(u16 a, u16 b) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    u16 d;
    asm volatile("min.f16 %0, %1, %2;" : "=h"(d) : "h"(a), "h"(b));
    return d;
#else
    return a;
#endif
  }
  static u16 expect(u16 a, u16 b) {
    if (half::is_nan(a)) return half::is_nan(b) ? u16(0x7fff) : b;
    if (half::is_nan(b)) return a;
    if (half::number(a) == half::number(b)) return a & 0x8000 ? a : b;
    return half::number(a) < half::number(b) ? a : b;
  }
};
TEST(Half, min_f16) {
  if (ptx::compute_capability() < 80) GTEST_SKIP() << "not on this target";
  ptx_test::check2<Half_min_f16, u16, u16, u16>(codes<half>(), codes<half>());
}

struct Half_setp_f16 {
  static __device__ u32 run(u16 a, u16 b) {
    u32 d;
    asm volatile("{ .reg .pred p; setp.ltu.f16 p, %1, %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(d)
                 : "h"(a), "h"(b));
    return d;
  }
  static u32 expect(u16 a, u16 b) { return !(half::number(a) >= half::number(b)); }
};
TEST(Half, setp_ltu_f16) {
  ptx_test::check2<Half_setp_f16, u32, u16, u16>(codes<half>(), codes<half>());
}
