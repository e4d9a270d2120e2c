// Operations among the lanes of a warp: shuffle, vote, match, redux, elect, activemask.
//
// The scheduler calls these when all living members of the mask are there; `lanes` are those.
#include <algorithm>

#include "lanes.hpp"

namespace ptx {

namespace {

enum class shuffle_mode : std::uint8_t { up, down, butterfly, index };
enum class vote_mode : std::uint8_t { all, any, uniform, ballot };
enum class reduction : std::uint8_t { add, min, max, conj, disj, excl };

void shuffle(warp& w, const instruction& in, lane_mask lanes) {
  w.require_defined(in.src[1], lanes, 4, "the lane of a shuffle");
  w.require_defined(in.src[2], lanes, 4, "the clamp of a shuffle");
  const lane_row values = w.in(in.src[0]);
  std::uint8_t undefined[lanes_per_warp];
  for_lanes(lanes, [&](int i) { undefined[i] = w.undefined_bytes(in.src[0], i); });
  lane_mask in_range = 0;
  for_lanes(lanes, [&](int i) {
    const auto b = static_cast<int>(w.in(in.src[1]).lane[i] & 31);
    const auto c = static_cast<int>(w.in(in.src[2]).lane[i] & 31);
    const auto segment = static_cast<int>((w.in(in.src[2]).lane[i] >> 8) & 31);
    const int limit = (i & segment) | (c & ~segment);
    int from = i;
    bool valid = false;
    switch (static_cast<shuffle_mode>(in.select)) {
      case shuffle_mode::up:
        from = i - b;
        valid = from >= limit;
        break;
      case shuffle_mode::down:
        from = i + b;
        valid = from <= limit;
        break;
      case shuffle_mode::butterfly:
        from = i ^ b;
        valid = from <= limit;
        break;
      case shuffle_mode::index:
        from = (i & segment) | (b & ~segment);
        valid = from <= limit;
        break;
    }
    if (valid) {
      in_range |= 1U << i;
    } else {
      from = i;
    }
    if (((lanes >> from) & 1) == 0)
      throw kernel_fault(fault_kind::inactive_lane, i,
                         "lane " + std::to_string(i) + " reads lane " + std::to_string(from) +
                             ", which does not take part (lanes " + hex(lanes) + " do)");
    w.out(in.dst[0]).lane[i] = values.lane[from] & 0xffffffff;
    w.set_undefined(in.dst[0], i, undefined[from] & 0xf);
  });
  if (in.pred_dst[0] >= 0) {
    w.set_predicate(in.pred_dst[0], lanes, in_range);
    w.set_undefined_predicate(in.pred_dst[0], lanes, 0);
  }
}

void vote(warp& w, const instruction& in, lane_mask lanes) {
  if (const lane_mask doubt = w.undefined_predicate(in.pred_src[0]) & lanes; doubt != 0)
    throw kernel_fault(fault_kind::uninitialised, __builtin_ctz(doubt),
                       "an undefined value is voted on");
  const lane_mask yes = (w.predicate(in.pred_src[0]) ^ (in.pred_negated[0] ? ~0U : 0U)) & lanes;
  const auto mode = static_cast<vote_mode>(in.select);
  if (mode == vote_mode::ballot) {
    for_lanes(lanes, [&](int i) { w.out(in.dst[0]).lane[i] = yes; });
    w.set_defined(in.dst[0], lanes);
    return;
  }
  const bool result = mode == vote_mode::all   ? yes == lanes
                      : mode == vote_mode::any ? yes != 0
                                               : yes == lanes || yes == 0;
  w.set_predicate(in.pred_dst[0], lanes, result ? ~0U : 0U);
  w.set_undefined_predicate(in.pred_dst[0], lanes, 0);
}

void match(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned bytes = size_of(in.type);
  w.require_defined(in.src[0], lanes, bytes, "what match compares");
  const lane_row values = w.in(in.src[0]);
  const std::uint64_t keep = bytes == 8 ? ~std::uint64_t{0} : 0xffffffff;
  const bool all = in.select == 1;
  lane_mask same_everywhere = 0;
  for_lanes(lanes, [&](int i) {
    lane_mask same = 0;
    for_lanes(lanes, [&](int k) {
      if (((values.lane[i] ^ values.lane[k]) & keep) == 0) same |= 1U << k;
    });
    if (same == lanes) same_everywhere |= 1U << i;
    w.out(in.dst[0]).lane[i] = all && same != lanes ? 0 : same;
  });
  w.set_defined(in.dst[0], lanes);
  if (in.pred_dst[0] >= 0) {
    w.set_predicate(in.pred_dst[0], lanes, same_everywhere);
    w.set_undefined_predicate(in.pred_dst[0], lanes, 0);
  }
}

void reduce(warp& w, const instruction& in, lane_mask lanes) {
  w.require_defined(in.src[0], lanes, 4, "what redux reduces");
  const auto op = static_cast<reduction>(in.select);
  bool first = true;
  std::uint32_t result = 0;
  for_lanes(lanes, [&](int i) {
    const auto value = static_cast<std::uint32_t>(w.in(in.src[0]).lane[i]);
    if (first) {
      result = value;
      first = false;
      return;
    }
    const bool less = is_signed(in.type)
                          ? static_cast<std::int32_t>(value) < static_cast<std::int32_t>(result)
                          : value < result;
    switch (op) {
      case reduction::add:
        result += value;
        break;
      case reduction::min:
        result = less ? value : result;
        break;
      case reduction::max:
        result = less ? result : value;
        break;
      case reduction::conj:
        result &= value;
        break;
      case reduction::disj:
        result |= value;
        break;
      case reduction::excl:
        result ^= value;
        break;
    }
  });
  for_lanes(lanes, [&](int i) { w.out(in.dst[0]).lane[i] = result; });
  w.set_defined(in.dst[0], lanes);
}

void elect(warp& w, const instruction& in, lane_mask lanes) {
  const auto leader = static_cast<std::uint64_t>(__builtin_ctz(lanes));
  if (in.dst_count > 0) {
    for_lanes(lanes, [&](int i) { w.out(in.dst[0]).lane[i] = leader; });
    w.set_defined(in.dst[0], lanes);
  }
  w.set_predicate(in.pred_dst[0], lanes, 1U << leader);
  w.set_undefined_predicate(in.pred_dst[0], lanes, 0);
}

void sync_warp(warp& w, const instruction&, lane_mask lanes) {
  w.home().order().warp_sync(w.index(), lanes, w.alive());
}

void active_mask(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) { w.out(in.dst[0]).lane[i] = lanes; });
}

