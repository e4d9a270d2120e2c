// Just enough of JSON Schema (2020-12) for calibrations/schema.json. A keyword that this does not
// know fails the test, so that the schema cannot come to say what nothing checks.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace schema_check {

using json = nlohmann::json;

inline bool has_type(const json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "number") return value.is_number();
  if (type == "integer")
    return value.is_number_integer() ||
           (value.is_number() && value.get<double>() == std::floor(value.get<double>()));
  return false;
}

class checker {
 public:
  explicit checker(const json& root) : root_(root) {}

  /// The first violation, or "" when `value` matches.
  std::string check(const json& value) const { return check(value, root_, "$"); }

 private:
  std::string check(const json& value, const json& schema, const std::string& at) const {
    static const std::set<std::string> known = {
        "$schema",  "title",    "description", "$defs",           "default",
        "$ref",     "type",     "enum",        "const",           "required",
        "minimum",  "maximum",  "properties",  "items",           "additionalProperties",
        "minItems", "maxItems", "minLength",   "allOf",           "exclusiveMinimum",
        "not",      "if",       "then",        "exclusiveMaximum"};
    for (const auto& item : schema.items())
      if (known.count(item.key()) == 0) return "schema keyword not supported: " + item.key();

    if (schema.contains("$ref")) {
      const std::string path = schema["$ref"].get<std::string>().substr(1);
      const std::string problem = check(value, root_.at(json::json_pointer(path)), at);
      if (!problem.empty()) return problem;
    }
    if (schema.contains("type") && !has_type(value, schema["type"]))
      return at + ": is no " + schema["type"].get<std::string>();
    if (schema.contains("const") && value != schema["const"]) return at + ": const";
    if (schema.contains("enum")) {
      bool found = false;
      for (const json& candidate : schema["enum"]) found = found || candidate == value;
      if (!found) return at + ": enum";
    }
    if (schema.contains("allOf"))
      for (const json& part : schema["allOf"])
        if (const std::string problem = check(value, part, at); !problem.empty()) return problem;
    if (schema.contains("not") && check(value, schema["not"], at).empty()) return at + ": not";
    if (schema.contains("if") && check(value, schema["if"], at).empty())
      if (const std::string problem = check(value, schema["then"], at); !problem.empty())
        return problem;
    if (value.is_number()) return check_number(value.get<double>(), schema, at);
    if (value.is_string() && schema.contains("minLength") &&
        value.get<std::string>().size() < schema["minLength"].get<std::size_t>())
      return at + ": minLength";
    if (value.is_array()) return check_array(value, schema, at);
    if (value.is_object()) return check_object(value, schema, at);
    return "";
  }

  static std::string check_number(double value, const json& schema, const std::string& at) {
    if (schema.contains("minimum") && value < schema["minimum"].get<double>())
      return at + ": minimum";
    if (schema.contains("maximum") && value > schema["maximum"].get<double>())
      return at + ": maximum";
    if (schema.contains("exclusiveMinimum") && value <= schema["exclusiveMinimum"].get<double>())
      return at + ": exclusiveMinimum";
    if (schema.contains("exclusiveMaximum") && value >= schema["exclusiveMaximum"].get<double>())
      return at + ": exclusiveMaximum";
    return "";
  }

  std::string check_array(const json& value, const json& schema, const std::string& at) const {
    if (schema.contains("minItems") && value.size() < schema["minItems"].get<std::size_t>())
      return at + ": minItems";
    if (schema.contains("maxItems") && value.size() > schema["maxItems"].get<std::size_t>())
      return at + ": maxItems";
    if (!schema.contains("items")) return "";
    for (std::size_t i = 0; i < value.size(); ++i) {
      const std::string place = at + "[" + std::to_string(i) + "]";
      if (const std::string problem = check(value[i], schema["items"], place); !problem.empty())
        return problem;
    }
    return "";
  }

  std::string check_object(const json& value, const json& schema, const std::string& at) const {
    if (schema.contains("required"))
      for (const json& key : schema["required"])
        if (!value.contains(key.get<std::string>()))
          return at + ": required " + key.get<std::string>();
    const json properties = schema.value("properties", json::object());
    for (const auto& item : value.items()) {
      const std::string place = at + "." + item.key();
      if (properties.contains(item.key())) {
        const std::string problem = check(item.value(), properties[item.key()], place);
        if (!problem.empty()) return problem;
      } else if (schema.contains("additionalProperties")) {
        return place + ": additionalProperties";
      }
    }
    return "";
  }

  const json& root_;
};

}  // namespace schema_check
