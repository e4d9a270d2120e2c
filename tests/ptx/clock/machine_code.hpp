// The machine code of a kernel as ptxas scheduled it, read from the cubin beside the PTX: a witness
// of how long it thinks instructions take. Volta and later: 128 bits an instruction, whose highest
// ones say how long the scheduler waits after it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace ptx {

struct machine_instruction {
  std::uint16_t opcode = 0;  ///< its low twelve bits
  bool guarded = false;
  std::uint8_t stall = 0;      ///< cycles until the warp's next instruction
  std::uint8_t sets = 7;       ///< barrier that its result sets; 7: its stall covers it
  std::uint8_t waits_for = 0;  ///< barriers, as a mask
  std::int64_t target = -1;    ///< of a branch or call: an index; -1 without
  bool rare = false;           ///< a call of what ptxas names a slow path
  std::uint32_t line = 0;      ///< of the PTX that it comes from; 0 where ptxas does not say
};

/// A part of the cubin that ptxas wrote for one kernel.
struct machine_code {
  int sm = 0;
  std::vector<machine_instruction> code;
  bool has_lines() const;
};

struct cubin_image {
  int sm = 0;
  std::string_view bytes;
};

/// Every uncompressed cubin in the fat binary that `wrapper` points to.
std::vector<cubin_image> cubins_of(const void* wrapper);

/// The architecture that a cubin is for, 80 for sm_80; throws parse_error for what is no cubin.
int sm_of_cubin(std::string_view bytes);

/// Throws parse_error where any kernel of a cubin cannot be read.
void check_cubin(std::string_view bytes);

/// The code of a kernel by its mangled name; empty where the cubin has none. Throws parse_error for
/// what is no cubin.
machine_code machine_code_of(const cubin_image& cubin, std::string_view kernel);

/// What a warp did, told from PTX to machine code by the lines that ptxas keeps (-lineinfo). A
/// basic block ran as often as most of its instructions' lines did; what ptxas moved elsewhere is
/// outvoted.
struct machine_schedule {
  std::uint64_t instructions = 0;  ///< of the machine, executed
  std::uint64_t stalls = 0;        ///< cycles: their stall counts. Waiting for loads, shuffles and
                                   ///< special functions is not in them
  std::uint64_t waits = 0;         ///< instructions among them that wait for such a result
  double agreement = 0.0;          ///< share of instructions whose line ran as often as their block
  double unexplained = 0.0;        ///< share in blocks that run oftener than what leads to them
  bool known = false;              ///< there was machine code, with lines, of this very PTX
};

/// `runs`: how often the warp executed each line of the PTX.
machine_schedule schedule_of(const machine_code& code, const std::vector<std::uint32_t>& runs);

}  // namespace ptx
