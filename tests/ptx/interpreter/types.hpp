// The words of PTX that every part of the interpreter shares: scalar types, state spaces, lanes.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace ptx {

inline constexpr int lanes_per_warp = 32;
using lane_mask = std::uint32_t;

enum class scalar : std::uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  f16x2,
  bf16,
  bf16x2,
  f32,
  f64,
  u16x2,
  s16x2,
};

/// none when `name` is not a type.
scalar parse_scalar(std::string_view name);
/// Bytes of one value; 1 for predicates.
unsigned size_of(scalar type);
bool is_signed(scalar type);
/// fp32 and fp64; the 16-bit formats have a family of their own.
inline bool is_float(scalar type) {
  return type == scalar::f32 || type == scalar::f64;
}
inline bool is_half(scalar type) {
  return type == scalar::f16 || type == scalar::f16x2 || type == scalar::bf16 ||
         type == scalar::bf16x2;
}

enum class space : std::uint8_t { generic, constant, global, local, param, shared };

// Generic addresses: non-canonical on x86-64, so that the host cannot follow a device pointer.
inline constexpr std::uint64_t global_window = std::uint64_t{1} << 52;
inline constexpr std::uint64_t shared_window = std::uint64_t{2} << 52;
inline constexpr std::uint64_t local_window = std::uint64_t{3} << 52;
inline constexpr std::uint64_t param_window = std::uint64_t{4} << 52;
inline constexpr std::uint64_t window_span = std::uint64_t{1} << 32;
/// Shared addresses start here, as on recent devices: a null shared pointer hits nothing.
inline constexpr std::uint64_t shared_origin = 1024;

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace ptx
