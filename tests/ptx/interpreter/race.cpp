#include "race.hpp"

#include <algorithm>
#include <cstring>

namespace ptx {

namespace {

// A slot in 64 bits; zero is empty, as clocks start at one.
constexpr unsigned thread_shift = 22;
constexpr unsigned clock_shift = 32;
constexpr unsigned mask_shift = 58;
constexpr unsigned write_shift = 62;
constexpr unsigned strong_shift = 63;

std::uint64_t pack(const memory_access& a, unsigned mask) {
  return (a.block & grid_order::last_block) | (std::uint64_t{a.thread} << thread_shift) |
         (std::uint64_t{a.clock} << clock_shift) | (std::uint64_t{mask} << mask_shift) |
         (std::uint64_t{a.write} << write_shift) | (std::uint64_t{a.strong} << strong_shift);
}

memory_access unpack(std::uint64_t slot) {
  memory_access a;
  a.block = static_cast<std::uint32_t>(slot & grid_order::last_block);
  a.thread = static_cast<std::uint32_t>((slot >> thread_shift) & 0x3ff);
  a.clock = static_cast<std::uint32_t>((slot >> clock_shift) & 0x3ffffff);
  a.write = ((slot >> write_shift) & 1) != 0;
  a.strong = (slot >> strong_shift) != 0;
  return a;
}

constexpr unsigned mask_of(std::uint64_t slot) {
  return (slot >> mask_shift) & 0xf;
}

}  // namespace

race_shadow::race_shadow(std::uint64_t bytes)
    : pages_((bytes / 4 + granules_per_page) / granules_per_page) {}

bool race_shadow::record(std::uint64_t offset, std::uint64_t bytes, const memory_access& access,
                         bool silent, const block_order& order, std::uint64_t epoch,
                         memory_access* other) {
  bool conflict = false;
  for (std::uint64_t at = offset; at < offset + bytes;) {
    const std::uint64_t granule = at / 4;
    const std::uint64_t end = std::min(offset + bytes, granule * 4 + 4);
    const unsigned mask = ((1U << (end - at)) - 1) << (at & 3);
    at = end;
    std::unique_ptr<page>& holder = pages_[granule / granules_per_page];
    if (!holder) holder = std::make_unique<page>();
    if (holder->epoch != epoch) {
      std::memset(holder->slot, 0, sizeof holder->slot);
      holder->epoch = epoch;
    }
    std::uint64_t* const cell = holder->slot[granule % granules_per_page];
    const std::uint64_t mine = pack(access, mask);
    if (cell[0] == mine || cell[1] == mine) continue;
    std::size_t victim = slots;
    std::size_t empty = slots;
    for (std::size_t i = 0; i < slots; ++i) {
      if (cell[i] == 0) {
        empty = std::min(empty, i);
        continue;
      }
      const memory_access old = unpack(cell[i]);
      if (old.thread == access.thread && old.block == access.block) {
        if ((mask_of(cell[i]) & ~mask) == 0 && access.write >= old.write &&
            access.strong <= old.strong)
          victim = i;
        continue;
      }
      if (!silent && (mask_of(cell[i]) & mask) != 0 && (old.write || access.write) &&
          !(old.strong && access.strong) && !order.ordered(old, access.thread)) {
        conflict = true;
        *other = old;
      }
    }
    if (victim == slots) victim = empty;
    if (victim == slots) {
      // Full: prefer to forget a read.
      victim = (access.thread + access.clock) % slots;
      for (std::size_t i = 0; i < slots && unpack(cell[victim]).write; ++i)
        victim = (victim + 1) % slots;
    }
    cell[victim] = mine;
  }
  return conflict;
}

block_order::block_order(grid_order& grid, std::uint32_t block, unsigned warps)
    : grid_(&grid),
      block_(block),
      warps_(warps),
      warp_clock_(warps, grid.now),
      warp_floor_(warps, 0),
      warp_seen_(std::size_t{warps} * warps, 0),
      lane_seen_(warps),
      fenced_(std::size_t{warps} * lanes_per_warp, 0) {}

bool block_order::ordered(const memory_access& earlier, std::uint32_t thread) const {
  if (grid_->exhausted()) return true;
  if (earlier.block != block_) {
    const auto found = acquired_.find(earlier.block);
    return found != acquired_.end() && earlier.clock < found->second;
  }
  if (earlier.thread == thread) return true;
  const unsigned warp = thread / lanes_per_warp;
  const unsigned other = earlier.thread / lanes_per_warp;
  if (warp != other) return earlier.clock < seen(warp, other);
  if (earlier.clock < warp_floor_[warp]) return true;
  return !lane_seen_[warp].empty() &&
         earlier.clock < lane_seen_[warp][(thread % lanes_per_warp) * lanes_per_warp +
                                          earlier.thread % lanes_per_warp];
}

void block_order::warp_sync(unsigned warp, lane_mask lanes, lane_mask live) {
  const std::uint32_t now = grid_->tick();
  warp_clock_[warp] = now;
  if ((live & ~lanes) == 0) {
    warp_floor_[warp] = now;
    return;
  }
  std::vector<std::uint32_t>& table = lane_seen_[warp];
  if (table.empty()) table.assign(std::size_t{lanes_per_warp} * lanes_per_warp, 0);
  std::uint32_t joint[lanes_per_warp] = {};
  for (int lane = 0; lane < lanes_per_warp; ++lane)
    if ((lanes >> lane) & 1)
      for (int i = 0; i < lanes_per_warp; ++i)
        joint[i] = std::max(joint[i], table[static_cast<std::size_t>(lane * lanes_per_warp + i)]);
  for (int lane = 0; lane < lanes_per_warp; ++lane) {
    if (((lanes >> lane) & 1) == 0) continue;
    for (int i = 0; i < lanes_per_warp; ++i)
      table[static_cast<std::size_t>(lane * lanes_per_warp + i)] =
          ((lanes >> i) & 1) != 0 ? now : joint[i];
  }
}

void block_order::block_sync(const std::vector<unsigned>& warps) {
  const std::uint32_t now = grid_->tick();
  std::vector<std::uint32_t> joint(warps_, 0);
  for (const unsigned w : warps)
    for (unsigned i = 0; i < warps_; ++i) joint[i] = std::max(joint[i], seen(w, i));
  for (const unsigned w : warps) joint[w] = now;
  for (const unsigned w : warps) {
    for (unsigned i = 0; i < warps_; ++i) seen(w, i) = joint[i];
    warp_floor_[w] = now;
    warp_clock_[w] = now;
  }
}

void block_order::fence(unsigned warp, lane_mask lanes) {
  const std::uint32_t now = grid_->tick();
  warp_clock_[warp] = now;
  for (unsigned lane = 0; lane < lanes_per_warp; ++lane)
    if ((lanes >> lane) & 1) fenced_[warp * lanes_per_warp + lane] = now;
}

void block_order::release(std::uint32_t thread, std::uint64_t address, bool read_modify_write) {
  const std::uint32_t time = fenced_[thread];
  if (time == 0) {
    // A plain strong store ends what an earlier release published; an atomic passes it on.
    if (!read_modify_write) grid_->points.erase(address);
    return;
  }
  grid_order::sync_point& point = grid_->points[address];
  if (!read_modify_write) point = {};
  for (const auto& [block, when] : acquired_)
    point.blocks[block] = std::max(point.blocks[block], when);
  point.blocks[block_] = std::max(point.blocks[block_], time);
  const unsigned warp = thread / lanes_per_warp;
  if (point.block != block_ || point.warps.empty()) {
    point.block = block_;
    point.warps.assign(warps_, 0);
  }
  for (unsigned i = 0; i < warps_; ++i) point.warps[i] = std::max(point.warps[i], seen(warp, i));
  point.warps[warp] = std::max(point.warps[warp], time);
}

void block_order::acquire(std::uint32_t thread, std::uint64_t address) {
  const auto found = grid_->points.find(address);
  if (found == grid_->points.end()) return;
  const unsigned warp = thread / lanes_per_warp;
  for (const auto& [block, when] : found->second.blocks)
    if (block != block_) acquired_[block] = std::max(acquired_[block], when);
  if (found->second.block != block_ || found->second.warps.empty()) return;
  for (unsigned i = 0; i < warps_; ++i)
    seen(warp, i) = std::max(seen(warp, i), found->second.warps[i]);
  warp_floor_[warp] = std::max(warp_floor_[warp], found->second.warps[warp]);
}

}  // namespace ptx
