// Barriers, traps and what only hints.
#include "lanes.hpp"

namespace ptx {

namespace {

void nothing(warp&, const instruction&, lane_mask) {}

void wait_for_previous(warp& w, const instruction&, lane_mask lanes) {
  w.waited |= lanes;
}

void trap(warp&, const instruction&, lane_mask lanes) {
  throw kernel_fault(fault_kind::trap, __builtin_ctz(lanes), "trap");
}

/// bar.sync a{, b}; bar.arrive a, b; bar.red.op d, a{, b}, p. The barrier. forms without .aligned
/// let the lanes of a warp come one by one.
bool decode_barrier(decoder& d) {
  instruction& in = d.in;
  in.what = action::barrier;
  in.counted = instruction_class::barrier;
  in.run = nothing;
  in.type = scalar::b32;
  if (d.root() == "bar" || d.has("aligned")) in.flags |= aligned;
  std::size_t at = 0;
  std::size_t end = d.operands().size();
  if (d.has("red")) {
    if (d.has("popc")) {
      d.dst(at++);
    } else {
      d.pred_dst(at++);
      in.combine = d.has("and") ? 0 : 1;
    }
    d.pred_src(--end);
  } else if (d.has("arrive")) {
    in.select = 2;
  } else if (!d.has("sync")) {
    throw unknown_form("this barrier");
  }
  for (; at < end; ++at) d.src(at, scalar::u32);
  return true;
}

}  // namespace

bool decode_control(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  in.counted = instruction_class::control;
  if (root == "exit") {
    in.what = action::exit;
    in.run = nothing;
    return true;
  }
  if (root == "trap" || root == "brkpt") {
    in.what = action::access;
    in.run = trap;
    return true;
  }
  if ((root == "bar" || root == "barrier") && !d.has("cluster")) return decode_barrier(d);
  // Programmatic dependent launch: kernels run one after the other here, so nothing waits; but
  // what accesses global memory without having waited is found (access.cpp).
  if (root == "griddepcontrol") {
    in.what = action::access;
    in.run = d.has("wait") ? wait_for_previous : nothing;
    return true;
  }
  if (root == "nanosleep" || root == "pmevent" || root == "setmaxnreg") {
    in.what = action::access;
    in.run = nothing;
    return true;
  }
  return false;
}

}  // namespace ptx
