#include "config.hpp"

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <adaptive_k/status.hpp>
#include <algorithm>
#include <initializer_list>
#include <optional>

namespace moe_engine {
namespace {

using adaptive_k::file_error;
using adaptive_k::detail::json;
using adaptive_k::detail::json_node;

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

const setting* find_setting(const std::string& key) {
  for (const setting& s : mixtral_settings)
    if (key == s.key) return &s;
  for (const setting& s : common_settings)
    if (key == s.key) return &s;
  return nullptr;
}

void check_settings(const json_node& root) {
  for (const auto& [key, value] : root.value().items()) {
    // Names that begin with _ are the library's notes to itself; _name_or_path is read.
    if (value.is_null() || (!key.empty() && key.front() == '_')) continue;
    const setting* known = find_setting(key);
    if (known == nullptr)
      throw file_error(root.file(), key,
                       adaptive_k::detail::shown_value(value) +
                           ", expected a setting that the engine knows, or null: what it would "
                           "change is not computed");
    if (known != nullptr && known->use == setting::fixed && value != json::parse(known->value))
      throw file_error(root.file(), key,
                       adaptive_k::detail::shown_value(value) + ", expected " + known->value +
                           ": anything else is not implemented");
  }
}

/// Null is HuggingFace's way to leave a setting out.
std::optional<json_node> given(const json_node& node, const char* key) {
  auto found = node.find(key);
  if (found && found->value().is_null()) return std::nullopt;
  return found;
}

constexpr int most = 1 << 28;

int count(const json_node& node, const char* key) {
  return node.at(key, "an integer of 1 or more").as_int(1, most);
}

int count(const json_node& node, const char* key, int when_absent) {
  const auto found = given(node, key);
  return found ? found->as_int(1, most) : when_absent;
}

float number_within(const json_node& node, double least, double greatest, const char* expected) {
  if (!node.value().is_number()) node.refuse(expected);
  const double value = node.as_number();
  if (!(value >= least && value <= greatest)) node.refuse(expected);
  return static_cast<float>(value);
}

float read_theta(const json_node& node) {
  return number_within(node, 1.0, 1e15, "a number in 1..1e15");
}

/// The base frequency in an object of its own, as newer files have it beside or instead of
/// rope_theta; every other scheme than the default one is refused.
std::optional<float> theta_of_object(const json_node& node) {
  for (const char* key : {"rope_type", "type"})  // first: it is why there are other keys
    if (const auto type = given(node, key); type && type->value() != "default")
      type->refuse("\"default\": no other positions are implemented");
  node.expect_keys({"rope_type", "type", "rope_theta", "partial_rotary_factor"});
  if (const auto factor = given(node, "partial_rotary_factor");
      factor && factor->value() != json(1.0))
    factor->refuse("1.0: anything else is not implemented");
  const auto theta = given(node, "rope_theta");
  return theta ? std::optional<float>(read_theta(*theta)) : std::nullopt;
}

float read_rope(const json_node& root) {
  std::optional<float> theta;
  for (const char* key : {"rope_theta", "rope_scaling", "rope_parameters"}) {
    const auto node = given(root, key);
    if (!node) continue;
    const std::optional<float> found = std::string(key) == "rope_theta"
                                           ? std::optional<float>(read_theta(*node))
                                           : theta_of_object(*node);
    if (theta && found && *found != *theta)
      node->refuse("the base frequency that the keys before it give, " + std::to_string(*theta));
    if (found) theta = found;
  }
  if (!theta) {
    const char* expected = "a number in 1..1e15, or rope_parameters with it";
    root.at("rope_theta", expected).refuse(expected);  // missing, or null
  }
  return *theta;
}

}  // namespace

model_config parse_config(std::string_view text, const std::string& file) {
  const json_node root = adaptive_k::detail::parse_json(text, file);
  if (!root.value().is_object()) root.refuse("an object");
  const json_node type = root.at("model_type", "\"mixtral\"");
  if (type.value() != "mixtral") type.refuse("\"mixtral\"");
  check_settings(root);

  model_config config;
  if (const auto name = given(root, "_name_or_path")) {
    if (!name->value().is_string()) name->refuse("a string");
    config.declared_name = name->value().get<std::string>();
  }
  config.vocab_size = count(root, "vocab_size");
  config.hidden_size = count(root, "hidden_size");
  config.intermediate_size = count(root, "intermediate_size");
  config.num_layers = count(root, "num_hidden_layers");
  config.num_heads = count(root, "num_attention_heads");
  config.num_kv_heads = count(root, "num_key_value_heads", config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0)
    root.at("num_key_value_heads", "")
        .refuse("a divisor of num_attention_heads = " + std::to_string(config.num_heads));
  if (!given(root, "head_dim") && config.hidden_size % config.num_heads != 0)
    root.at("num_attention_heads", "")
        .refuse("a divisor of hidden_size = " + std::to_string(config.hidden_size));
  config.head_dim = count(root, "head_dim", config.hidden_size / config.num_heads);
  if (config.head_dim % 2 != 0)
    throw file_error(file, "head_dim",
                     std::to_string(config.head_dim) + ", expected an even number");
  config.max_positions = count(root, "max_position_embeddings");
  config.sliding_window = count(root, "sliding_window", 0);
  const char* expected_eps = "a number in 1e-30..1";
  config.rms_norm_eps =
      number_within(root.at("rms_norm_eps", expected_eps), 1e-30, 1.0, expected_eps);
  config.rope_theta = read_rope(root);
  if (const auto tie = given(root, "tie_word_embeddings"))
    config.tie_word_embeddings = tie->as_bool();
  config.gating.num_experts =
      root.at("num_local_experts", "an integer").as_int(1, adaptive_k::max_experts);
  config.gating.top_k =
      root.at("num_experts_per_tok", "an integer")
          .as_int(1, (std::min)(adaptive_k::max_top_k, config.gating.num_experts));
  config.gating.renormalize = true;
  const adaptive_k::status valid = adaptive_k::validate(config.gating);
  if (!valid.ok()) throw file_error(file, "", valid.message());
  return config;
}

model_config read_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  const adaptive_k::detail::json_limits limits;
  model_config config =
      parse_config(adaptive_k::detail::read_bounded_file(path, limits.bytes), path.string());
  const auto absolute = std::filesystem::weakly_canonical(folder);
  config.name = (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
  return config;
}

}  // namespace moe_engine
