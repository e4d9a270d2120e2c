#include "warp_clock.hpp"

#include <algorithm>

namespace ptx {

namespace {

std::size_t index_of(unit u) {
  return static_cast<std::size_t>(u);
}

template <class F>
void for_each_lane(lane_mask lanes, F&& f) {
  if (lanes == ~lane_mask{0}) {
    for (int i = 0; i < lanes_per_warp; ++i) f(i);
    return;
  }
  for (; lanes != 0; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

bool is_memory(op_kind kind) {
  return (kind >= op_kind::load_shared && kind <= op_kind::store_local);
}

bool is_fence(op_kind kind) {
  return kind == op_kind::fence || kind == op_kind::fence_device || kind == op_kind::sync_warp;
}

/// A name has no unit, but is a result.
unit written_by(unit u) {
  return u == unit::none ? unit::control : u;
}

/// Whether a result has further to go than to the unit that computed it.
bool crosses(unit from, unit to) {
  const auto pipe = [](unit u) { return u == unit::multiply ? unit::float32 : u; };
  const bool computes = from == unit::integer || from == unit::multiply || from == unit::float32 ||
                        from == unit::either;
  return computes && (pipe(from) != pipe(to) || from == unit::either);
}

}  // namespace

busy_cycles& busy_cycles::operator+=(const busy_cycles& other) {
  dispatch += other.dispatch;
  for (std::size_t i = 0; i < of_unit.size(); ++i) of_unit[i] += other.of_unit[i];
  shared += other.shared;
  return *this;
}

std::uint64_t busy_cycles::of_partition(const machine& m) const {
  const auto cycles = [&](unit u) { return of_unit[index_of(u)]; };
  // An integer product keeps half of the fp32 unit busy for two cycles: all of it on sm_80.
  const std::uint64_t width = m.float_interval();
  const std::uint64_t floats = cycles(unit::float32) + cycles(unit::multiply) * width / 2;
  // Additions go where there is room: `integer` takes one in two cycles, the fp32 unit in `width`.
  const std::uint64_t balanced =
      (width * cycles(unit::integer) + 2 * floats + width * cycles(unit::either)) / (2 + width);
  return std::max({dispatch, cycles(unit::integer), cycles(unit::multiply), floats, balanced,
                   cycles(unit::special), cycles(unit::float64), cycles(unit::memory)});
}

std::uint64_t warp_time::issue_slots(const machine& m) const {
  return std::max(busy.of_partition(m), busy.shared);
}

std::uint64_t warp_time::lower(const machine& m) const {
  return std::max(data_flow, issue_slots(m));
}

warp_clock::warp_clock(const machine& m, const program& p)
    : machine_(&m), code_(p.code.data()), runs_(p.code.size(), 0) {
  for (registers* r : {&flow_, &order_}) {
    r->rows.resize(p.registers);
    r->predicates.resize(p.predicates);
  }
}

std::uint32_t warp_clock::latest(const registers& r, const instruction& in, lane_mask lanes,
                                 unit to, std::uint32_t crossing) const {
  std::uint32_t at = 0;
  const auto wait_for = [&](const value_time& t, std::uint32_t delay) {
    if (t.from == unit::none) return;  // was there before
    const std::uint32_t more = delay + (crosses(t.from, to) ? crossing : 0);
    for_each_lane(lanes, [&](int i) { at = std::max(at, t.lane[i] + more); });
  };
  for (int k = 0; k < in.src_count; ++k)
    if (in.src[k] >= 0) wait_for(r.rows[static_cast<std::size_t>(in.src[k])], 0);
  for (const std::int32_t p : in.pred_src)
    if (p >= 0) wait_for(r.predicates[static_cast<std::size_t>(p)], 0);
  if (in.guard >= 0)
    wait_for(r.predicates[static_cast<std::size_t>(in.guard)],
             machine_->guard - machine_->of(op_kind::integer).latency - crossing);
  return at;
}

void warp_clock::write(registers& r, const instruction& in, lane_mask lanes, unit from,
                       std::uint32_t at) {
  const auto set = [&](value_time& t) {
    for_each_lane(lanes, [&](int i) { t.lane[i] = at; });
    t.from = from;
  };
  for (int k = 0; k < in.dst_count; ++k) set(r.rows[static_cast<std::size_t>(in.dst[k])]);
  for (const std::int32_t p : in.pred_dst)
    if (p >= 0) set(r.predicates[static_cast<std::size_t>(p)]);
}

void warp_clock::step(const instruction& in, op_kind kind, lane_mask group, lane_mask lanes,
                      unsigned passes) {
  const machine& m = *machine_;
  const timing& t = m.of(kind);
  const bool runs = lanes != 0;
  ++runs_[static_cast<std::size_t>(&in - code_)];
  const std::uint32_t latency =
      (kind == op_kind::load_global ? m.load_latency() : t.latency) + passes - 1;

  // Issue slots. What its guard stops in every lane takes a slot of the scheduler all the same.
  time_.busy.dispatch += t.instructions;
  const std::uint32_t occupied = t.instructions * t.interval * passes;
  if (runs) {
    time_.busy.of_unit[index_of(t.unit)] += occupied;
    time_.busy.shared += std::uint64_t{t.shared} * passes;
  }

  // Data flow.
  if (runs && kind != op_kind::branch && kind != op_kind::barrier) {
    std::uint32_t start = latest(flow_, in, lanes, t.unit, 0);
    if (is_memory(kind)) start = std::max(start, flow_memory_);
    if (is_fence(kind)) start = std::max(start, flow_last_access_);
    write(flow_, in, lanes, written_by(t.unit), start + latency);
    if (is_memory(kind)) flow_last_access_ = std::max(flow_last_access_, start + t.interval);
    if (is_fence(kind)) flow_memory_ = std::max(flow_memory_, start + latency);
    const std::uint32_t end = start + std::max(latency, t.instructions);
    time_.data_flow = std::max<std::uint64_t>(time_.data_flow, end);
  }

  // PTX order. A name may turn out to be an instruction here.
  const timing& o = kind == op_kind::named ? m.of(op_kind::integer_add) : t;
  std::uint32_t issue = std::max(next_issue_, unit_free_[index_of(o.unit)]);
  issue = std::max(issue, latest(order_, in, group, o.unit, m.crossing));
  next_issue_ = issue + std::max(o.instructions, 1U);
  if (runs) {
    unit_free_[index_of(o.unit)] = issue + o.instructions * o.interval * passes;
    const std::uint32_t ready = issue + (kind == op_kind::named ? o.latency : latency);
    write(order_, in, lanes, o.unit, ready);
    if (is_fence(kind) || kind == op_kind::branch)
      next_issue_ = std::max(next_issue_, kind == op_kind::branch ? issue + m.taken : ready);
    time_.ptx_order = std::max<std::uint64_t>(time_.ptx_order, ready);
  }
  time_.ptx_order = std::max<std::uint64_t>(time_.ptx_order, next_issue_);

  if (runs && kind == op_kind::barrier) {
    arrival_.data_flow = std::max(flow_last_access_, latest(flow_, in, lanes, t.unit, 0));
    arrival_.ptx_order = issue;
  }
}

void warp_clock::release(const moment& at) {
  const unsigned latency = machine_->of(op_kind::barrier).latency;
  const auto flow = static_cast<std::uint32_t>(at.data_flow) + latency;
  const auto order = static_cast<std::uint32_t>(at.ptx_order) + latency;
  flow_memory_ = std::max(flow_memory_, flow);
  next_issue_ = std::max(next_issue_, order);
  time_.data_flow = std::max<std::uint64_t>(time_.data_flow, flow);
  time_.ptx_order = std::max<std::uint64_t>(time_.ptx_order, order);
}

}  // namespace ptx
