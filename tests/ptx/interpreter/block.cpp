// Blocks: shared and local memory, and the barriers of their warps.
#include <algorithm>

#include "machine.hpp"

namespace ptx {

namespace {

extent position_of(const extent& grid, std::uint32_t number) {
  return {number % grid[0], number / grid[0] % grid[1], number / (grid[0] * grid[1])};
}

unsigned warps_in(unsigned threads) {
  return (threads + lanes_per_warp - 1) / lanes_per_warp;
}

}  // namespace

block::block(launch& owner, std::uint32_t number)
    : owner_(&owner),
      number_(number),
      position_(position_of(owner.request().grid, number)),
      order_(owner.order(), number, warps_in(owner.threads_per_block())),
      epoch_(launch::next_epoch()) {
  const program& p = owner.kernel();
  const std::uint64_t dynamic = owner.request().dynamic_shared;
  const std::uint64_t extent_bytes = p.shared_extent + dynamic + 16;
  shared_bytes_.assign(extent_bytes, 0xcd);
  shared_undefined_.assign(extent_bytes, 0xff);
  for (const shared_variable& v : p.shared) {
    region r;
    r.base = shared_origin + v.offset;
    r.size = v.dynamic ? dynamic : v.bytes;
    r.bytes = shared_bytes_.data() + v.offset;
    r.undefined = shared_undefined_.data() + v.offset;
    r.name = v.name;
    shared_races_.push_back(std::make_unique<race_shadow>(r.size));
    r.races = shared_races_.back().get();
    shared_.push_back(r);
  }
  const unsigned threads = owner.threads_per_block();
  local_bytes_.assign(p.local_bytes * threads + 16, 0xcd);
  local_undefined_.assign(p.local_bytes * threads + 16, 0xff);
  warps_.reserve(warps_in(threads));
  for (unsigned w = 0; w < warps_in(threads); ++w) {
    const unsigned lanes = std::min(threads - w * lanes_per_warp, unsigned{lanes_per_warp});
    warps_.emplace_back(*this, w, lanes == 32 ? ~0U : (1U << lanes) - 1);
  }
}

bool block::finished() const {
  return std::all_of(warps_.begin(), warps_.end(), [](const warp& w) { return w.alive() == 0; });
}

region* block::shared_at(std::uint64_t offset, std::uint64_t bytes) {
  if (last_shared_ != nullptr && last_shared_->holds(offset, bytes)) return last_shared_;
  for (region& r : shared_)
    if (r.holds(offset, bytes)) return last_shared_ = &r;
  return nullptr;
}

region block::local_of(unsigned thread) {
  region r;
  r.size = owner_->kernel().local_bytes;
  r.bytes = local_bytes_.data() + r.size * thread;
  r.undefined = local_undefined_.data() + r.size * thread;
  return r;
}

unsigned block::live_threads() const {
  unsigned count = 0;
  for (const warp& w : warps_) count += static_cast<unsigned>(__builtin_popcount(w.alive()));
  return count;
}

void block::arrive(warp& w, const instruction& in, lane_mask lanes) {
  // The barrier's number and thread count are the same for all lanes of an aligned barrier;
  // otherwise each lane speaks for itself.
  const bool waits = in.select != 2;
  while (lanes != 0) {
    const int first = __builtin_ctz(lanes);
    const auto id = static_cast<unsigned>(w.in(in.src[0]).lane[first]);
    const auto count = in.src_count > 1 ? static_cast<unsigned>(w.in(in.src[1]).lane[first]) : 0U;
    lane_mask same = 0;
    for_lanes(lanes, [&](int i) {
      if (static_cast<unsigned>(w.in(in.src[0]).lane[i]) == id) same |= 1U << i;
    });
    lanes &= ~same;
    if (id > 15)
      throw kernel_fault(fault_kind::bad_launch, first,
                         "barrier " + std::to_string(id) + " does not exist (0 to 15 do)");
    if (count % lanes_per_warp != 0)
      throw kernel_fault(fault_kind::deadlock, first,
                         "barrier count " + std::to_string(count) + " is no multiple of 32");
    barrier& b = barriers_[id];
    if (b.arrived != 0 && b.expected != count)
      throw kernel_fault(fault_kind::divergent_barrier, first,
                         "barrier " + std::to_string(id) + " is awaited with count " +
                             std::to_string(count) + " here and " + std::to_string(b.expected) +
                             " elsewhere (0 is the whole block)");
    b.expected = count;
    b.arrivals.push_back({&w, &in, same, waits});
    b.arrived += static_cast<unsigned>(__builtin_popcount(same));
    const unsigned needed = count != 0 ? count : live_threads();
    if (b.arrived >= needed) complete(id, b);
  }
}

void block::thread_left() {
  for (auto at = barriers_.begin(); at != barriers_.end();) {
    const auto here = at++;  // completion erases it
    barrier& b = here->second;
    if (b.arrived != 0 && b.expected == 0 && b.arrived >= live_threads()) complete(here->first, b);
  }
}

void block::complete(unsigned id, barrier& b) {
  unsigned sum = 0;
  unsigned threads = 0;
  std::vector<unsigned> warps;
  warp_clock::moment last;  // comes to the barrier
  for (const arrival& a : b.arrivals) {
    if (const warp_clock* const clock = a.who->clock()) {
      last.data_flow = std::max(last.data_flow, clock->arrival().data_flow);
      last.ptx_order = std::max(last.ptx_order, clock->arrival().ptx_order);
    }
    if (a.in->pred_src[0] >= 0) {
      const lane_mask value =
          a.who->predicate(a.in->pred_src[0]) ^ (a.in->pred_negated[0] ? ~0U : 0U);
      sum += static_cast<unsigned>(__builtin_popcount(value & a.lanes));
    }
    threads += static_cast<unsigned>(__builtin_popcount(a.lanes));
    warps.push_back(a.who->index());
  }
  std::sort(warps.begin(), warps.end());
  warps.erase(std::unique(warps.begin(), warps.end()), warps.end());
  order_.block_sync(warps);
  ++owner_->counts().block_barriers;
  const std::vector<arrival> arrivals = std::move(b.arrivals);
  barriers_.erase(id);
  for (const arrival& a : arrivals) {
    if (a.in->dst_count > 0) {  // bar.red.popc
      for_lanes(a.lanes, [&](int i) { a.who->out(a.in->dst[0]).lane[i] = sum; });
      a.who->set_defined(a.in->dst[0], a.lanes);
    }
    if (a.in->pred_dst[0] >= 0) {  // bar.red.and, .or
      const bool value = a.in->combine == 0 ? sum == threads : sum != 0;
      a.who->set_predicate(a.in->pred_dst[0], a.lanes, value ? ~0U : 0U);
      a.who->set_undefined_predicate(a.in->pred_dst[0], a.lanes, 0);
    }
    if (!a.waits) continue;
    if (warp_clock* const clock = a.who->clock()) clock->release(last);
    a.who->release_barrier(a.lanes);
  }
}

void block::check_progress() {
  for (const warp& w : warps_)
    if (w.runnable() != 0) return;
  for (warp& w : warps_)
    if (w.waiting_at_barrier() != w.alive() || w.waiting_for_warp() != 0) {
      owner_->blame(w);
      w.explain_standstill();
    }
  for (warp& w : warps_)
    if (w.alive() != 0) {
      owner_->blame(w);
      w.explain_standstill();
    }
}

}  // namespace ptx
