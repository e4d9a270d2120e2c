// cvt, in every direction that compilers emit, with every rounding mode.
//
// Compiled with -frounding-math.
#include <cmath>
#include <limits>

#include "lanes.hpp"
#include "rounding.hpp"
#include "small_float.hpp"

namespace ptx {

namespace {

/// A source value: an integer of up to 64 bits or a floating-point number, both exactly.
struct exact_value {
  bool integer = false;
  bool negative = false;        // integers: below zero
  std::uint64_t magnitude = 0;  // integers
  double number = 0;            // floats
};

exact_value read_value(scalar type, std::uint64_t bits, bool flushes) {
  exact_value v;
  const auto from_signed = [&](std::int64_t value) {
    v.integer = true;
    v.negative = value < 0;
    v.magnitude =
        value < 0 ? 0 - static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
  };
  switch (type) {
    case scalar::s8:
      from_signed(from_row<std::int8_t>(bits));
      break;
    case scalar::s16:
      from_signed(from_row<std::int16_t>(bits));
      break;
    case scalar::s32:
      from_signed(from_row<std::int32_t>(bits));
      break;
    case scalar::s64:
      from_signed(from_row<std::int64_t>(bits));
      break;
    case scalar::f16:
      v.number = widen(half_format, static_cast<std::uint16_t>(bits));
      break;
    case scalar::bf16:
      v.number = widen(bfloat_format, static_cast<std::uint16_t>(bits));
      break;
    case scalar::f32: {
      float f = from_row<float>(bits);
      if (flushes && std::fabs(f) < std::numeric_limits<float>::min()) f = std::copysign(0.0F, f);
      v.number = f;
      break;
    }
    case scalar::f64:
      v.number = from_row<double>(bits);
      break;
    default: {
      v.integer = true;
      const unsigned width = 8 * size_of(type);
      v.magnitude = width == 64 ? bits : bits & ((std::uint64_t{1} << width) - 1);
    }
  }
  return v;
}

rounding mode_of(std::uint32_t flags) {
  return (flags & round_zero) != 0   ? rounding::toward_zero
         : (flags & round_down) != 0 ? rounding::down
         : (flags & round_up) != 0   ? rounding::up
                                     : rounding::nearest_even;
}

double to_whole(double value, std::uint32_t flags) {
  return (flags & round_zero) != 0   ? std::trunc(value)
         : (flags & round_down) != 0 ? std::floor(value)
         : (flags & round_up) != 0   ? std::ceil(value)
                                     : std::nearbyint(value);  // the host rounds to nearest even
}

/// Float to integer: rounded, then clamped to the range. NaN gives zero, or the top bit alone
/// where a 64-bit type is on either side.
std::uint64_t to_integer(const instruction& in, double value) {
  const unsigned width = 8 * size_of(in.type);
  const bool s = is_signed(in.type);
  if (value != value) {
    const bool big = in.source_type == scalar::f64 || width == 64;
    return big ? std::uint64_t{1} << (width - 1) : 0;
  }
  const double whole = to_whole(value, in.flags);
  const double above = std::ldexp(1.0, static_cast<int>(s ? width - 1 : width));
  const double lowest = s ? -above : 0.0;
  const std::uint64_t ones = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
  if (whole >= above) return s ? ones >> 1 : ones;
  if (whole < lowest) return s ? (ones >> 1) + 1 : 0;
  if (whole < 0) return static_cast<std::uint64_t>(static_cast<std::int64_t>(whole)) & ones;
  return static_cast<std::uint64_t>(whole);
}

std::uint64_t integer_to_integer(const instruction& in, const exact_value& v) {
  const unsigned width = 8 * size_of(in.type);
  const bool s = is_signed(in.type);
  const std::uint64_t ones = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
  const std::uint64_t highest = s ? ones >> 1 : ones;
  if ((in.flags & saturate) != 0) {
    if (!v.negative && v.magnitude > highest) return highest;
    if (v.negative && !s) return 0;
    if (v.negative && v.magnitude > highest + 1) return highest + 1;
  }
  const std::uint64_t value = v.negative ? 0 - v.magnitude : v.magnitude;
  // Signed narrow results fill the register: it may be wider than the type.
  if (s && width < 32)
    return static_cast<std::uint32_t>(width == 8 ? std::int32_t{static_cast<std::int8_t>(value)}
                                                 : std::int32_t{static_cast<std::int16_t>(value)});
  return value & ones;
}

template <class T>
T to_float(const instruction& in, const exact_value& v) {
  T value;
  {
    const rounding_scope scope(in.flags);
    if (v.integer) {
      // Convert the signed value at once, so that directed rounding sees its sign.
      volatile T converted;
      if (v.negative) {
        converted = static_cast<T>(static_cast<std::int64_t>(0 - v.magnitude));
      } else {
        converted = static_cast<T>(v.magnitude);
      }
      value = converted;
    } else {
      const volatile double source = v.number;
      volatile T converted = static_cast<T>(source);
      value = converted;
    }
  }
  return value;
}

template <class T>
T finish_float(const instruction& in, T value) {
  if ((in.flags & flush) != 0 && std::fabs(value) < std::numeric_limits<T>::min())
    value = std::copysign(T{0}, value);
  if ((in.flags & saturate) != 0) value = value > 0 ? std::min(value, T{1}) : T{0};
  if ((in.flags & relu) != 0 && value < 0) value = 0;
  return value;
}

/// fp64 to a 16-bit format from any source. 64-bit integers are cut to odd first, so that the
/// rounding that counts happens once.
std::uint64_t to_small(const instruction& in, const exact_value& v, const small_format& format) {
  double value = v.number;
  if (v.integer) {
    std::uint64_t magnitude = v.magnitude;
    if (magnitude >> 53)
      magnitude = (magnitude & ~std::uint64_t{0x7ff}) | ((magnitude & 0x7ff) != 0 ? 0x800 : 0);
    value = static_cast<double>(magnitude);
    if (v.negative) value = -value;
  }
  if ((in.flags & saturate) != 0) value = value > 0 ? std::min(value, 1.0) : 0.0;
  if ((in.flags & relu) != 0 && value < 0) value = 0;
  return round_to(format, value, mode_of(in.flags));
}

std::uint64_t to_small_whole(const instruction& in, double value, const small_format& format) {
  return round_to(format, to_whole(value, in.flags), rounding::nearest_even);
}

std::uint64_t convert_one(const instruction& in, std::uint64_t bits) {
  const exact_value v = read_value(in.source_type, bits, (in.flags & flush) != 0);
  const bool whole = (in.flags & wide) != 0;  // .rni and its kin
  switch (in.type) {
    case scalar::f16:
    case scalar::bf16: {
      const small_format& format = in.type == scalar::f16 ? half_format : bfloat_format;
      return whole ? to_small_whole(in, v.number, format) : to_small(in, v, format);
    }
    case scalar::f32: {
      if (!v.integer && v.number != v.number) return (in.flags & saturate) != 0 ? 0 : 0x7fffffff;
      if (whole) return to_row(finish_float(in, static_cast<float>(to_whole(v.number, in.flags))));
      return to_row(finish_float(in, to_float<float>(in, v)));
    }
    case scalar::f64: {
      if (!v.integer && v.number != v.number && in.source_type == scalar::f64) return bits;
      if (whole) return to_row(finish_float(in, to_whole(v.number, in.flags)));
      return to_row(finish_float(in, to_float<double>(in, v)));
    }
    default:
      return v.integer ? integer_to_integer(in, v) : to_integer(in, v.number);
  }
}

void convert(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) { d.lane[i] = convert_one(in, a.lane[i]); });
}

