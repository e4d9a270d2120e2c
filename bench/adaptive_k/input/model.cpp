#include "bench/adaptive_k/input/model.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/json_parse.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>
#include <vector>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* reference_name = "reference";
constexpr const char* reference_preset = "reference-32x8";

bool is_reference(const fs::path& folder) {
  std::error_code error;
  return fs::equivalent(folder, reference_folder(), error);
}

double bytes_of(const std::string& dtype) {
  if (dtype == "F64") return 8.0;
  if (dtype == "F32") return 4.0;
  if (dtype == "F16" || dtype == "BF16") return 2.0;
  return 1.0;  // the 8-bit types
}

/// Refuses a model that the engine cannot run, and says how it can still be measured.
[[noreturn]] void refuse_kind(const fs::path& file, const std::string& what) {
  throw failure(fmt::format(
      "--model: {}: {}, and the engine here runs {} from safetensors alone. "
      "What works: record the router's logits where the model runs (record_trace.py beside the "
      "reference model does it with transformers), then `adaptive-k benchmark --trace FILE` for "
      "what a policy saves and `adaptive-k calibrate --trace FILE` for a policy",
      file.string(), what, moe_engine::model_types_text()));
}

bool is_gguf(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  char magic[4] = {};
  stream.read(magic, sizeof magic);
  return stream && std::string(magic, sizeof magic) == "GGUF";
}

/// Refuses a model of another format or architecture.
void check_kind(const fs::path& folder) {
  std::error_code error;
  const fs::path config = folder / "config.json";
  if (!fs::exists(config, error)) {
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error))
      if (entry->is_regular_file(error) && is_gguf(entry->path()))
        refuse_kind(entry->path(), "is a GGUF file");
    return;  // the engine names what is missing
  }
  try {
    const auto json = adaptive_k::detail::parse_json_text(
        adaptive_k::detail::read_bounded_file(config, adaptive_k::detail::json_limits().bytes),
        config.string());
    if (!json.is_object()) return;
    const auto type = json.find("model_type");
    if (type != json.end() && type->is_string() &&
        std::find(moe_engine::model_types().begin(), moe_engine::model_types().end(), *type) ==
            moe_engine::model_types().end())
      refuse_kind(config, fmt::format("model_type is '{}'",
                                      adaptive_k::detail::printable(type->get<std::string>(), 60)));
  } catch (const adaptive_k::file_error&) {
    // The engine says what is wrong with the file.
  }
}

fs::path folder_of(const std::string& name) {
  if (name.empty() || name == reference_name || name == reference_preset) return reference_folder();
  std::error_code error;
  if (fs::is_directory(name, error)) {
    check_kind(name);
    return name;
  }
  if (fs::is_regular_file(name, error)) {
    if (is_gguf(name)) refuse_kind(name, "is a GGUF file");
    throw failure(fmt::format("--model: {}: is a file, expected the folder that holds it", name));
  }
  std::string known;
  try {
    known = adaptive_k::load_preset(name).name;
  } catch (const adaptive_k::preset_error&) {
    throw failure(
        fmt::format("--model: '{}', expected a folder with config.json and "
                    "model.safetensors, or '{}'",
                    name, reference_name));
  }
  throw failure(
      fmt::format("--model: '{}' is a preset, and presets have no weights: give the "
                  "model's folder. `adaptive-k speed --shape {}` measures its shape",
                  name, known));
}

}  // namespace

fs::path reference_folder() {
  return ADAPTIVE_K_REFERENCE_MODEL_DIR;
}

loaded_model load_model(const std::string& name_or_folder) {
  const fs::path folder = folder_of(name_or_folder);
  moe_engine::engine engine = moe_engine::engine::load(folder);
  const fs::path tokenizer = folder / "tokenizer.json";
  std::error_code error;
  vocabulary words(engine.config().vocab_size,
                   fs::exists(tokenizer, error) ? tokenizer : fs::path());
  loaded_model model{"", folder, std::move(engine), std::move(words), "", {}, {}, {}};
  model.weight_dtype = model.engine.expert_dtype();
  for (const std::string& warning : model.engine.warnings())
    std::fprintf(stderr, "adaptive-k: warning: %s\n", warning.c_str());
  const moe_engine::model_config& config = model.engine.config();
  model.name = config.name;
  const std::string& declared = config.declared_name;
  std::vector<std::string> names = {declared, fs::path(declared).filename().string()};
  if (is_reference(folder)) {
    names.emplace_back(reference_preset);
    model.name = reference_preset;
  } else {
    names.push_back(config.name);
  }
  if (!declared.empty()) model.name = declared;
  names.erase(std::unique(names.begin(), names.end()), names.end());
  model.sizes.hidden = config.hidden_size;
  model.sizes.intermediate = config.intermediate_size;
  model.sizes.bytes_per_weight = bytes_of(model.weight_dtype);
  model.preset = find_preset(names, config.gating, model.preset_note);
  return model;
}

policy_choice choose_policy(const std::string& spec, const loaded_model& model) {
  const moe_engine::model_config& config = model.engine.config();
  return choose_policy(spec, config.gating, config.num_moe_layers, model.preset);
}

}  // namespace bench
