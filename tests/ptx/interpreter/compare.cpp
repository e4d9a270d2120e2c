// Comparisons and selections: setp, set, selp, slct, testp.
#include <array>
#include <cmath>
#include <limits>

#include "lanes.hpp"
#include "small_float.hpp"

namespace ptx {

namespace {

enum relation : std::uint8_t { eq, ne, lt, le, gt, ge, ordered_numbers, not_a_number };
enum class combination : std::uint8_t { none, conjunction, disjunction, exclusive };

template <class T>
bool holds(const instruction& in, T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    const bool nan = std::isnan(a) || std::isnan(b);
    if (in.select == ordered_numbers) return !nan;
    if (in.select == not_a_number) return nan;
    if (nan) return (in.flags & unordered) != 0;
  }
  switch (in.select) {
    case eq:
      return a == b;
    case ne:
      return a != b;
    case lt:
      return a < b;
    case le:
      return a <= b;
    case gt:
      return a > b;
    case ge:
      return a >= b;
    default:
      return false;
  }
}

/// Reads an operand of T; the tag types below read the 16-bit formats.
template <class T>
struct reader {
  using value = T;
  static T read(const instruction& in, std::uint64_t bits, int) {
    T v = from_row<T>(bits);
    if constexpr (std::is_floating_point_v<T>)
      if ((in.flags & flush) != 0 && std::fabs(v) < std::numeric_limits<T>::min())
        v = std::copysign(T{0}, v);
    return v;
  }
};
template <const small_format& Format>
struct small_reader {
  using value = double;
  static double read(const instruction&, std::uint64_t bits, int half) {
    return widen(Format, static_cast<std::uint16_t>(bits >> (16 * half)));
  }
};

template <class Reader>
lane_mask compare(warp& w, const instruction& in, lane_mask lanes, int half) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_mask result = 0;
  for_lanes(lanes, [&](int i) {
    const bool yes = holds<typename Reader::value>(in, Reader::read(in, a.lane[i], half),
                                                   Reader::read(in, b.lane[i], half));
    result |= static_cast<lane_mask>(yes) << i;
  });
  return result;
}

lane_mask combine(const warp& w, const instruction& in, lane_mask value) {
  if (in.pred_src[0] < 0) return value;
  const lane_mask c = w.predicate(in.pred_src[0]) ^ (in.pred_negated[0] ? ~0U : 0U);
  switch (static_cast<combination>(in.combine)) {
    case combination::conjunction:
      return value & c;
    case combination::disjunction:
      return value | c;
    case combination::exclusive:
      return value ^ c;
    case combination::none:
      break;
  }
  return value;
}

/// setp: p is the combined comparison, q the combined complement (or, for pairs, the other half).
template <class Reader, bool Pair>
void set_predicates(warp& w, const instruction& in, lane_mask lanes) {
  const lane_mask first = compare<Reader>(w, in, lanes, 0);
  const lane_mask second = Pair ? compare<Reader>(w, in, lanes, 1) : ~first;
  const lane_mask p = combine(w, in, first);
  const lane_mask q = combine(w, in, second);
  if (in.pred_dst[0] >= 0) w.set_predicate(in.pred_dst[0], lanes, p);
  if (in.pred_dst[1] >= 0) w.set_predicate(in.pred_dst[1], lanes, q);
}

/// set: all ones or 1.0 where the comparison holds.
template <class Reader, bool Pair>
void set_values(warp& w, const instruction& in, lane_mask lanes) {
  const lane_mask first = combine(w, in, compare<Reader>(w, in, lanes, 0));
  const lane_mask second = Pair ? combine(w, in, compare<Reader>(w, in, lanes, 1)) : 0;
  std::uint64_t yes = 0xffffffff;
  switch (in.type) {
    case scalar::f32:
      yes = 0x3f800000;
      break;
    case scalar::f16:
    case scalar::f16x2:
      yes = 0x3c00;
      break;
    case scalar::bf16:
    case scalar::bf16x2:
      yes = 0x3f80;
      break;
    case scalar::u16:
    case scalar::s16:
      yes = 0xffff;
      break;
    default:
      if (Pair) yes = 0xffff;
      break;
  }
  for_lanes(lanes, [&](int i) {
    std::uint64_t value = ((first >> i) & 1) != 0 ? yes : 0;
    if (Pair && ((second >> i) & 1) != 0) value |= yes << 16;
    w.out(in.dst[0]).lane[i] = value;
  });
}

void choose(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  const lane_mask p = w.predicate(in.pred_src[0]) ^ (in.pred_negated[0] ? ~0U : 0U);
  const std::uint64_t keep =
      size_of(in.type) == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * size_of(in.type))) - 1;
  for_lanes(lanes,
            [&](int i) { d.lane[i] = (((p >> i) & 1) != 0 ? a.lane[i] : b.lane[i]) & keep; });
}

template <class T>
void choose_by_sign(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    const T c = from_row<T>(w.in(in.src[2]).lane[i]);
    w.out(in.dst[0]).lane[i] = w.in(in.src[c >= T{0} ? 0 : 1]).lane[i];
  });
}

enum class property : std::uint8_t { finite, infinite, number, notanumber, normal, subnormal };

