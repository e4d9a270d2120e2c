// What options may hold, in words that name the bound.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <string>

namespace bench {

/// A whole number of 1 or more.
inline CLI::Validator one_or_more() {
  return CLI::Validator(
      [](std::string& text) {
        long long value = 0;
        const char* end = text.data() + text.size();
        const auto read = std::from_chars(text.data(), end, value);
        const bool whole = read.ec == std::errc() && read.ptr == end;
        return whole && value >= 1 ? std::string()
                                   : "'" + text + "', expected a whole number of 1 or more";
      },
      "1 OR MORE", "one or more");
}

}  // namespace bench
