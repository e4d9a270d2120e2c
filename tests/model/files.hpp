// Model folders to spoil, and what is said about them.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <moe_engine/engine.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/small_model.hpp"

namespace small_model {

/// What loading `folder` says; empty where it succeeds.
inline std::string complaint(const std::filesystem::path& folder) {
  try {
    moe_engine::engine::load(folder);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

inline void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), std::string::npos) << '"' << word << "\" is not in: " << text;
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file of `header` and `data_bytes` zero bytes.
inline void write_raw(const std::filesystem::path& path, const std::string& header,
                      std::size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i)
    text += static_cast<char>(header.size() >> (8 * static_cast<unsigned>(i)) & 0xFF);
  write_text(path, text + header + std::string(data_bytes, '\0'));
}

class model_folder : public ::testing::Test {
 protected:
  model_folder() : folder("files"), weights(weights_of({}, 3)) {
    write_model(folder.path(), {}, weights);
  }
  std::filesystem::path file() const { return folder.path() / "model.safetensors"; }

  temporary_folder folder;
  tensors weights;
  const std::string router = "model.layers.1.block_sparse_moe.gate.weight";
};

}  // namespace small_model
