// How long instructions take, by kind and architecture: the one table that every modelled time
// comes from. Each figure has its source beside it, or is marked as assumed.
#pragma once

#include <cstdint>

#include "op_kind.hpp"

namespace ptx {

/// Where an instruction executes. A multiprocessor has four partitions, each with a scheduler that
/// issues one instruction a cycle; the units are each partition's own but for `memory`, which all
/// four share for data.
enum class unit : std::uint8_t {
  none,
  integer,
  multiply,  ///< the half of the fp32 unit that multiplies integers too
  float32,   ///< the whole fp32 unit: `multiply` and, on sm_90, as much again
  either,    ///< additions: as IADD3 by `integer`, or as IMAD by `multiply`
  special,   ///< special functions, conversions, bit counts
  float64,
  memory,  ///< loads, stores, shuffles
  control,
};
inline constexpr int units = 9;

struct timing {
  op_kind kind = op_kind::named;
  ptx::unit unit = ptx::unit::none;
  unsigned instructions = 1;  ///< of the machine, for one of PTX
  unsigned latency = 0;       ///< cycles from its issue until a dependent instruction may issue
  unsigned interval = 1;      ///< cycles that it occupies its unit for each machine instruction
  unsigned shared = 0;        ///< cycles that it occupies what the four partitions share
  const char* latency_source = "";
  const char* rate_source = "";
};

/// Which memory answers loads from global memory. Logits were written by the kernel before: L2.
enum class memory_level : std::uint8_t { l1, l2, dram };
const char* name_of(memory_level level);

struct machine {
  int sm = 0;               ///< 80 or 90
  int multiprocessors = 0;  ///< of the device that is modelled
  int schedulers = 4;       ///< of a multiprocessor
  unsigned crossing = 0;    ///< cycles more where producer and consumer are in different units
  unsigned guard = 0;       ///< cycles from a comparison until what it guards may issue
  unsigned taken = 0;       ///< cycles from a branch's issue until that of what follows
  unsigned l2_bytes = 0;    ///< a cycle, from L2 to all multiprocessors
  unsigned max_warps = 0, max_blocks = 0, shared_kib = 0;  ///< of a multiprocessor
  unsigned shared_reserved = 1024;                         ///< bytes a block
  memory_level memory = memory_level::l2;

  const timing& of(op_kind kind) const;
  /// Cycles of a load from global memory.
  unsigned load_latency() const;
  /// Whether additions that either unit may do fill two units of this width, 2, or 1 and 2.
  unsigned float_interval() const { return of(op_kind::float32).interval; }
};

/// The A100 (80) or the H100 and H200 (90); throws std::invalid_argument for any other `sm`.
machine machine_of(int sm, memory_level memory = memory_level::l2);

/// The table and its sources, as text.
const char* timing_sources();

}  // namespace ptx
