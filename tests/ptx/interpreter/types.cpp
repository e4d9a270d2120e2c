#include "types.hpp"

#include <array>
#include <utility>

namespace ptx {

namespace {

constexpr std::array<std::pair<std::string_view, scalar>, 21> names = {{
    {"pred", scalar::pred}, {"b8", scalar::b8},         {"b16", scalar::b16},
    {"b32", scalar::b32},   {"b64", scalar::b64},       {"u8", scalar::u8},
    {"u16", scalar::u16},   {"u32", scalar::u32},       {"u64", scalar::u64},
    {"s8", scalar::s8},     {"s16", scalar::s16},       {"s32", scalar::s32},
    {"s64", scalar::s64},   {"f16", scalar::f16},       {"f16x2", scalar::f16x2},
    {"bf16", scalar::bf16}, {"bf16x2", scalar::bf16x2}, {"f32", scalar::f32},
    {"f64", scalar::f64},   {"u16x2", scalar::u16x2},   {"s16x2", scalar::s16x2},
}};

}  // namespace

scalar parse_scalar(std::string_view name) {
  for (const auto& [text, type] : names)
    if (text == name) return type;
  return scalar::none;
}

unsigned size_of(scalar type) {
  switch (type) {
    case scalar::b16:
    case scalar::u16:
    case scalar::s16:
    case scalar::f16:
    case scalar::bf16:
      return 2;
    case scalar::b32:
    case scalar::u32:
    case scalar::s32:
    case scalar::f32:
    case scalar::f16x2:
    case scalar::bf16x2:
    case scalar::u16x2:
    case scalar::s16x2:
      return 4;
    case scalar::b64:
    case scalar::u64:
    case scalar::s64:
    case scalar::f64:
      return 8;
    default:
      return 1;
  }
}

bool is_signed(scalar type) {
  return type == scalar::s8 || type == scalar::s16 || type == scalar::s32 || type == scalar::s64;
}

}  // namespace ptx
