#include "engine.hpp"

#include <Eigen/Core>
#include <adaptive_k/calibration/format/json_parse.hpp>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "checkpoint.hpp"
#include "engine_parts.hpp"
#include "parallel.hpp"

namespace moe_engine {
namespace {

using vector_map = Eigen::Map<Eigen::VectorXf>;
using const_vector_map = Eigen::Map<const Eigen::VectorXf>;

void append(std::vector<float>& target, const std::vector<float>& values) {
  target.insert(target.end(), values.begin(), values.end());
}

moe_layer load_moe(const checkpoint& weights, const std::string& prefix,
                   const model_config& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t width = config.intermediate_size;
  moe_layer moe(config.hidden_size, config.intermediate_size, config.gating);
  moe.set_router(weights.read(prefix + "gate.weight", {config.gating.num_experts, hidden}).data());
  parallel_for(config.gating.num_experts, [&](std::int64_t e) {
    const std::string expert = prefix + "experts." + std::to_string(e) + ".";
    const auto w1 = weights.read(expert + "w1.weight", {width, hidden});
    const auto w3 = weights.read(expert + "w3.weight", {width, hidden});
    const auto w2 = weights.read(expert + "w2.weight", {hidden, width});
    moe.set_expert(static_cast<int>(e), w1.data(), w3.data(), w2.data());
  });
  return moe;
}

std::string name_of_layer(int index) {
  return "model.layers." + std::to_string(index) + ".";
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
void account_for_tensors(const checkpoint& weights, std::vector<std::string>& warnings) {
  const std::string frequencies = ".self_attn.rotary_emb.inv_freq";
  std::size_t num_frequencies = 0;
  const std::vector<std::string> unread = weights.unread();
  for (const std::string& name : unread) {
    const bool is_frequency =
        name.size() > frequencies.size() &&
        name.compare(name.size() - frequencies.size(), frequencies.size(), frequencies) == 0;
    if (!is_frequency)
      refuse_tensor(weights, name,
                    "stored, but the engine does not read it, expected the tensors of a Mixtral "
                    "model alone (" +
                        std::to_string(unread.size()) + " are unread)");
    ++num_frequencies;
  }
  if (num_frequencies != 0)
    warnings.push_back(weights.source() + ": " + std::to_string(num_frequencies) + " tensors *" +
                       frequencies + " are not read: the engine computes them from rope_theta");
}

/// The type that the experts are stored in; of the first one where they differ.
std::string read_expert_dtype(const checkpoint& weights, std::vector<std::string>& warnings) {
  const std::string first =
      weights.dtype(name_of_layer(0) + "block_sparse_moe.experts.0.w1.weight");
  for (const std::string& name : weights.names())
    if (name.find(".block_sparse_moe.experts.") != std::string::npos &&
        weights.dtype(name) != first) {
      warnings.push_back(weights.source() + ": experts are stored as " + first + " and as " +
                         weights.dtype(name) + ": sizes in bytes are those of " + first);
      break;
    }
  return first;
}

layer load_layer(const checkpoint& weights, const model_config& config, int index) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_width = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv_width = std::int64_t{config.num_kv_heads} * config.head_dim;
  const std::string prefix = name_of_layer(index);
  const std::string attention = prefix + "self_attn.";
  auto qkv = weights.read(attention + "q_proj.weight", {q_width, hidden});
  append(qkv, weights.read(attention + "k_proj.weight", {kv_width, hidden}));
  append(qkv, weights.read(attention + "v_proj.weight", {kv_width, hidden}));
  const auto o = weights.read(attention + "o_proj.weight", {hidden, q_width});
  return {weights.read(prefix + "input_layernorm.weight", {hidden}),
          weights.read(prefix + "post_attention_layernorm.weight", {hidden}),
          attention_layer(config, qkv.data(), o.data()),
          load_moe(weights, prefix + "block_sparse_moe.", config)};
}

}  // namespace

engine::engine(std::unique_ptr<implementation> parts) : parts_(std::move(parts)) {}
engine::engine(engine&&) noexcept = default;
engine& engine::operator=(engine&&) noexcept = default;
engine::~engine() = default;

const model_config& engine::config() const noexcept {
  return parts_->config;
}

const std::string& engine::expert_dtype() const noexcept {
  return parts_->expert_dtype;
}

const std::vector<std::string>& engine::warnings() const noexcept {
  return parts_->warnings;
}

engine engine::load(const std::filesystem::path& folder) {
  auto parts = std::make_unique<implementation>();
  const model_config& config = parts->config = read_config(folder);
  const checkpoint weights(folder);
  refuse_layers_beyond(weights, config.num_layers);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t vocab = config.vocab_size;
  parts->embeddings = weights.read("model.embed_tokens.weight", {vocab, hidden});
  for (int i = 0; i < config.num_layers; ++i)
    parts->layers.push_back(load_layer(weights, config, i));
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
  account_for_tensors(weights, parts->warnings);
  parts->expert_dtype = read_expert_dtype(weights, parts->warnings);
  parts->head = dense(head.data(), config.vocab_size, config.hidden_size);
  return engine(std::move(parts));
}

void engine::implementation::read_tokens(const std::int32_t* tokens, int num_sequences,
                                         int length) {
  if (num_sequences < 0 || length < 0 || length > config.max_positions) {
    throw std::runtime_error("num_sequences is " + std::to_string(num_sequences) +
                             " and length is " + std::to_string(length) +
                             ", expected 0 or more and 0.." + std::to_string(config.max_positions));
  }
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  const std::int64_t hidden = config.hidden_size;
  const auto size = static_cast<std::size_t>(num_tokens * hidden);
  residual.resize(size);
  normed.resize(size);
  update.resize(size);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (tokens[t] < 0 || tokens[t] >= config.vocab_size) {
      throw std::runtime_error("token " + std::to_string(t) + " is " + std::to_string(tokens[t]) +
                               ", expected 0.." + std::to_string(config.vocab_size - 1));
    }
    std::copy_n(embeddings.data() + tokens[t] * hidden, hidden, residual.data() + t * hidden);
  }
}

