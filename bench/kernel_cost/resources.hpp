// What ptxas reported of the compiled kernels.
#pragma once

#include <map>
#include <string>
#include <utility>

namespace kernel_cost {

struct resources {
  int registers = 0;
  int stack_bytes = 0;
  int spill_bytes = 0;  ///< stores and loads together
  int shared_bytes = 0;
};

/// By architecture ("sm_80") and kernel name.
using resource_map = std::map<std::pair<std::string, std::string>, resources>;

/// From logs of `nvcc -Xptxas -v`. Throws
/// std::runtime_error naming the file where one cannot be read or holds no kernel.
resource_map read_resources(const std::string& path);

/// Warps of 32 threads that fit a multiprocessor, as a share of its most: by registers, shared
/// memory, threads and blocks.
double theoretical_occupancy(const resources& used, const std::string& architecture,
                             int threads_per_block, int dynamic_shared_bytes = 0);

}  // namespace kernel_cost
