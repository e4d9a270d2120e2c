// The machine that runs a decoded kernel: a launch holds blocks, a block holds warps.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "../clock/grid_model.hpp"
#include "../clock/warp_clock.hpp"
#include "counters.hpp"
#include "fault.hpp"
#include "memory.hpp"
#include "program.hpp"
#include "race.hpp"
#include "settings.hpp"

namespace ptx {

class block;
class launch;

using extent = std::array<unsigned, 3>;

using random_source = std::mt19937_64;

template <class F>
inline void for_lanes(lane_mask lanes, F&& f) {
  if (lanes == ~lane_mask{0}) {
    for (int i = 0; i < lanes_per_warp; ++i) f(i);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}

class warp {
 public:
  enum class state { ready, blocked, done };

  warp(block& home, unsigned index, lane_mask existing);

  /// Runs up to `budget` instructions. With `random`, threads that have parted take turns.
  state run(std::uint64_t budget, random_source* random);

  // --- what handlers see --------------------------------------------------------------------
  const lane_row& in(std::int32_t row) const {
    return row >= 0 ? registers_[static_cast<std::size_t>(row)]
                    : constants_[static_cast<std::size_t>(~row)];
  }
  lane_row& out(std::int32_t row) { return registers_[static_cast<std::size_t>(row)]; }
  lane_mask predicate(std::int32_t i) const { return predicates_[static_cast<std::size_t>(i)]; }
  void set_predicate(std::int32_t i, lane_mask lanes, lane_mask values) {
    lane_mask& p = predicates_[static_cast<std::size_t>(i)];
    p = (p & ~lanes) | (values & lanes);
  }
  lane_mask carry = 0;
  lane_mask waited = 0;  ///< lanes for which the kernel before this one is done

  // Undefined bytes: a mask of lanes for each row, and a byte mask for each lane of those.
  lane_mask undefined_lanes(std::int32_t row) const {
    return row >= 0 ? undefined_lanes_[static_cast<std::size_t>(row)] : 0;
  }
  std::uint8_t undefined_bytes(std::int32_t row, int lane) const {
    return ((undefined_lanes(row) >> lane) & 1) != 0
               ? undefined_bytes_[static_cast<std::size_t>(row) * lanes_per_warp +
                                  static_cast<std::size_t>(lane)]
               : std::uint8_t{0};
  }
  void set_undefined(std::int32_t row, int lane, std::uint8_t bytes);
  void set_defined(std::int32_t row, lane_mask lanes) {
    undefined_lanes_[static_cast<std::size_t>(row)] &= ~lanes;
  }
  lane_mask undefined_predicate(std::int32_t i) const {
    return undefined_predicates_[static_cast<std::size_t>(i)];
  }
  void set_undefined_predicate(std::int32_t i, lane_mask lanes, lane_mask undefined) {
    lane_mask& p = undefined_predicates_[static_cast<std::size_t>(i)];
    p = (p & ~lanes) | (undefined & lanes);
  }
  /// Faults when a lane in `lanes` has undefined bytes among the low `bytes` of the row.
  void require_defined(std::int32_t row, lane_mask lanes, unsigned bytes, const char* what) const;

  block& home() { return *home_; }
  unsigned index() const { return index_; }
  lane_mask existing() const { return existing_; }
  lane_mask alive() const { return alive_; }
  unsigned thread_of(int lane) const {
    return index_ * lanes_per_warp + static_cast<unsigned>(lane);
  }
  lane_mask group() const { return group_; }  ///< lanes that run the current instruction together
  const instruction& current() const { return *current_; }
  std::uint64_t instructions() const { return instructions_; }

  // --- what blocks see ------------------------------------------------------------------------
  /// Lets lanes go on after the barrier that they wait at.
  void release_barrier(lane_mask lanes);
  lane_mask waiting_at_barrier() const { return at_barrier_; }
  lane_mask waiting_for_warp() const { return at_partial_barrier_; }
  lane_mask runnable() const { return alive_ & ~(at_sync_ | at_barrier_ | at_partial_barrier_); }
  /// nullptr where no time is modelled.
  warp_clock* clock() { return clock_.get(); }
  /// Throws the fault that explains why this warp does not move.
  [[noreturn]] void explain_standstill();

 private:
  void spread_undefined(const instruction& in, lane_mask lanes);
  void pick_group(random_source* random);
  void count(const instruction& in, lane_mask lanes);
  // These return whether the group stays together and goes on at pc_.
  bool take_branch(const instruction& in, lane_mask lanes);
  bool take_indexed_branch(const instruction& in, lane_mask lanes);
  bool leave(lane_mask lanes);
  bool synchronise(const instruction& in, lane_mask lanes);
  bool arrive(const instruction& in, lane_mask lanes);
  void move_to(lane_mask lanes, std::uint32_t pc);
  void set_specials();
  std::string describe_lanes(lane_mask lanes) const;

  block* home_;
  unsigned index_;
  lane_mask existing_;
  lane_mask alive_;
  lane_mask at_sync_ = 0;             // wait at a .sync operation
  lane_mask at_barrier_ = 0;          // have arrived at a block barrier
  lane_mask at_partial_barrier_ = 0;  // wait for the rest of the warp at bar.sync
  lane_mask group_ = 0;
  std::uint32_t pc_ = 0;         // of the group
  std::uint32_t next_stop_ = 0;  // where other lanes wait to join
  std::array<std::uint32_t, lanes_per_warp> lane_pc_{};
  std::uint64_t instructions_ = 0;
  std::uint64_t alone_for_ = 0;  // instructions since other lanes had a turn
  const instruction* current_ = nullptr;
  const instruction* code_ = nullptr;
  const lane_row* constants_ = nullptr;
  bool track_ = true;
  counters* counts_ = nullptr;
  std::unique_ptr<warp_clock> clock_;
  std::vector<lane_row> registers_;
  std::vector<lane_mask> predicates_;
  std::vector<lane_mask> undefined_lanes_;
  std::vector<lane_mask> undefined_predicates_;
  std::vector<std::uint8_t> undefined_bytes_;
};

class block {
 public:
  block(launch& owner, std::uint32_t number);
  block(const block&) = delete;
  block& operator=(const block&) = delete;

  launch& owner() { return *owner_; }
  const extent& position() const { return position_; }
  std::uint32_t number() const { return number_; }
  std::vector<warp>& warps() { return warps_; }
  block_order& order() { return order_; }
  std::uint64_t epoch() const { return epoch_; }
  bool finished() const;
  /// Faults when no warp can go on.
  void check_progress();

  /// The shared variable at a shared offset; nullptr between variables.
  region* shared_at(std::uint64_t offset, std::uint64_t bytes);
  /// The local memory of one thread.
  region local_of(unsigned thread);
  /// Lanes arrive at a barrier; those that wait are let go when it completes.
  void arrive(warp& w, const instruction& in, lane_mask lanes);
  void thread_left();

 private:
  struct arrival {
    warp* who;
    const instruction* in;
    lane_mask lanes;
    bool waits;
  };
  struct barrier {
    std::vector<arrival> arrivals;
    unsigned arrived = 0;
    unsigned expected = 0;  // 0: every thread of the block that has not left
  };
  void complete(unsigned id, barrier& b);
  unsigned live_threads() const;

  launch* owner_;
  std::uint32_t number_;
  extent position_{};
  block_order order_;
  std::uint64_t epoch_;
  std::vector<warp> warps_;
  std::vector<region> shared_;
  region* last_shared_ = nullptr;
  std::vector<std::uint8_t> shared_bytes_;
  std::vector<std::uint8_t> shared_undefined_;
  std::vector<std::unique_ptr<race_shadow>> shared_races_;
  std::vector<std::uint8_t> local_bytes_;
  std::vector<std::uint8_t> local_undefined_;
  std::map<unsigned, barrier> barriers_;
};

struct launch_request {
  const program* kernel = nullptr;
  extent grid{1, 1, 1};
  extent threads{1, 1, 1};
  std::uint64_t dynamic_shared = 0;
  std::vector<std::uint8_t> parameters;
  bool overlaps = false;  ///< may start before the kernel before it is done
  schedule order;
  checks enabled;
  const machine* modelled = nullptr;  ///< whose times to model
};

class launch {
 public:
  explicit launch(launch_request request);

  /// Runs to the end or to the first fault.
  void run();

  const launch_request& request() const { return request_; }
  const program& kernel() const { return *request_.kernel; }
  const fault& result() const { return fault_; }
  counters& counts() { return counts_; }
  /// What the clock says of every block, by its number; empty without one.
  launch_time& times() { return times_; }
  grid_order& order() { return order_; }
  std::uint64_t epoch() const { return epoch_; }
  /// The warp that a fault is reported for.
  void blame(warp& w) { running_ = &w; }
  static std::uint64_t next_epoch();
  unsigned threads_per_block() const {
    return request_.threads[0] * request_.threads[1] * request_.threads[2];
  }
  std::uint64_t block_count() const {
    return std::uint64_t{request_.grid[0]} * request_.grid[1] * request_.grid[2];
  }

 private:
  void run_blocks();
  void take_times(block& b);
  std::vector<std::uint32_t> start_order();
  void describe(const kernel_fault& what, warp* w);

  launch_request request_;
  counters counts_;
  launch_time times_;
  std::uint64_t longest_ = 0;  // PTX order of the warp whose lines are kept
  fault fault_;
  grid_order order_;
  std::uint64_t epoch_;
  random_source random_;
  std::vector<std::unique_ptr<block>> blocks_;  // that run now; kept for the report of a fault
  warp* running_ = nullptr;
};

}  // namespace ptx
