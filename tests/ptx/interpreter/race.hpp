// Which accesses are ordered, and which conflict.
//
// Every four bytes of memory remember their last few accesses. Two accesses race when they
// overlap, one writes, they are not both strong (atomic, volatile, relaxed), and nothing orders
// them: a barrier, __syncwarp, or a fence with a strong write that a strong read then sees.
// Shuffles and votes order nothing. A store that changes no byte races with nothing.
//
// Ordering between blocks is kept by block, not by thread: it can miss a race (a fence by one
// thread that publishes what another wrote without a barrier), but it invents none.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "types.hpp"

namespace ptx {

struct memory_access {
  std::uint32_t block = 0;
  std::uint32_t thread = 0;
  std::uint32_t clock = 0;
  bool write = false;
  bool strong = false;
};

class block_order;

class race_shadow {
 public:
  explicit race_shadow(std::uint64_t bytes);

  /// Records an access in `epoch` (a launch, or a block's life) and tells whether an earlier one
  /// conflicts; `*other` is then that one. A `silent` access is recorded only.
  bool record(std::uint64_t offset, std::uint64_t bytes, const memory_access& access, bool silent,
              const block_order& order, std::uint64_t epoch, memory_access* other);

 private:
  static constexpr std::size_t slots = 4;
  static constexpr std::size_t granules_per_page = 256;
  struct page {
    std::uint64_t epoch = 0;
    std::uint64_t slot[granules_per_page][slots];
  };
  std::vector<std::unique_ptr<page>> pages_;
};

/// What one launch knows of time and of flags in memory.
struct grid_order {
  struct sync_point {
    std::unordered_map<std::uint32_t, std::uint32_t> blocks;  // block -> published up to
    std::uint32_t block = 0;
    std::vector<std::uint32_t> warps;  // of `block`: warp -> seen up to
  };
  static constexpr std::uint32_t last_clock = (1U << 26) - 2;
  static constexpr std::uint32_t last_block = (1U << 22) - 1;

  std::uint32_t now = 1;
  std::unordered_map<std::uint64_t, sync_point> points;  // by address

  std::uint32_t tick() { return now < last_clock ? ++now : now; }
  /// Past this no order can be told any more, and nothing is reported.
  bool exhausted() const { return now >= last_clock; }
};

/// What the threads of one block have seen of one another and of other blocks.
class block_order {
 public:
  block_order(grid_order& grid, std::uint32_t block, unsigned warps);

  std::uint32_t block() const { return block_; }
  std::uint32_t clock(unsigned warp) const { return warp_clock_[warp]; }
  bool exhausted() const { return grid_->exhausted(); }
  /// Whether `earlier` happened before what `thread` does now.
  bool ordered(const memory_access& earlier, std::uint32_t thread) const;

  void warp_sync(unsigned warp, lane_mask lanes, lane_mask live);
  void block_sync(const std::vector<unsigned>& warps);
  void fence(unsigned warp, lane_mask lanes);
  /// A strong write to, or read of, the flag at `address`.
  void release(std::uint32_t thread, std::uint64_t address, bool read_modify_write);
  void acquire(std::uint32_t thread, std::uint64_t address);
  /// Whether `thread` has fenced, so that its strong writes publish something.
  bool has_fenced(std::uint32_t thread) const { return fenced_[thread] != 0; }
  bool any_flag() const { return !grid_->points.empty(); }

 private:
  std::uint32_t& seen(unsigned warp, unsigned other) { return warp_seen_[warp * warps_ + other]; }
  std::uint32_t seen(unsigned warp, unsigned other) const {
    return warp_seen_[warp * warps_ + other];
  }

  grid_order* grid_;
  std::uint32_t block_;
  unsigned warps_;
  std::vector<std::uint32_t> warp_clock_;
  std::vector<std::uint32_t> warp_floor_;  // all lanes of the warp have seen all lanes up to here
  std::vector<std::uint32_t> warp_seen_;
  std::vector<std::vector<std::uint32_t>> lane_seen_;  // [warp][lane * 32 + other], when needed
  std::vector<std::uint32_t> fenced_;
  std::unordered_map<std::uint32_t, std::uint32_t> acquired_;
};

}  // namespace ptx
