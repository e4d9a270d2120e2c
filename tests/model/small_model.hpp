// Random Mixtral models of any small shape: in memory, as files, and computed naively in double.
#pragma once

#include <adaptive_k/types.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace small_model {

struct tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using tensors = std::map<std::string, tensor>;

struct shape {
  int vocab = 19;
  int hidden = 24;
  int intermediate = 20;
  int layers = 2;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 6;
  int experts = 6;
  int top_k = 3;
  int sliding_window = 0;
  bool tied = false;
};

/// Multiples of 2^-13 in [-1/2, 1/2), times `scale`.
inline std::vector<float> random_values(std::size_t count, std::uint64_t& state,
                                        float scale = 1.0f) {
  std::vector<float> values(count);
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<int>(state >> 51) - 4096) / 8192.0f * scale;
  }
  return values;
}

inline nlohmann::json config_of(const shape& s) {
  return {{"model_type", "mixtral"},
          {"hidden_act", "silu"},
          {"vocab_size", s.vocab},
          {"hidden_size", s.hidden},
          {"intermediate_size", s.intermediate},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"num_local_experts", s.experts},
          {"num_experts_per_tok", s.top_k},
          {"max_position_embeddings", 64},
          {"sliding_window",
           s.sliding_window == 0 ? nlohmann::json() : nlohmann::json(s.sliding_window)},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1000.0},
          {"tie_word_embeddings", s.tied}};
}

inline tensors weights_of(const shape& s, std::uint64_t seed) {
  tensors all;
  std::uint64_t state = seed;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> dims) {
    std::size_t count = 1;
    for (const std::int64_t size : dims) count *= static_cast<std::size_t>(size);
    all[name] = {std::move(dims), random_values(count, state)};
  };
  const int h = s.hidden;
  const int f = s.intermediate;
  add("model.embed_tokens.weight", {s.vocab, h});
  for (int l = 0; l < s.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    add(p + "input_layernorm.weight", {h});
    add(p + "post_attention_layernorm.weight", {h});
    add(p + "self_attn.q_proj.weight", {s.heads * s.head_dim, h});
    add(p + "self_attn.k_proj.weight", {s.kv_heads * s.head_dim, h});
    add(p + "self_attn.v_proj.weight", {s.kv_heads * s.head_dim, h});
    add(p + "self_attn.o_proj.weight", {h, s.heads * s.head_dim});
    add(p + "block_sparse_moe.gate.weight", {s.experts, h});
    for (int e = 0; e < s.experts; ++e) {
      const std::string q = p + "block_sparse_moe.experts." + std::to_string(e) + ".";
      add(q + "w1.weight", {f, h});
      add(q + "w3.weight", {f, h});
      add(q + "w2.weight", {h, f});
    }
  }
  add("model.norm.weight", {h});
  if (!s.tied) add("lm_head.weight", {s.vocab, h});
  return all;
}

/// `value` as it comes back from storage of `dtype` (F32, F16 or BF16).
inline float rounded(float value, const std::string& dtype) {
  if (dtype == "F16")
    return adaptive_k::to_float(adaptive_k::from_float<adaptive_k::float16>(value));
  if (dtype == "BF16")
    return adaptive_k::to_float(adaptive_k::from_float<adaptive_k::bfloat16>(value));
  return value;
}

/// Writes `all` with every tensor as `dtype`.
inline void write_safetensors(const std::filesystem::path& path, const tensors& all,
                              const std::string& dtype = "F32") {
  std::string data;
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const auto& [name, t] : all) {
    const std::size_t begin = data.size();
    for (const float value : t.values) {
      const auto half = adaptive_k::from_float<adaptive_k::float16>(value);
      const auto brain = adaptive_k::from_float<adaptive_k::bfloat16>(value);
      if (dtype == "F32")
        data.append(reinterpret_cast<const char*>(&value), 4);
      else
        data.append(reinterpret_cast<const char*>(dtype == "F16" ? &half.bits : &brain.bits), 2);
    }
    header[name] = {{"dtype", dtype}, {"shape", t.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::ofstream stream(path, std::ios::binary);
  for (int i = 0; i < 8; ++i) stream.put(static_cast<char>(length >> (8 * i) & 0xFF));
  stream << text << data;
}

/// A folder of its own that is gone when the object is.
class temporary_folder {
 public:
  explicit temporary_folder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("adaptive_k_" + name + "_" + std::to_string(counter()++) + "_" +
               std::to_string(reinterpret_cast<std::uintptr_t>(this)))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  static int& counter() {
    static int value = 0;
    return value;
  }
  std::filesystem::path path_;
};

inline void write_config(const std::filesystem::path& folder, const nlohmann::json& config) {
  std::ofstream(folder / "config.json") << config.dump(2);
}

inline void write_model(const std::filesystem::path& folder, const shape& s, const tensors& all,
                        const std::string& dtype = "F32") {
  write_config(folder, config_of(s));
  write_safetensors(folder / "model.safetensors", all, dtype);
}

using row = std::vector<double>;

/// W x for W [outputs, inputs].
inline row times(const std::vector<float>& weight, const row& x) {
  row y(weight.size() / x.size(), 0.0);
  for (std::size_t o = 0; o < y.size(); ++o)
    for (std::size_t i = 0; i < x.size(); ++i)
      y[o] += static_cast<double>(weight[o * x.size() + i]) * x[i];
  return y;
}

/// w2 (silu(w1 x) * w3 x)
inline row expert(const std::vector<float>& w1, const std::vector<float>& w3,
                  const std::vector<float>& w2, const row& x) {
  row gate = times(w1, x);
  const row up = times(w3, x);
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
  return times(w2, gate);
}

/// The `k` best experts by router logit and their renormalised softmax weights, summed up.
inline row mixture(const row& logits, int k, const std::vector<row>& outputs_by_expert) {
  std::vector<std::size_t> order(logits.size());
  for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  double sum = 0.0;
  for (int j = 0; j < k; ++j) sum += std::exp(logits[order[static_cast<std::size_t>(j)]]);
  row result(outputs_by_expert.front().size(), 0.0);
  for (int j = 0; j < k; ++j) {
    const std::size_t e = order[static_cast<std::size_t>(j)];
    for (std::size_t i = 0; i < result.size(); ++i)
      result[i] += std::exp(logits[e]) / sum * outputs_by_expert[e][i];
  }
  return result;
}

inline row rms_norm(const row& x, const std::vector<float>& weight, double epsilon) {
  double mean = 0.0;
  for (const double v : x) mean += v * v / static_cast<double>(x.size());
  row y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] / std::sqrt(mean + epsilon) * static_cast<double>(weight[i]);
  return y;
}

/// HuggingFace's rotate-half on one head of `size` channels at `begin`.
inline void rotate(row& x, std::size_t begin, int size, int position, double theta) {
  for (int i = 0; i < size / 2; ++i) {
    const double angle = position * std::pow(theta, -2.0 * i / size);
    double& low = x[begin + static_cast<std::size_t>(i)];
    double& high = x[begin + static_cast<std::size_t>(i + size / 2)];
    const double a = low;
    const double b = high;
    low = a * std::cos(angle) - b * std::sin(angle);
    high = b * std::cos(angle) + a * std::sin(angle);
  }
}

}  // namespace small_model
