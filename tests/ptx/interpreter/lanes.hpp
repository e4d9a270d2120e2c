// Shapes that most handlers share: a function of one to four operands, in every lane.
#pragma once

#include "decoder.hpp"
#include "machine.hpp"

namespace ptx {

template <class T>
inline T from_row(std::uint64_t bits) {
  if constexpr (sizeof(T) == 8) {
    return bits_as<T>(bits);
  } else if constexpr (sizeof(T) == 4) {
    return bits_as<T>(static_cast<std::uint32_t>(bits));
  } else if constexpr (sizeof(T) == 2) {
    return bits_as<T>(static_cast<std::uint16_t>(bits));
  } else {
    return bits_as<T>(static_cast<std::uint8_t>(bits));
  }
}

template <class T>
inline std::uint64_t to_row(T value) {
  if constexpr (sizeof(T) == 8) {
    return bits_as<std::uint64_t>(value);
  } else if constexpr (sizeof(T) == 4) {
    return bits_as<std::uint32_t>(value);
  } else if constexpr (sizeof(T) == 2) {
    return bits_as<std::uint16_t>(value);
  } else {
    return bits_as<std::uint8_t>(value);
  }
}

/// F{}(a), F{}(a, b), ... on values of T.
template <class F, class T>
void map1(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) { d.lane[i] = to_row(F{}(from_row<T>(a.lane[i]))); });
}

template <class F, class T>
void map2(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    d.lane[i] = to_row(F{}(from_row<T>(a.lane[i]), from_row<T>(b.lane[i])));
  });
}

template <class F, class T>
void map3(warp& w, const instruction& in, lane_mask lanes) {
  const lane_row& a = w.in(in.src[0]);
  const lane_row& b = w.in(in.src[1]);
  const lane_row& c = w.in(in.src[2]);
  lane_row& d = w.out(in.dst[0]);
  for_lanes(lanes, [&](int i) {
    d.lane[i] = to_row(F{}(from_row<T>(a.lane[i]), from_row<T>(b.lane[i]), from_row<T>(c.lane[i])));
  });
}

/// The handler of F for an integer type; Map is map1, map2 or map3 as a template of <F, T>.
#define PTX_INTEGER_HANDLER(map, F, type) \
  [](scalar t) -> handler {               \
    switch (t) {                          \
      case scalar::u16:                   \
      case scalar::b16:                   \
        return map<F, std::uint16_t>;     \
      case scalar::s16:                   \
        return map<F, std::int16_t>;      \
      case scalar::u32:                   \
      case scalar::b32:                   \
        return map<F, std::uint32_t>;     \
      case scalar::s32:                   \
        return map<F, std::int32_t>;      \
      case scalar::u64:                   \
      case scalar::b64:                   \
        return map<F, std::uint64_t>;     \
      case scalar::s64:                   \
        return map<F, std::int64_t>;      \
      default:                            \
        throw unknown_form("this type");  \
    }                                     \
  }(type)

template <class T>
using unsigned_of = std::make_unsigned_t<T>;

}  // namespace ptx
