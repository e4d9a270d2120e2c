#include "config_settings.hpp"

#include <cstddef>

namespace moe_engine {

using adaptive_k::file_error;
using adaptive_k::detail::json;
using adaptive_k::detail::json_node;

namespace {

/// How the engine takes a setting of config.json. One that is in no table is refused, unless it is
/// null, which asks for nothing.
struct setting {
  const char* key;
  /// read: by `parse_config`. inert: says nothing about what a forward pass computes.
  /// fixed: implemented with `value` (JSON) alone.
  enum { read, inert, fixed } use;
  const char* value = nullptr;
};

/// Of every model type: what HuggingFace's PreTrainedConfig writes, and other programs add.
constexpr setting common_settings[] = {
    {"model_type", setting::read},
    {"_name_or_path", setting::read},
    {"vocab_size", setting::read},
    {"hidden_size", setting::read},
    {"intermediate_size", setting::read},
    {"num_hidden_layers", setting::read},
    {"num_attention_heads", setting::read},
    {"num_key_value_heads", setting::read},
    {"head_dim", setting::read},
    {"max_position_embeddings", setting::read},
    {"rms_norm_eps", setting::read},
    {"rope_theta", setting::read},
    {"rope_scaling", setting::read},
    {"rope_parameters", setting::read},
    {"tie_word_embeddings", setting::read},
    {"hidden_act", setting::fixed, "\"silu\""},
    {"attention_bias", setting::fixed, "false"},
    {"qkv_bias", setting::fixed, "false"},
    {"mlp_bias", setting::fixed, "false"},
    {"use_bias", setting::fixed, "false"},
    {"partial_rotary_factor", setting::fixed, "1.0"},
    {"rotary_pct", setting::fixed, "1.0"},
    {"quantization_config", setting::fixed, "null"},
    {"num_shared_experts", setting::fixed, "0"},
    {"n_shared_experts", setting::fixed, "0"},
    {"shared_expert_intermediate_size", setting::fixed, "0"},
    {"pretraining_tp", setting::fixed, "1"},
    {"pruned_heads", setting::fixed, "{}"},
    {"chunk_size_feed_forward", setting::fixed, "0"},
    {"is_causal", setting::fixed, "true"},
    {"is_encoder_decoder", setting::fixed, "false"},
    {"add_cross_attention", setting::fixed, "false"},
    {"tie_encoder_decoder", setting::fixed, "false"},
    {"use_qk_norm", setting::fixed, "false"},
    {"is_decoder", setting::inert},  // the model type says it
    {"unsloth_version", setting::inert},
    {"unsloth_fixed", setting::inert},
    {"torchscript", setting::inert},
    {"use_bfloat16", setting::inert},
    {"tf_legacy_loss", setting::inert},
    {"transformers_version", setting::inert},
    {"torch_dtype", setting::inert},  // tensors say their own
    {"dtype", setting::inert},
    {"auto_map", setting::inert},
    {"bos_token_id", setting::inert},
    {"eos_token_id", setting::inert},
    {"pad_token_id", setting::inert},
    {"sep_token_id", setting::inert},
    {"decoder_start_token_id", setting::inert},
    {"tokenizer_class", setting::inert},
    {"prefix", setting::inert},
    {"id2label", setting::inert},
    {"label2id", setting::inert},
    {"problem_type", setting::inert},
    {"finetuning_task", setting::inert},
    {"task_specific_params", setting::inert},
    {"initializer_range", setting::inert},
    {"attention_dropout", setting::inert},  // training alone drops
    {"hidden_dropout", setting::inert},
    {"use_cache", setting::inert},
    {"return_dict", setting::inert},
    {"output_attentions", setting::inert},
    {"output_hidden_states", setting::inert},
    {"output_router_logits", setting::inert},
    {"router_aux_loss_coef", setting::inert},
    // What old files hold for sampling.
    {"do_sample", setting::inert},
    {"early_stopping", setting::inert},
    {"output_scores", setting::inert},
    {"return_dict_in_generate", setting::inert},
    {"remove_invalid_values", setting::inert},
    {"max_length", setting::inert},
    {"min_length", setting::inert},
    {"temperature", setting::inert},
    {"top_k", setting::inert},
    {"top_p", setting::inert},
    {"typical_p", setting::inert},
    {"num_beams", setting::inert},
    {"num_beam_groups", setting::inert},
    {"num_return_sequences", setting::inert},
    {"length_penalty", setting::inert},
    {"repetition_penalty", setting::inert},
    {"no_repeat_ngram_size", setting::inert},
    {"encoder_no_repeat_ngram_size", setting::inert},
    {"diversity_penalty", setting::inert},
};

constexpr setting mixtral_settings[] = {
    {"num_local_experts", setting::read},
    {"num_experts_per_tok", setting::read},
    {"sliding_window", setting::read},
    {"router_jitter_noise", setting::inert},  // training alone adds it
    {"architectures", setting::fixed, "[\"MixtralForCausalLM\"]"},
    {"norm_topk_prob", setting::fixed, "true"},
};

constexpr setting qwen2_moe_settings[] = {
    {"num_experts", setting::read},
    {"num_experts_per_tok", setting::read},
    {"moe_intermediate_size", setting::read},
    {"shared_expert_intermediate_size", setting::read},
    {"norm_topk_prob", setting::read},
    {"decoder_sparse_step", setting::read},
    {"mlp_only_layers", setting::read},
    {"qkv_bias", setting::read},
    {"layer_types", setting::read},
    {"use_sliding_window", setting::fixed, "false"},
    {"sliding_window", setting::inert},  // while use_sliding_window is false
    {"max_window_layers", setting::inert},
    {"architectures", setting::fixed, "[\"Qwen2MoeForCausalLM\"]"},
};

constexpr setting olmoe_settings[] = {
    {"num_experts", setting::read},
    {"num_experts_per_tok", setting::read},
    {"norm_topk_prob", setting::read},
    {"attention_bias", setting::read},
    {"clip_qkv", setting::fixed, "null"},
    {"architectures", setting::fixed, "[\"OlmoeForCausalLM\"]"},
};

constexpr setting glm4_moe_settings[] = {
    {"n_routed_experts", setting::read},
    {"num_experts_per_tok", setting::read},
    {"moe_intermediate_size", setting::read},
    {"n_shared_experts", setting::read},
    {"first_k_dense_replace", setting::read},
    {"norm_topk_prob", setting::read},
    {"routed_scaling_factor", setting::read},
    {"n_group", setting::read},
    {"topk_group", setting::read},
    {"partial_rotary_factor", setting::read},
    {"attention_bias", setting::read},
    {"use_qk_norm", setting::read},
    {"num_nextn_predict_layers", setting::fixed, "0"},
    {"scoring_func", setting::fixed, "\"sigmoid\""},
    {"topk_method", setting::fixed, "\"noaux_tc\""},
    {"architectures", setting::fixed, "[\"Glm4MoeForCausalLM\"]"},
};

template <std::size_t N>
const setting* find_in(const setting (&table)[N], const std::string& key) {
  for (const setting& s : table)
    if (key == s.key) return &s;
  return nullptr;
}

/// The type's own word on a setting goes before the common one.
const setting* find_setting(const std::string& model_type, const std::string& key) {
  const setting* own = model_type == "mixtral"     ? find_in(mixtral_settings, key)
                       : model_type == "qwen2_moe" ? find_in(qwen2_moe_settings, key)
                       : model_type == "olmoe"     ? find_in(olmoe_settings, key)
                       : model_type == "glm4_moe"  ? find_in(glm4_moe_settings, key)
                                                   : nullptr;
  return own != nullptr ? own : find_in(common_settings, key);
}

}  // namespace

void check_settings(const json_node& root, const std::string& model_type) {
  for (const auto& [key, value] : root.value().items()) {
    // Names that begin with _ are the library's notes to itself; _name_or_path is read.
    if (value.is_null() || (!key.empty() && key.front() == '_')) continue;
    const setting* known = find_setting(model_type, key);
    if (known == nullptr)
      throw file_error(root.file(), key,
                       adaptive_k::detail::shown_value(value) +
                           ", expected a setting that the engine knows, or null: what it would "
                           "change is not computed");
    if (known->use == setting::fixed && value != json::parse(known->value))
      throw file_error(root.file(), key,
                       adaptive_k::detail::shown_value(value) + ", expected " + known->value +
                           ": anything else is not implemented");
  }
}

}  // namespace moe_engine
