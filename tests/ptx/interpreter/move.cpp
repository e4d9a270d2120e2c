// mov in its forms, and conversions between address spaces.
#include "lanes.hpp"

namespace ptx {

namespace {

template <std::size_t Bytes>
void copy(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    d.lane[i] = Bytes == 8 ? a.lane[i] : a.lane[i] & ((std::uint64_t{1} << (8 * (Bytes % 8))) - 1);
  });
}

void copy_predicate(warp& w, const instruction& in, lane_mask lanes) {
  const lane_mask value = in.pred_src[0] >= 0
                              ? w.predicate(in.pred_src[0]) ^ (in.pred_negated[0] ? ~0U : 0U)
                              : static_cast<lane_mask>(in.offset);
  w.set_predicate(in.pred_dst[0], lanes, value);
}

/// mov.b64 d, {a, b}: a in the low half.
void pack(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned part = 8 * size_of(in.type) / in.src_count;
  const std::uint64_t keep = (std::uint64_t{1} << part) - 1;
  for_lanes(lanes, [&](int i) {
    std::uint64_t value = 0;
    for (unsigned k = 0; k < in.src_count; ++k)
      value |= (w.in(in.src[k]).lane[i] & keep) << (part * k);
    w.out(in.dst[0]).lane[i] = value;
  });
}

void unpack(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned part = 8 * size_of(in.type) / in.dst_count;
  const std::uint64_t keep = (std::uint64_t{1} << part) - 1;
  for_lanes(lanes, [&](int i) {
    const std::uint64_t value = w.in(in.src[0]).lane[i];
    for (unsigned k = 0; k < in.dst_count; ++k)
      w.out(in.dst[k]).lane[i] = (value >> (part * k)) & keep;
  });
}

void shift_window(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  const auto delta = static_cast<std::uint64_t>(in.offset);
  for_lanes(lanes, [&](int i) { d.lane[i] = a.lane[i] + delta; });
}

void is_in_space(warp& w, const instruction& in, lane_mask lanes) {
  lane_mask result = 0;
  for_lanes(lanes, [&](int i) {
    const std::uint64_t address = w.in(in.src[0]).lane[i];
    const bool shared = address - shared_window < window_span;
    const bool local = address - local_window < window_span;
    const bool yes = in.where == space::shared  ? shared
                     : in.where == space::local ? local
                                                : !shared && !local;
    result |= static_cast<lane_mask>(yes) << i;
  });
  w.set_predicate(in.pred_dst[0], lanes, result);
}

/// Time is counted in instructions: the same in every run.
void read_clock(warp& w, const instruction& in, lane_mask lanes) {
  const std::uint64_t now = w.home().owner().counts().warp_instructions;
  const std::uint64_t value = size_of(in.type) == 8 ? now : now & 0xffffffff;
  for_lanes(lanes, [&](int i) { w.out(in.dst[0]).lane[i] = value; });
}

bool decode_mov(decoder& d) {
  instruction& in = d.in;
  const operand& to = d.operands().at(0);
  const operand& from = d.operands().at(1);
  in.counted = instruction_class::move;
  in.type = d.type();
  in.undefined = spread::bytewise;
  if (in.type == scalar::pred) {
    d.pred_dst(0);
    if (from.shape == operand::form::immediate) {
      in.offset = d.immediate(1, scalar::s32) != 0 ? -1 : 0;
    } else {
      d.pred_src(1);
    }
    in.run = copy_predicate;
    return true;
  }
  if (to.shape == operand::form::vector) {
    d.dst_elements(0);
    d.src(1, in.type);
    in.undefined = spread::unpack;
    in.run = unpack;
    return true;
  }
  d.dst(0);
  if (from.shape == operand::form::vector) {
    d.src_elements(1, scalar::b64);
    in.undefined = spread::pack;
    in.run = pack;
    return true;
  }
  if (from.name == "%clock" || from.name == "%clock64" || from.name == "%globaltimer" ||
      from.name == "%clock_hi") {
    in.run = read_clock;
    return true;
  }
  d.src(1, in.type);
  in.run = size_of(in.type) == 8 ? copy<8> : size_of(in.type) == 4 ? copy<4> : copy<2>;
  return true;
}

std::uint64_t window_of(decoder& d) {
  if (d.has("shared") || d.has("shared::cta")) return shared_window;
  if (d.has("local")) return local_window;
  if (d.has("param")) return param_window;
  if (d.has("global") || d.has("const")) return 0;
  throw unknown_form("this state space");
}

}  // namespace

bool decode_move(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  if (root == "mov" && !d.types.empty()) return decode_mov(d);
  if (root == "cvta") {
    in.counted = instruction_class::move;
    in.type = scalar::b64;
    d.dst(0);
    d.src(1, scalar::u64);
    const std::uint64_t window = window_of(d);
    in.offset = static_cast<std::int64_t>(d.has("to") ? 0 - window : window);
    in.run = shift_window;
    return true;
  }
  if (root == "isspacep") {
    in.counted = instruction_class::compare;
    in.type = scalar::b64;
    d.pred_dst(0);
    d.src(1, scalar::u64);
    in.where = d.has("shared") || d.has("shared::cta") ? space::shared
               : d.has("local")                        ? space::local
                                                       : space::global;
    in.run = is_in_space;
    return true;
  }
  return false;
}

}  // namespace ptx
