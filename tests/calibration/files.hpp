// Files for the tests: a good calibration file to spoil, and a folder to put files in.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

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

}  // namespace calibration_test
