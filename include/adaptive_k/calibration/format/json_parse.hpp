// JSON from untrusted files: bounded in size, depth, number of values and time, with every key
// once. All readers of the project parse here, so that their refusals read alike.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/format/printable.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// A file that cannot be used, or a preset name or policy. `what()` reads
/// "FILE: KEY: VALUE, expected ..."; it is printable UTF-8 of about a kilobyte at most.
class file_error : public std::runtime_error {
 public:
  /// `problem` says what was found and what was expected.
  file_error(std::string file, std::string key, const std::string& problem)
      : std::runtime_error(message_of(file, key, problem)),
        file_(std::move(file)),
        key_(std::move(key)) {}

  /// The file, or the text given on a command line.
  const std::string& file() const noexcept { return file_; }
  /// The path of the key, such as policies[0].thresholds_nats[1]; "" where there is none.
  const std::string& key() const noexcept { return key_; }

 private:
  static std::string message_of(const std::string& file, const std::string& key,
                                const std::string& problem) {
    constexpr std::size_t most = 1000;
    std::string message = detail::printable_path(file, 250) + ": ";
    if (!key.empty()) message += detail::printable(key, 200) + ": ";
    return message +
           detail::printable(problem, most > message.size() + 300 ? most - message.size() : 300);
  }

  std::string file_;
  std::string key_;
};

/// What presets, policies and traces are refused by.
using preset_error = file_error;

namespace detail {

using json = nlohmann::json;

struct json_limits {
  std::size_t bytes = std::size_t{64} << 20;
  std::size_t depth = 32;                     ///< objects and arrays within one another
  std::size_t values = std::size_t{2} << 20;  ///< of any type, objects and arrays included
};

inline std::string shown_value(const json& value) {
  constexpr std::size_t longest = 60;
  if (value.is_string() && value.get_ref<const std::string&>().size() > longest)
    return printable("\"" + value.get_ref<const std::string&>(), longest);
  return printable(value.dump(-1, ' ', false, json::error_handler_t::replace), longest);
}

/// "line 3, column 14 ('"top_k": NaN,')" of the character before `end`.
inline std::string place_in(std::string_view text, std::size_t end) {
  constexpr std::size_t longest = 60;
  const std::size_t at = end == 0 ? 0 : (end <= text.size() ? end - 1 : text.size());
  std::size_t line = 1;
  std::size_t start = 0;
  for (std::size_t i = 0; i < at; ++i) {
    if (text[i] != '\n') continue;
    ++line;
    start = i + 1;
  }
  std::string_view content = text.substr(start, text.find('\n', start) - start);
  content.remove_prefix((std::min)(content.find_first_not_of(" \t"), content.size()));
  // A long line is shown around the place.
  const auto before = static_cast<std::size_t>(text.data() + at - content.data());
  if (content.size() > longest && at >= start && before > longest / 2 && before <= content.size()) {
    std::size_t skipped = before - longest / 2;
    while (skipped < before && (static_cast<unsigned char>(content[skipped]) & 0xC0) == 0x80)
      ++skipped;
    content.remove_prefix(skipped);
  }
  return "line " + std::to_string(line) + ", column " + std::to_string(at - start + 1) + " (" +
         printable(content, longest) + ")";
}

/// Builds the value from the parser's events. The parser itself neither recurses nor allocates by
/// depth; this refuses before a value gets too deep to be walked.
class json_builder {
 public:
  json_builder(std::string_view text, const std::string& file, const json_limits& limits)
      : text_(text), file_(file), limits_(limits) {}

  json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(json::binary_t&) { return false; }  // JSON has none
  bool start_object(std::size_t) { return open(json::value_t::object); }
  bool start_array(std::size_t) { return open(json::value_t::array); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    level& object = levels_.back();
    const auto [place, is_new] =
        object.value->get_ref<json::object_t&>().emplace(std::move(name), nullptr);
    object.key = &place->first;
    object.slot = &place->second;
    if (!is_new) refuse("the key comes twice, expected once");
    return true;
  }

