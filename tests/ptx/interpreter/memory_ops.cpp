// Loads, stores, fences and hints.
#include "access.hpp"
#include "lanes.hpp"

namespace ptx {

namespace {

/// Sign extension for narrow signed loads; other types come as they are.
std::uint64_t extend(scalar type, std::uint64_t bits) {
  switch (type) {
    case scalar::s8:
      return static_cast<std::uint64_t>(std::int64_t{static_cast<std::int8_t>(bits)});
    case scalar::s16:
      return static_cast<std::uint64_t>(std::int64_t{static_cast<std::int16_t>(bits)});
    case scalar::s32:
      return static_cast<std::uint64_t>(std::int64_t{static_cast<std::int32_t>(bits)});
    default:
      return bits;
  }
}

void load(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned width = size_of(in.type);
  const unsigned bytes = width * in.dst_count;
  accessor memory(w, in, lanes, bytes, "load");
  memory.count(accessor::kind::load, lanes);
  const bool is_strong = (in.flags & strong) != 0;
  block_order& order = w.home().order();
  // All lanes read before any register changes: the address register may be a result.
  std::uint64_t values[8][lanes_per_warp];
  std::uint8_t undefined[8][lanes_per_warp] = {};
  lane_mask any_undefined = 0;
  for_lanes(lanes, [&](int i) {
    const located at = memory.locate(i);
    if (is_strong && order.any_flag()) order.acquire(w.thread_of(i), at.key);
    memory.record(i, at, false, is_strong, false);
    for (unsigned k = 0; k < in.dst_count; ++k) {
      std::uint64_t bits = 0;
      std::memcpy(&bits, at.bytes + k * width, width);
      values[k][i] = extend(in.type, bits);
      if (at.undefined == nullptr) continue;
      std::uint64_t shadow = 0;
      std::memcpy(&shadow, at.undefined + k * width, width);
      if (shadow == 0) continue;
      unsigned mask = 0;
      for (unsigned b = 0; b < width; ++b)
        if (((shadow >> (8 * b)) & 1) != 0) mask |= 1U << b;
      // The sign of an undefined byte is undefined too.
      if (is_signed(in.type) && ((mask >> (width - 1)) & 1) != 0) mask |= 0xffU << width;
      undefined[k][i] = static_cast<std::uint8_t>(mask);
      any_undefined |= 1U << i;
    }
  });
  const bool track = w.home().owner().request().enabled.undefined;
  for (unsigned k = 0; k < in.dst_count; ++k) {
    lane_row& d = w.out(in.dst[k]);
    for_lanes(lanes, [&](int i) { d.lane[i] = values[k][i]; });
    w.set_defined(in.dst[k], lanes);
    if (track)
      for_lanes(any_undefined, [&](int i) { w.set_undefined(in.dst[k], i, undefined[k][i]); });
  }
}

void store(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned width = size_of(in.type);
  const unsigned count = in.src_count - 1U;
  const unsigned bytes = width * count;
  accessor memory(w, in, lanes, bytes, "store");
  memory.count(accessor::kind::store, lanes);
  const bool is_strong = (in.flags & strong) != 0;
  block_order& order = w.home().order();
  for_lanes(lanes, [&](int i) {
    const located at = memory.locate(i);
    std::uint8_t data[64];
    std::uint8_t shadow[64];
    for (unsigned k = 0; k < count; ++k) {
      const std::int32_t row = in.src[k + 1];
      std::memcpy(data + k * width, &w.in(row).lane[i], width);
      const unsigned mask = w.undefined_bytes(row, i);
      for (unsigned b = 0; b < width; ++b)
        shadow[k * width + b] = ((mask >> b) & 1) != 0 ? 0xff : 0;
    }
    const bool silent =
        std::memcmp(at.bytes, data, bytes) == 0 && std::memcmp(at.undefined, shadow, bytes) == 0;
    memory.record(i, at, true, is_strong, silent);
    if (is_strong && (order.has_fenced(w.thread_of(i)) || order.any_flag()))
      order.release(w.thread_of(i), at.key, false);
    std::memcpy(at.bytes, data, bytes);
    std::memcpy(at.undefined, shadow, bytes);
  });
}

void fence(warp& w, const instruction& in, lane_mask lanes) {
  (void)in;
  w.home().order().fence(w.index(), lanes);
}

/// A store or load with release or acquire semantics fences for itself.
template <handler Access>
void with_fence(warp& w, const instruction& in, lane_mask lanes) {
  if ((in.flags & releasing) != 0) w.home().order().fence(w.index(), lanes);
  Access(w, in, lanes);
}

void nothing(warp&, const instruction&, lane_mask) {}

}  // namespace

space space_of(const decoder& d) {
  if (d.has("global")) return space::global;
  if (d.has("shared") || d.has("shared::cta")) return space::shared;
  if (d.has("local")) return space::local;
  if (d.has("param") || d.has("param::entry") || d.has("param::func")) return space::param;
  if (d.has("const")) return space::constant;
  if (d.has("shared::cluster")) throw unknown_form("clusters");
  return space::generic;
}

void read_ordering(decoder& d) {
  instruction& in = d.in;
  if (d.has("volatile") || d.has("relaxed") || d.has("acquire") || d.has("release") ||
      d.has("acq_rel") || d.has("mmio"))
    in.flags |= strong;
  if (d.has("release") || d.has("acq_rel")) in.flags |= releasing;
  if (d.has("acquire") || d.has("acq_rel")) in.flags |= acquiring;
}

bool decode_memory(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  in.what = action::access;
  if (root == "ld" || root == "ldu") {
    if (d.operands().size() != 2) throw unknown_form("a cache policy");
    in.counted = instruction_class::load;
    in.type = d.type();
    in.where = space_of(d);
    read_ordering(d);
    d.address(1);
    d.dst_elements(0);
    in.run = load;
    return true;
  }
  if (root == "st") {
    if (d.operands().size() != 2 || d.has("async")) throw unknown_form("this store");
    in.counted = instruction_class::store;
    in.type = d.type();
    in.where = space_of(d);
    read_ordering(d);
    d.address(0);
    d.src_elements(1, in.type);
    in.run = (in.flags & releasing) != 0 ? with_fence<store> : store;
    return true;
  }
  if (root == "membar" || root == "fence") {
    in.counted = instruction_class::fence;
    in.run = d.has("proxy") || d.has("mbarrier_init") ? nothing : fence;
    return true;
  }
  if (root == "prefetch" || root == "prefetchu" || root == "discard" || root == "applypriority") {
    in.counted = instruction_class::fence;
    in.run = nothing;
    return true;
  }
  in.what = action::compute;
  return false;
}

}  // namespace ptx
