#include "settings.hpp"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace adaptive_k_ggml {

namespace {

using json = nlohmann::json;

[[noreturn]] void refuse(const std::string& name, const std::string& value,
                         const std::string& expected) {
  throw std::runtime_error(name + " is " + value + ", expected " + expected);
}

json read_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) refuse("ADAPTIVE_K_CONFIG", "'" + path + "'", "a file that can be read");
  json root = json::parse(file, nullptr, false);
  if (!root.is_object()) refuse("ADAPTIVE_K_CONFIG", "'" + path + "'", "a file with a JSON object");
  for (const auto& [key, value] : root.items())
    if (key != "adaptive_k" && key != "policy" && key != "model" && key != "log" &&
        key != "metrics_port" && key != "shadow" && key != "quiet")
      throw std::runtime_error(path + ": unknown key '" + key +
                               "', expected one of adaptive_k, policy, model, log, metrics_port, "
                               "shadow, quiet");
  return root;
}

/// One setting: the environment's, else the file's, else none.
class setting_source {
 public:
  setting_source(std::string path, json root) : path_(std::move(path)), root_(std::move(root)) {}

  std::string text(const char* variable, const char* key) const {
    if (const char* value = std::getenv(variable)) return value;
    const auto found = root_.find(key);
    if (found == root_.end()) return "";
    if (!found->is_string()) refuse(path_ + ": '" + key + "'", found->dump(), "a string");
    return found->get<std::string>();
  }

  bool flag(const char* variable, const char* key) const {
    if (const char* value = std::getenv(variable)) {
      const std::string text = value;
      if (text == "1" || text == "true" || text == "on") return true;
      if (text.empty() || text == "0" || text == "false" || text == "off") return false;
      refuse(variable, "'" + text + "'", "1 or 0");
    }
    const auto found = root_.find(key);
    if (found == root_.end()) return false;
    if (!found->is_boolean()) refuse(path_ + ": '" + key + "'", found->dump(), "true or false");
    return found->get<bool>();
  }

  int port(const char* variable, const char* key) const {
    std::string text;
    if (const char* value = std::getenv(variable)) {
      text = value;
    } else if (const auto found = root_.find(key); found != root_.end()) {
      text = found->dump();
    }
    if (text.empty()) return -1;
    const bool digits =
        text.size() <= 5 && text.find_first_not_of("0123456789") == std::string::npos;
    const int number = digits ? std::atoi(text.c_str()) : 0;
    if (number < 1 || number > 65535) refuse(variable, "'" + text + "'", "a port, 1..65535");
    return number;
  }

 private:
  std::string path_;
  json root_;
};

}  // namespace

settings read_settings() {
  const char* const path = std::getenv("ADAPTIVE_K_CONFIG");
  const bool has_file = path != nullptr && *path != '\0';
  const setting_source from(has_file ? path : "", has_file ? read_file(path) : json::object());
  settings result;
  result.policy = from.text("ADAPTIVE_K", "adaptive_k");
  result.preset_policy = from.text("ADAPTIVE_K_POLICY", "policy");
  result.model_file = from.text("ADAPTIVE_K_MODEL", "model");
  result.log_file = from.text("ADAPTIVE_K_LOG", "log");
  result.metrics_port = from.port("ADAPTIVE_K_METRICS_PORT", "metrics_port");
  result.shadow = from.flag("ADAPTIVE_K_SHADOW", "shadow");
  result.quiet = from.flag("ADAPTIVE_K_QUIET", "quiet");
  return result;
}

}  // namespace adaptive_k_ggml