void engine::forward(const std::int32_t* tokens, int num_sequences, int length,
                     const route_function& route, float* logits, timing* time,
                     const observe_function& observe) {
  const auto begin_total = clock_type::now();
  implementation& p = *parts_;
  const model_config& config = p.config;
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  const std::int64_t hidden = config.hidden_size;
  p.read_tokens(tokens, num_sequences, length);
  const rotary_table rotary(config, length);
  vector_map residual(p.residual.data(), num_tokens * hidden);
  const const_vector_map update(p.update.data(), num_tokens * hidden);
  double moe_seconds = 0.0;
  for (int i = 0; i < config.num_layers; ++i) {
    const layer& l = p.layers[static_cast<std::size_t>(i)];
    rms_norm(p.residual.data(), num_tokens, l.input_norm, config.rms_norm_eps, p.normed.data());
    l.attention.forward(p.normed.data(), num_sequences, length, rotary, p.update.data(),
                        p.attention_buffer);
    residual += update;
    rms_norm(p.residual.data(), num_tokens, l.post_attention_norm, config.rms_norm_eps,
             p.normed.data());
    const auto begin_moe = clock_type::now();
    l.moe.forward(i, p.normed.data(), num_tokens, route, p.update.data(), p.workspace);
    moe_seconds += seconds_since(begin_moe);
    if (observe) l.moe.show(i, p.residual.data(), num_tokens, p.workspace, observe);
    residual += update;
  }
  rms_norm(p.residual.data(), num_tokens, p.norm, config.rms_norm_eps, p.normed.data());
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    p.head.multiply(p.normed.data() + begin * hidden, end - begin,
                    logits + begin * config.vocab_size);
  });
  if (time != nullptr) {
    time->moe_seconds += moe_seconds;
    time->total_seconds += seconds_since(begin_total);
  }
}

}  // namespace moe_engine
