// fp16 and bf16 arithmetic, single and in pairs. Every operation is exact in double, or rounded to
// odd there, and then rounded once.
#include <cmath>
#include <functional>

#include "lanes.hpp"
#include "small_float.hpp"

namespace ptx {

namespace {

struct add_op {
  double operator()(double a, double b) const { return add_to_odd(a, b); }
};
struct sub_op {
  double operator()(double a, double b) const { return add_to_odd(a, -b); }
};
struct mul_op {
  double operator()(double a, double b) const { return a * b; }
};
struct fma_op {
  double operator()(double a, double b, double c) const { return fma_to_odd(a, b, c); }
};

const small_format& format_of(scalar type) {
  return type == scalar::f16 || type == scalar::f16x2 ? half_format : bfloat_format;
}
bool is_pair(scalar type) {
  return type == scalar::f16x2 || type == scalar::bf16x2;
}

std::uint16_t part(std::uint64_t bits, int half) {
  return static_cast<std::uint16_t>(bits >> (16 * half));
}

double operand_of(const instruction& in, const small_format& format, std::uint16_t bits) {
  const double value = widen(format, bits);
  if ((in.flags & flush) != 0 && std::fabs(value) < std::ldexp(1.0, 1 - format.bias))
    return std::copysign(0.0, value);
  return value;
}

std::uint16_t finish(const instruction& in, const small_format& format, double value) {
  if ((in.flags & flush) != 0 && std::fabs(value) < std::ldexp(1.0, 1 - format.bias))
    value = std::copysign(0.0, value);
  if ((in.flags & saturate) != 0) value = value > 0 ? std::min(value, 1.0) : 0.0;
  if ((in.flags & relu) != 0 && value < 0) value = 0.0;
  return round_to(format, value, rounding::nearest_even);
}

template <class F, int Operands>
void arithmetic(warp& w, const instruction& in, lane_mask lanes) {
  const small_format& format = format_of(in.type);
  const int parts = is_pair(in.type) ? 2 : 1;
  for_lanes(lanes, [&](int i) {
    std::uint64_t result = 0;
    for (int p = 0; p < parts; ++p) {
      const auto value = [&](int k) {
        return operand_of(in, format, part(w.in(in.src[k]).lane[i], p));
      };
      double exact;
      if constexpr (Operands == 2) {
        exact = F{}(value(0), value(1));
      } else {
        exact = F{}(value(0), value(1), value(2));
      }
      result |= std::uint64_t{finish(in, format, exact)} << (16 * p);
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

template <bool Max>
void extremes(warp& w, const instruction& in, lane_mask lanes) {
  const small_format& format = format_of(in.type);
  const int parts = is_pair(in.type) ? 2 : 1;
  for_lanes(lanes, [&](int i) {
    std::uint64_t result = 0;
    for (int p = 0; p < parts; ++p) {
      std::uint16_t x = part(w.in(in.src[0]).lane[i], p);
      std::uint16_t y = part(w.in(in.src[1]).lane[i], p);
      std::uint16_t sign = 0;
      if ((in.flags & absolute) != 0) {
        sign = (x ^ y) & 0x8000;
        x &= 0x7fff;
        y &= 0x7fff;
      }
      const double a = operand_of(in, format, x);
      const double b = operand_of(in, format, y);
      std::uint16_t chosen;
      if (a != a && b != b) {
        chosen = format.canonical_nan;
      } else if (a != a || b != b) {
        chosen = (in.flags & nan_wins) != 0 ? format.canonical_nan : a != a ? y : x;
      } else if (a == b) {
        chosen = std::signbit(a) == Max ? y : x;
      } else {
        chosen = (a < b) != Max ? x : y;
      }
      result |= std::uint64_t{static_cast<std::uint16_t>(chosen | sign)} << (16 * p);
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

template <bool Absolute>
void change_sign(warp& w, const instruction& in, lane_mask lanes) {
  const std::uint64_t signs = is_pair(in.type) ? 0x80008000 : 0x8000;
  for_lanes(lanes, [&](int i) {
    const std::uint64_t bits = w.in(in.src[0]).lane[i];
    w.out(in.dst[0]).lane[i] = Absolute ? bits & ~signs : bits ^ signs;
  });
}

enum class curve : std::uint8_t { exp2, tanh };

void approximation(warp& w, const instruction& in, lane_mask lanes) {
  const small_format& format = format_of(in.type);
  const int parts = is_pair(in.type) ? 2 : 1;
  for_lanes(lanes, [&](int i) {
    std::uint64_t result = 0;
    for (int p = 0; p < parts; ++p) {
      const double a = operand_of(in, format, part(w.in(in.src[0]).lane[i], p));
      const double value =
          static_cast<curve>(in.select) == curve::exp2 ? std::exp2(a) : std::tanh(a);
      result |= std::uint64_t{finish(in, format, value)} << (16 * p);
    }
    w.out(in.dst[0]).lane[i] = result;
  });
}

}  // namespace

bool decode_half(decoder& d) {
  if (d.types.empty() || !is_half(d.type())) return false;
  instruction& in = d.in;
  const std::string_view root = d.root();
  const scalar type = d.type();
  in.counted = instruction_class::half;
  if (d.has("ftz")) in.flags |= flush;
  if (d.has("sat")) in.flags |= saturate;
  if (d.has("relu")) in.flags |= relu;
  if (root == "add" || root == "sub" || root == "mul" || root == "fma") {
    d.simple(type, root == "fma" ? 3 : 2);
    in.run = root == "add"   ? arithmetic<add_op, 2>
             : root == "sub" ? arithmetic<sub_op, 2>
             : root == "mul" ? arithmetic<mul_op, 2>
                             : arithmetic<fma_op, 3>;
    return true;
  }
  if (root == "min" || root == "max") {
    if (d.has("NaN")) in.flags |= nan_wins;
    if (d.has("abs")) in.flags |= absolute;
    d.simple(type, 2);
    in.run = root == "min" ? extremes<false> : extremes<true>;
    return true;
  }
  if (root == "neg" || root == "abs") {
    d.simple(type, 1);
    in.run = root == "neg" ? change_sign<false> : change_sign<true>;
    return true;
  }
  if (root == "ex2" || root == "tanh") {
    d.simple(type, 1);
    in.select = static_cast<std::uint8_t>(root == "ex2" ? curve::exp2 : curve::tanh);
    in.flags |= approximate;
    in.run = approximation;
    return true;
  }
  return false;
}

}  // namespace ptx
