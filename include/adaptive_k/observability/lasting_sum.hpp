// Sums that many threads add to, and that never overflow.
#pragma once

#include <atomic>
#include <cstdint>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Adds to a sum in two cells: cells[0] wraps around, and cells[1] counts how often its top bit has
/// flipped. `value` is below 2^63. Lock-free, and no addition is lost.
inline void add_to_sum(std::atomic<std::uint64_t>* cells, std::uint64_t value) noexcept {
  if (value == 0) return;
  const std::uint64_t before = cells[0].fetch_add(value, std::memory_order_relaxed);
  if (((before ^ (before + value)) >> 63) != 0) cells[1].fetch_add(1, std::memory_order_release);
}

/// Never less than before: a flip that is not counted yet shows in the parity of the count.
inline double value_of_sum(const std::atomic<std::uint64_t>* cells) noexcept {
  std::uint64_t turns = cells[1].load(std::memory_order_acquire);
  const std::uint64_t low = cells[0].load(std::memory_order_relaxed);
  turns += (turns ^ (low >> 63)) & 1;
  constexpr double turn = 9223372036854775808.0;
  return static_cast<double>(turns) * turn + static_cast<double>(low << 1 >> 1);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
