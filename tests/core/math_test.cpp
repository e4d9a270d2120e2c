// The once-rounded arithmetic: the emulated fma bit for bit, and the stated error bounds.
#include "adaptive_k/core/math.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "inputs.hpp"

namespace {

namespace math = adaptive_k::math;
using inputs::bits_of;
using inputs::from_bits;

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b);
}

/// Compares both fma's of the library with std::fma; stops a test that has failed often enough.
class fma_checker {
 public:
  void check(float a, float b, float c) {
    ++checked;
    const float exact = std::fma(a, b, c);
    if (same(math::software_fma(a, b, c), exact) && same(math::fma(a, b, c), exact)) return;
    if (++failures <= 5)
      ADD_FAILURE() << std::hexfloat << "fma(" << a << ", " << b << ", " << c
                    << ") = " << math::software_fma(a, b, c) << ", expected " << exact;
  }

  long checked = 0;
  long failures = 0;
};

TEST(SoftwareFma, OfEveryKindOfNumber) {
  const std::vector<std::uint32_t> magnitudes = {
      0x00000000u, 0x00000001u, 0x00000002u, 0x00000003u, 0x00400000u, 0x007FFFFFu,
      0x00800000u, 0x00800001u, 0x01000000u, 0x0C800000u, 0x1F800000u, 0x1FFFFFFFu,
      0x20000000u, 0x33800000u, 0x33FFFFFFu, 0x34000000u, 0x34000001u, 0x3F000000u,
      0x3F7FFFFFu, 0x3F800000u, 0x3F800001u, 0x3FFFFFFFu, 0x40000000u, 0x40490FDBu,
      0x4B000000u, 0x4B7FFFFFu, 0x4B800000u, 0x4B800001u, 0x5F000000u, 0x5F7FFFFFu,
      0x7E800000u, 0x7F000000u, 0x7F7FFFFEu, 0x7F7FFFFFu, 0x7F800000u, 0x7FC00000u};
  std::vector<float> values;
  for (std::uint32_t bits : magnitudes) {
    values.push_back(from_bits(bits));
    values.push_back(from_bits(bits | 0x80000000u));
  }
  fma_checker checker;
  for (float a : values)
    for (float b : values)
      for (float c : values) checker.check(a, b, c);
  EXPECT_EQ(checker.checked, 72 * 72 * 72);
  EXPECT_EQ(checker.failures, 0);
}

TEST(SoftwareFma, OfRandomBits) {
  inputs::sequence from(1);
  fma_checker checker;
  for (int i = 0; i < 1500000; ++i)
    checker.check(from_bits(from.bits()), from_bits(from.bits()), from_bits(from.bits()));
  EXPECT_EQ(checker.failures, 0);
}

// Exponents close together: the sum cancels, or its rounding hangs on the last bits of the product.
TEST(SoftwareFma, OfNearCancellation) {
  inputs::sequence from(2);
  fma_checker checker;
  for (int i = 0; i < 1500000; ++i) {
    const float a =
        std::ldexp(static_cast<float>(from.between(1 << 23, (1 << 24) - 1)), from.between(-60, 10));
    const float b =
        std::ldexp(static_cast<float>(from.between(-(1 << 24), 1 << 24)), from.between(-60, 10));
    const float product = a * b;
    const float near =
        from_bits(bits_of(product) + static_cast<std::uint32_t>(from.between(-2, 2)));
    checker.check(a, b, -near);
    checker.check(a, b, std::ldexp(near, from.between(-30, 30)));
  }
  EXPECT_EQ(checker.failures, 0);
}

// Few significant bits: exact ties between two floats.
TEST(SoftwareFma, OfTies) {
  inputs::sequence from(3);
  fma_checker checker;
  for (int i = 0; i < 1500000; ++i) {
    const float c = static_cast<float>(from.between(1 << 23, (1 << 24) - 1));
    const float a = std::ldexp(static_cast<float>(from.between(1, 15)), from.between(-6, 2));
    const float b = std::ldexp(static_cast<float>(from.between(-15, 15)), from.between(-6, 2));
    checker.check(a, b, c);
    checker.check(a, b, -c);
  }
  EXPECT_EQ(checker.failures, 0);
}

