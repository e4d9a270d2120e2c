// The committed reference model and its texts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace reference {

inline std::filesystem::path folder() {
  return std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models" / "reference-32x8";
}

/// A text's bytes as tokens.
inline std::vector<std::int32_t> bytes_of(const std::string& file) {
  std::ifstream stream(folder() / file, std::ios::binary);
  if (!stream) throw std::runtime_error((folder() / file).string() + ": cannot be opened");
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  std::vector<std::int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

}  // namespace reference
