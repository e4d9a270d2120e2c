// What a test can choose about a launch.
#pragma once

#include <cstdint>

#include "../clock/timing.hpp"

namespace ptx {

/// The order in which warps and blocks take turns. Seed 0 is the plain order: blocks and warps
/// one after the other, threads of a warp together whenever they can be.
struct schedule {
  std::uint64_t seed = 0;
  unsigned resident_blocks = 8;     ///< blocks that run at the same time
  bool shuffle_all_blocks = false;  ///< start blocks in any order, not only near their turn
  std::uint64_t launch_budget = std::uint64_t{1} << 32;  ///< warp instructions of a launch
  std::uint64_t warp_budget = std::uint64_t{1} << 24;    ///< instructions of one warp
};

/// Which checks run; all of them unless a test says otherwise.
struct checks {
  bool races = true;
  bool undefined = true;
};

/// The device whose times are modelled while kernels run; 0 models none.
struct clock_settings {
  int sm = 0;  ///< 80 or 90
  memory_level memory = memory_level::l2;
};

}  // namespace ptx
