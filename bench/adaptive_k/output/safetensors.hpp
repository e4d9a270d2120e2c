// Writes float32 tensors as safetensors; moe_engine/safetensors.hpp reads them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace bench {

struct float_tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

/// Throws failure when the file cannot be written.
void write_safetensors(const std::filesystem::path& file, const std::vector<float_tensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace bench
