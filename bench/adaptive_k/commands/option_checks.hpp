// Checks of option values, whose messages name the bound.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace bench {

/// Reads all of `text`; false where that is no whole number of the type's range.
template <class Number>
bool reads_whole(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  return read.ec == std::errc() && read.ptr == end;
}

inline std::string refusal(const std::string& text, const std::string& expected) {
  return "'" + text + "', expected " + expected;
}

inline int days_of(int year, int month) {
  if (month == 2) return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28;
  return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

/// A whole number of `least` to `most`, or without an upper bound.
inline CLI::Validator whole_number(long long least, std::optional<long long> most = {}) {
  const std::string bounds =
      std::to_string(least) + (most ? ".." + std::to_string(*most) : std::string(" or more"));
  return CLI::Validator(
      [=](std::string& text) {
        long long value = 0;
        const bool fits = reads_whole(text, value) && value >= least && (!most || value <= *most);
        return fits ? std::string() : refusal(text, "a whole number of " + bounds);
      },
      bounds, "whole number");
}
inline CLI::Validator one_or_more() {
  return whole_number(1);
}

/// A number of 0 to 1.
inline CLI::Validator share() {
  return CLI::Validator(
      [](std::string& text) {
        double value = 0.0;
        const bool fits = reads_whole(text, value) && value >= 0.0 && value <= 1.0;
        return fits ? std::string() : refusal(text, "a number of 0..1");
      },
      "0..1", "share");
}

/// A day as presets write it.
inline CLI::Validator calendar_day() {
  return CLI::Validator(
      [](std::string& text) {
        int year = 0, month = 0, day = 0;
        const bool fits = text.size() == 10 && text[4] == '-' && text[7] == '-' &&
                          reads_whole(text.substr(0, 4), year) &&
                          reads_whole(text.substr(5, 2), month) &&
                          reads_whole(text.substr(8, 2), day) && year >= 1 && month >= 1 &&
                          month <= 12 && day >= 1 && day <= days_of(year, month);
        return fits ? std::string() : refusal(text, "a day as 2026-01-31");
      },
      "YYYY-MM-DD", "day");
}

/// Refuses, in every option of every command, what CLI11 would read as another value: an empty
/// text, and numbers with trailing text, in other bases, or beyond their type's range.
inline void check_values(CLI::App& app) {
  const auto signed_number = [](std::string& text) {
    long long value = 0;
    return reads_whole(text, value) ? std::string() : refusal(text, "a whole number");
  };
  const auto unsigned_number = [](std::string& text) {
    unsigned long long value = 0;
    return reads_whole(text, value) ? std::string() : refusal(text, "a whole number of 0 or more");
  };
  const auto decimal = [](std::string& text) {
    const bool fits = !text.empty() && text.find_first_not_of("0123456789+-.eE") == text.npos;
    return fits ? std::string() : refusal(text, "a number");
  };
  const auto anything = [](std::string& text) {
    return text.empty() ? refusal(text, "a value") : std::string();
  };
  for (CLI::App* command : app.get_subcommands({}))
    for (CLI::Option* option : command->get_options()) {
      const std::string type = option->get_type_name();
      const auto is = [&](const char* name) { return type.rfind(name, 0) == 0; };
      if (is("INT")) option->check(CLI::Validator(signed_number, ""));
      if (is("UINT")) option->check(CLI::Validator(unsigned_number, ""));
      if (is("FLOAT")) option->check(CLI::Validator(decimal, ""));
      if (is("TEXT")) option->check(CLI::Validator(anything, ""));
    }
}

}  // namespace bench
