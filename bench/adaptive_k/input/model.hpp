// Finding and loading the model to measure.
#pragma once

#include <adaptive_k/calibration/preset.hpp>
#include <filesystem>
#include <moe_engine/engine.hpp>
#include <optional>
#include <string>

#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/input/vocabulary.hpp"

namespace bench {

struct loaded_model {
  std::string name;  ///< as it calls itself, else that of its folder
  std::filesystem::path folder;
  moe_engine::engine engine;
  vocabulary words;
  std::string weight_dtype;        ///< of the experts, as stored: "F16", "BF16", "F32"
  adaptive_k::expert_sizes sizes;  ///< with the bytes per weight of that type
  std::optional<adaptive_k::preset> preset;
  std::string preset_note;  ///< why there is no preset
};

/// "" or "reference" is the project's own model; else a folder with config.json and safetensors.
/// Throws failure, or std::runtime_error from the engine, naming file and key.
loaded_model load_model(const std::string& name_or_folder);

/// `spec`, of this model; without one the default of its preset.
policy_choice choose_policy(const std::string& spec, const loaded_model& model);

/// The folder of the project's own model.
std::filesystem::path reference_folder();

}  // namespace bench
