// fp32 and fp64 against the host, in every rounding mode, and the approximations near the truth.
#include <cfenv>
#include <cmath>

#include "support.cuh"

namespace {

/// One operation in a rounding mode; volatile keeps the compiler from doing it beforehand.
template <class T, class F>
T rounded(int mode, F f, T a, T b = 0, T c = 0) {
  const volatile T x = a, y = b, z = c;
  std::fesetround(mode);
  volatile T result = f(x, y, z);
  std::fesetround(FE_TONEAREST);
  return result;
}

float one_nan(float v) {
  if (v == v) return v;
  const std::uint32_t bits = 0x7fffffff;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
double one_nan(double v) {
  return v;
}

template <class T>
T flushed(T v) {
  return std::fabs(v) < std::numeric_limits<T>::min() ? std::copysign(T(0), v) : v;
}
template <class T>
T clamped(T v) {
  return v > 0 ? std::min(v, T(1)) : T(0);
}

template <class T>
T low(T a, T b) {
  if (a != a) return one_nan(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
T high(T a, T b) {
  if (a != a) return one_nan(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a < b ? b : a;
}

}  // namespace

#define BINARY(name, T, r, op, mode, expression)              \
  PTX_TEST2(Float, name, T, r, T, r, T, r, op " %0, %1, %2;", \
            one_nan(rounded<T>(                               \
                mode, [](T x, T y, T) { return T(expression); }, a, b)))
#define TERNARY(name, T, r, op, mode)                                   \
  PTX_TEST3(Float, name, T, r, T, r, T, r, T, r, op " %0, %1, %2, %3;", \
            one_nan(rounded<T>(                                         \
                mode, [](T x, T y, T z) { return std::fma(x, y, z); }, a, b, c)))
#define UNARY(name, T, r, op, mode, expression)     \
  PTX_TEST1(Float, name, T, r, T, r, op " %0, %1;", \
            one_nan(rounded<T>(                     \
                mode, [](T x, T, T) { return T(expression); }, a)))

BINARY(add_f32, float, "f", "add.rn.f32", FE_TONEAREST, x + y)
BINARY(add_rz_f32, float, "f", "add.rz.f32", FE_TOWARDZERO, x + y)
BINARY(add_rm_f32, float, "f", "add.rm.f32", FE_DOWNWARD, x + y)
BINARY(add_rp_f32, float, "f", "add.rp.f32", FE_UPWARD, x + y)
BINARY(sub_f32, float, "f", "sub.rn.f32", FE_TONEAREST, x - y)
BINARY(mul_f32, float, "f", "mul.rn.f32", FE_TONEAREST, x* y)
BINARY(mul_rp_f32, float, "f", "mul.rp.f32", FE_UPWARD, x* y)
BINARY(div_f32, float, "f", "div.rn.f32", FE_TONEAREST, x / y)
BINARY(div_rm_f32, float, "f", "div.rm.f32", FE_DOWNWARD, x / y)
TERNARY(fma_f32, float, "f", "fma.rn.f32", FE_TONEAREST)
TERNARY(fma_rz_f32, float, "f", "fma.rz.f32", FE_TOWARDZERO)
TERNARY(fma_rp_f32, float, "f", "fma.rp.f32", FE_UPWARD)
UNARY(sqrt_f32, float, "f", "sqrt.rn.f32", FE_TONEAREST, std::sqrt(x))
UNARY(sqrt_rm_f32, float, "f", "sqrt.rm.f32", FE_DOWNWARD, std::sqrt(x))
UNARY(rcp_f32, float, "f", "rcp.rn.f32", FE_TONEAREST, 1 / x)
UNARY(rcp_rz_f32, float, "f", "rcp.rz.f32", FE_TOWARDZERO, 1 / x)

PTX_TEST2(Float, add_ftz_f32, float, "f", float, "f", float, "f", "add.rn.ftz.f32 %0, %1, %2;",
          one_nan(flushed(flushed(a) + flushed(b))))
PTX_TEST2(Float, mul_ftz_f32, float, "f", float, "f", float, "f", "mul.rn.ftz.f32 %0, %1, %2;",
          one_nan(flushed(flushed(a) * flushed(b))))
PTX_TEST2(Float, add_sat_f32, float, "f", float, "f", float, "f", "add.rn.sat.f32 %0, %1, %2;",
          clamped(a + b))
PTX_TEST2(Float, min_f32, float, "f", float, "f", float, "f", "min.f32 %0, %1, %2;", low(a, b))
PTX_TEST2(Float, max_f32, float, "f", float, "f", float, "f", "max.f32 %0, %1, %2;", high(a, b))
PTX_TEST2(Float, min_f64, double, "d", double, "d", double, "d", "min.f64 %0, %1, %2;", low(a, b))
PTX_TEST1(Float, neg_f32, float, "f", float, "f", "neg.f32 %0, %1;", -a)
PTX_TEST1(Float, abs_f32, float, "f", float, "f", "abs.f32 %0, %1;", std::fabs(a))
PTX_TEST1(Float, neg_f64, double, "d", double, "d", "neg.f64 %0, %1;", -a)
PTX_TEST2(Float, copysign_f32, float, "f", float, "f", float, "f", "copysign.f32 %0, %1, %2;",
          std::copysign(b, a))

namespace {
/// Which NaN an fp64 operation gives is not defined; the tests compare NaNs as equal.
template <class F>
void check_f64(F expected, const std::vector<double>& got, const std::vector<double>& x,
               const std::vector<double>& y, const std::vector<double>& z) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double want = expected(x[i], y[i], z[i]);
    if (want != want && got[i] != got[i]) continue;
    ASSERT_TRUE(ptx_test::same_bits(want, got[i])) << x[i] << " " << y[i] << " " << z[i];
  }
}

template <int Op>
__global__ void in_f64(const double* x, const double* y, const double* z, double* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  if (Op == 0) out[i] = __dadd_rn(x[i], y[i]);
  if (Op == 1) out[i] = __dmul_rd(x[i], y[i]);
  if (Op == 2) out[i] = __fma_ru(x[i], y[i], z[i]);
  if (Op == 3) out[i] = __ddiv_rn(x[i], y[i]);
  if (Op == 4) out[i] = __dsqrt_rz(x[i]);
}

template <int Op, class F>
void run_f64(F expected) {
  const std::vector<double> edges = ptx_test::edge_values<double>();
  std::vector<double> x, y, z;
  for (const double a : edges)
    for (const double b : edges) {
      x.push_back(a);
      y.push_back(b);
      z.push_back(edges[(x.size() * 7) % edges.size()]);
    }
  ptx_test::buffer<double> dx(x), dy(y), dz(z), out(x.size());
  in_f64<Op><<<ptx_test::blocks_for(x.size()), ptx_test::threads>>>(
      dx.get(), dy.get(), dz.get(), out.get(), static_cast<int>(x.size()));
  ptx_test::expect_no_fault();
  check_f64(expected, out.read(), x, y, z);
}
}  // namespace

TEST(Float, add_f64) {
  run_f64<0>([](double a, double b, double) { return a + b; });
}
TEST(Float, mul_rm_f64) {
  run_f64<1>([](double a, double b, double) {
    return rounded<double>(
        FE_DOWNWARD, [](double x, double y, double) { return x * y; }, a, b);
  });
}
TEST(Float, fma_rp_f64) {
  run_f64<2>([](double a, double b, double c) {
    return rounded<double>(
        FE_UPWARD, [](double x, double y, double z) { return std::fma(x, y, z); }, a, b, c);
  });
}
TEST(Float, div_f64) {
  run_f64<3>([](double a, double b, double) { return a / b; });
}
TEST(Float, sqrt_rz_f64) {
  run_f64<4>([](double a, double, double) {
    return rounded<double>(
        FE_TOWARDZERO, [](double x, double, double) { return std::sqrt(x); }, a);
  });
}

namespace {
__global__ void approximations(const float* x, float* out, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  asm("ex2.approx.f32 %0, %1;" : "=f"(out[i]) : "f"(x[i]));
  asm("lg2.approx.f32 %0, %1;" : "=f"(out[n + i]) : "f"(x[i]));
  asm("rcp.approx.f32 %0, %1;" : "=f"(out[2 * n + i]) : "f"(x[i]));
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(out[3 * n + i]) : "f"(x[i]));
  asm("sqrt.approx.f32 %0, %1;" : "=f"(out[4 * n + i]) : "f"(x[i]));
  asm("sin.approx.f32 %0, %1;" : "=f"(out[5 * n + i]) : "f"(x[i]));
  asm("cos.approx.f32 %0, %1;" : "=f"(out[6 * n + i]) : "f"(x[i]));
  asm("tanh.approx.f32 %0, %1;" : "=f"(out[7 * n + i]) : "f"(x[i]));
  asm("div.approx.f32 %0, %1, %2;" : "=f"(out[8 * n + i]) : "f"(x[i]), "f"(3.0F));
}
}  // namespace

TEST(Float, approximations_are_near_and_counted) {
  const std::vector<float> x = {0.25F, 0.5F, 1.0F, 1.25F, 2.0F, 3.0F, 10.0F};
  const std::size_t n = x.size();
  ptx_test::buffer<float> in(x), out(9 * n);
  ptx::reset_counters();
  approximations<<<1, 32>>>(in.get(), out.get(), static_cast<int>(n));
  ptx_test::expect_no_fault();
  EXPECT_EQ(ptx::last_launch().approximate_operations, 9 * n);
  const std::vector<float> got = out.read();
  for (std::size_t i = 0; i < n; ++i) {
    const float want[] = {std::exp2(x[i]),     std::log2(x[i]), 1 / x[i],
                          1 / std::sqrt(x[i]), std::sqrt(x[i]), std::sin(x[i]),
                          std::cos(x[i]),      std::tanh(x[i]), x[i] / 3};
    for (std::size_t k = 0; k < 9; ++k)
      EXPECT_NEAR(got[k * n + i], want[k], 1e-6F * (1 + std::fabs(want[k]))) << k << " of " << x[i];
  }
}
