// Bits: logic, shifts, fields, counting, permutation.
#include "lanes.hpp"

namespace ptx {

namespace {

struct and_op {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct or_op {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct xor_op {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
struct not_op {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};
struct cnot_op {
  template <class T>
  T operator()(T a) const {
    return a == 0 ? T{1} : T{0};
  }
};

/// Shifts by more than the width give zero, or the sign.
template <class T>
void shift_left(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    const auto n = static_cast<std::uint32_t>(b.lane[i]);
    const T value = from_row<T>(a.lane[i]);
    d.lane[i] =
        n >= 8 * sizeof(T) ? 0 : to_row(static_cast<T>(static_cast<unsigned_of<T>>(value) << n));
  });
}

template <class T>
void shift_right(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  constexpr std::uint32_t last = 8 * sizeof(T) - 1;
  for_lanes(lanes, [&](int i) {
    const auto n = static_cast<std::uint32_t>(b.lane[i]);
    const T value = from_row<T>(a.lane[i]);
    const T sign = value < 0 ? static_cast<T>(-1) : T{0};
    d.lane[i] = to_row(n > last ? sign : static_cast<T>(value >> n));
  });
}

/// shf: 64 bits hi:lo, shifted, one half kept. select 0 left, 1 right; clamp or wrap.
void funnel(warp& w, const instruction& in, lane_mask lanes) {
  const bool right = in.select == 1;
  for_lanes(lanes, [&](int i) {
    const auto low = static_cast<std::uint32_t>(w.in(in.src[0]).lane[i]);
    const auto high = static_cast<std::uint32_t>(w.in(in.src[1]).lane[i]);
    auto n = static_cast<std::uint32_t>(w.in(in.src[2]).lane[i]);
    n = (in.flags & clamp) != 0 ? std::min(n, 32U) : n & 31;
    const std::uint64_t both = (std::uint64_t{high} << 32) | low;
    w.out(in.dst[0]).lane[i] = right ? (both >> n) & 0xffffffff : ((both << n) >> 32) & 0xffffffff;
  });
}

template <class T>
struct counting {
  static int width() { return 8 * static_cast<int>(sizeof(T)); }
  static int leading(T a) {
    if (a == 0) return width();
    return sizeof(T) == 8 ? __builtin_clzll(a) : __builtin_clz(static_cast<unsigned>(a));
  }
};

struct popc_op {
  template <class T>
  std::uint32_t operator()(T a) const {
    return static_cast<std::uint32_t>(__builtin_popcountll(static_cast<unsigned_of<T>>(a)));
  }
};
struct clz_op {
  template <class T>
  std::uint32_t operator()(T a) const {
    using U = unsigned_of<T>;
    return static_cast<std::uint32_t>(counting<U>::leading(static_cast<U>(a)));
  }
};
/// The highest bit that differs from the sign; all ones without one.
template <bool ShiftAmount>
struct bfind_op {
  template <class T>
  std::uint32_t operator()(T a) const {
    using U = unsigned_of<T>;
    const U value = a < 0 ? static_cast<U>(~a) : static_cast<U>(a);
    const int leading = counting<U>::leading(value);
    if (leading == counting<U>::width()) return 0xffffffff;
    return static_cast<std::uint32_t>(ShiftAmount ? leading : counting<U>::width() - 1 - leading);
  }
};
struct brev_op {
  template <class T>
  T operator()(T a) const {
    T result = 0;
    for (unsigned i = 0; i < 8 * sizeof(T); ++i)
      if ((a >> i) & 1) result |= T{1} << (8 * sizeof(T) - 1 - i);
    return result;
  }
};

/// bfe: length bits from position, extended by the sign or by zero.
template <class T>
void extract_field(warp& w, const instruction& in, lane_mask lanes) {
  constexpr unsigned top = 8 * sizeof(T) - 1;
  for_lanes(lanes, [&](int i) {
    const T value = from_row<T>(w.in(in.src[0]).lane[i]);
    const auto position = static_cast<unsigned>(w.in(in.src[1]).lane[i] & 0xff);
    const auto length = static_cast<unsigned>(w.in(in.src[2]).lane[i] & 0xff);
    const auto bit = [&](unsigned k) { return (static_cast<unsigned_of<T>>(value) >> k) & 1U; };
    const bool sign =
        std::is_signed_v<T> && length != 0 && bit(std::min(position + length - 1, top)) != 0;
    unsigned_of<T> result = 0;
    for (unsigned k = 0; k <= top; ++k) {
      const bool set = k < length && position + k <= top ? bit(position + k) != 0 : sign;
      if (set) result |= unsigned_of<T>{1} << k;
    }
    w.out(in.dst[0]).lane[i] = to_row(result);
  });
}

template <class T>
void insert_field(warp& w, const instruction& in, lane_mask lanes) {
  constexpr unsigned bits = 8 * sizeof(T);
  for_lanes(lanes, [&](int i) {
    const T field = from_row<T>(w.in(in.src[0]).lane[i]);
    T result = from_row<T>(w.in(in.src[1]).lane[i]);
    const auto position = static_cast<unsigned>(w.in(in.src[2]).lane[i] & 0xff);
    const auto length = static_cast<unsigned>(w.in(in.src[3]).lane[i] & 0xff);
    for (unsigned k = 0; k < length && position + k < bits; ++k) {
      const T one = T{1} << (position + k);
      result = ((field >> k) & 1) != 0 ? result | one : result & ~one;
    }
    w.out(in.dst[0]).lane[i] = to_row(result);
  });
}

/// bmsk: `length` ones from `position`.
void bit_mask(warp& w, const instruction& in, lane_mask lanes) {
  const bool clamped = (in.flags & clamp) != 0;
  for_lanes(lanes, [&](int i) {
    auto position = static_cast<std::uint32_t>(w.in(in.src[0]).lane[i]);
    auto length = static_cast<std::uint32_t>(w.in(in.src[1]).lane[i]);
    position = clamped ? std::min(position, 32U) : position & 31;
    length = clamped ? std::min(length, 32U) : length & 31;
    const std::uint64_t ones = ((std::uint64_t{1} << length) - 1) << position;
    w.out(in.dst[0]).lane[i] = ones & 0xffffffff;
  });
}

/// szext: keeps the low bits and extends them.
template <class T>
void extend_from(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    auto n = static_cast<std::uint32_t>(w.in(in.src[1]).lane[i]);
    n = (in.flags & clamp) != 0 ? std::min(n, 32U) : n & 31;
    const auto value = static_cast<std::uint32_t>(w.in(in.src[0]).lane[i]);
    const auto lifted = n == 0 ? T{0} : static_cast<T>(value << (32 - n));
    w.out(in.dst[0]).lane[i] = n == 0 ? 0 : to_row(static_cast<T>(lifted >> (32 - n)));
  });
}

enum permute_mode : std::uint8_t { bytes_by_index, f4e, b4e, rc8, ecl, ecr, rc16 };

void permute_bytes(warp& w, const instruction& in, lane_mask lanes) {
  static constexpr std::uint16_t table[7][4] = {{},
                                                {0x3210, 0x4321, 0x5432, 0x6543},
                                                {0x5670, 0x6701, 0x7012, 0x0123},
                                                {0x0000, 0x1111, 0x2222, 0x3333},
                                                {0x3210, 0x3211, 0x3222, 0x3333},
                                                {0x0000, 0x1110, 0x2210, 0x3210},
                                                {0x1010, 0x3232, 0x1010, 0x3232}};
  for_lanes(lanes, [&](int i) {
    const std::uint64_t both =
        (w.in(in.src[0]).lane[i] & 0xffffffff) | (w.in(in.src[1]).lane[i] << 32);
    const std::uint64_t control = w.in(in.src[2]).lane[i];
    const std::uint64_t selector =
        in.select == bytes_by_index ? control : std::uint64_t{table[in.select][control & 3]};
    std::uint64_t result = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint64_t nibble = (selector >> (4 * k)) & 0xf;
      std::uint64_t byte = (both >> (8 * (nibble & 7))) & 0xff;
      if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;  // the sign, spread
      result |= byte << (8 * k);
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

/// lop3: select holds the truth table.
void three_way_logic(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    const std::uint64_t a = w.in(in.src[0]).lane[i];
    const std::uint64_t b = w.in(in.src[1]).lane[i];
    const std::uint64_t c = w.in(in.src[2]).lane[i];
    std::uint64_t result = 0;
    for (unsigned k = 0; k < 8; ++k)
      if ((in.select >> k) & 1)
        result |= ((k & 4) ? a : ~a) & ((k & 2) ? b : ~b) & ((k & 1) ? c : ~c);
    w.out(in.dst[0]).lane[i] = result & 0xffffffff;
  });
}

/// fns: the position of the n-th set bit from base, up or down.
void find_nth_set(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    const auto mask = static_cast<std::uint32_t>(w.in(in.src[0]).lane[i]);
    const auto base = static_cast<int>(w.in(in.src[1]).lane[i] & 31);
    const auto nth = static_cast<std::int32_t>(w.in(in.src[2]).lane[i]);
    std::uint64_t result = 0xffffffff;
    const int direction = nth < 0 ? -1 : 1;
    int left = nth == 0 ? 1 : nth * direction;
    if (nth == 0) {
      if ((mask >> base) & 1) result = static_cast<std::uint64_t>(base);
    } else {
      for (int at = base; at >= 0 && at < 32; at += direction)
        if (((mask >> at) & 1) != 0 && --left == 0) {
          result = static_cast<std::uint64_t>(at);
          break;
        }
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

enum class predicate_logic : std::uint8_t { conjunction, disjunction, exclusive, negation };

void combine_predicates(warp& w, const instruction& in, lane_mask lanes) {
  const auto value = [&](int k) {
    return w.predicate(in.pred_src[k]) ^ (in.pred_negated[k] ? ~0U : 0U);
  };
  lane_mask result = 0;
  switch (static_cast<predicate_logic>(in.select)) {
    case predicate_logic::conjunction:
      result = value(0) & value(1);
      break;
    case predicate_logic::disjunction:
      result = value(0) | value(1);
      break;
    case predicate_logic::exclusive:
      result = value(0) ^ value(1);
      break;
    case predicate_logic::negation:
      result = ~value(0);
      break;
  }
  w.set_predicate(in.pred_dst[0], lanes, result);
}

bool decode_logic(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  if (root != "and" && root != "or" && root != "xor" && root != "not" && root != "cnot")
    return false;
  const scalar type = d.type();
  const bool unary = root == "not" || root == "cnot";
  in.undefined = root == "and"    ? spread::conjunction
                 : root == "or"   ? spread::disjunction
                 : root == "cnot" ? spread::all
                                  : spread::bytewise;
  if (type == scalar::pred) {
    in.counted = instruction_class::compare;
    d.pred_dst(0);
    d.pred_src(1);
    if (!unary) d.pred_src(2);
    in.select = static_cast<std::uint8_t>(root == "and"   ? predicate_logic::conjunction
                                          : root == "or"  ? predicate_logic::disjunction
                                          : root == "xor" ? predicate_logic::exclusive
                                                          : predicate_logic::negation);
    in.type = scalar::pred;
    in.run = combine_predicates;
    return true;
  }
  d.simple(type, unary ? 1 : 2);
  in.run = root == "and"   ? PTX_INTEGER_HANDLER(map2, and_op, type)
           : root == "or"  ? PTX_INTEGER_HANDLER(map2, or_op, type)
           : root == "xor" ? PTX_INTEGER_HANDLER(map2, xor_op, type)
           : root == "not" ? PTX_INTEGER_HANDLER(map1, not_op, type)
                           : PTX_INTEGER_HANDLER(map1, cnot_op, type);
  return true;
}

bool decode_shift(decoder& d) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  if (root == "shl" || root == "shr") {
    const scalar type = d.type();
    in.type = type;
    d.dst(0);
    d.src(1, type);
    d.src(2, scalar::u32);
    const bool left = root == "shl";
    in.undefined = left ? spread::shift_left : spread::shift_right;
    switch (type) {
      case scalar::b16:
      case scalar::u16:
        in.run = left ? shift_left<std::uint16_t> : shift_right<std::uint16_t>;
        break;
      case scalar::s16:
        in.run = left ? shift_left<std::int16_t> : shift_right<std::int16_t>;
        break;
      case scalar::b32:
      case scalar::u32:
        in.run = left ? shift_left<std::uint32_t> : shift_right<std::uint32_t>;
        break;
      case scalar::s32:
        in.run = left ? shift_left<std::int32_t> : shift_right<std::int32_t>;
        break;
      case scalar::b64:
      case scalar::u64:
        in.run = left ? shift_left<std::uint64_t> : shift_right<std::uint64_t>;
        break;
      case scalar::s64:
        in.run = left ? shift_left<std::int64_t> : shift_right<std::int64_t>;
        break;
      default:
        throw unknown_form("shift of this type");
    }
    return true;
  }
  if (root == "shf") {
    d.simple(scalar::b32, 3);
    in.select = d.has("r") ? 1 : 0;
    if (d.has("clamp")) in.flags |= clamp;
    in.run = funnel;
    return true;
  }
  return false;
}

}  // namespace

bool decode_bits(decoder& d) {
  if (d.types.empty()) return false;
  instruction& in = d.in;
  const std::string_view root = d.root();
  in.counted = instruction_class::integer;
  if (decode_logic(d) || decode_shift(d)) return true;
  const scalar type = d.type();
  const bool eight = size_of(type) == 8;
  if (root == "popc" || root == "clz" || root == "bfind" || root == "brev") {
    d.simple(type, 1);
    const bool amount = d.has("shiftamt");
    in.run = root == "popc"  ? PTX_INTEGER_HANDLER(map1, popc_op, type)
             : root == "clz" ? PTX_INTEGER_HANDLER(map1, clz_op, type)
             : root == "brev"
                 ? (eight ? map1<brev_op, std::uint64_t> : map1<brev_op, std::uint32_t>)
             : amount ? PTX_INTEGER_HANDLER(map1, bfind_op<true>, type)
                      : PTX_INTEGER_HANDLER(map1, bfind_op<false>, type);
    return true;
  }
  if (root == "bfe" || root == "bfi") {
    in.type = type;
    d.dst(0);
    const bool extracts = root == "bfe";
    for (std::size_t i = 1; i <= (extracts ? 3U : 4U); ++i)
      d.src(i, i < (extracts ? 2U : 3U) ? type : scalar::u32);
    in.undefined = extracts ? spread::extract : spread::insert;
    if (extracts) {
      const bool s = is_signed(type);
      in.run = eight ? (s ? extract_field<std::int64_t> : extract_field<std::uint64_t>)
                     : (s ? extract_field<std::int32_t> : extract_field<std::uint32_t>);
    } else {
      in.run = eight ? insert_field<std::uint64_t> : insert_field<std::uint32_t>;
    }
    return true;
  }
  if (root == "bmsk" || root == "szext") {
    d.simple(scalar::b32, 2);
    if (d.has("clamp")) in.flags |= clamp;
    in.run = root == "bmsk"        ? bit_mask
             : type == scalar::s32 ? extend_from<std::int32_t>
                                   : extend_from<std::uint32_t>;
    return true;
  }
  if (root == "prmt") {
    d.simple(scalar::b32, 3);
    static constexpr std::string_view modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (std::uint8_t i = 0; i < 6; ++i)
      if (d.has(modes[i])) in.select = static_cast<std::uint8_t>(i + 1);
    in.undefined = in.select == bytes_by_index ? spread::permute : spread::all;
    in.run = permute_bytes;
    return true;
  }
  if (root == "lop3") {
    in.type = scalar::b32;
    if (!d.operands().at(0).second.empty()) throw unknown_form("a predicate result");
    d.dst(0);
    for (std::size_t i = 1; i <= 3; ++i) d.src(i, scalar::b32);
    in.select = static_cast<std::uint8_t>(d.immediate(4, scalar::u32));
    in.run = three_way_logic;
    return true;
  }
  if (root == "fns") {
    d.simple(scalar::b32, 3);
    in.run = find_nth_set;
    return true;
  }
  return false;
}

}  // namespace ptx
