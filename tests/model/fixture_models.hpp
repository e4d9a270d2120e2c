// The tiny models of tests/model/fixtures, one of every kind that the engine runs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <moe_engine/engine.hpp>
#include <moe_engine/safetensors.hpp>
#include <string>
#include <vector>

namespace fixture_models {

inline constexpr const char* names[] = {
    "mixtral",  "qwen2_moe",      "qwen2_moe_sparse", "olmoe", "olmoe_renormalized",
    "glm4_moe", "glm4_moe_plain",
};

inline std::filesystem::path folder_of(const std::string& name) {
  return std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "tests" / "model" / "fixtures" / name;
}

/// A model, and what transformers recorded of it.
struct fixture {
  explicit fixture(const std::string& name)
      : engine(moe_engine::engine::load(folder_of(name))),
        expected(folder_of(name) / "expected.safetensors") {
    for (const std::int64_t token : expected.read_integers("tokens"))
      tokens.push_back(static_cast<std::int32_t>(token));
    length = static_cast<int>(tokens.size()) / 2;
    vocab = static_cast<std::size_t>(engine.config().vocab_size);
  }

  moe_engine::route_function fixed_k(int k) const {
    return moe_engine::route_with(
        adaptive_k::router(engine.config().gating, adaptive_k::k_policy::fixed(k)));
  }

  moe_engine::engine engine;
  moe_engine::safetensors_file expected;
  std::vector<std::int32_t> tokens;  // [2, length]
  int length = 0;
  std::size_t vocab = 0;
};

}  // namespace fixture_models