template <class T>
void test_property(warp& w, const instruction& in, lane_mask lanes) {
  lane_mask result = 0;
  for_lanes(lanes, [&](int i) {
    const T a = from_row<T>(w.in(in.src[0]).lane[i]);
    const int c = std::fpclassify(a);
    bool yes = false;
    switch (static_cast<property>(in.select)) {
      case property::finite:
        yes = c != FP_NAN && c != FP_INFINITE;
        break;
      case property::infinite:
        yes = c == FP_INFINITE;
        break;
      case property::number:
        yes = c != FP_NAN;
        break;
      case property::notanumber:
        yes = c == FP_NAN;
        break;
      case property::normal:
        yes = c == FP_NORMAL || c == FP_ZERO;
        break;
      case property::subnormal:
        yes = c == FP_SUBNORMAL;
        break;
    }
    result |= static_cast<lane_mask>(yes) << i;
  });
  w.set_predicate(in.pred_dst[0], lanes, result);
}

template <template <class, bool> class Shape>
handler by_type(scalar type) {
  switch (type) {
    case scalar::b16:
    case scalar::u16:
      return Shape<reader<std::uint16_t>, false>::run;
    case scalar::s16:
      return Shape<reader<std::int16_t>, false>::run;
    case scalar::b32:
    case scalar::u32:
      return Shape<reader<std::uint32_t>, false>::run;
    case scalar::s32:
      return Shape<reader<std::int32_t>, false>::run;
    case scalar::b64:
    case scalar::u64:
      return Shape<reader<std::uint64_t>, false>::run;
    case scalar::s64:
      return Shape<reader<std::int64_t>, false>::run;
    case scalar::f32:
      return Shape<reader<float>, false>::run;
    case scalar::f64:
      return Shape<reader<double>, false>::run;
    case scalar::f16:
      return Shape<small_reader<half_format>, false>::run;
    case scalar::bf16:
      return Shape<small_reader<bfloat_format>, false>::run;
    case scalar::f16x2:
      return Shape<small_reader<half_format>, true>::run;
    case scalar::bf16x2:
      return Shape<small_reader<bfloat_format>, true>::run;
    default:
      throw unknown_form("comparison of this type");
  }
}

template <class Reader, bool Pair>
struct as_predicates {
  static void run(warp& w, const instruction& in, lane_mask m) {
    set_predicates<Reader, Pair>(w, in, m);
  }
};
template <class Reader, bool Pair>
struct as_values {
  static void run(warp& w, const instruction& in, lane_mask m) {
    set_values<Reader, Pair>(w, in, m);
  }
};

void read_relation(decoder& d) {
  struct named {
    std::string_view name;
    relation what;
    bool also_nan;
  };
  static constexpr std::array<named, 18> names = {{
      {"eq", eq, false},
      {"ne", ne, false},
      {"lt", lt, false},
      {"le", le, false},
      {"gt", gt, false},
      {"ge", ge, false},
      {"lo", lt, false},
      {"ls", le, false},
      {"hi", gt, false},
      {"hs", ge, false},
      {"equ", eq, true},
      {"neu", ne, true},
      {"ltu", lt, true},
      {"leu", le, true},
      {"gtu", gt, true},
      {"geu", ge, true},
      {"num", ordered_numbers, false},
      {"nan", not_a_number, false},
  }};
  bool found = false;
  for (const named& n : names)
    if (d.parts.at(1) == n.name) {
      d.in.select = n.what;
      if (n.also_nan) d.in.flags |= unordered;
      found = true;
    }
  if (!found) throw unknown_form("this comparison");
  if (d.has("ftz")) d.in.flags |= flush;
  if (d.has("and")) d.in.combine = static_cast<std::uint8_t>(combination::conjunction);
  if (d.has("or")) d.in.combine = static_cast<std::uint8_t>(combination::disjunction);
  if (d.has("xor")) d.in.combine = static_cast<std::uint8_t>(combination::exclusive);
  d.in.undefined = d.has("and")  ? spread::conjunction
                   : d.has("or") ? spread::disjunction
                                 : spread::all;
}

}  // namespace

bool decode_compare(decoder& d) {
  if (d.types.empty()) return false;
  instruction& in = d.in;
  const std::string_view root = d.root();
  in.counted = instruction_class::compare;
  if (root == "setp" || root == "set") {
    const scalar compared = d.type();
    read_relation(d);
    if (root == "setp") {
      in.type = compared;
      d.pred_dst(0);
    } else {
      in.type = d.types.front();
      in.source_type = compared;
      if (in.combine != 0) in.undefined = spread::all;
      d.dst(0);
    }
    d.src(1, compared);
    d.src(2, compared);
    if (d.operands().size() > 3) d.pred_src(3);
    in.run = root == "setp" ? by_type<as_predicates>(compared) : by_type<as_values>(compared);
    return true;
  }
  if (root == "selp") {
    in.type = d.type();
    d.dst(0);
    d.src(1, in.type);
    d.src(2, in.type);
    d.pred_src(3);
    in.undefined = spread::select;
    in.run = choose;
    return true;
  }
  if (root == "slct") {
    in.type = d.types.front();
    d.dst(0);
    d.src(1, in.type);
    d.src(2, in.type);
    d.src(3, d.type());
    in.run = d.type() == scalar::f32 ? choose_by_sign<float> : choose_by_sign<std::int32_t>;
    return true;
  }
  if (root == "testp") {
    static constexpr std::array<std::string_view, 6> names = {
        "finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    in.type = d.type();
    d.pred_dst(0);
    d.src(1, in.type);
    for (std::size_t i = 0; i < names.size(); ++i)
      if (d.has(names[i])) in.select = static_cast<std::uint8_t>(i);
    in.run = in.type == scalar::f64 ? test_property<double> : test_property<float>;
    return true;
  }
  return false;
}

}  // namespace ptx
