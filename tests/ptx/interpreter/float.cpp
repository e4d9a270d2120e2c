// fp32 and fp64. Operations that PTX rounds once are rounded once here, in every mode; *.approx
// are computed in double, rounded, and counted as approximate.
//
// Compiled with -frounding-math and -ffp-contract=off.
#include <cmath>
#include <limits>

#include "lanes.hpp"
#include "rounding.hpp"

namespace ptx {

namespace {

/// Devices give one NaN for fp32; fp64 keeps the payload, as the host does.
inline float canonical(float value) {
  return value != value ? bits_as<float>(std::uint32_t{0x7fffffff}) : value;
}
inline double canonical(double value) {
  return value;
}

template <class T>
T flushed(T value) {
  return std::fabs(value) < std::numeric_limits<T>::min() ? std::copysign(T{0}, value) : value;
}

template <class T>
T saturated(T value) {
  return value > T{0} ? (value < T{1} ? value : T{1}) : T{0};  // NaN to zero
}

struct add_op {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct sub_op {
  template <class T>
  T operator()(T a, T b) const {
    return a - b;
  }
};
struct mul_op {
  template <class T>
  T operator()(T a, T b) const {
    return a * b;
  }
};
struct div_op {
  template <class T>
  T operator()(T a, T b) const {
    return a / b;
  }
};
struct fma_op {
  template <class T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
struct reciprocal_op {
  template <class T>
  T operator()(T a) const {
    return T{1} / a;
  }
};
struct sqrt_op {
  template <class T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};

/// min and max: a NaN loses unless .NaN; -0 is below +0.
template <bool Max>
struct extreme_op {
  template <class T>
  T operator()(T a, T b) const {
    if (std::isnan(a)) return b;
    if (std::isnan(b)) return a;
    if (a == b) return std::signbit(a) == Max ? b : a;
    return (a < b) != Max ? a : b;
  }
};

// Approximations: the double result, rounded.
template <class F>
struct in_double {
  float operator()(float a) const { return static_cast<float>(F{}(double{a})); }
  double operator()(double a) const { return F{}(a); }
};
struct rsqrt_f {
  double operator()(double a) const { return 1.0 / std::sqrt(a); }
};
struct exp2_f {
  double operator()(double a) const { return std::exp2(a); }
};
struct log2_f {
  double operator()(double a) const { return std::log2(a); }
};
struct sin_f {
  double operator()(double a) const { return std::sin(a); }
};
struct cos_f {
  double operator()(double a) const { return std::cos(a); }
};
struct tanh_f {
  double operator()(double a) const { return std::tanh(a); }
};
struct approximate_division {
  float operator()(float a, float b) const { return static_cast<float>(double{a} / double{b}); }
  double operator()(double a, double b) const { return a / b; }
};

template <class T>
T finish(const instruction& in, T value) {
  if ((in.flags & flush) != 0) value = flushed(value);
  if ((in.flags & saturate) != 0) value = saturated(value);
  return canonical(value);
}

template <class T>
T operand_of(const instruction& in, std::uint64_t bits) {
  const T value = from_row<T>(bits);
  return (in.flags & flush) != 0 ? flushed(value) : value;
}

template <class F, class T>
void float1(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  const rounding_scope rounding(in.flags);
  for_lanes(lanes,
            [&](int i) { d.lane[i] = to_row(finish(in, F{}(operand_of<T>(in, a.lane[i])))); });
}

template <class F, class T>
void float2(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  if (in.flags == 0) {
    for_lanes(lanes, [&](int i) {
      d.lane[i] = to_row(canonical(F{}(from_row<T>(a.lane[i]), from_row<T>(b.lane[i]))));
    });
    return;
  }
  const rounding_scope rounding(in.flags);
  for_lanes(lanes, [&](int i) {
    d.lane[i] = to_row(finish(in, F{}(operand_of<T>(in, a.lane[i]), operand_of<T>(in, b.lane[i]))));
  });
}

template <class F, class T>
void float3(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  const lane_row& c = w.in(in.src[2]);
  lane_row& d = w.out(in.dst[0]);
  const rounding_scope rounding(in.flags);
  for_lanes(lanes, [&](int i) {
    d.lane[i] = to_row(finish(in, F{}(operand_of<T>(in, a.lane[i]), operand_of<T>(in, b.lane[i]),
                                      operand_of<T>(in, c.lane[i]))));
  });
}

template <class T, bool Max>
void extremes(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    T a = operand_of<T>(in, w.in(in.src[0]).lane[i]);
    T b = operand_of<T>(in, w.in(in.src[1]).lane[i]);
    bool negative = false;
    if ((in.flags & absolute) != 0) {  // .xorsign.abs
      negative = std::signbit(a) != std::signbit(b);
      a = std::fabs(a);
      b = std::fabs(b);
    }
    T value = extreme_op<Max>{}(a, b);
    if ((in.flags & nan_wins) != 0 && (std::isnan(a) || std::isnan(b)))
      value = std::numeric_limits<T>::quiet_NaN();
    if (negative) value = -value;
    w.out(in.dst[0]).lane[i] = to_row(canonical(value));
  });
}

template <class T, bool Absolute>
void change_sign(warp& w, const instruction& in, lane_mask lanes) {
  using U = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  constexpr U sign = U{1} << (8 * sizeof(T) - 1);
  for_lanes(lanes, [&](int i) {
    const U bits = bits_as<U>(operand_of<T>(in, w.in(in.src[0]).lane[i]));
    w.out(in.dst[0]).lane[i] = Absolute ? bits & ~sign : bits ^ sign;
  });
}

/// copysign: the magnitude of the second operand with the sign of the first.
template <class T>
void copy_sign(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    w.out(in.dst[0]).lane[i] = to_row(
        std::copysign(from_row<T>(w.in(in.src[1]).lane[i]), from_row<T>(w.in(in.src[0]).lane[i])));
  });
}

