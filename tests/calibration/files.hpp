// Files for the tests: a good calibration file to spoil, and a folder to put files in.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "adaptive_k/calibration/preset.hpp"

namespace calibration_test {

using json = nlohmann::json;

inline std::filesystem::path shipped_folder() {
  return std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "calibrations";
}

/// A folder of its own for each test, removed afterwards.
class temporary_folder {
 public:
  temporary_folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "adaptive_k_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  std::filesystem::path write(const std::string& name, const json& value) const {
    return write(name, value.dump(1));
  }

 private:
  std::filesystem::path path_;
};

/// Sets ADAPTIVE_K_CALIBRATIONS while it lives.
class search_path {
 public:
  explicit search_path(const std::string& folders) {
    setenv("ADAPTIVE_K_CALIBRATIONS", folders.c_str(), 1);
  }
  ~search_path() { unsetenv("ADAPTIVE_K_CALIBRATIONS"); }
  search_path(const search_path&) = delete;
  search_path& operator=(const search_path&) = delete;
};

/// 16 experts of which 4, 3 MoE layers, one policy of each kind that is easy to spoil.
inline json good_file() {
  return json::parse(R"({
    "schema_version": 1,
    "name": "tiny",
    "aliases": ["org/Tiny", "t"],
    "gating": {"kind": "softmax", "num_experts": 16, "top_k": 4, "renormalize": true,
               "selection_bias": false},
    "sizes": {"num_moe_layers": 3, "hidden": 8, "intermediate": 4, "matrices": 3,
              "shared_experts": {"count": 0, "intermediate": 0}},
    "sources": ["made up"],
    "policies": [
      {"name": "entropy", "provenance": "hand-set", "rule": "thresholds",
       "signal": "softmax_entropy", "k_values": [1, 2, 4], "thresholds_nats": [0.6, 1.2],
       "mass_exponent": 1},
      {"name": "full", "provenance": "the model's own routing", "rule": "full"}
    ],
    "default_policy": "full"
  })");
}

/// The message of the preset_error that `call` throws; "" when it throws none.
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const adaptive_k::preset_error& error) {
    return error.what();
  }
  return "";
}

/// The paths of all values within `value`, itself left out.
inline void list_paths(const json& value, const std::string& at, std::vector<std::string>& paths) {
  if (!value.is_structured()) return;
  for (const auto& item : value.items()) {
    const std::string path = at + "/" + item.key();  // a reference into `paths` would not last
    paths.push_back(path);
    list_paths(item.value(), path, paths);
  }
}

/// "policies[0].k" for "/policies/0/k".
inline std::string dotted(const std::string& pointer) {
  std::string path;
  std::istringstream parts(pointer.substr(1));
  for (std::string part; std::getline(parts, part, '/');)
    if (part.find_first_not_of("0123456789") == std::string::npos)
      path += "[" + part + "]";
    else
      path += (path.empty() ? "" : ".") + part;
  return path;
}

/// Files that are to be refused.
class BadFiles : public ::testing::Test {
 protected:
  std::string refusal_of_text(const std::string& text) const {
    const auto file = folder_.write("bad.json", text);
    const std::string message = error_of([&] { adaptive_k::load_preset(file.string()); });
    if (message.empty()) return "";
    EXPECT_EQ(message.rfind(file.string() + ": ", 0), 0u) << "no file named: " << message;
    return message.substr(file.string().size() + 2);
  }
  std::string refusal(const json& value) const { return refusal_of_text(value.dump(2)); }

  temporary_folder folder_;
};

}  // namespace calibration_test
