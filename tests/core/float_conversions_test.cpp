// fp16 and bf16, every pattern both ways, against their definition.
#include <gtest/gtest.h>

#include <cmath>

#include "adaptive_k/types.hpp"
#include "inputs.hpp"

namespace {

using adaptive_k::bfloat16;
using adaptive_k::float16;
using adaptive_k::from_float;
using adaptive_k::to_float;

template <class T>
struct format;
template <>
struct format<float16> {
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
template <>
struct format<bfloat16> {
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

template <class T>
class Conversions : public ::testing::Test {
 protected:
  static constexpr int fraction_bits = format<T>::fraction_bits;
  static constexpr std::uint32_t infinity_bits = 0x7FFFu >> fraction_bits << fraction_bits;

  static double decode(std::uint32_t bits) {
    return inputs::decode(static_cast<std::uint16_t>(bits), format<T>::exponent_bits,
                          fraction_bits);
  }

  /// The nearest pattern by search over all of them: ties to even, and from half a step above the
  /// largest number on to infinity.
  static std::uint32_t nearest(float value) {
    const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
    const double magnitude = std::abs(static_cast<double>(value));
    std::uint32_t low = 0, high = infinity_bits;  // decode(low) <= magnitude
    if (std::isinf(value)) return sign | infinity_bits;
    while (high - low > 1) {
      const std::uint32_t middle = (low + high) / 2;
      (decode(middle) <= magnitude ? low : high) = middle;
    }
    // One past the largest number, infinity stands for the number that would come next.
    const double below = decode(low);
    const double above = high == infinity_bits ? 2.0 * below - decode(low - 1) : decode(high);
    const double down = magnitude - below, up = above - magnitude;
    const bool take_high = up < down || (up == down && (high & 1u) == 0);
    return sign | (take_high ? high : low);
  }
};

using narrow_types = ::testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(Conversions, narrow_types);

TYPED_TEST(Conversions, EveryPatternWidensExactlyAndComesBack) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const TypeParam narrow = {static_cast<std::uint16_t>(bits)};
    const float wide = to_float(narrow);
    const double truth = this->decode(bits);
    if (std::isnan(truth)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      const TypeParam back = from_float<TypeParam>(wide);
      ASSERT_TRUE(std::isnan(this->decode(back.bits))) << bits;
      ASSERT_EQ(back.bits & 0x8000u, bits & 0x8000u) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(wide), truth) << bits;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000u) != 0) << bits;
      ASSERT_EQ(from_float<TypeParam>(wide).bits, bits);
    }
  }
}

// Between any two neighbours: the tie, a hair to either side of it, and the ends' own neighbours.
TYPED_TEST(Conversions, RoundsToNearestEvenBetweenAllNeighbours) {
  for (std::uint32_t bits = 0; bits < this->infinity_bits; ++bits) {
    const double low = this->decode(bits);
    const double high = bits + 1 == this->infinity_bits ? 2.0 * low - this->decode(bits - 1)
                                                        : this->decode(bits + 1);
    const float middle = static_cast<float>(low + (high - low) / 2.0);
    const std::uint32_t tie = inputs::bits_of(middle);
    for (std::uint32_t at : {tie - 1, tie, tie + 1, inputs::bits_of(static_cast<float>(low)) + 1,
                             inputs::bits_of(static_cast<float>(high)) - 1})
      for (std::uint32_t sign : {0u, 0x80000000u}) {
        const float value = inputs::from_bits(at | sign);
        if (std::isnan(value)) continue;
        ASSERT_EQ(from_float<TypeParam>(value).bits, this->nearest(value)) << value;
      }
    const std::uint32_t even = (bits & 1u) == 0 ? bits : bits + 1;
    ASSERT_EQ(from_float<TypeParam>(middle).bits, even) << middle;
  }
}

TYPED_TEST(Conversions, RandomFloats) {
  inputs::sequence from(7);
  for (int i = 0; i < 1000000; ++i) {
    const float value = inputs::from_bits(from.bits());
    const std::uint32_t bits = from_float<TypeParam>(value).bits;
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(this->decode(bits)));
    } else {
      ASSERT_EQ(bits, this->nearest(value)) << value;
    }
  }
}

TEST(Float16, Edges) {
  EXPECT_EQ(from_float<float16>(65504.0f).bits, 0x7BFFu);
  EXPECT_EQ(from_float<float16>(65519.996f).bits, 0x7BFFu);
  EXPECT_EQ(from_float<float16>(65520.0f).bits, 0x7C00u);
  EXPECT_EQ(from_float<float16>(-1e30f).bits, 0xFC00u);
  EXPECT_EQ(from_float<float16>(0x1p-24f).bits, 1u);
  EXPECT_EQ(from_float<float16>(0x1p-25f).bits, 0u);
  EXPECT_EQ(from_float<float16>(0x1.000002p-25f).bits, 1u);
  EXPECT_EQ(from_float<float16>(-0.0f).bits, 0x8000u);
  EXPECT_EQ(from_float<float16>(1.0f).bits, 0x3C00u);
}

TEST(BFloat16, Edges) {
  EXPECT_EQ(from_float<bfloat16>(3.4028235e38f).bits, 0x7F80u);
  EXPECT_EQ(from_float<bfloat16>(1.0f).bits, 0x3F80u);
  EXPECT_EQ(from_float<bfloat16>(0x1.01p0f).bits, 0x3F80u);
  EXPECT_EQ(from_float<bfloat16>(0x1.03p0f).bits, 0x3F82u);
  // A NaN whose fraction lies in the lower half stays a NaN.
  EXPECT_NE(from_float<bfloat16>(inputs::from_bits(0x7F800001u)).bits & 0x7Fu, 0u);
}

TEST(Float, IsLeftAlone) {
  EXPECT_EQ(inputs::bits_of(to_float(0.1f)), inputs::bits_of(0.1f));
  EXPECT_EQ(inputs::bits_of(from_float<float>(-0.0f)), 0x80000000u);
}

}  // namespace
