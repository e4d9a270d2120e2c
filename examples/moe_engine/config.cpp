#include "config.hpp"

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <adaptive_k/status.hpp>
#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>

#include "config_settings.hpp"

namespace moe_engine {
namespace {

using adaptive_k::file_error;
using adaptive_k::detail::json;
using adaptive_k::detail::json_node;

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

bool flag(const json_node& root, const char* key, bool when_absent) {
  const auto found = given(root, key);
  return found ? found->as_bool() : when_absent;
}

struct rope {
  std::optional<float> theta;
  std::optional<double> rotated;  // the share of a head's channels
};

/// The rotated share; where all channels are, the model's class takes no other.
double read_rotated(const json_node& node, bool may_be_partial) {
  if (!may_be_partial && node.value() != json(1.0))
    node.refuse("1.0: anything else is not implemented");
  const double share = node.as_number();
  if (!(share > 0.0 && share <= 1.0)) node.refuse("a number above 0 and at most 1");
  return share;
}

/// Positions in an object of their own, as newer files have them beside or instead of rope_theta;
/// every other scheme than the default one is refused.
rope read_rope_object(const json_node& node, bool may_be_partial) {
  for (const char* key : {"rope_type", "type"})  // first: it is why there are other keys
    if (const auto type = given(node, key); type && type->value() != "default")
      type->refuse("\"default\": no other positions are implemented");
  node.expect_keys({"rope_type", "type", "rope_theta", "partial_rotary_factor"});
  rope result;
  if (const auto share = given(node, "partial_rotary_factor"))
    result.rotated = read_rotated(*share, may_be_partial);
  if (const auto theta = given(node, "rope_theta")) result.theta = read_theta(*theta);
  return result;
}

template <class Value>
void agree(const json_node& node, std::optional<Value>& value, const std::optional<Value>& found,
           const char* what) {
  if (value && found && *found != *value)
    node.refuse(std::string("the ") + what + " that the keys before it give, " +
                std::to_string(*value));
  if (found) value = found;
}

rope read_rope(const json_node& root, bool may_be_partial) {
  rope result;
  for (const char* key :
       {"rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters"}) {
    const auto node = given(root, key);
    if (!node) continue;
    rope found;
    if (std::string_view(key) == "rope_theta")
      found.theta = read_theta(*node);
    else if (std::string_view(key) == "partial_rotary_factor")
      found.rotated = read_rotated(*node, may_be_partial);
    else
      found = read_rope_object(*node, may_be_partial);
    agree(*node, result.theta, found.theta, "base frequency");
    agree(*node, result.rotated, found.rotated, "partial_rotary_factor");
  }
  if (!result.theta) {
    const char* expected = "a number in 1..1e15, or rope_parameters with it";
    root.at("rope_theta", expected).refuse(expected);  // missing, or null
  }
  return result;
}

constexpr int most_layers = 1 << 16;

void read_attention(const json_node& root, model_config& config) {
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
    throw file_error(root.file(), "head_dim",
                     std::to_string(config.head_dim) + ", expected an even number");
  const bool is_glm = config.model_type == "glm4_moe";
  const rope positions = read_rope(root, is_glm);
  config.rope_theta = *positions.theta;
  const double rotated = positions.rotated.value_or(is_glm ? 0.5 : 1.0);
  config.rotary_dim = static_cast<int>(config.head_dim * rotated);
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0)
    throw file_error(root.file(), "partial_rotary_factor",
                     std::to_string(rotated) + ", which rotates " +
                         std::to_string(config.rotary_dim) + " of head_dim = " +
                         std::to_string(config.head_dim) + " channels, expected an even number");
  if (config.model_type == "qwen2_moe") {
    config.qkv_bias = flag(root, "qkv_bias", true);
  } else if (config.model_type == "olmoe") {
    config.qkv_bias = config.o_bias = flag(root, "attention_bias", false);
    config.qk_norm = query_key_norm::all_heads;
    if (std::int64_t{config.num_heads} * config.head_dim != config.hidden_size)
      root.at("head_dim", "")
          .refuse("hidden_size / num_attention_heads: its norms have that width");
  } else if (is_glm) {
    config.qkv_bias = flag(root, "attention_bias", false);
    if (flag(root, "use_qk_norm", false)) config.qk_norm = query_key_norm::each_head;
  } else if (const auto window = given(root, "sliding_window")) {
    config.sliding_window = window->as_int(1, most);
  }
}

void read_experts(const json_node& root, const char* key, adaptive_k::gating& gating) {
  gating.num_experts = root.at(key, "an integer").as_int(1, adaptive_k::max_experts);
  gating.top_k = root.at("num_experts_per_tok", "an integer")
                     .as_int(1, (std::min)(adaptive_k::max_top_k, gating.num_experts));
}

void read_mixtral(const json_node& root, model_config& config) {
  read_experts(root, "num_local_experts", config.gating);
  config.gating.renormalize = true;
}

void read_olmoe(const json_node& root, model_config& config) {
  read_experts(root, "num_experts", config.gating);
  config.gating.renormalize = flag(root, "norm_topk_prob", false);
}

void read_qwen2_moe(const json_node& root, model_config& config) {
  read_experts(root, "num_experts", config.gating);
  config.gating.renormalize = flag(root, "norm_topk_prob", false);
  config.dense_intermediate_size = config.intermediate_size;
  config.intermediate_size = count(root, "moe_intermediate_size");
  config.num_shared_experts = 1;
  config.shared_intermediate_size = count(root, "shared_expert_intermediate_size");
  config.shared_expert_gate = true;
  const int step = count(root, "decoder_sparse_step", 1);
  for (int i = 0; i < config.num_layers; ++i)
    config.is_dense[static_cast<std::size_t>(i)] = (i + 1) % step == 0 ? 0 : 1;
  if (const auto listed = given(root, "mlp_only_layers")) {
    const std::size_t size = listed->expect_array("an array of layers");
    for (std::size_t i = 0; i < size; ++i)
      config.is_dense[static_cast<std::size_t>(listed->at(i).as_int(0, config.num_layers - 1))] = 1;
  }
  if (const auto types = given(root, "layer_types")) {
    const std::string expected =
        "an array of \"full_attention\", one for each of num_hidden_layers = " +
        std::to_string(config.num_layers);
    if (types->expect_array(expected.c_str()) != static_cast<std::size_t>(config.num_layers))
      types->refuse(expected);
    for (std::size_t i = 0; i < types->value().size(); ++i)
      if (types->at(i).value() != "full_attention")
        types->at(i).refuse("\"full_attention\": anything else is not implemented");
  }
}

void read_glm4_moe(const json_node& root, model_config& config) {
  adaptive_k::gating& gating = config.gating;
  read_experts(root, "n_routed_experts", gating);
  gating.kind = adaptive_k::gating_kind::sigmoid;
  gating.selection_bias = true;
  gating.renormalize = flag(root, "norm_topk_prob", true);
  if (const auto scale = given(root, "routed_scaling_factor"))
    gating.routed_scaling_factor = number_within(*scale, 1e-6, 1e5, "a number in 1e-6..1e5");
  gating.n_group = count(root, "n_group", 1);
  gating.topk_group = count(root, "topk_group", 1);
  config.dense_intermediate_size = config.intermediate_size;
  config.intermediate_size = count(root, "moe_intermediate_size");
  config.num_shared_experts = count(root, "n_shared_experts", 1);
  const std::int64_t shared = std::int64_t{config.num_shared_experts} * config.intermediate_size;
  if (shared > most) root.at("n_shared_experts", "").refuse("fewer for experts of that width");
  config.shared_intermediate_size = static_cast<int>(shared);
  int dense = 1;
  if (const auto first = given(root, "first_k_dense_replace"))
    dense = first->as_int(0, config.num_layers);
  std::fill_n(config.is_dense.begin(), (std::min)(dense, config.num_layers), std::uint8_t{1});
}

}  // namespace

