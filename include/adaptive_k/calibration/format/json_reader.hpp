// Checked reading of JSON: every refusal names the file, the key and the value.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/format/json_parse.hpp"
#include "adaptive_k/calibration/format/names.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

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
    throw preset_error(file(), path_, shown_value(*value_) + ", expected " + expected);
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
          "unknown key (value " + shown_value(item.value()) + "), expected one of " + list);
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

  template <class Enum>
  Enum as_name() const {
    std::optional<Enum> value;
    if (value_->is_string()) value = find_name<Enum>(value_->get_ref<const std::string&>());
    if (!value) refuse("one of " + all_names<Enum>());
    return *value;
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

  std::shared_ptr<const json_document> document_;
  const json* value_;
  std::string path_;
};

/// Throws file_error, as everything here that reads files does.
inline json_node parse_json(std::string_view text, const std::string& file,
                            const json_limits& limits = {}) {
  return json_node(
      std::make_shared<json_document>(json_document{file, parse_json_text(text, file, limits)}));
}

inline json_node read_json_file(const std::filesystem::path& path, const json_limits& limits = {}) {
  return parse_json(read_bounded_file(path, limits.bytes), path.string(), limits);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
