#include "counters.hpp"

namespace ptx {

const char* name_of(instruction_class c) {
  static constexpr std::array<const char*, instruction_classes> names = {
      "integer", "float32", "float64", "half",   "conversion", "move",    "compare",
      "control", "load",    "store",   "atomic", "warp",       "barrier", "fence"};
  return names[static_cast<std::size_t>(c)];
}

counters& counters::operator+=(const counters& other) {
  launches += other.launches;
  blocks += other.blocks;
  warp_instructions += other.warp_instructions;
  thread_instructions += other.thread_instructions;
  for (std::size_t i = 0; i < instruction_classes; ++i) {
    warp_by_class[i] += other.warp_by_class[i];
    thread_by_class[i] += other.thread_by_class[i];
  }
  approximate_operations += other.approximate_operations;
  global_load_requests += other.global_load_requests;
  global_load_sectors += other.global_load_sectors;
  global_store_requests += other.global_store_requests;
  global_store_sectors += other.global_store_sectors;
  global_atomic_requests += other.global_atomic_requests;
  global_atomic_sectors += other.global_atomic_sectors;
  shared_load_requests += other.shared_load_requests;
  shared_store_requests += other.shared_store_requests;
  shared_atomic_requests += other.shared_atomic_requests;
  shared_bank_conflicts += other.shared_bank_conflicts;
  local_requests += other.local_requests;
  block_barriers += other.block_barriers;
  return *this;
}

}  // namespace ptx
