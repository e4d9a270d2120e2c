// Checked reading of JSON: every refusal names the file, the key and the value.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/names.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// A calibration file, preset name or policy that cannot be used. `what()` reads
/// "FILE: KEY: VALUE, expected ...".
class preset_error : public std::runtime_error {
 public:
  preset_error(std::string file, std::string key, const std::string& problem)
      : std::runtime_error(file + ": " + (key.empty() ? "" : key + ": ") + problem),
        file_(std::move(file)),
        key_(std::move(key)) {}

  /// The file, or the text given on a command line.
  const std::string& file() const noexcept { return file_; }
  /// The path of the key, such as policies[0].thresholds_nats[1]; "" where there is none.
  const std::string& key() const noexcept { return key_; }

 private:
  std::string file_;
  std::string key_;
};

namespace detail {

using json = nlohmann::json;

struct json_document {
  std::string file;
  json root;
};

/// A value of a document together with its place in it.
class json_node {
 public:
  explicit json_node(std::shared_ptr<const json_document> document)
      : document_(std::move(document)), value_(&document_->root) {}

  const json& value() const noexcept { return *value_; }
  const std::string& path() const noexcept { return path_; }
  const std::string& file() const noexcept { return document_->file; }

  std::string path_of(std::string_view key) const {
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
  }

  [[noreturn]] void refuse(const std::string& expected) const {
    throw preset_error(file(), path_, shown(*value_) + ", expected " + expected);
  }

  std::optional<json_node> find(const char* key) const {
    const auto found = value_->find(key);
    if (found == value_->end()) return std::nullopt;
    return json_node(document_, *found, path_of(key));
  }

  json_node at(const char* key, const char* expected) const {
    auto child = find(key);
    if (!child)
      throw preset_error(file(), path_of(key), std::string("missing, expected ") + expected);
    return *child;
  }

  json_node at(std::size_t index) const {
    return json_node(document_, (*value_)[index], path_ + "[" + std::to_string(index) + "]");
  }

  /// Refuses anything but an object with no key outside `known`.
  const json_node& expect_keys(std::initializer_list<const char*> known) const {
    if (!value_->is_object()) refuse("an object");
    for (const auto& item : value_->items()) {
      bool is_known = false;
      for (const char* key : known) is_known = is_known || item.key() == key;
      if (is_known) continue;
      std::string list;
      for (const char* key : known) list += (list.empty() ? "" : ", ") + std::string(key);
      throw preset_error(
          file(), path_of(item.key()),
          "unknown key (value " + shown(item.value()) + "), expected one of " + list);
    }
    return *this;
  }

  std::size_t expect_array(const char* expected) const {
    if (!value_->is_array()) refuse(expected);
    return value_->size();
  }

  std::string as_string() const {
    if (!value_->is_string() || value_->get_ref<const std::string&>().empty())
      refuse("a string that is not empty");
    return value_->get<std::string>();
  }

  bool as_bool() const {
    if (!value_->is_boolean()) refuse("true or false");
    return value_->get<bool>();
  }

  double as_number() const {
    if (!value_->is_number()) refuse("a number");
    return value_->get<double>();
  }

  float as_float() const {
    const auto number = static_cast<float>(as_number());
    if (!std::isfinite(number)) refuse("a number that a float can hold");
    return number;
  }

  std::int64_t as_integer(std::int64_t least, std::int64_t most) const {
    const auto range = [&] {
      return "an integer in " + std::to_string(least) + ".." + std::to_string(most);
    };
    if (!value_->is_number_integer()) refuse(range());
    if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > INT64_MAX) refuse(range());
    const auto number = value_->get<std::int64_t>();
    if (number < least || number > most) refuse(range());
    return number;
  }

  int as_int(int least, int most) const { return static_cast<int>(as_integer(least, most)); }

  template <class Enum, std::size_t N>
  Enum as_name(const named<Enum> (&names)[N]) const {
    const named<Enum>* entry =
        value_->is_string() ? find_name(names, value_->get_ref<const std::string&>()) : nullptr;
    if (entry == nullptr) refuse("one of " + all_names(names));
    return entry->value;
  }

