// The version of the headers that this program was built from.
#pragma once

#include <adaptive_k/config.hpp>
#include <string>

namespace bench {

inline std::string version() {
  return std::to_string(ADAPTIVE_K_VERSION_MAJOR) + "." + std::to_string(ADAPTIVE_K_VERSION_MINOR) +
         "." + std::to_string(ADAPTIVE_K_VERSION_PATCH);
}

}  // namespace bench
