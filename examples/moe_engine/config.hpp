// What a HuggingFace config.json of model_type "mixtral" says about a model.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <filesystem>
#include <string>
#include <string_view>

namespace moe_engine {

struct model_config {
  std::string name;           ///< of the model's folder
  std::string declared_name;  ///< its own "_name_or_path"; "" where it has none
  int vocab_size = 0;
  int hidden_size = 0;        ///< H
  int intermediate_size = 0;  ///< F, width of one expert
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;  ///< divides num_heads; fewer is grouped-query attention
  int head_dim = 0;      ///< D, even
  int max_positions = 0;
  int sliding_window = 0;  ///< positions that attention looks back, itself included; 0 is all
  float rms_norm_eps = 0.0f;
  float rope_theta = 0.0f;
  bool tie_word_embeddings = false;
  adaptive_k::gating gating;  ///< softmax, renormalised: Mixtral's own
};

/// Reads `folder`/config.json. A setting that the engine does not know, or knows and does not
/// implement, is refused, so that no other model is computed than the file says. Throws
/// std::runtime_error naming file, key and value.
model_config read_config(const std::filesystem::path& folder);

/// The same of the file's text; messages call it `file`. Leaves `name` empty.
model_config parse_config(std::string_view text, const std::string& file);

}  // namespace moe_engine