const std::vector<std::string>& model_types() {
  static const std::vector<std::string> types = {"mixtral", "qwen2_moe", "olmoe", "glm4_moe"};
  return types;
}

std::string model_types_text() {
  std::string text;
  for (std::size_t i = 0; i < model_types().size(); ++i)
    text += (i == 0                          ? "\""
             : i + 1 == model_types().size() ? " or \""
                                             : ", \"") +
            model_types()[i] + '"';
  return text;
}

model_config parse_config(std::string_view text, const std::string& file) {
  const json_node root = adaptive_k::detail::parse_json(text, file);
  if (!root.value().is_object()) root.refuse("an object");
  const std::string expected_types = model_types_text();
  const json_node type = root.at("model_type", expected_types.c_str());
  if (std::find(model_types().begin(), model_types().end(), type.value()) == model_types().end())
    type.refuse(expected_types);

  model_config config;
  config.model_type = type.value().get<std::string>();
  check_settings(root, config.model_type);
  if (const auto name = given(root, "_name_or_path")) {
    if (!name->value().is_string()) name->refuse("a string");
    config.declared_name = name->value().get<std::string>();
  }
  config.vocab_size = count(root, "vocab_size");
  config.hidden_size = count(root, "hidden_size");
  config.intermediate_size = count(root, "intermediate_size");
  config.num_layers =
      root.at("num_hidden_layers", "an integer of 1 or more").as_int(1, most_layers);
  read_attention(root, config);
  config.max_positions = count(root, "max_position_embeddings");
  const char* expected_eps = "a number in 1e-30..1";
  config.rms_norm_eps =
      number_within(root.at("rms_norm_eps", expected_eps), 1e-30, 1.0, expected_eps);
  config.tie_word_embeddings = flag(root, "tie_word_embeddings", false);
  config.is_dense.assign(static_cast<std::size_t>(config.num_layers), 0);
  if (config.model_type == "mixtral")
    read_mixtral(root, config);
  else if (config.model_type == "qwen2_moe")
    read_qwen2_moe(root, config);
  else if (config.model_type == "olmoe")
    read_olmoe(root, config);
  else
    read_glm4_moe(root, config);
  config.num_moe_layers =
      static_cast<int>(std::count(config.is_dense.begin(), config.is_dense.end(), std::uint8_t{0}));
  if (config.num_moe_layers == 0)
    root.at("num_hidden_layers", "")
        .refuse("more: its other settings make all of them dense, and there is nothing to route");
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
