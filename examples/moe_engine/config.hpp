// What a HuggingFace config.json says about a model of one of the types that the engine runs.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace moe_engine {

/// What of a token's queries, and likewise of its keys, is brought to unit mean square.
enum class query_key_norm {
  none,
  each_head,  ///< every head on its own, with one weight for all
  all_heads,  ///< all of them together
};

struct model_config {
  std::string name;           ///< of the model's folder
  std::string declared_name;  ///< its own "_name_or_path"; "" where it has none
  std::string model_type;     ///< one of `model_types`
  int vocab_size = 0;
  int hidden_size = 0;                 ///< H
  int intermediate_size = 0;           ///< F, width of one routed expert
  int num_shared_experts = 0;          ///< that every token runs beside those it is routed to
  int shared_intermediate_size = 0;    ///< their width together
  bool shared_expert_gate = false;     ///< a sigmoid weighs their output
  int dense_intermediate_size = 0;     ///< width of the layers that are not MoE
  int num_layers = 0;                  ///< the dense ones too
  int num_moe_layers = 0;              ///< 1 or more; routing counts these alone, from 0
  std::vector<std::uint8_t> is_dense;  ///< [num_layers]
  int num_heads = 0;
  int num_kv_heads = 0;  ///< divides num_heads; fewer is grouped-query attention
  int head_dim = 0;      ///< D, even
  int rotary_dim = 0;    ///< the first channels of a head, which are rotated; even
  query_key_norm qk_norm = query_key_norm::none;
  bool qkv_bias = false;
  bool o_bias = false;  ///< of attention's output
  int max_positions = 0;
  int sliding_window = 0;  ///< positions that attention looks back, itself included; 0 is all
  float rms_norm_eps = 0.0f;
  float rope_theta = 0.0f;
  bool tie_word_embeddings = false;
  adaptive_k::gating gating;  ///< the model's own
};

/// "mixtral", ...: the values of model_type that the engine runs.
const std::vector<std::string>& model_types();
/// The same in words, quoted: what a message says was expected.
std::string model_types_text();

/// Reads `folder`/config.json. A setting that the engine does not know, or knows and does not
/// implement, is refused, so that no other model is computed than the file says; one that is left
/// out has the default of the model's class in transformers. Throws std::runtime_error naming file,
/// key and value.
model_config read_config(const std::filesystem::path& folder);

/// The same of the file's text; messages call it `file`. Leaves `name` empty.
model_config parse_config(std::string_view text, const std::string& file);

}  // namespace moe_engine
