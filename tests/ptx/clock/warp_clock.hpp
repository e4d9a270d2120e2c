// Modelled times of one warp, kept while it runs. Three ways to schedule what it executes:
//
//   data flow     every instruction as soon as its operands are there: a perfect scheduler, whom no
//                 branch and no unit holds back
//   issue slots   cycles that its instructions keep a scheduler or a unit busy, whatever their
//   order PTX order     one after the other as the PTX has them, each waiting for its operands:
//   what a
//                 scheduler without reordering would make of it
//
// The larger of the first two bounds the warp from below, the third from above, as far as a machine
// instruction stands for each of PTX (see README.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../interpreter/program.hpp"
#include "timing.hpp"

namespace ptx {

/// Cycles that instructions keep the parts of a multiprocessor busy.
struct busy_cycles {
  std::uint64_t dispatch = 0;  ///< of the scheduler: machine instructions
  std::array<std::uint64_t, units> of_unit{};
  std::uint64_t shared = 0;  ///< of what the partitions share

  busy_cycles& operator+=(const busy_cycles& other);
  /// Cycles that one partition needs for them at least: of its scheduler or its busiest unit,
  /// additions being dealt out to even two of them.
  std::uint64_t of_partition(const machine& m) const;
};

struct warp_time {
  std::uint64_t data_flow = 0;
  std::uint64_t ptx_order = 0;
  busy_cycles busy;
  std::uint64_t issue_slots(const machine& m) const;
  std::uint64_t lower(const machine& m) const;  ///< the larger of data flow and issue slots
};

class warp_clock {
 public:
  warp_clock(const machine& m, const program& p);

  /// An instruction of the lanes in `group`, of which `lanes` pass its guard. `passes`: how often
  /// its memory unit has to do it; `kind`: as the instruction's, but for generic addresses.
  void step(const instruction& in, op_kind kind, lane_mask group, lane_mask lanes,
            unsigned passes = 1);

  /// When the warp, by data flow and in PTX order, came to the barrier that it waits at; and the
  /// times at which that lets it go.
  struct moment {
    std::uint64_t data_flow = 0, ptx_order = 0;
  };
  moment arrival() const { return arrival_; }
  void release(const moment& at);

  const warp_time& time() const { return time_; }
  /// How often each instruction of the kernel was executed.
  const std::vector<std::uint32_t>& runs() const { return runs_; }

 private:
  /// When a register is there, lane by lane, and from where it comes.
  struct value_time {
    std::uint32_t lane[lanes_per_warp] = {};
    unit from = unit::none;
  };
  struct registers {
    std::vector<value_time> rows, predicates;
  };

  /// When all that the instruction reads is there for a unit that gets what others compute
  /// `crossing` cycles later.
  std::uint32_t latest(const registers& r, const instruction& in, lane_mask lanes, unit to,
                       std::uint32_t crossing) const;
  static void write(registers& r, const instruction& in, lane_mask lanes, unit from,
                    std::uint32_t at);

  const machine* machine_;
  const instruction* code_;
  warp_time time_;
  std::vector<std::uint32_t> runs_;
  registers flow_, order_;
  std::uint32_t flow_memory_ = 0;       // memory operations may start: after the last barrier
  std::uint32_t flow_last_access_ = 0;  // the last memory operation has been issued
  std::uint32_t next_issue_ = 0;        // in PTX order
  std::array<std::uint32_t, units> unit_free_{};
  moment arrival_;
};

}  // namespace ptx