/// rcp.approx.ftz.f64 and rsqrt: the low 32 bits of the result are zero.
template <class F>
void coarse(warp& w, const instruction& in, lane_mask lanes) {
  for_lanes(lanes, [&](int i) {
    const double value = F{}(flushed(from_row<double>(w.in(in.src[0]).lane[i])));
    w.out(in.dst[0]).lane[i] = to_row(value) & 0xffffffff00000000;
  });
}

#define PTX_FLOAT_HANDLER(map, F, type) \
  ((type) == scalar::f64 ? handler{map<F, double>} : handler{map<F, float>})

void read_modifiers(decoder& d) {
  instruction& in = d.in;
  if (d.has("rz")) in.flags |= round_zero;
  if (d.has("rm")) in.flags |= round_down;
  if (d.has("rp")) in.flags |= round_up;
  if (d.has("ftz")) in.flags |= flush;
  if (d.has("sat")) in.flags |= saturate;
  if (d.has("approx") || d.has("full")) in.flags |= approximate;
}

bool decode_approximate(decoder& d, scalar type) {
  instruction& in = d.in;
  const std::string_view root = d.root();
  if (root == "div" && (in.flags & approximate) != 0) {
    d.simple(type, 2);
    in.run = PTX_FLOAT_HANDLER(float2, approximate_division, type);
    return true;
  }
  if (type == scalar::f64 && (in.flags & approximate) != 0) {
    d.simple(type, 1);
    if (root == "rcp") {
      in.run = coarse<reciprocal_op>;
    } else if (root == "rsqrt") {
      in.run = coarse<rsqrt_f>;
    } else {
      throw unknown_form("this approximation in fp64");
    }
    return true;
  }
  handler h = nullptr;
  if (root == "rsqrt") h = float1<in_double<rsqrt_f>, float>;
  if (root == "sin") h = float1<in_double<sin_f>, float>;
  if (root == "cos") h = float1<in_double<cos_f>, float>;
  if (root == "ex2") h = float1<in_double<exp2_f>, float>;
  if (root == "lg2") h = float1<in_double<log2_f>, float>;
  if (root == "tanh") h = float1<in_double<tanh_f>, float>;
  if (h == nullptr) return false;
  d.simple(type, 1);
  in.flags |= approximate;
  in.run = h;
  return true;
}

}  // namespace

bool decode_float(decoder& d) {
  if (d.types.empty() || !is_float(d.type())) return false;
  instruction& in = d.in;
  const std::string_view root = d.root();
  const scalar type = d.type();
  in.counted = type == scalar::f64 ? instruction_class::float64 : instruction_class::float32;
  if (root == "add" || root == "sub" || root == "mul") {
    read_modifiers(d);
    d.simple(type, 2);
    in.run = root == "add"   ? PTX_FLOAT_HANDLER(float2, add_op, type)
             : root == "sub" ? PTX_FLOAT_HANDLER(float2, sub_op, type)
                             : PTX_FLOAT_HANDLER(float2, mul_op, type);
    return true;
  }
  if (root == "fma" || root == "mad") {
    read_modifiers(d);
    d.simple(type, 3);
    in.run = PTX_FLOAT_HANDLER(float3, fma_op, type);
    return true;
  }
  if (root == "min" || root == "max") {
    read_modifiers(d);
    d.simple(type, 2);
    if (d.has("NaN")) in.flags |= nan_wins;
    if (d.has("abs")) in.flags |= absolute;
    in.run = type == scalar::f64
                 ? (root == "min" ? extremes<double, false> : extremes<double, true>)
                 : (root == "min" ? extremes<float, false> : extremes<float, true>);
    return true;
  }
  if (root == "neg" || root == "abs") {
    read_modifiers(d);
    d.simple(type, 1);
    in.run = type == scalar::f64
                 ? (root == "neg" ? change_sign<double, false> : change_sign<double, true>)
                 : (root == "neg" ? change_sign<float, false> : change_sign<float, true>);
    return true;
  }
  if (root == "copysign") {
    d.simple(type, 2);
    in.run = type == scalar::f64 ? copy_sign<double> : copy_sign<float>;
    return true;
  }
  if (root != "div" && root != "rcp" && root != "sqrt" && root != "rsqrt" && root != "sin" &&
      root != "cos" && root != "ex2" && root != "lg2" && root != "tanh")
    return false;
  read_modifiers(d);
  if (decode_approximate(d, type)) return true;
  // rcp and sqrt: .approx of these is taken as the exact result, and counted.
  d.simple(type, root == "div" ? 2 : 1);
  in.run = root == "div"   ? PTX_FLOAT_HANDLER(float2, div_op, type)
           : root == "rcp" ? PTX_FLOAT_HANDLER(float1, reciprocal_op, type)
                           : PTX_FLOAT_HANDLER(float1, sqrt_op, type);
  return true;
}

}  // namespace ptx
