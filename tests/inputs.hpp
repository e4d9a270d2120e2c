// Test inputs made from integers alone, so that they are the same under every compiler and library.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "adaptive_k/types.hpp"

namespace inputs {

/// splitmix64: a counter and a mixing function; any seed is a good one.
class sequence {
 public:
  explicit sequence(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t mixed = state_;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
  }

  std::uint32_t bits() { return static_cast<std::uint32_t>(next() >> 32); }

  /// 0..count-1.
  int below(int count) {
    return static_cast<int>((next() >> 33) % static_cast<std::uint64_t>(count));
  }

  /// low..high, both included.
  int between(int low, int high) { return low + below(high - low + 1); }

  bool chance(int one_in) { return below(one_in) == 0; }

  template <class T>
  const T& pick(const std::vector<T>& values) {
    return values[static_cast<std::size_t>(below(static_cast<int>(values.size())))];
  }

 private:
  std::uint64_t state_;
};

/// A multiple of 1/64, bell-shaped around 0: the sum of four uniform integers of up to `spread`
/// 64ths either way. Differences of such logits are exact in float, and equal ones are common.
inline float grid_logit(sequence& from, int spread) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += from.between(-spread, spread);
  return static_cast<float>(sum) / 64.0f;
}

/// Full-precision logits: multiples of 2^-20, bell-shaped, within about 8.
inline float fine_logit(sequence& from) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += from.between(-(1 << 21), 1 << 21);
  return static_cast<float>(sum) / 1048576.0f;
}

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// The number behind a 16-bit floating format of the given widths, by its definition.
inline double decode(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double magnitude;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                              : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<double>(fraction), 1 - bias - fraction_bits);
  } else {
    magnitude = std::ldexp(static_cast<double>(fraction + (1 << fraction_bits)),
                           exponent - bias - fraction_bits);
  }
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

inline double number(float value) {
  return static_cast<double>(value);
}
inline double number(adaptive_k::float16 value) {
  return decode(value.bits, 5, 10);
}
inline double number(adaptive_k::bfloat16 value) {
  return decode(value.bits, 8, 7);
}

/// Small coefficients and id tables for `distortion`; multiples of 1/64. With these, larger k
/// mostly means less distortion, and all k are chosen by some token.
struct distortion_tables {
  std::vector<float> coefficients, first_expert, next_expert;
  std::vector<float> head_coefficients;  ///< those that stand beside a head

  distortion_tables(sequence& from, int num_experts, int top_k) {
    const auto grid = [&from](int low, int high) {
      return static_cast<float>(from.between(low, high)) / 64.0f;
    };
    for (int k = 1; k < top_k; ++k) {
      const float row[5] = {grid(-96, 32), grid(0, 64), grid(16, 64), grid(-32, 32), grid(-16, 16)};
      coefficients.insert(coefficients.end(), row, row + 5);
      const float head_row[5] = {row[0], row[1]};
      head_coefficients.insert(head_coefficients.end(), head_row, head_row + 5);
      for (int e = 0; e < num_experts; ++e) {
        first_expert.push_back(grid(-32, 32));
        next_expert.push_back(grid(-32, 32));
      }
    }
  }
};

}  // namespace inputs
