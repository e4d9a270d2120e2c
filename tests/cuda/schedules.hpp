// Orders of execution to try: of the interpreter by seed; a GPU has its own.
#pragma once

#include <cstdint>
#include <string>
#if defined(ON_INTERPRETER)
#include "ptx_device.hpp"
#endif

namespace schedules {

/// Blocks and warps in the order of `seed`, several blocks at once, from now on.
inline void choose(std::uint64_t seed) {
#if defined(ON_INTERPRETER)
  ptx::schedule order;
  order.seed = seed;
  order.resident_blocks = 1 + static_cast<unsigned>(seed * 5 % 16);
  order.shuffle_all_blocks = seed % 2 == 1;
  ptx::set_schedule(order);
#else
  (void)seed;
#endif
}

/// What the interpreter says of the last launch that failed.
inline std::string last_fault() {
#if defined(ON_INTERPRETER)
  return ptx::last_fault().text();
#else
  return "";
#endif
}

}  // namespace schedules
