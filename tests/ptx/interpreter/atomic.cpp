// atom and red: lanes one after the other, each in one step.
#include <algorithm>
#include <cmath>

#include "access.hpp"
#include "lanes.hpp"
#include "small_float.hpp"

namespace ptx {

namespace {

enum class operation : std::uint8_t { add, min, max, inc, dec, conj, disj, excl, exch, cas };

template <class T>
T apply_integer(operation op, T old, T b, T c) {
  using U = unsigned_of<T>;
  switch (op) {
    case operation::add:
      return static_cast<T>(static_cast<U>(old) + static_cast<U>(b));
    case operation::min:
      return std::min(old, b);
    case operation::max:
      return std::max(old, b);
    case operation::inc:
      return old >= b ? T{0} : static_cast<T>(old + 1);
    case operation::dec:
      return old == 0 || old > b ? b : static_cast<T>(old - 1);
    case operation::conj:
      return static_cast<T>(old & b);
    case operation::disj:
      return static_cast<T>(old | b);
    case operation::excl:
      return static_cast<T>(old ^ b);
    case operation::exch:
      return b;
    case operation::cas:
      return old == b ? c : old;
  }
  return old;
}

float quiet(float v) {
  return v != v ? bits_as<float>(std::uint32_t{0x7fffffff}) : v;
}

std::uint64_t add_small(const small_format& format, std::uint64_t a, std::uint64_t b, int parts) {
  std::uint64_t result = 0;
  for (int p = 0; p < parts; ++p) {
    const auto cut = [&](std::uint64_t v) {
      return widen(format, static_cast<std::uint16_t>(v >> (16 * p)));
    };
    result |= std::uint64_t{round_to(format, add_to_odd(cut(a), cut(b)), rounding::nearest_even)}
              << (16 * p);
  }
  return result;
}

std::uint64_t apply(const instruction& in, std::uint64_t old, std::uint64_t b, std::uint64_t c) {
  const auto op = static_cast<operation>(in.select);
  switch (in.type) {
    case scalar::b16:
    case scalar::u16:
      return to_row(apply_integer(op, from_row<std::uint16_t>(old), from_row<std::uint16_t>(b),
                                  from_row<std::uint16_t>(c)));
    case scalar::b32:
    case scalar::u32:
      return to_row(apply_integer(op, from_row<std::uint32_t>(old), from_row<std::uint32_t>(b),
                                  from_row<std::uint32_t>(c)));
    case scalar::s32:
      return to_row(apply_integer(op, from_row<std::int32_t>(old), from_row<std::int32_t>(b),
                                  from_row<std::int32_t>(c)));
    case scalar::b64:
    case scalar::u64:
      return apply_integer(op, old, b, c);
    case scalar::s64:
      return to_row(apply_integer(op, from_row<std::int64_t>(old), from_row<std::int64_t>(b),
                                  from_row<std::int64_t>(c)));
    case scalar::f32: {
      // Devices flush denormals in fp32 atomics on global memory; the sum here keeps them.
      return to_row(quiet(from_row<float>(old) + from_row<float>(b)));
    }
    case scalar::f64:
      return to_row(from_row<double>(old) + from_row<double>(b));
    case scalar::f16:
      return add_small(half_format, old, b, 1);
    case scalar::f16x2:
      return add_small(half_format, old, b, 2);
    case scalar::bf16:
      return add_small(bfloat_format, old, b, 1);
    case scalar::bf16x2:
      return add_small(bfloat_format, old, b, 2);
    default:
      return old;
  }
}

void atomic(warp& w, const instruction& in, lane_mask lanes) {
  const unsigned bytes = size_of(in.type);
  accessor memory(w, in, lanes, bytes, "atomic operation");
  memory.count(accessor::kind::atomic, lanes);
  block_order& order = w.home().order();
  if ((in.flags & releasing) != 0) order.fence(w.index(), lanes);
  const bool compares = static_cast<operation>(in.select) == operation::cas;
  const bool replaces = static_cast<operation>(in.select) == operation::exch;
  const bool track = w.home().owner().request().enabled.undefined;
  if (compares) w.require_defined(in.src[1], lanes, bytes, "what compare-and-swap compares");
  for_lanes(lanes, [&](int i) {
    const located at = memory.locate(i);
    if (at.where == nullptr)
      throw kernel_fault(fault_kind::out_of_bounds, i, "an atomic operation on private memory");
    std::uint64_t old = 0;
    std::memcpy(&old, at.bytes, bytes);
    std::uint64_t shadow = 0;
    std::memcpy(&shadow, at.undefined, bytes);
    if (track && shadow != 0 && !replaces)
      throw kernel_fault(fault_kind::uninitialised, i,
                         "an atomic operation on bytes that were never written");
    if (order.any_flag()) order.acquire(w.thread_of(i), at.key);
    memory.record(i, at, true, true, false);
    if (order.has_fenced(w.thread_of(i)) || order.any_flag())
      order.release(w.thread_of(i), at.key, true);
    const std::uint64_t b = w.in(in.src[1]).lane[i];
    const std::uint64_t c = in.src_count > 2 ? w.in(in.src[2]).lane[i] : 0;
    const std::uint64_t fresh_value = apply(in, old, b, c);
    std::uint8_t mask = w.undefined_bytes(in.src[1], i);
    if (in.src_count > 2) mask |= w.undefined_bytes(in.src[2], i);
    mask &= static_cast<std::uint8_t>((1U << bytes) - 1);
    std::memcpy(at.bytes, &fresh_value, bytes);
    std::memset(at.undefined, mask != 0 ? 0xff : 0, bytes);
    if (in.dst_count == 0) return;
    w.out(in.dst[0]).lane[i] = old;
    w.set_undefined(in.dst[0], i, shadow != 0 ? 0xff : 0);
  });
}

}  // namespace

bool decode_atomic(decoder& d) {
  const std::string_view root = d.root();
  if (root != "atom" && root != "red") return false;
  instruction& in = d.in;
  in.what = action::access;
  in.counted = instruction_class::atomic;
  in.type = d.type();
  in.where = space_of(d);
  if (d.has("async") || d.has("v2") || d.has("v4") || d.has("v8") || size_of(in.type) == 1)
    throw unknown_form("this atomic operation");
  read_ordering(d);
  in.flags |= strong;
  static constexpr std::string_view names[] = {"add", "min", "max", "inc",  "dec",
                                               "and", "or",  "xor", "exch", "cas"};
  bool found = false;
  for (std::uint8_t i = 0; i < 10; ++i)
    if (d.has(names[i])) {
      in.select = i;
      found = true;
    }
  if (!found) throw unknown_form("this operation");
  if ((is_float(in.type) || is_half(in.type)) && in.select != 0)
    throw unknown_form("this operation on floating-point numbers");
  const std::size_t first = root == "atom" ? 1 : 0;
  d.address(first);
  for (std::size_t i = first + 1; i < d.operands().size(); ++i) d.src(i, in.type);
  if (in.src_count != (d.has("cas") ? 3 : 2)) throw unknown_form("other operands");
  if (root == "atom") d.dst(0);
  in.run = atomic;
  return true;
}

}  // namespace ptx