// The exact sum lies above or below a tie of two floats by less than double can hold: rounded to
// double and then to float it comes out wrong.
TEST(SoftwareFma, WhereRoundingTwiceIsWrong) {
  inputs::sequence from(4);
  fma_checker checker;
  long rounded_twice_is_wrong = 0;
  for (int i = 0; i < 500000; ++i) {
    // a * b = 2^-1 * (1 - 2^-46 * n) or (1 + ...): nearly half a step of c.
    const int n = from.between(1, 2047);
    const float up = 1.0f + std::ldexp(static_cast<float>(n), -23);
    const float down = 1.0f - std::ldexp(static_cast<float>(n), -23);
    const float c = static_cast<float>(from.between(1 << 23, (1 << 24) - 1));
    const float scale = std::ldexp(1.0f, from.between(-40, 40));
    const float a = up * 0.5f, b = down * scale, far = c * scale;
    checker.check(a, b, far);
    checker.check(a, b, -far);
    const double twice = static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(far);
    rounded_twice_is_wrong += same(static_cast<float>(twice), std::fma(a, b, far)) ? 0 : 1;
  }
  EXPECT_EQ(checker.failures, 0);
  EXPECT_GT(rounded_twice_is_wrong, 1000);
}

// Results below the smallest normal number, and at the edge of overflow.
TEST(SoftwareFma, OfTheEdgesOfTheRange) {
  inputs::sequence from(5);
  fma_checker checker;
  long subnormal = 0, overflow = 0;
  for (int i = 0; i < 1000000; ++i) {
    const auto significand = [&from] {
      return static_cast<float>(from.between(-(1 << 24), 1 << 24));
    };
    const float a = std::ldexp(significand(), -80), b = std::ldexp(significand(), -90);
    const float c = from_bits((from.bits() & 0x80FFFFFFu));
    checker.check(a, b, c);
    const float small = std::fma(a, b, c);
    subnormal += small != 0.0f && std::abs(small) < 1.17549435e-38f ? 1 : 0;
    const float d = std::ldexp(significand(), 40), e = std::ldexp(significand(), 40);
    const float f =
        from_bits(0x7F7FFFFFu - (from.bits() & 0xFFu)) * (from.chance(2) ? 1.0f : -1.0f);
    checker.check(d, e, f);
    overflow += std::isinf(std::fma(d, e, f)) ? 1 : 0;
  }
  EXPECT_EQ(checker.failures, 0);
  EXPECT_GT(subnormal, 100000);
  EXPECT_GT(overflow, 100000);
}

/// |value - truth| in units of the last place of the truth.
double ulps(float value, double truth) {
  int exponent;
  std::frexp(truth, &exponent);
  return std::abs(static_cast<double>(value) - truth) /
         std::ldexp(1.0, std::max(exponent, -125) - 24);
}

struct worst {
  double error = 0.0;
  float argument = 0.0f;
  long count = 0;

  void see(float x, float value, double truth) {
    const double e = ulps(value, truth);
    ++count;
    if (!(e <= error)) {
      error = e;
      argument = x;
    }
  }
};

/// Every `stride`-th float from `low` to `high`, of one sign, both ends included.
template <class Function>
void sweep(float low, float high, std::uint32_t stride, Function f) {
  const std::uint32_t from = std::min(bits_of(low), bits_of(high));
  const std::uint32_t to = std::max(bits_of(low), bits_of(high));
  for (std::uint64_t bits = from; bits < to; bits += stride)
    f(from_bits(static_cast<std::uint32_t>(bits)));
  f(from_bits(to));
}

void report(const worst& seen, double bound) {
  EXPECT_LE(seen.error, bound) << "at " << std::hexfloat << seen.argument;
  EXPECT_GT(seen.count, 1000000);
  ::testing::Test::RecordProperty("worst_ulps", std::to_string(seen.error));
  ::testing::Test::RecordProperty("at", std::to_string(seen.argument));
}

#ifndef ADAPTIVE_K_TEST_STRIDE
#define ADAPTIVE_K_TEST_STRIDE 509
#endif
constexpr std::uint32_t stride = ADAPTIVE_K_TEST_STRIDE;  // a prime; 1 is every float there is

