// Makes text from files and command lines fit for messages: printable, and of bounded length.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// `text` as a message shows it: bytes that are not printable UTF-8 as \xNN; what takes more than
/// `most` bytes is cut between two characters and ends with "...".
inline std::string printable(std::string_view text, std::size_t most) {
  constexpr std::string_view dots = "...";
  std::string out;
  std::size_t kept = 0;  // bytes of `out` that leave room for the dots
  for (std::size_t at = 0; at < text.size();) {
    char shown[4];
    int used = 0;
    const int bytes = show_character(text.data() + at, text.size() - at, shown, used);
    if (out.size() + static_cast<std::size_t>(bytes) > most) {
      out.resize(kept);
      return out.append(dots);
    }
    out.append(shown, static_cast<std::size_t>(bytes));
    if (out.size() + dots.size() <= most) kept = out.size();
    at += static_cast<std::size_t>(used);
  }
  return out;
}

/// The same for a message, cut in the middle, as its end says what was expected.
inline std::string printable_message(std::string_view text, std::size_t most) {
  std::string whole = printable(text, 4 * text.size());
  if (whole.size() <= most) return whole;
  std::size_t tail = whole.size() - most / 3;
  while (tail < whole.size() && (static_cast<unsigned char>(whole[tail]) & 0xC0) == 0x80) ++tail;
  return printable(whole, most - most / 3) + whole.substr(tail);
}

/// The same for a path, cut at its front, as its end says more.
inline std::string printable_path(std::string_view path, std::size_t most) {
  if (path.size() <= most) return printable(path, 4 * most);
  path.remove_prefix(path.size() - most);
  while (!path.empty() && (static_cast<unsigned char>(path.front()) & 0xC0) == 0x80)
    path.remove_prefix(1);
  return "..." + printable(path, 4 * most);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
