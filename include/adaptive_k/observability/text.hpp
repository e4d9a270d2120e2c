// Text that other programs read: valid UTF-8 whatever came in, and numbers free of locales.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Bytes of the well-formed UTF-8 sequence at the front of `text` (1 to 4), or, negated, bytes of
/// the broken one that one U+FFFD replaces (its longest valid beginning, at least 1), as Unicode
/// recommends. `text` is not empty.
inline int utf8_sequence(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  unsigned lowest = 0x80, highest = 0xBF;
  if (lead == 0xE0) lowest = 0xA0;
  if (lead == 0xED) highest = 0x9F;
  if (lead == 0xF0) lowest = 0x90;
  if (lead == 0xF4) highest = 0x8F;
  for (int i = 1; i < length; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (at >= text.size() || byte(at) < lowest || byte(at) > highest) return -i;
    lowest = 0x80;
    highest = 0xBF;
  }
  return length;
}

/// Appends `text` with broken sequences replaced, passing each character through `append`, which
/// gets its bytes.
template <class Append>
void for_each_character(std::string_view text, Append&& append) {
  while (!text.empty()) {
    const int length = utf8_sequence(text);
    const auto bytes = static_cast<std::size_t>(length < 0 ? -length : length);
    append(length < 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
}

inline void append_number(std::string& out, std::uint64_t value) {
  char digits[24];
  out.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

inline void append_number(std::string& out, std::int64_t value) {
  char digits[24];
  out.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

/// The shortest text that reads back as `value`, which is finite; always seen to be a real number.
inline void append_number(std::string& out, double value) {
  char digits[32];
  const std::string_view text(
      digits,
      static_cast<std::size_t>(std::to_chars(digits, digits + sizeof digits, value).ptr - digits));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

/// Appends `text` as a JSON string, with its quotes.
inline void append_json_string(std::string& out, std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  out += '"';
  for_each_character(text, [&](std::string_view character) {
    const auto first = static_cast<unsigned char>(character[0]);
    if (first == '"' || first == '\\') {
      out += '\\';
      out += character;
    } else if (first == '\n') {
      out += "\\n";
    } else if (first < 0x20 || first == 0x7F) {
      out += "\\u00";
      out += digits[first >> 4];
      out += digits[first & 15];
    } else {
      out += character;
    }
  });
  out += '"';
}

/// The last `width` digits, at most 20, of `value`, which is not negative.
inline void append_padded(std::string& out, std::int64_t value, int width) {
  char digits[20];
  for (int i = width - 1; i >= 0; --i, value /= 10)
    digits[i] = static_cast<char>('0' + static_cast<int>(value % 10));
  out.append(digits, static_cast<std::size_t>(width));
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
