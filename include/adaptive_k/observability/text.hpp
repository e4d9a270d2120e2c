// Text for other programs: valid UTF-8 whatever the input, and numbers independent of the locale.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Appends `text` with broken sequences replaced, passing each character through `append`, which
/// gets its bytes.
template <class Append>
void for_each_character(std::string_view text, Append&& append) {
  while (!text.empty()) {
    const int length = utf8_sequence(text.data(), text.size());
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

/// The shortest text that reads back as `value`, which is finite; it has a point or an exponent.
inline void append_number(std::string& out, double value) {
  char digits[32];
  const std::string_view text(
      digits,
      static_cast<std::size_t>(std::to_chars(digits, digits + sizeof digits, value).ptr - digits));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

/// `value` with 0 to 3 digits after the point; without printf, which follows the locale.
inline void append_decimals(std::string& out, double value, int digits) {
  char text[320];  // the largest number has 309 before the point
  out.append(text,
             std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, digits).ptr);
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
