// From a model's folder to the engine: every tensor that is stored is read, or refused by name.
#include <adaptive_k/calibration/format/json_parse.hpp>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "checkpoint.hpp"
#include "engine_parts.hpp"

namespace moe_engine {
namespace {

/// What checkpoints of a model type call the parts of a layer.
struct tensor_names {
  const char* moe;
  const char* gate;
  const char* up;
  const char* down;
  const char* shared;  // null where there are no shared experts
};

tensor_names names_of(const model_config& config) {
  if (config.model_type == "mixtral") return {"block_sparse_moe.", "w1", "w3", "w2", nullptr};
  return {"mlp.", "gate_proj", "up_proj", "down_proj",
          config.model_type == "qwen2_moe"  ? "shared_expert."
          : config.model_type == "glm4_moe" ? "shared_experts."
                                            : nullptr};
}

std::string name_of_layer(int index) {
  return "model.layers." + std::to_string(index) + ".";
}

/// gate, up [width, H] and down [H, width].
struct mlp_weights {
  std::vector<float> gate, up, down;
};

mlp_weights read_mlp(const checkpoint& weights, const std::string& prefix,
                     const model_config& config, std::int64_t width) {
  const tensor_names names = names_of(config);
  const std::int64_t hidden = config.hidden_size;
  return {weights.read(prefix + names.gate + ".weight", {width, hidden}),
          weights.read(prefix + names.up + ".weight", {width, hidden}),
          weights.read(prefix + names.down + ".weight", {hidden, width})};
}

gated_mlp load_mlp(const checkpoint& weights, const std::string& prefix, const model_config& config,
                   int width) {
  const mlp_weights m = read_mlp(weights, prefix, config, width);
  return gated_mlp(config.hidden_size, width, m.gate.data(), m.up.data(), m.down.data());
}

moe_layer load_moe(const checkpoint& weights, const std::string& prefix,
                   const model_config& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t num_experts = config.gating.num_experts;
  moe_layer moe(config.hidden_size, config.intermediate_size, config.gating);
  const auto router = weights.read(prefix + "gate.weight", {num_experts, hidden});
  std::vector<float> bias;
  if (config.gating.selection_bias)
    bias = weights.read(prefix + "gate.e_score_correction_bias", {num_experts});
  moe.set_router(router.data(), bias.empty() ? nullptr : bias.data());
  parallel_for(num_experts, [&](std::int64_t e) {
    const mlp_weights m = read_mlp(weights, prefix + "experts." + std::to_string(e) + ".", config,
                                   config.intermediate_size);
    moe.set_expert(static_cast<int>(e), m.gate.data(), m.up.data(), m.down.data());
  });
  if (config.shared_intermediate_size == 0) return moe;
  gated_mlp shared =
      load_mlp(weights, prefix + names_of(config).shared, config, config.shared_intermediate_size);
  if (config.shared_expert_gate)
    moe.set_shared_experts(std::move(shared),
                           weights.read(prefix + "shared_expert_gate.weight", {1, hidden}).data());
  else
    moe.set_shared_experts(std::move(shared));
  return moe;
}

[[noreturn]] void refuse_tensor(const checkpoint& weights, const std::string& name,
                                const std::string& reason) {
  throw adaptive_k::file_error(
      weights.source(), "tensor \"" + adaptive_k::detail::printable(name, 150) + '"', reason);
}

/// A model that is cut short by its config.json is another model.
void refuse_layers_beyond(const checkpoint& weights, int num_layers) {
  const std::string prefix = "model.layers.";
  for (const std::string& name : weights.names()) {
    if (name.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string digits =
        name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
    const bool is_number = !digits.empty() && digits.size() < 9 &&
                           digits.find_first_not_of("0123456789") == std::string::npos;
    if (is_number && std::atoi(digits.c_str()) >= num_layers)
      refuse_tensor(weights, name,
                    "stored, but num_hidden_layers is " + std::to_string(num_layers) +
                        " in config.json: expected the layers that are stored");
  }
}

/// Every stored tensor was read, or is one that cannot matter.
void account_for_tensors(const checkpoint& weights, const std::string& model_type,
                         std::vector<std::string>& warnings) {
  const std::string frequencies = ".self_attn.rotary_emb.inv_freq";
  std::size_t num_frequencies = 0;
  const std::vector<std::string> unread = weights.unread();
  for (const std::string& name : unread) {
    const bool is_frequency =
        name.size() > frequencies.size() &&
        name.compare(name.size() - frequencies.size(), frequencies.size(), frequencies) == 0;
    if (!is_frequency)
      refuse_tensor(weights, name,
                    "stored, but the engine does not read it, expected the tensors of a " +
                        model_type + " model as config.json describes it (" +
                        std::to_string(unread.size()) + " are unread)");
    ++num_frequencies;
  }
  if (num_frequencies != 0)
    warnings.push_back(weights.source() + ": " + std::to_string(num_frequencies) + " tensors *" +
                       frequencies + " are not read: the engine computes them from rope_theta");
}

/// The type that the experts are stored in; of the first one where they differ.
std::string read_expert_dtype(const checkpoint& weights, const model_config& config,
                              std::vector<std::string>& warnings) {
  const tensor_names names = names_of(config);
  int first_moe = 0;
  while (config.is_dense[static_cast<std::size_t>(first_moe)] != 0) ++first_moe;
  const std::string experts = std::string(".") + names.moe + "experts.";
  const std::string first = weights.dtype("model.layers." + std::to_string(first_moe) + experts +
                                          "0." + names.gate + ".weight");
  for (const std::string& name : weights.names())
    if (name.find(experts) != std::string::npos && weights.dtype(name) != first) {
      warnings.push_back(weights.source() + ": experts are stored as " + first + " and as " +
                         weights.dtype(name) + ": sizes in bytes are those of " + first);
      break;
    }
  return first;
}

attention_layer load_attention(const checkpoint& weights, const std::string& prefix,
                               const model_config& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_width = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv_width = std::int64_t{config.num_kv_heads} * config.head_dim;
  attention_weights w;
  const auto append = [](std::vector<float>& target, const std::vector<float>& values) {
    target.insert(target.end(), values.begin(), values.end());
  };
  const std::pair<const char*, std::int64_t> parts[] = {
      {"q_proj", q_width}, {"k_proj", kv_width}, {"v_proj", kv_width}};
  for (const auto& [name, width] : parts) {
    append(w.qkv, weights.read(prefix + name + ".weight", {width, hidden}));
    if (config.qkv_bias) append(w.qkv_bias, weights.read(prefix + name + ".bias", {width}));
  }
  if (config.qk_norm != query_key_norm::none) {
    const bool all = config.qk_norm == query_key_norm::all_heads;
    w.q_norm = weights.read(prefix + "q_norm.weight", {all ? q_width : config.head_dim});
    w.k_norm = weights.read(prefix + "k_norm.weight", {all ? kv_width : config.head_dim});
  }
  w.o = weights.read(prefix + "o_proj.weight", {hidden, q_width});
  if (config.o_bias) w.o_bias = weights.read(prefix + "o_proj.bias", {hidden});
  return attention_layer(config, std::move(w));
}

layer load_layer(const checkpoint& weights, const model_config& config, int index, int moe_index) {
  const std::int64_t hidden = config.hidden_size;
  const std::string prefix = name_of_layer(index);
  layer result{weights.read(prefix + "input_layernorm.weight", {hidden}),
               weights.read(prefix + "post_attention_layernorm.weight", {hidden}),
               load_attention(weights, prefix + "self_attn.", config),
               moe_index,
               std::nullopt,
               std::nullopt};
  if (config.is_dense[static_cast<std::size_t>(index)] != 0)
    result.dense = load_mlp(weights, prefix + "mlp.", config, config.dense_intermediate_size);
  else
    result.moe = load_moe(weights, prefix + names_of(config).moe, config);
  return result;
}

}  // namespace

engine engine::load(const std::filesystem::path& folder) {
  auto parts = std::make_unique<implementation>();
  const model_config& config = parts->config = read_config(folder);
  const checkpoint weights(folder);
  refuse_layers_beyond(weights, config.num_layers);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t vocab = config.vocab_size;
  parts->embeddings = weights.read("model.embed_tokens.weight", {vocab, hidden});
  int moe_index = 0;
  for (int i = 0; i < config.num_layers; ++i) {
    parts->layers.push_back(load_layer(weights, config, i, moe_index));
    if (parts->layers.back().moe) ++moe_index;
  }
  parts->norm = weights.read("model.norm.weight", {hidden});
  const std::string head_name = "lm_head.weight";
  const bool is_tied = config.tie_word_embeddings;
  const auto head = is_tied && !weights.contains(head_name)
                        ? parts->embeddings
                        : weights.read(head_name, {vocab, hidden});
  if (is_tied && head != parts->embeddings)
    refuse_tensor(weights, head_name,
                  "differs from model.embed_tokens.weight, expected the same: "
                  "tie_word_embeddings is true in config.json");
  account_for_tensors(weights, config.model_type, parts->warnings);
  parts->expert_dtype = read_expert_dtype(weights, config, parts->warnings);
  parts->head = dense(head.data(), config.vocab_size, config.hidden_size);
  return engine(std::move(parts));
}

}  // namespace moe_engine
