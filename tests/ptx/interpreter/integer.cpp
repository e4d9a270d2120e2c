// Integer arithmetic: add to dp4a.
#include <limits>
#include <type_traits>

#include "lanes.hpp"

namespace ptx {

namespace {

// Unsigned arithmetic in at least 32 bits wraps without promotion surprises.
template <class T>
using wrapping = std::conditional_t<(sizeof(T) < 4), std::uint32_t, unsigned_of<T>>;

template <class T>
using wider =
    std::conditional_t<(sizeof(T) == 8),
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>>;

template <class T>
wrapping<T> u(T value) {
  return static_cast<wrapping<T>>(value);
}

struct add_op {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(u(a) + u(b));
  }
};
struct add_saturated {
  template <class T>
  T operator()(T a, T b) const {
    const wider<T> sum = wider<T>(a) + b;
    if (sum > std::numeric_limits<T>::max()) return std::numeric_limits<T>::max();
    if (sum < std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
    return static_cast<T>(sum);
  }
};
struct sub_op {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(u(a) - u(b));
  }
};
struct sub_saturated {
  template <class T>
  T operator()(T a, T b) const {
    const wider<T> difference = wider<T>(a) - b;
    if (difference > std::numeric_limits<T>::max()) return std::numeric_limits<T>::max();
    if (difference < std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
    return static_cast<T>(difference);
  }
};
struct mul_low {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(u(a) * u(b));
  }
};
struct mul_high {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>((wider<T>(a) * b) >> (8 * sizeof(T)));
  }
};
struct mad_low {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(u(a) * u(b) + u(c));
  }
};
struct mad_high {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(u(mul_high{}(a, b)) + u(c));
  }
};
struct mul_24 {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_signed_v<T>) {
      return static_cast<T>(u(static_cast<T>(u(a) << 8) >> 8) * u(static_cast<T>(u(b) << 8) >> 8));
    } else {
      return static_cast<T>((a & 0xffffffU) * (b & 0xffffffU));
    }
  }
};
struct mad_24 {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(u(mul_24{}(a, b)) + u(c));
  }
};
struct div_op {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(~T{0});  // undefined in PTX; devices give all ones
    if constexpr (std::is_signed_v<T>)
      if (b == T{-1}) return static_cast<T>(0 - u(a));
    return static_cast<T>(a / b);
  }
};
struct rem_op {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      if (b == T{-1}) return 0;
    return static_cast<T>(a % b);
  }
};
struct abs_op {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? static_cast<T>(0 - u(a)) : a;
  }
};
struct neg_op {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(0 - u(a));
  }
};
struct min_op {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct max_op {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
template <class Op>
struct then_relu {
  template <class T>
  T operator()(T a, T b) const {
    const T value = Op{}(a, b);
    return value < T{0} ? T{0} : value;
  }
};
struct sad_op {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(u(c) + (a < b ? u(b) - u(a) : u(a) - u(b)));
  }
};

/// The same operation on both 16-bit halves.
template <class Op, class T>
void halves(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    std::uint64_t result = 0;
    for (int shift = 0; shift < 32; shift += 16)
      result |= to_row(Op{}(from_row<T>(a.lane[i] >> shift), from_row<T>(b.lane[i] >> shift)))
                << shift;
    d.lane[i] = result;
  });
}

/// mul.wide and mad.wide: the full product of narrow operands.
template <class T, bool Add>
void multiply_wide(warp& w, const instruction& in, lane_mask lanes) {
  using W =
      std::conditional_t<sizeof(T) == 4,
                         std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>,
                         std::conditional_t<std::is_signed_v<T>, std::int32_t, std::uint32_t>>;
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  const lane_row& c = w.in(in.src[Add ? 2 : 0]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    W value = static_cast<W>(W{from_row<T>(a.lane[i])} * W{from_row<T>(b.lane[i])});
    if constexpr (Add)
      value =
          static_cast<W>(static_cast<unsigned_of<W>>(value) + from_row<unsigned_of<W>>(c.lane[i]));
    d.lane[i] = to_row(value);
  });
}