TEST(MathBounds, ExpWithinTwoUlpAndMoreFarFromZero) {
  for (const float most : {1.0f, 10.0f, 88.0f}) {
    worst seen;
    const auto check = [&seen](float x) {
      seen.see(x, math::exp(x), std::exp(static_cast<double>(x)));
    };
    sweep(0.0f, most, stride, check);
    sweep(-0.0f, most > 86.9f ? -86.9f : -most, stride, check);
    report(seen, 2.0 + most / 25.0);
  }
  EXPECT_EQ(bits_of(math::exp(0.0f)), bits_of(1.0f));
  EXPECT_EQ(bits_of(math::exp(-0.0f)), bits_of(1.0f));
}

TEST(MathBounds, ExpIsZeroBelowItsRange) {
  sweep(-86.99f, -3.4e38f, stride, [](float x) { ASSERT_EQ(bits_of(math::exp(x)), 0u) << x; });
  EXPECT_EQ(bits_of(math::exp(-math::infinity)), 0u);
  EXPECT_EQ(bits_of(math::exp(inputs::from_bits(0x7FC00000u))), 0u);
  EXPECT_GT(math::exp(-86.98f), 1.2e-38f);
}

TEST(MathBounds, ExpNeverFalls) {
  float before = 0.0f;
  for (int i = -88 * 16384; i <= 88 * 16384; ++i) {
    const float value = math::exp(static_cast<float>(i) / 16384.0f);
    ASSERT_GE(value, before) << i;
    before = value;
  }
}

TEST(MathBounds, LogWithinOneUlp) {
  worst seen;
  const auto check = [&seen](float x) {
    seen.see(x, math::log(x), std::log(static_cast<double>(x)));
  };
  sweep(1.17549435e-38f, 3.40282347e38f, stride, check);
  sweep(0.5f, 2.0f, stride / 64 + 1, check);
  report(seen, 1.0);
  EXPECT_EQ(bits_of(math::log(1.0f)), 0u);
}

TEST(MathBounds, Log1pWithinTwoUlp) {
  worst seen;
  const auto check = [&seen](float t) {
    seen.see(t, math::log1p(t), std::log1p(static_cast<double>(t)));
  };
  sweep(1.17549435e-38f, 1.0f, stride, check);
  report(seen, 2.0);
  EXPECT_EQ(bits_of(math::log1p(0.0f)), 0u);
}

TEST(MathBounds, SigmoidWithinFiveUlp) {
  worst seen;
  const auto check = [&seen](float x) {
    seen.see(x, math::sigmoid(x), 1.0 / (1.0 + std::exp(-static_cast<double>(x))));
  };
  sweep(0.0f, 3.4e38f, stride, check);
  sweep(-0.0f, -86.9f, stride, check);
  report(seen, 5.0);
  EXPECT_EQ(math::sigmoid(0.0f), 0.5f);
  EXPECT_EQ(math::sigmoid(math::infinity), 1.0f);
  EXPECT_EQ(math::sigmoid(-math::infinity), 0.0f);
  EXPECT_EQ(math::sigmoid(-87.0f), 0.0f);
}

TEST(MathBounds, SoftplusWithinFiveUlp) {
  worst seen;
  const auto check = [&seen](float x) {
    const double wide = static_cast<double>(x);
    const double truth =
        wide > 0.0 ? wide + std::log1p(std::exp(-wide)) : std::log1p(std::exp(wide));
    seen.see(x, math::softplus(x), truth);
  };
  sweep(0.0f, 3.4e38f, stride, check);
  sweep(-0.0f, -86.9f, stride, check);
  report(seen, 5.0);
  EXPECT_EQ(math::softplus(-87.0f), 0.0f);
  EXPECT_EQ(math::softplus(-math::infinity), 0.0f);
}

TEST(Math, SmallOnes) {
  EXPECT_EQ(math::maximum(1.0f, 2.0f), 2.0f);
  EXPECT_EQ(math::minimum(1.0f, 2.0f), 1.0f);
  EXPECT_EQ(bits_of(math::abs(-0.0f)), 0u);
  EXPECT_EQ(math::abs(-math::infinity), math::infinity);
  EXPECT_EQ(math::divide(1.0f, 3.0f), 0x1.555556p-2f);
  EXPECT_EQ(math::sqrt(2.0f), 0x1.6a09e6p+0f);
}

}  // namespace