  template <class Exception>
  bool parse_error(std::size_t position, const std::string& token, const Exception& error) {
    constexpr int out_of_range = 406;
    if (error.id == out_of_range)
      refuse(printable(token, 60) + " at " +
             place_in(text_, position - (std::min)(position, token.size()) + 1) +
             ", expected a finite number");
    refuse(place_in(text_, position) +
           " is no JSON, expected what JSON allows (numbers are finite decimals)");
  }

 private:
  struct level {
    json* value;             // an object or array
    const std::string* key;  // of an object: the one that is being read
    json* slot;              // and its value
  };

  template <class Value>
  bool add(Value&& value) {
    *next() = std::forward<Value>(value);
    return true;
  }

  bool open(json::value_t kind) {
    if (levels_.size() == limits_.depth)
      refuse("nested more than " + std::to_string(limits_.depth) + " deep, expected at most that");
    json* value = next();
    *value = json(kind);
    levels_.push_back({value, nullptr, nullptr});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  /// Where the next value belongs. The pointer stays valid, as an array does not grow while one of
  /// its elements is being read.
  json* next() {
    if (++count_ > limits_.values)
      refuse("more than " + std::to_string(limits_.values) + " values, expected at most that");
    if (levels_.empty()) return &root_;
    level& parent = levels_.back();
    if (!parent.value->is_array()) return parent.slot;
    auto& array = parent.value->get_ref<json::array_t&>();
    array.emplace_back(nullptr);
    return &array.back();
  }

  std::string path() const {
    std::string path;
    for (const level& l : levels_) {
      if (l.value->is_array()) {
        const bool is_innermost = &l == &levels_.back();  // its next element is not there yet
        path += "[" + std::to_string(l.value->size() - (is_innermost ? 0 : 1)) + "]";
      } else if (l.key != nullptr) {
        path += (path.empty() ? "" : ".") + printable(*l.key, 100);
      }
      if (path.size() > 400) break;
    }
    return path;
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw file_error(file_, path(), problem);
  }

  std::string_view text_;
  const std::string& file_;
  json_limits limits_;
  std::size_t count_ = 0;
  json root_;
  std::vector<level> levels_;
};

/// Throws file_error.
inline json parse_json_text(std::string_view text, const std::string& file,
                            const json_limits& limits = {}) {
  if (text.size() > limits.bytes)
    throw file_error(file, "",
                     std::to_string(text.size()) + " bytes of JSON, expected at most " +
                         std::to_string(limits.bytes));
  // The parser takes a NUL for the end and would not see what is behind it.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw file_error(file, "", place_in(text, nul + 1) + " is no JSON, expected no NUL");
  json_builder builder(text, file, limits);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

/// Why a file cannot be read: it could not be opened, or is no regular file.
inline std::string unreadable(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status found = std::filesystem::status(path, error);
  const char* why = "permission denied";
  if (found.type() == std::filesystem::file_type::not_found)
    why = "no such file";
  else if (found.type() == std::filesystem::file_type::directory)
    why = "a directory";
  else if (found.type() != std::filesystem::file_type::regular && !error)
    why = "a pipe or device";
  return std::string("cannot be read (") + why + "), expected a file";
}

/// The bytes of a regular file, at most `most` of them. Throws file_error.
inline std::string read_bounded_file(const std::filesystem::path& path, std::size_t most) {
  std::error_code error;
  std::ifstream stream;
  std::uintmax_t size = 0;
  if (std::filesystem::is_regular_file(path, error)) {
    size = std::filesystem::file_size(path, error);
    stream.open(path, std::ios::binary);
  }
  if (error || !stream.is_open()) throw file_error(path.string(), "", unreadable(path));
  if (size > most)
    throw file_error(
        path.string(), "",
        std::to_string(size) + " bytes of JSON, expected at most " + std::to_string(most));
  std::string text(static_cast<std::size_t>(size), '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(size)))
    throw file_error(path.string(), "", "cannot be read to its end");
  return text;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
