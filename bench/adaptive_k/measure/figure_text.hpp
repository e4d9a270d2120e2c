// Figures as people read them.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "bench/adaptive_k/measure/quality.hpp"

namespace bench {

/// "0.0123 +- 0.0004"; the value alone where nothing is known of its error. `sign` may be "+".
inline std::string with_se(const estimate& e, int digits, const char* sign = "") {
  const std::string value =
      fmt::format(fmt::runtime(fmt::format("{{:{}.{}f}}", sign, digits)), e.value);
  return std::isnan(e.se) ? value : fmt::format("{} +- {:.{}f}", value, e.se, digits);
}

/// 0.123 is "12.3%".
inline std::string percent(double share, int digits = 1) {
  return fmt::format("{:.{}f}%", 100.0 * share, digits);
}

}  // namespace bench
