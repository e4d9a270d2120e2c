// What a launch did, in numbers. They count PTX instructions, which are not SASS instructions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ptx {

enum class instruction_class : std::uint8_t {
  integer,
  float32,
  float64,
  half,  ///< fp16 and bf16
  conversion,
  move,
  compare,
  control,
  load,
  store,
  atomic,
  warp,  ///< shuffle, vote, match, redux, bar.warp
  barrier,
  fence,
};
inline constexpr std::size_t instruction_classes = 14;

const char* name_of(instruction_class c);

struct counters {
  std::uint64_t launches = 0;
  std::uint64_t blocks = 0;
  std::uint64_t warp_instructions = 0;    ///< one for a warp's active lanes together
  std::uint64_t thread_instructions = 0;  ///< one a lane that the guard lets through
  std::array<std::uint64_t, instruction_classes> warp_by_class{};
  std::array<std::uint64_t, instruction_classes> thread_by_class{};
  std::uint64_t approximate_operations = 0;  ///< lanes of *.approx: not exact, here or there
  // A request is one warp instruction with at least one lane; a sector is 32 aligned bytes.
  std::uint64_t global_load_requests = 0;
  std::uint64_t global_load_sectors = 0;
  std::uint64_t global_store_requests = 0;
  std::uint64_t global_store_sectors = 0;
  std::uint64_t global_atomic_requests = 0;
  std::uint64_t global_atomic_sectors = 0;
  std::uint64_t shared_load_requests = 0;
  std::uint64_t shared_store_requests = 0;
  std::uint64_t shared_atomic_requests = 0;
  std::uint64_t shared_bank_conflicts = 0;  ///< passes beyond those the width alone needs
  std::uint64_t local_requests = 0;
  std::uint64_t block_barriers = 0;  ///< completed, once a block

  std::uint64_t warp_of(instruction_class c) const {
    return warp_by_class[static_cast<std::size_t>(c)];
  }
  std::uint64_t thread_of(instruction_class c) const {
    return thread_by_class[static_cast<std::size_t>(c)];
  }
  counters& operator+=(const counters& other);
};

}  // namespace ptx