bool decode_vote(decoder& d) {
  instruction& in = d.in;
  in.select = static_cast<std::uint8_t>(d.has("all")   ? vote_mode::all
                                        : d.has("any") ? vote_mode::any
                                        : d.has("uni") ? vote_mode::uniform
                                                       : vote_mode::ballot);
  if (d.has("ballot")) {
    d.dst(0);
  } else {
    d.pred_dst(0);
  }
  d.pred_src(1);
  d.src(2, scalar::b32);
  in.run = vote;
  return true;
}

bool decode_shuffle(decoder& d) {
  instruction& in = d.in;
  in.select = static_cast<std::uint8_t>(d.has("up")     ? shuffle_mode::up
                                        : d.has("down") ? shuffle_mode::down
                                        : d.has("bfly") ? shuffle_mode::butterfly
                                                        : shuffle_mode::index);
  in.type = scalar::b32;
  d.dst(0);
  d.result_predicate(0);
  for (std::size_t i = 1; i <= 4; ++i) d.src(i, scalar::b32);
  in.run = shuffle;
  return true;
}

}  // namespace

bool decode_warp(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  in.counted = instruction_class::warp;
  if (root == "activemask") {
    in.type = scalar::b32;
    d.dst(0);
    in.run = active_mask;
    return true;
  }
  if ((root == "bar" || root == "barrier") && d.has("warp")) {
    in.what = action::warp_sync;
    d.src(0, scalar::b32);
    in.run = sync_warp;
    return true;
  }
  if (root != "shfl" && root != "vote" && root != "match" && root != "redux" && root != "elect")
    return false;
  if (!d.has("sync")) throw unknown_form("a warp operation without .sync");
  in.what = action::warp_sync;
  if (root == "vote") return decode_vote(d);
  if (root == "shfl") return decode_shuffle(d);
  if (root == "match") {
    in.type = d.type();
    in.select = d.has("all") ? 1 : 0;
    d.dst(0);
    d.result_predicate(0);
    d.src(1, in.type);
    d.src(2, scalar::b32);
    in.run = match;
    return true;
  }
  if (root == "redux") {
    in.type = d.type();
    if (is_float(in.type)) throw unknown_form("redux of floating-point numbers");
    in.select = static_cast<std::uint8_t>(d.has("add")   ? reduction::add
                                          : d.has("min") ? reduction::min
                                          : d.has("max") ? reduction::max
                                          : d.has("and") ? reduction::conj
                                          : d.has("or")  ? reduction::disj
                                                         : reduction::excl);
    d.dst(0);
    d.src(1, scalar::b32);
    d.src(2, scalar::b32);
    in.run = reduce;
    return true;
  }
  if (d.operands().at(0).name != "_") d.dst(0);
  d.result_predicate(0);
  d.src(1, scalar::b32);
  in.run = elect;
  return true;
}

}  // namespace ptx
