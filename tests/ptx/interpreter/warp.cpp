// A warp: program counters, divergence, and the waiting that .sync operations ask for.
//
// Every lane has its own program counter. The lanes at the lowest one run together up to the next
// counter at which another lane waits, and join it there: code that the compiler laid out in
// order of its control flow comes together again without any analysis.
#include <algorithm>

#include "machine.hpp"

namespace ptx {

namespace {

constexpr std::uint32_t nowhere = ~0U;

/// Paths cut to file names.
std::string base_names(const std::string& path) {
  std::string text;
  std::size_t word = 0;
  for (const char c : path) {
    if (c == ' ') word = text.size() + 1;
    if (c == '/') {
      text.resize(word);
    } else {
      text += c;
    }
  }
  return text;
}

/// After this many instructions of one group while others wait, those get a turn: they may be what
/// a spin loop waits for.
constexpr std::uint64_t patience = 100000;

}  // namespace

warp::warp(block& home, unsigned index, lane_mask existing)
    : home_(&home), index_(index), existing_(existing), alive_(existing) {
  launch& owner = home.owner();
  const program& p = owner.kernel();
  code_ = p.code.data();
  constants_ = p.constants.data();
  current_ = code_;
  track_ = owner.request().enabled.undefined;
  counts_ = &owner.counts();
  if (owner.request().modelled != nullptr)
    clock_ = std::make_unique<warp_clock>(*owner.request().modelled, p);
  registers_.resize(p.registers);
  predicates_.assign(p.predicates, 0);
  undefined_lanes_.assign(p.registers, track_ ? ~0U : 0);
  undefined_predicates_.assign(p.predicates, track_ ? ~0U : 0);
  undefined_bytes_.assign(p.registers * lanes_per_warp, 0xff);
  set_specials();
}

void warp::set_specials() {
  const launch_request& r = home_->owner().request();
  const program& p = home_->owner().kernel();
  const extent& at = home_->position();
  for (const auto& [what, row] : p.specials) {
    lane_row& values = out(row);
    for (int i = 0; i < lanes_per_warp; ++i) {
      const unsigned t = thread_of(i);
      const auto lane = static_cast<unsigned>(i);
      std::uint64_t value = 0;
      switch (what) {
        case special::tid_x:
          value = t % r.threads[0];
          break;
        case special::tid_y:
          value = t / r.threads[0] % r.threads[1];
          break;
        case special::tid_z:
          value = t / (r.threads[0] * r.threads[1]);
          break;
        case special::ntid_x:
          value = r.threads[0];
          break;
        case special::ntid_y:
          value = r.threads[1];
          break;
        case special::ntid_z:
          value = r.threads[2];
          break;
        case special::ctaid_x:
          value = at[0];
          break;
        case special::ctaid_y:
          value = at[1];
          break;
        case special::ctaid_z:
          value = at[2];
          break;
        case special::nctaid_x:
          value = r.grid[0];
          break;
        case special::nctaid_y:
          value = r.grid[1];
          break;
        case special::nctaid_z:
          value = r.grid[2];
          break;
        case special::laneid:
          value = lane;
          break;
        case special::warpid:
          value = index_;
          break;
        case special::nwarpid:
          value = 64;
          break;
        case special::smid:
          value = home_->number() % 16;
          break;
        case special::nsmid:
          value = 16;
          break;
        case special::gridid:
          value = 1;
          break;
        case special::lanemask_eq:
          value = 1U << lane;
          break;
        case special::lanemask_le:
          value = (2U << lane) - 1;
          break;
        case special::lanemask_lt:
          value = (1U << lane) - 1;
          break;
        case special::lanemask_ge:
          value = ~((1U << lane) - 1);
          break;
        case special::lanemask_gt:
          value = ~((2U << lane) - 1);
          break;
        case special::dynamic_smem_size:
          value = r.dynamic_shared;
          break;
        case special::total_smem_size:
          value = p.static_shared + r.dynamic_shared;
          break;
        case special::zero:
          value = 0;
          break;
        case special::one:
          value = 1;
          break;
      }
      values.lane[i] = value & 0xffffffff;
    }
    set_defined(row, ~0U);
  }
}

void warp::move_to(lane_mask lanes, std::uint32_t pc) {
  for_lanes(lanes, [&](int i) { lane_pc_[static_cast<std::size_t>(i)] = pc; });
}

/// Chooses which lanes run next, and how far they may go before others join.
void warp::pick_group(random_source* random) {
  const lane_mask ready = runnable();
  std::uint32_t lowest = nowhere;
  for_lanes(ready,
            [&](int i) { lowest = std::min(lowest, lane_pc_[static_cast<std::size_t>(i)]); });
  std::uint32_t chosen = lowest;
  const bool impatient = alone_for_ > patience;
  if ((random != nullptr && (*random)() % 4 == 0) || impatient) {
    // Another group, when there is one: any at random, or the highest to end a spin loop.
    std::uint32_t highest = lowest;
    for_lanes(ready,
              [&](int i) { highest = std::max(highest, lane_pc_[static_cast<std::size_t>(i)]); });
    chosen = highest;
    if (random != nullptr) {
      auto skip = static_cast<int>((*random)() % lanes_per_warp);
      for_lanes(ready, [&](int i) {
        if (skip-- >= 0) chosen = lane_pc_[static_cast<std::size_t>(i)];
      });
    }
    alone_for_ = 0;
  }
  pc_ = chosen;
  group_ = 0;
  next_stop_ = nowhere;
  for_lanes(ready, [&](int i) {
    const std::uint32_t pc = lane_pc_[static_cast<std::size_t>(i)];
    if (pc == chosen) {
      group_ |= 1U << i;
    } else if (pc > chosen) {
      next_stop_ = std::min(next_stop_, pc);
    }
  });
}

void warp::count(const instruction& in, lane_mask lanes) {
  const auto c = static_cast<std::size_t>(in.counted);
  const auto threads = static_cast<std::uint64_t>(__builtin_popcount(lanes));
  ++counts_->warp_instructions;
  counts_->thread_instructions += threads;
  ++counts_->warp_by_class[c];
  counts_->thread_by_class[c] += threads;
  if ((in.flags & approximate) != 0) counts_->approximate_operations += threads;
  // Accesses to memory tell the clock themselves, once they know which memory it is.
  const bool accesses = lanes != 0 && (in.counted == instruction_class::load ||
                                       in.counted == instruction_class::store ||
                                       in.counted == instruction_class::atomic);
  if (clock_ && !accesses) clock_->step(in, in.kind, group_, lanes);
}

warp::state warp::run(std::uint64_t budget, random_source* random) {
  const std::uint64_t end = instructions_ + budget;
  while (instructions_ < end && runnable() != 0) {
    pick_group(random);
    const std::uint64_t start = instructions_;
    const std::uint64_t group_end = std::min(end, start + patience);
    bool together = true;
    while (together && instructions_ < group_end) {
      const instruction& in = code_[pc_];
      current_ = &in;
      ++instructions_;
      lane_mask lanes = group_;
      if (in.guard >= 0) {
        if ((undefined_predicate(in.guard) & group_) != 0)
          throw kernel_fault(
              fault_kind::uninitialised, __builtin_ctz(undefined_predicate(in.guard) & group_),
              in.what == action::branch ? "an undefined value decides this branch"
                                        : "an undefined value decides whether this is done");
        const lane_mask p = predicate(in.guard);
        lanes &= in.guard_negated ? ~p : p;
      }
      switch (in.what) {
        case action::compute: {
          count(in, lanes);
          if (lanes != 0) {
            if (track_) spread_undefined(in, lanes);
            in.run(*this, in, lanes);
          }
          ++pc_;
          break;
        }
        case action::access:
          count(in, lanes);
          if (lanes != 0) in.run(*this, in, lanes);
          ++pc_;
          break;
        case action::branch:
          count(in, lanes);
          together = take_branch(in, lanes);
          break;
        case action::indexed_branch:
          count(in, lanes);
          together = take_indexed_branch(in, lanes);
          break;
        case action::exit:
          count(in, lanes);
          together = leave(lanes);
          break;
        case action::warp_sync:
          together = synchronise(in, lanes);
          break;
        case action::barrier:
          together = arrive(in, lanes);
          break;
      }
      // Someone waits here: join (or, after a jump over them, let the lowest go first).
      if (together && pc_ >= next_stop_) {
        move_to(group_, pc_);
        together = false;
      }
    }
    if (together) move_to(group_, pc_);
    alone_for_ = next_stop_ == nowhere ? 0 : alone_for_ + (instructions_ - start);
  }
  if (alive_ == 0) return state::done;
  return runnable() != 0 ? state::ready : state::blocked;
}

bool warp::take_branch(const instruction& in, lane_mask lanes) {
  if (lanes == group_) {
    pc_ = in.target;
    return true;
  }
  if (lanes == 0) {
    ++pc_;
    return true;
  }
  move_to(group_ & ~lanes, pc_ + 1);
  move_to(lanes, in.target);
  return false;
}

bool warp::take_indexed_branch(const instruction& in, lane_mask lanes) {
  require_defined(in.src[0], lanes, 4, "branch index");
  const std::vector<std::uint32_t>& table = home_->owner().kernel().branch_tables[in.target];
  move_to(group_ & ~lanes, pc_ + 1);
  for_lanes(lanes, [&](int i) {
    const std::uint64_t index = this->in(in.src[0]).lane[i] & 0xffffffff;
    if (index >= table.size())
      throw kernel_fault(fault_kind::out_of_bounds, i, "branch index past the table");
    lane_pc_[static_cast<std::size_t>(i)] = table[index];
  });
  return false;
}

bool warp::leave(lane_mask lanes) {
  move_to(group_ & ~lanes, pc_ + 1);
  if (lanes == 0) {
    ++pc_;
    return true;
  }
  alive_ &= ~lanes;
  at_sync_ = 0;  // whoever waited for these lanes looks again
  if (at_partial_barrier_ != 0) explain_standstill();
  home_->thread_left();
  return false;
}

bool warp::synchronise(const instruction& in, lane_mask lanes) {
  // The member mask is the last source. Lanes at this instruction that share a mask go on when
  // all its living members are here.
  const std::int32_t mask_row = in.src[in.src_count - 1];
  require_defined(mask_row, lanes, 4, "member mask");
  const lane_row& masks = this->in(mask_row);
  lane_mask here = lanes;
  for_lanes(at_sync_, [&](int i) {
    if (lane_pc_[static_cast<std::size_t>(i)] == pc_) here |= 1U << i;
  });
  const lane_mask passed_by = group_ & ~lanes;
  lane_mask left = here;
  lane_mask gone_on = 0;
  while (left != 0) {
    const int first = __builtin_ctz(left);
    const auto members = static_cast<lane_mask>(masks.lane[first]);
    lane_mask same = 0;
    for_lanes(left, [&](int i) {
      if (static_cast<lane_mask>(masks.lane[i]) == members) same |= 1U << i;
    });
    left &= ~same;
    if ((same & ~members) != 0)
      throw kernel_fault(fault_kind::missing_lane, __builtin_ctz(same & ~members),
                         "a lane is not in its own member mask " + hex(members));
    if ((members & alive_ & ~same) != 0) continue;
    count(in, same);
    const lane_mask saved = group_;
    group_ = same;
    in.run(*this, in, same);
    group_ = saved;
    gone_on |= same;
  }
  if (gone_on == lanes && here == lanes) {
    ++pc_;
    return true;
  }
  move_to(passed_by | gone_on, pc_ + 1);
  move_to(here & ~gone_on, pc_);
  at_sync_ = (at_sync_ | here) & ~gone_on;
  return false;
}

bool warp::arrive(const instruction& in, lane_mask lanes) {
  if (lanes == 0) {
    count(in, lanes);
    ++pc_;
    return true;
  }
  for (int i = 0; i < in.src_count; ++i) require_defined(in.src[i], lanes, 4, "barrier operand");
  if (in.pred_src[0] >= 0 && (undefined_predicate(in.pred_src[0]) & lanes) != 0)
    throw kernel_fault(fault_kind::uninitialised,
                       __builtin_ctz(undefined_predicate(in.pred_src[0]) & lanes),
                       "an undefined value is reduced at this barrier");
  const lane_mask passed_by = group_ & ~lanes;
  move_to(passed_by, pc_ + 1);
  move_to(lanes, pc_);
  lane_mask here = lanes;
  if ((in.flags & aligned) != 0) {
    for_lanes(at_partial_barrier_, [&](int i) {
      if (lane_pc_[static_cast<std::size_t>(i)] == pc_) here |= 1U << i;
    });
    at_partial_barrier_ |= lanes;
    if (alive_ != existing_) explain_standstill();
    if (here != existing_) return false;
    at_partial_barrier_ = 0;
  }
  count(in, here);
  if (in.select == 2) {  // bar.arrive: counted, does not wait
    move_to(here, pc_ + 1);
  } else {
    at_barrier_ |= here;
  }
  home_->arrive(*this, in, here);
  return false;
}

void warp::release_barrier(lane_mask lanes) {
  at_barrier_ &= ~lanes;
  for_lanes(lanes, [&](int i) { ++lane_pc_[static_cast<std::size_t>(i)]; });
}

std::string warp::describe_lanes(lane_mask lanes) const {
  const program& p = home_->owner().kernel();
  std::string text;
  for (; lanes != 0;) {
    const auto first = static_cast<std::size_t>(__builtin_ctz(lanes));
    lane_mask same = 0;
    for_lanes(lanes, [&](int i) {
      const bool ended = ((alive_ >> i) & 1) == 0;
      const bool first_ended = ((alive_ >> first) & 1) == 0;
      if (ended == first_ended &&
          (ended || lane_pc_[static_cast<std::size_t>(i)] == lane_pc_[first]))
        same |= 1U << i;
    });
    lanes &= ~same;
    text += "; lanes " + hex(same);
    if (((alive_ >> first) & 1) == 0) {
      text += " have left";
      continue;
    }
    const source_location& at = p.locations[code_[lane_pc_[first]].location];
    text += ((at_barrier_ | at_partial_barrier_) >> first) & 1 ? " wait at the barrier"
            : (at_sync_ >> first) & 1                          ? " wait"
                                                               : " are";
    text += " at " + base_names(p.files[static_cast<std::size_t>(at.file)] + ":" +
                                std::to_string(at.line) + at.call_path);
  }
  return text;
}

void warp::explain_standstill() {
  const auto point_at = [&](lane_mask lanes) {
    const auto first = static_cast<std::size_t>(__builtin_ctz(lanes));
    current_ = &code_[lane_pc_[first]];
    return static_cast<int>(first);
  };
  if (at_partial_barrier_ != 0) {
    const int lane = point_at(at_partial_barrier_);
    throw kernel_fault(
        fault_kind::divergent_barrier, lane,
        "bar.sync needs every thread of a warp, and not all come" + describe_lanes(existing_));
  }
  if (at_sync_ != 0) {
    const int lane = point_at(at_sync_);
    const instruction& waits = *current_;
    const auto members = static_cast<lane_mask>(in(waits.src[waits.src_count - 1]).lane[lane]);
    throw kernel_fault(fault_kind::missing_lane, lane,
                       "lanes " + hex(members) + " are to take part and do not all come" +
                           describe_lanes(existing_));
  }
  const int lane = point_at(at_barrier_ != 0 ? at_barrier_ : existing_);
  throw kernel_fault(fault_kind::deadlock, lane,
                     "a barrier waits for threads that never come" + describe_lanes(existing_));
}

}  // namespace ptx
