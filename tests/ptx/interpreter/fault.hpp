// What can go wrong in a kernel, and the report of it.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ptx {

enum class fault_kind {
  none,
  out_of_bounds,
  misaligned,
  uninitialised,      ///< an undefined value decided a branch, an address or a vote
  shared_race,        ///< two threads of a block, at least one writing, nothing between them
  global_race,        ///< the same in global memory, within a block or between blocks
  early_access,       ///< global memory before griddepcontrol.wait in a launch that may overlap
  divergent_barrier,  ///< bar.sync without all threads of a warp
  inactive_lane,      ///< a shuffle from a lane that does not take part
  missing_lane,       ///< a .sync operation waits for a lane that never comes
  deadlock,           ///< a block barrier that never completes
  runaway,            ///< the instruction budget is used up
  trap,               ///< trap or a failed device assertion
  unsupported,        ///< an instruction or form that the interpreter does not know
  bad_launch,         ///< a launch that no device would take
};

const char* name_of(fault_kind kind);

struct fault {
  fault_kind kind = fault_kind::none;
  std::string kernel;       ///< demangled
  std::string file;         ///< of the source line that the instruction comes from
  int line = 0;             ///< 0 without -lineinfo
  std::string call_path;    ///< " <- file:line" for each inlined caller
  std::string instruction;  ///< as PTX
  std::string message;
  std::array<unsigned, 3> block{};
  std::array<unsigned, 3> thread{};

  std::string text() const;
  /// Whether the instruction comes from this line, itself or as a caller of inlined code.
  bool is_at(const std::string& file_name, int source_line) const;
};

/// Thrown inside the interpreter; the launch turns it into a CUDA error.
class kernel_fault : public std::runtime_error {
 public:
  kernel_fault(fault_kind kind, int lane, const std::string& message)
      : std::runtime_error(message), kind_(kind), lane_(lane) {}
  fault_kind kind() const { return kind_; }
  int lane() const { return lane_; }

 private:
  fault_kind kind_;
  int lane_;
};

std::string demangle(const std::string& name);
std::string hex(std::uint64_t value);

}  // namespace ptx
