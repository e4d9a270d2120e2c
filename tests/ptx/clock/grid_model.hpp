// From the warps of a launch to its time on a device: who shares a multiprocessor with whom.
// Everything here is modelled; nothing was timed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "machine_code.hpp"
#include "warp_clock.hpp"

namespace ptx {

struct launch_time {
  std::string kernel;  ///< demangled
  std::vector<std::vector<warp_time>> blocks;
  std::uint64_t sectors = 0;       ///< of 32 bytes of global memory, loaded and stored
  std::uint64_t threads = 0;       ///< of a block
  std::uint64_t shared_bytes = 0;  ///< of a block, as declared and as asked for
  /// Of the warp that takes longest in PTX order: how often it ran each line of the PTX, and what
  /// that means in machine code.
  std::vector<std::uint32_t> runs_of_line;
  machine_schedule schedule;
};

/// Cycles. Blocks go to the multiprocessors in turn, warps to the schedulers in turn; as many
/// blocks run at a time as fit. Left out: the launch itself, instruction and constant caches that
/// are cold, waiting of one block for another.
struct grid_time {
  // The longest warp alone.
  std::uint64_t data_flow = 0, issue_slots = 0, ptx_order = 0;
  /// No schedule of these instructions takes less: the longest warp, the busiest scheduler, the
  /// blocks that wait for room, or L2, whichever takes longest.
  std::uint64_t lower = 0;
  /// The slowest multiprocessor, each warp in PTX order and delayed by everything that the others
  /// on its scheduler issue.
  std::uint64_t upper = 0;
  std::uint64_t busiest_scheduler = 0, l2 = 0;  ///< parts of `lower`
  unsigned waves = 0;                           ///< of blocks, on the busiest multiprocessor
};

/// Blocks that a multiprocessor holds at a time: by registers (a thread), shared memory (a block,
/// 1 KiB of it reserved), threads, and the number of blocks. 0 where not even one fits.
unsigned resident_blocks(const machine& m, unsigned registers, std::uint64_t shared_bytes,
                         std::uint64_t threads);

/// Throws std::invalid_argument where `resident` is 0, and for a launch that ended with a fault.
grid_time model_grid(const machine& m, const launch_time& launch, unsigned resident);

}  // namespace ptx