/// The plain integer conversions, which address arithmetic is full of.
template <class To, class From>
void cast(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) { d.lane[i] = to_row(static_cast<To>(from_row<From>(a.lane[i]))); });
}

template <class From>
handler cast_to(scalar to) {
  switch (to) {
    case scalar::u32:
    case scalar::s32:
      return cast<std::int32_t, From>;
    case scalar::u64:
    case scalar::s64:
      return cast<std::int64_t, From>;
    case scalar::u16:
      return cast<std::uint16_t, From>;
    case scalar::u8:
      return cast<std::uint8_t, From>;
    default:
      return nullptr;
  }
}

handler fast_path(scalar to, scalar from) {
  switch (from) {
    case scalar::u8:
      return cast_to<std::uint8_t>(to);
    case scalar::s8:
      return cast_to<std::int8_t>(to);
    case scalar::u16:
      return cast_to<std::uint16_t>(to);
    case scalar::s16:
      return cast_to<std::int16_t>(to);
    case scalar::u32:
      return cast_to<std::uint32_t>(to);
    case scalar::s32:
      return cast_to<std::int32_t>(to);
    case scalar::u64:
      return cast_to<std::uint64_t>(to);
    case scalar::s64:
      return cast_to<std::int64_t>(to);
    default:
      return nullptr;
  }
}

/// cvt.rn.f16x2.f32 d, a, b: a in the upper half.
void convert_pair(warp& w, const instruction& in, lane_mask lanes) {
  const small_format& format = in.type == scalar::f16x2 ? half_format : bfloat_format;
  for_lanes(lanes, [&](int i) {
    std::uint64_t result = 0;
    for (int k = 0; k < 2; ++k) {
      const exact_value v =
          read_value(scalar::f32, w.in(in.src[k]).lane[i], (in.flags & flush) != 0);
      result |= to_small(in, v, format) << (k == 0 ? 16 : 0);
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

}  // namespace

bool decode_convert(decoder& d) {
  if (d.root() != "cvt" || d.types.size() < 2) return false;
  instruction& in = d.in;
  in.counted = instruction_class::conversion;
  in.type = d.types[0];
  in.source_type = d.types[1];
  for (const std::string_view part : d.parts) {
    if (part == "rz" || part == "rzi") in.flags |= round_zero;
    if (part == "rm" || part == "rmi") in.flags |= round_down;
    if (part == "rp" || part == "rpi") in.flags |= round_up;
    if (part == "rni" || part == "rzi" || part == "rmi" || part == "rpi") in.flags |= wide;
    if (part == "ftz") in.flags |= flush;
    if (part == "sat") in.flags |= saturate;
    if (part == "relu") in.flags |= relu;
    if (part == "rna" || part == "satfinite" || part == "rs") throw unknown_form("this rounding");
  }
  d.dst(0);
  if (in.type == scalar::f16x2 || in.type == scalar::bf16x2) {
    if (in.source_type != scalar::f32) throw unknown_form("a pair from this type");
    d.src(1, scalar::f32);
    d.src(2, scalar::f32);
    in.run = convert_pair;
    return true;
  }
  d.src(1, in.source_type);
  const bool integers = !is_float(in.type) && !is_half(in.type) && !is_float(in.source_type) &&
                        !is_half(in.source_type);
  if (integers) in.undefined = spread::convert;
  in.run = convert;
  if (integers && (in.flags & saturate) == 0)
    if (const handler fast = fast_path(in.type, in.source_type)) in.run = fast;
  // The wide flag says how many bytes a result has; for a conversion the type says it.
  if (integers) in.flags &= ~static_cast<std::uint32_t>(wide);
  return true;
}

}  // namespace ptx
