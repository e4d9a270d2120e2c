#include "config.hpp"

#include <adaptive_k/status.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace moe_engine {
namespace {

using nlohmann::json;

class reader {
 public:
  reader(std::string file, json values) : file_(std::move(file)), values_(std::move(values)) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    const std::string is =
        values_.contains(key) ? "\"" + key + "\" is " + values_[key].dump() : "no \"" + key + "\"";
    throw std::runtime_error(file_ + ": " + is + ", expected " + expected);
  }

  bool has(const std::string& key) const {
    return values_.contains(key) && !values_[key].is_null();
  }

  const json& at(const std::string& key) const { return values_.at(key); }

  int positive_integer(const std::string& key) const {
    constexpr int most = 1 << 28;
    if (!has(key) || !values_[key].is_number_integer() || values_[key].get<double>() < 1 ||
        values_[key].get<double>() > most)
      refuse(key, "an integer of 1 or more");
    return values_[key].get<int>();
  }

  int positive_integer(const std::string& key, int when_absent) const {
    return has(key) ? positive_integer(key) : when_absent;
  }

  float positive_number(const std::string& key) const {
    if (!has(key) || !values_[key].is_number() || !(values_[key].get<double>() > 0) ||
        !(values_[key].get<double>() < 1e30))
      refuse(key, "a number above 0");
    return values_[key].get<float>();
  }

  bool boolean(const std::string& key, bool when_absent) const {
    if (!has(key)) return when_absent;
    if (!values_[key].is_boolean()) refuse(key, "true or false");
    return values_[key].get<bool>();
  }

 private:
  std::string file_;
  json values_;
};

// Newer files of the same models keep rope_theta in an object of its own.
float rope_theta(const reader& values) {
  if (values.has("rope_scaling")) values.refuse("rope_scaling", "null: scaled RoPE is not built");
  if (values.has("rope_theta") || !values.has("rope_parameters"))
    return values.positive_number("rope_theta");
  const json& parameters = values.at("rope_parameters");
  if (!parameters.is_object() || parameters.value("rope_type", json("default")) != "default" ||
      !parameters.contains("rope_theta") || !parameters["rope_theta"].is_number() ||
      !(parameters["rope_theta"].get<double>() > 0))
    values.refuse("rope_parameters", "an object with rope_type \"default\" and rope_theta above 0");
  return parameters["rope_theta"].get<float>();
}

}  // namespace

model_config read_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error(path.string() + ": cannot be opened");
  json parsed;
  try {
    parsed = json::parse(stream);
  } catch (const json::exception& error) {
    throw std::runtime_error(path.string() + ": not JSON: " + error.what());
  }
  if (!parsed.is_object()) throw std::runtime_error(path.string() + ": expected a JSON object");
  const reader values(path.string(), std::move(parsed));
  if (!values.has("model_type") || values.at("model_type") != "mixtral")
    values.refuse("model_type", "\"mixtral\"");
  if (values.has("hidden_act") && values.at("hidden_act") != "silu")
    values.refuse("hidden_act", "\"silu\"");

  model_config config;
  const auto absolute = std::filesystem::weakly_canonical(folder);
  config.name = (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
  config.vocab_size = values.positive_integer("vocab_size");
  config.hidden_size = values.positive_integer("hidden_size");
  config.intermediate_size = values.positive_integer("intermediate_size");
  config.num_layers = values.positive_integer("num_hidden_layers");
  config.num_heads = values.positive_integer("num_attention_heads");
  config.num_kv_heads = values.positive_integer("num_key_value_heads", config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0)
    values.refuse("num_key_value_heads",
                  "a divisor of num_attention_heads = " + std::to_string(config.num_heads));
  if (!values.has("head_dim") && config.hidden_size % config.num_heads != 0)
    values.refuse("num_attention_heads",
                  "a divisor of hidden_size = " + std::to_string(config.hidden_size));
  config.head_dim = values.positive_integer("head_dim", config.hidden_size / config.num_heads);
  if (config.head_dim % 2 != 0) values.refuse("head_dim", "an even number");
  config.max_positions = values.positive_integer("max_position_embeddings");
  config.sliding_window = values.positive_integer("sliding_window", 0);
  config.rms_norm_eps = values.positive_number("rms_norm_eps");
  config.rope_theta = rope_theta(values);
  config.tie_word_embeddings = values.boolean("tie_word_embeddings", false);
  config.gating.num_experts = values.positive_integer("num_local_experts");
  config.gating.top_k = values.positive_integer("num_experts_per_tok");
  config.gating.renormalize = true;
  const adaptive_k::status valid = adaptive_k::validate(config.gating);
  if (!valid) throw std::runtime_error(path.string() + ": " + valid.message());
  return config;
}

}  // namespace moe_engine
