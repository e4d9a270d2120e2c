// Cost curves of every kind, for the tests of budgets on the host and on the device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "inputs.hpp"

namespace budgets {

enum class curve { convex, any, flat, forbidding };

struct batch {
  std::int64_t tokens = 0;
  int top_k = 0;
  std::vector<float> costs;           ///< [tokens, top_k]
  std::vector<std::uint8_t> padding;  ///< [tokens], or empty

  const float* of(std::int64_t token) const {
    return costs.data() + static_cast<std::size_t>(token * top_k);
  }
  bool is_padding(std::int64_t token) const {
    return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
  }
};

/// Multiples of 2^-10, so that sums and differences are exact in float; equal savings are common.
inline batch make(inputs::sequence& from, std::int64_t tokens, int top_k, curve shape,
                  bool with_padding = false) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  batch made;
  made.tokens = tokens;
  made.top_k = top_k;
  const int steps = shape == curve::flat ? 3 : 400;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<int> saved(static_cast<std::size_t>(top_k));
    for (int& each : saved) each = from.below(steps);
    if (shape == curve::any)
      for (int& each : saved)
        if (from.chance(4)) each = -each;
    if (shape != curve::any)  // descending savings: convex
      for (std::size_t i = 0; i < saved.size(); ++i)
        for (std::size_t j = i + 1; j < saved.size(); ++j)
          if (saved[j] > saved[i]) std::swap(saved[i], saved[j]);
    int cost = 2000;
    for (int k = 1; k <= top_k; ++k) {
      made.costs.push_back(static_cast<float>(cost) / 1024.0f);
      cost -= saved[static_cast<std::size_t>(k - 1)];
    }
    if (shape == curve::forbidding)
      for (int k = 1; k <= top_k; ++k)
        if (from.chance(3))
          made.costs[static_cast<std::size_t>(t * top_k + k - 1)] = from.chance(2)   ? inf
                                                                    : from.chance(2) ? nan
                                                                                     : -inf;
    if (with_padding) made.padding.push_back(from.chance(4) ? 1 : 0);
  }
  return made;
}

}  // namespace budgets
