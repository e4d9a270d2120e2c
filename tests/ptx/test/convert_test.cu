// cvt against the host: integers among themselves, to and from floats, every rounding mode.
#include <algorithm>
#include <cfenv>
#include <cmath>

#include "support.cuh"

using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

namespace {

/// PTX clamps; NaN is zero, or the top bit alone where 64 bits are on either side.
template <class To, class From>
To clamped(From whole) {
  using L = std::numeric_limits<To>;
  if (whole != whole)
    return sizeof(From) == 8 || sizeof(To) == 8 ? static_cast<To>(u64(1) << (8 * sizeof(To) - 1))
                                                : To(0);
  if (whole >= std::ldexp(From(1), 8 * int(sizeof(To)) - (L::is_signed ? 1 : 0))) return L::max();
  if (whole < static_cast<From>(L::min())) return L::min();
  return static_cast<To>(whole);
}

template <class To, class From>
To in_mode(int mode, From value) {
  const volatile From v = value;
  std::fesetround(mode);
  volatile To result = static_cast<To>(v);
  std::fesetround(FE_TONEAREST);
  return result;
}

float one_nan(float v) {
  if (v == v) return v;
  const u32 bits = 0x7fffffff;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

}  // namespace

#define CVT(name, To, rt, From, rf, op, expression) \
  PTX_TEST1(Convert, name, To, rt, From, rf, op " %0, %1;", expression)

CVT(s64_s32, i64, "l", i32, "r", "cvt.s64.s32", i64(a))
CVT(u64_u32, u64, "l", u32, "r", "cvt.u64.u32", u64(a))
CVT(u32_u64, u32, "r", u64, "l", "cvt.u32.u64", u32(a))
CVT(s16_s32, i16, "h", i32, "r", "cvt.s16.s32", i16(a))
CVT(u32_u16, u32, "r", u16, "h", "cvt.u32.u16", u32(a))
CVT(s32_s16, i32, "r", i16, "h", "cvt.s32.s16", i32(a))
CVT(s32_s8, i32, "r", i32, "r", "cvt.s32.s8", i32(i8(a)))
CVT(u32_u8, u32, "r", u32, "r", "cvt.u32.u8", u32(u8(a)))
CVT(sat_s16_s32, i16, "h", i32, "r", "cvt.sat.s16.s32", i16(std::clamp(a, -32768, 32767)))
CVT(sat_u32_s64, u32, "r", i64, "l", "cvt.sat.u32.s64", u32(std::clamp<i64>(a, 0, 0xffffffff)))
CVT(sat_s32_u64, i32, "r", u64, "l", "cvt.sat.s32.u64", i32(std::min<u64>(a, 0x7fffffff)))

CVT(rn_f32_s32, float, "f", i32, "r", "cvt.rn.f32.s32", float(a))
CVT(rz_f32_s32, float, "f", i32, "r", "cvt.rz.f32.s32", (in_mode<float>(FE_TOWARDZERO, a)))
CVT(rm_f32_s64, float, "f", i64, "l", "cvt.rm.f32.s64", (in_mode<float>(FE_DOWNWARD, a)))
CVT(rp_f32_u64, float, "f", u64, "l", "cvt.rp.f32.u64", (in_mode<float>(FE_UPWARD, a)))
CVT(rn_f32_u32, float, "f", u32, "r", "cvt.rn.f32.u32", float(a))
CVT(rn_f32_u64, float, "f", u64, "l", "cvt.rn.f32.u64", float(a))
CVT(rn_f64_s32, double, "d", i32, "r", "cvt.rn.f64.s32", double(a))
CVT(rn_f64_s64, double, "d", i64, "l", "cvt.rn.f64.s64", double(a))
CVT(rz_f64_u64, double, "d", u64, "l", "cvt.rz.f64.u64", (in_mode<double>(FE_TOWARDZERO, a)))

CVT(rzi_s32_f32, i32, "r", float, "f", "cvt.rzi.s32.f32", clamped<i32>(std::trunc(a)))
CVT(rni_s32_f32, i32, "r", float, "f", "cvt.rni.s32.f32", clamped<i32>(std::nearbyint(a)))
CVT(rmi_s32_f32, i32, "r", float, "f", "cvt.rmi.s32.f32", clamped<i32>(std::floor(a)))
CVT(rpi_u32_f32, u32, "r", float, "f", "cvt.rpi.u32.f32", clamped<u32>(std::ceil(a)))
CVT(rzi_u32_f32, u32, "r", float, "f", "cvt.rzi.u32.f32", clamped<u32>(std::trunc(a)))
CVT(rzi_s64_f32, i64, "l", float, "f", "cvt.rzi.s64.f32", clamped<i64>(std::trunc(a)))
CVT(rzi_u64_f64, u64, "l", double, "d", "cvt.rzi.u64.f64", clamped<u64>(std::trunc(a)))
CVT(rni_s64_f64, i64, "l", double, "d", "cvt.rni.s64.f64", clamped<i64>(std::nearbyint(a)))
CVT(rzi_s32_f64, i32, "r", double, "d", "cvt.rzi.s32.f64", clamped<i32>(std::trunc(a)))

CVT(rni_f32_f32, float, "f", float, "f", "cvt.rni.f32.f32", one_nan(std::nearbyint(a)))
CVT(rzi_f32_f32, float, "f", float, "f", "cvt.rzi.f32.f32", one_nan(std::trunc(a)))
CVT(rmi_f32_f32, float, "f", float, "f", "cvt.rmi.f32.f32", one_nan(std::floor(a)))
CVT(sat_f32_f32, float, "f", float, "f", "cvt.sat.f32.f32", a > 0 ? std::min(a, 1.0F) : 0.0F)
CVT(rn_f32_f64, float, "f", double, "d", "cvt.rn.f32.f64", one_nan(float(a)))
CVT(rz_f32_f64, float, "f", double, "d", "cvt.rz.f32.f64",
    one_nan(in_mode<float>(FE_TOWARDZERO, a)))
CVT(rm_f32_f64, float, "f", double, "d", "cvt.rm.f32.f64", one_nan(in_mode<float>(FE_DOWNWARD, a)))
CVT(rp_f32_f64, float, "f", double, "d", "cvt.rp.f32.f64", one_nan(in_mode<float>(FE_UPWARD, a)))

namespace {
__global__ void f64_from_f32(const float* x, double* out, int n) {
  if (int(threadIdx.x) < n) out[threadIdx.x] = double(x[threadIdx.x]);
}
__global__ void pack_and_unpack(const u64* x, u64* out, int n) {
  const int i = int(threadIdx.x);
  if (i >= n) return;
  asm volatile(
      "{ .reg .b32 l, h; .reg .b16 a, b, c, d; mov.b64 {l, h}, %1; mov.b32 {a, b}, l;"
      " mov.b32 {c, d}, h; mov.b64 %0, {d, c, b, a}; }"
      : "=l"(out[i])
      : "l"(x[i]));
}
}  // namespace

TEST(Convert, f64_f32) {
  const std::vector<float> x = ptx_test::edge_values<float>();
  ptx_test::buffer<float> in(x);
  ptx_test::buffer<double> out(x.size());
  f64_from_f32<<<1, 64>>>(in.get(), out.get(), int(x.size()));
  ptx_test::expect_no_fault();
  const std::vector<double> got = out.read();
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == x[i]) {
      EXPECT_TRUE(ptx_test::same_bits(double(x[i]), got[i])) << x[i];
    } else {
      EXPECT_NE(got[i], got[i]);
    }
  }
}

TEST(Convert, pack_and_unpack) {
  const std::vector<u64> x = ptx_test::edge_values<u64>();
  ptx_test::buffer<u64> in(x), out(x.size());
  pack_and_unpack<<<1, 32>>>(in.get(), out.get(), int(x.size()));
  ptx_test::expect_no_fault();
  const std::vector<u64> got = out.read();
  for (std::size_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(got[i], (x[i] << 48) | ((x[i] & 0xffff0000) << 16) | ((x[i] >> 16) & 0xffff0000) |
                          (x[i] >> 48));
}
