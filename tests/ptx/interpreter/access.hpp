// From an address to bytes, with every check on the way. Loads, stores and atomics use it.
#pragma once

#include "machine.hpp"

namespace ptx {

/// The bytes that one lane touches.
struct located {
  region* where = nullptr;   ///< nullptr for parameters and local memory
  std::uint64_t offset = 0;  ///< in the region
  std::uint64_t key = 0;     ///< the address, unique among spaces and blocks
  std::uint8_t* bytes = nullptr;
  std::uint8_t* undefined = nullptr;  ///< nullptr: always defined
  space in = space::global;
};

class accessor {
 public:
  /// Checks that the base address row is defined for `lanes`.
  accessor(warp& w, const instruction& in, lane_mask lanes, unsigned bytes, const char* doing);

  /// The memory of `lane`, inside bounds and aligned; throws otherwise.
  located locate(int lane);
  std::uint64_t address(int lane) const {
    return base_->lane[lane] + static_cast<std::uint64_t>(in_->offset);
  }
  /// Records the access for race detection; throws on a race.
  void record(int lane, const located& at, bool write, bool strong, bool silent);
  /// Counts requests, sectors and bank conflicts of the whole instruction.
  enum class kind { load, store, atomic };
  void count(kind what, lane_mask lanes);

 private:
  located locate_shared(int lane, std::uint64_t offset);
  located locate_local(int lane, std::uint64_t offset);
  located locate_parameter(int lane, std::uint64_t offset);
  located locate_global(int lane, std::uint64_t address);
  [[noreturn]] void out_of_bounds(int lane, const char* space, std::uint64_t address,
                                  const std::string& detail);
  std::uint64_t count_banks(lane_mask lanes);

  warp* warp_;
  const instruction* in_;
  const lane_row* base_;
  unsigned bytes_;
  const char* doing_;
  region* last_ = nullptr;
  bool races_;
};

}  // namespace ptx