template <bool Add>
handler wide_handler(scalar type) {
  switch (type) {
    case scalar::u16:
      return multiply_wide<std::uint16_t, Add>;
    case scalar::s16:
      return multiply_wide<std::int16_t, Add>;
    case scalar::u32:
      return multiply_wide<std::uint32_t, Add>;
    case scalar::s32:
      return multiply_wide<std::int32_t, Add>;
    default:
      throw unknown_form("wide product of this type");
  }
}

enum class carry_kind : std::uint8_t { add, sub, mad_low, mad_high };

/// add.cc to madc.hi.cc: select is the kind, combine says whether the carry comes in.
template <class T>
void with_carry(warp& w, const instruction& in, lane_mask lanes) {
  using W = wider<T>;
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  lane_mask carries = 0;
  const auto kind = static_cast<carry_kind>(in.select);
  for_lanes(lanes, [&](int i) {
    const W carry_in = in.combine != 0 ? (w.carry >> i) & 1U : 0U;
    W x = from_row<T>(a.lane[i]);
    W y = from_row<T>(b.lane[i]);
    W result;
    if (kind == carry_kind::sub) {
      result = x - y - carry_in;
    } else {
      if (kind != carry_kind::add) {
        const W product = x * y;
        x = static_cast<T>(kind == carry_kind::mad_low ? product : product >> (8 * sizeof(T)));
        y = from_row<T>(w.in(in.src[2]).lane[i]);
      }
      result = x + y + carry_in;
    }
    d.lane[i] = to_row(static_cast<T>(result));
    if (((result >> (8 * sizeof(T))) & 1) != 0) carries |= 1U << i;
  });
  if ((in.flags & carry_out) != 0) w.carry = (w.carry & ~lanes) | carries;
}

/// dp4a and dp2a: select bit 0 and 1 say whether a and b are signed, combine which half of b.
void dot4(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    std::uint64_t sum = w.in(in.src[2]).lane[i];
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint64_t a = w.in(in.src[0]).lane[i] >> (8 * k);
      const std::uint64_t b = w.in(in.src[1]).lane[i] >> (8 * k);
      const int x =
          (in.select & 1) ? int{from_row<std::int8_t>(a)} : int{from_row<std::uint8_t>(a)};
      const int y =
          (in.select & 2) ? int{from_row<std::int8_t>(b)} : int{from_row<std::uint8_t>(b)};
      sum += static_cast<std::uint64_t>(std::int64_t{x} * y);
    }
    w.out(in.dst[0]).lane[i] = sum & 0xffffffff;
  });
}

bool decode_carry(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  const bool takes = root == "addc" || root == "subc" || root == "madc";
  if (!takes && !d.has("cc")) return false;
  if (is_float(d.type())) return false;
  const bool mad = root == "mad" || root == "madc";
  d.simple(d.type(), mad ? 3 : 2);
  in.select = static_cast<std::uint8_t>(root == "sub" || root == "subc" ? carry_kind::sub
                                        : !mad                          ? carry_kind::add
                                        : d.has("hi")                   ? carry_kind::mad_high
                                                                        : carry_kind::mad_low);
  in.combine = takes ? 1 : 0;
  if (d.has("cc")) in.flags |= carry_out;
  switch (d.type()) {
    case scalar::u32:
    case scalar::b32:
      in.run = with_carry<std::uint32_t>;
      break;
    case scalar::s32:
      in.run = mad && d.has("hi") ? nullptr : with_carry<std::uint32_t>;
      break;
    case scalar::u64:
    case scalar::b64:
      in.run = with_carry<std::uint64_t>;
      break;
    case scalar::s64:
      in.run = mad && d.has("hi") ? nullptr : with_carry<std::uint64_t>;
      break;
    default:
      break;
  }
  if (in.run == nullptr) throw unknown_form("carry of this type");
  return true;
}

template <class Op>
handler halves_handler(scalar type) {
  return type == scalar::s16x2 ? handler{halves<Op, std::int16_t>}
                               : handler{halves<Op, std::uint16_t>};
}

}  // namespace