  std::vector<std::string> as_strings() const {
    std::vector<std::string> strings(expect_array("an array of strings"));
    for (std::size_t i = 0; i < strings.size(); ++i) strings[i] = at(i).as_string();
    return strings;
  }

  std::vector<double> as_numbers() const {
    std::vector<double> numbers(expect_array("an array of numbers"));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = at(i).as_number();
    return numbers;
  }

 private:
  json_node(std::shared_ptr<const json_document> document, const json& value, std::string path)
      : document_(std::move(document)), value_(&value), path_(std::move(path)) {}

  static std::string shown(const json& value) {
    constexpr std::size_t longest = 60;
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > longest) text = text.substr(0, longest) + "...";
    return text;
  }

  std::shared_ptr<const json_document> document_;
  const json* value_;
  std::string path_;
};

/// Follows the parser, to know the path of what it reads and to refuse a key that comes twice
/// (which the parser would accept, keeping the last).
class json_path_tracker {
 public:
  explicit json_path_tracker(std::string file) : file_(std::move(file)) {}

  bool operator()(json::parse_event_t event, const json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        levels_.push_back({false, 0, {}, {}});
        break;
      case json::parse_event_t::array_start:
        levels_.push_back({true, 0, {}, {}});
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        levels_.pop_back();
        finish_value();
        break;
      case json::parse_event_t::value:
        finish_value();
        break;
      case json::parse_event_t::key:
        levels_.back().key = parsed.get<std::string>();
        if (!levels_.back().keys.insert(levels_.back().key).second)
          throw preset_error(file_, path(), "the key comes twice, expected once");
        break;
    }
    return true;
  }

  std::string path() const {
    std::string path;
    for (const level& l : levels_) {
      if (l.is_array)
        path += "[" + std::to_string(l.index) + "]";
      else if (!l.key.empty())
        path += (path.empty() ? "" : ".") + l.key;
    }
    return path;
  }

 private:
  struct level {
    bool is_array;
    std::size_t index;
    std::string key;
    std::set<std::string> keys;
  };

  void finish_value() {
    if (levels_.empty()) return;
    if (levels_.back().is_array) ++levels_.back().index;
  }

  std::string file_;
  std::vector<level> levels_;
};

/// "line 3, column 14 ('"top_k": NaN,')" of the character before `end`.
inline std::string place_in(const std::string& text, std::size_t end) {
  const std::size_t at = end == 0 ? 0 : (end <= text.size() ? end - 1 : text.size());
  std::size_t line = 1;
  std::size_t start = 0;
  for (std::size_t i = 0; i < at; ++i) {
    if (text[i] != '\n') continue;
    ++line;
    start = i + 1;
  }
  std::string content = text.substr(start, text.find('\n', start) - start);
  content.erase(0, content.find_first_not_of(" \t"));
  if (content.size() > 60) content = content.substr(0, 60) + "...";
  return "line " + std::to_string(line) + ", column " + std::to_string(at - start + 1) + " (" +
         content + ")";
}

inline json_node parse_json(const std::string& text, const std::string& file) {
  json_path_tracker tracker(file);
  auto document = std::make_shared<json_document>();
  document->file = file;
  try {
    document->root = json::parse(text, [&tracker](int, json::parse_event_t event, json& parsed) {
      return tracker(event, parsed);
    });
  } catch (const json::parse_error& error) {
    throw preset_error(file, tracker.path(),
                       place_in(text, error.byte) + " is no JSON, expected what JSON allows " +
                           "(numbers are finite decimals)");
  } catch (const json::exception& error) {  // a number beyond double; it tells only its text
    const std::string message = error.what();
    const std::size_t quote = message.find('\'');
    const std::string number = quote == std::string::npos
                                   ? message
                                   : message.substr(quote + 1, message.rfind('\'') - quote - 1);
    throw preset_error(
        file, tracker.path(),
        number + " at " + place_in(text, text.find(number) + 1) + ", expected a finite number");
  }
  return json_node(std::move(document));
}

inline json_node read_json_file(const std::filesystem::path& path) {
  std::error_code ignored;
  std::ifstream stream;
  if (std::filesystem::is_regular_file(path, ignored)) stream.open(path, std::ios::binary);
  if (!stream.is_open()) throw preset_error(path.string(), "", "cannot be read, expected a file");
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  return parse_json(text, path.string());
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
