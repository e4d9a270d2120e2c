// What options may hold, in words that name the bound.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace bench {

/// A whole number of `least` to `most`, or without an upper bound.
inline CLI::Validator whole_number(long long least, std::optional<long long> most = {}) {
  const std::string bounds =
      std::to_string(least) + (most ? ".." + std::to_string(*most) : std::string(" or more"));
  return CLI::Validator(
      [=](std::string& text) {
        long long value = 0;
        const char* end = text.data() + text.size();
        const auto read = std::from_chars(text.data(), end, value);
        const bool fits = read.ec == std::errc() && read.ptr == end && value >= least &&
                          (!most || value <= *most);
        return fits ? std::string() : "'" + text + "', expected a whole number of " + bounds;
      },
      bounds, "whole number");
}
inline CLI::Validator one_or_more() {
  return whole_number(1);
}

/// What CLI11 would take for another value is refused, in every option of every command: nothing at
/// all, numbers with something behind them, in other bases or beyond their type's range.
inline void check_values(CLI::App& app) {
  const auto refuse = [](const std::string& text, const char* expected) {
    return "'" + text + "', expected " + expected;
  };
  const auto whole = [=](auto value, const char* expected) {
    return [=](std::string& text) mutable {
      const char* end = text.data() + text.size();
      const auto read = std::from_chars(text.data(), end, value);
      return read.ec == std::errc() && read.ptr == end ? std::string() : refuse(text, expected);
    };
  };
  const auto decimal = [=](std::string& text) {
    const bool fits = !text.empty() && text.find_first_not_of("0123456789+-.eE") == text.npos;
    return fits ? std::string() : refuse(text, "a number");
  };
  const auto given = [=](std::string& text) {
    return text.empty() ? refuse(text, "a value") : std::string();
  };
  for (CLI::App* command : app.get_subcommands({}))
    for (CLI::Option* option : command->get_options()) {
      const std::string type = option->get_type_name();
      const auto is = [&](const char* name) { return type.rfind(name, 0) == 0; };
      if (is("INT")) option->check(CLI::Validator(whole(0ll, "a whole number"), ""));
      if (is("UINT")) option->check(CLI::Validator(whole(0ull, "a whole number of 0 or more"), ""));
      if (is("FLOAT")) option->check(CLI::Validator(decimal, ""));
      if (is("TEXT")) option->check(CLI::Validator(given, ""));
    }
}

}  // namespace bench