bool decode_integer(decoder& d) {
  const std::string_view root = d.root();
  if (d.types.empty() || is_float(d.type()) || is_half(d.type()) || d.type() == scalar::pred)
    return false;
  if (root == "mov" || root == "cvt" || root == "ld" || root == "st" || root == "atom")
    return false;
  instruction& in = d.in;
  in.counted = instruction_class::integer;
  const scalar type = d.type();
  if (decode_carry(d)) return true;
  if (type == scalar::u16x2 || type == scalar::s16x2) {
    if (root != "add" && root != "min" && root != "max") return false;
    d.simple(type, 2);
    if (d.has("relu")) throw unknown_form("relu of halves");
    in.run = root == "add"   ? halves_handler<add_op>(type)
             : root == "min" ? halves_handler<min_op>(type)
                             : halves_handler<max_op>(type);
    return true;
  }
  if (root == "add" || root == "sub") {
    d.simple(type, 2);
    if (d.has("sat")) {
      in.run =
          root == "add" ? map2<add_saturated, std::int32_t> : map2<sub_saturated, std::int32_t>;
      if (type != scalar::s32) throw unknown_form("sat of this type");
      return true;
    }
    in.undefined = spread::upwards;
    in.run = root == "add" ? PTX_INTEGER_HANDLER(map2, add_op, type)
                           : PTX_INTEGER_HANDLER(map2, sub_op, type);
    return true;
  }
  if (root == "mul" || root == "mad") {
    const bool mad = root == "mad";
    if (d.has("wide")) {
      in.type = type;
      in.flags |= wide;
      d.dst(0);
      d.src(1, type);
      d.src(2, type);
      if (mad) d.src(3, size_of(type) == 4 ? scalar::u64 : scalar::u32);
      in.run = mad ? wide_handler<true>(type) : wide_handler<false>(type);
      return true;
    }
    d.simple(type, mad ? 3 : 2);
    if (d.has("hi")) {
      in.run = mad ? PTX_INTEGER_HANDLER(map3, mad_high, type)
                   : PTX_INTEGER_HANDLER(map2, mul_high, type);
    } else {
      in.undefined = spread::upwards;
      in.run =
          mad ? PTX_INTEGER_HANDLER(map3, mad_low, type) : PTX_INTEGER_HANDLER(map2, mul_low, type);
    }
    if (d.has("sat")) throw unknown_form("sat of a product");
    return true;
  }
  if (root == "mul24" || root == "mad24") {
    if (!d.has("lo")) throw unknown_form("the high part");
    const bool s = type == scalar::s32;
    d.simple(type, root == "mad24" ? 3 : 2);
    in.run = root == "mul24" ? (s ? map2<mul_24, std::int32_t> : map2<mul_24, std::uint32_t>)
                             : (s ? map3<mad_24, std::int32_t> : map3<mad_24, std::uint32_t>);
    return true;
  }
  if (root == "sad") {
    d.simple(type, 3);
    in.run = PTX_INTEGER_HANDLER(map3, sad_op, type);
    return true;
  }
  if (root == "div" || root == "rem" || root == "min" || root == "max") {
    d.simple(type, 2);
    in.run = root == "div"   ? PTX_INTEGER_HANDLER(map2, div_op, type)
             : root == "rem" ? PTX_INTEGER_HANDLER(map2, rem_op, type)
             : root == "min" ? PTX_INTEGER_HANDLER(map2, min_op, type)
                             : PTX_INTEGER_HANDLER(map2, max_op, type);
    if (d.has("relu"))
      in.run = root == "min" ? PTX_INTEGER_HANDLER(map2, then_relu<min_op>, type)
                             : PTX_INTEGER_HANDLER(map2, then_relu<max_op>, type);
    return true;
  }
  if (root == "abs" || root == "neg") {
    d.simple(type, 1);
    in.run = root == "abs" ? PTX_INTEGER_HANDLER(map1, abs_op, type)
                           : PTX_INTEGER_HANDLER(map1, neg_op, type);
    return true;
  }
  if (root == "dp4a") {
    d.dst(0);
    for (std::size_t i = 1; i <= 3; ++i) d.src(i, scalar::b32);
    in.type = scalar::b32;
    in.select = static_cast<std::uint8_t>((d.types[0] == scalar::s32 ? 1 : 0) |
                                          (d.types[1] == scalar::s32 ? 2 : 0));
    in.run = dot4;
    return true;
  }
  return false;
}

}  // namespace ptx
