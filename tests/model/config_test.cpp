// config.json: every setting is computed with, cannot matter, or is refused by name.
#include <gtest/gtest.h>
#include <moe_engine/config.hpp>

#include <ctime>
#include <set>

#include "model/files.hpp"

namespace small_model {
namespace {

using nlohmann::json;

class config_folder : public model_folder {};

TEST_F(config_folder, refuses_bad_configurations) {
  const auto refuses = [&](const std::string& key, const json& value, const std::string& expected) {
    json values = config_of({});
    values[key] = value;
    write_config(folder.path(), values);
    expect_words(complaint(folder.path()),
                 {"config.json: " + key + ": " + value.dump() + ", expected ", expected});
  };
  refuses("model_type", "llama", "\"mixtral\"");
  refuses("hidden_act", "gelu", "\"silu\"");
  refuses("hidden_size", "24", "an integer in 1..");
  refuses("hidden_size", 0, "an integer in 1..");
  refuses("num_hidden_layers", 2.5, "an integer in 1..");
  refuses("num_key_value_heads", 3, "a divisor of num_attention_heads = 4");
  refuses("head_dim", 5, "an even number");
  refuses("rms_norm_eps", -1.0, "a number in 1e-30..1");
  refuses("tie_word_embeddings", 1, "true or false");
  json values = config_of({});
  values["num_experts_per_tok"] = 7;
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()),
               {"config.json: num_experts_per_tok: 7, expected an integer in 1..6"});
  values.erase("vocab_size");
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()), {"config.json: vocab_size: missing, expected"});
  write_text(folder.path() / "config.json", "{\"model_type\": ");
  expect_words(complaint(folder.path()), {"config.json: model_type: line 1", "is no JSON"});
}

/// What is said of a configuration; empty where it is accepted.
std::string config_verdict(const std::string& text) {
  try {
    moe_engine::parse_config(text, "config.json");
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

std::string verdict_with(const std::string& key, const json& value) {
  json values = config_of({});
  values[key] = value;
  return config_verdict(values.dump());
}

TEST(config, refuses_settings_that_are_not_implemented) {
  const std::pair<const char*, json> cases[] = {
      {"attention_bias", true},
      {"qkv_bias", true},
      {"mlp_bias", true},
      {"use_bias", true},
      {"quantization_config", {{"quant_method", "fp8"}}},
      {"quantization_config", json::object()},
      {"num_shared_experts", 1},
      {"n_shared_experts", 2},
      {"shared_expert_intermediate_size", 20480},
      {"partial_rotary_factor", 0.5},
      {"rotary_pct", 0.25},
      {"hidden_act", "gelu"},
      {"pretraining_tp", 2},
      {"attn_logit_softcapping", 50.0},
      {"final_logit_softcapping", 30.0},
      {"logit_scale", 0.0625},
      {"embedding_multiplier", 12.0},
      {"residual_multiplier", 0.22},
      {"clip_qkv", 8.0},
      {"use_qk_norm", true},
      {"layer_types", {"full_attention"}},
      {"use_sliding_window", true},
      {"max_window_layers", 21},
      {"norm_topk_prob", false},
      {"is_causal", false},
      {"use_rope", false},
      {"architectures", {"LlamaForCausalLM"}},
      {"decoder_sparse_step", 2},
      {"first_k_dense_replace", 1},
      {"routed_scaling_factor", 2.5},
      {"n_group", 8},
      {"scoring_func", "sigmoid"},
      {"is_encoder_decoder", true},
      {"chunk_size_feed_forward", 64},
      {"pruned_heads", {{"0", {1}}}},
      {"a_setting_of_tomorrow", 0},
      {"a_setting_of_tomorrow", ""},
      {"a_setting_of_tomorrow", false},
      {"a_setting_of_tomorrow", json::array()},
  };
  for (const auto& [key, value] : cases) {
    const std::string text = verdict_with(key, value);
    EXPECT_EQ(
        text.rfind("config.json: " + std::string(key) + ": " + value.dump() + ", expected ", 0), 0u)
        << text;
  }
}

TEST(config, takes_settings_that_ask_for_nothing) {
  EXPECT_EQ(config_verdict(config_of({}).dump()), "");
  const std::pair<const char*, json> cases[] = {
      {"attention_bias", false},
      {"mlp_bias", false},
      {"partial_rotary_factor", 1},
      {"quantization_config", nullptr},
      {"is_encoder_decoder", false},
      {"chunk_size_feed_forward", 0},
      {"pruned_heads", json::object()},
      {"a_setting_of_tomorrow", nullptr},
      {"norm_topk_prob", true},
      {"is_decoder", true},
      {"unsloth_version", "2026.1"},
      {"_attn_implementation", "eager"},
      {"_name_or_path", nullptr},
      {"_name_or_path", ""},
      {"architectures", {"MixtralForCausalLM"}},
      {"transformers_version", "5.0.0"},
      {"torch_dtype", "bfloat16"},
      {"dtype", "bfloat16"},
      {"attention_dropout", 0.1},
      {"router_jitter_noise", 0.01},
      {"eos_token_id", {1, 2}},
      {"id2label", {{"0", "x"}}},
      {"temperature", 0.7},
      {"rope_scaling", nullptr},
      {"rope_scaling", {{"rope_type", "default"}}},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1000.0}}},
      {"rope_parameters", {{"rope_theta", 1000}, {"partial_rotary_factor", 1.0}}},
  };
  for (const auto& [key, value] : cases) EXPECT_EQ(verdict_with(key, value), "") << key;
  json values = config_of({});
  values["_name_or_path"] = "org/model";
  EXPECT_EQ(moe_engine::parse_config(values.dump(), "f").declared_name, "org/model");
}

TEST(config, other_positions_are_refused_wherever_they_are_asked_for) {
  const json schemes[] = {
      {{"rope_type", "yarn"}, {"rope_theta", 1000.0}, {"factor", 4.0}},
      {{"rope_type", "yarn"}},
      {{"type", "linear"}, {"factor", 2.0}},
      {{"rope_type", "llama3"}, {"rope_theta", 1000.0}},
      {{"rope_type", "default"}, {"factor", 4.0}},
      {{"rope_type", "default"}, {"rope_theta", 1000.0}, {"partial_rotary_factor", 0.5}},
      {{"rope_type", nullptr}, {"rope_theta", 500.0}},  // not the one beside it
      {{"rope_type", 5}},
      {{"full_attention", {{"rope_type", "default"}, {"rope_theta", 1000.0}}}},
      "yarn",
      5,
      json::array({1}),
      true,
      {{"rope_theta", 1e300}},
      {{"rope_theta", "1000"}},
  };
  for (const char* key : {"rope_scaling", "rope_parameters"})
    for (const json& scheme : schemes) {
      const std::string text = verdict_with(key, scheme);
      EXPECT_EQ(text.rfind(std::string("config.json: ") + key, 0), 0u) << scheme << text;
      EXPECT_NE(text.find("expected"), std::string::npos) << text;
    }
  json values = config_of({});
  values.erase("rope_theta");
  EXPECT_EQ(config_verdict(values.dump()).rfind("config.json: rope_theta: missing, expected ", 0),
            0u);
  values["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(config_verdict(values.dump()).rfind("config.json: rope_theta: missing, expected ", 0),
            0u);
}

TEST(config, numbers_out_of_range_are_refused) {
  for (const char* key : {"rms_norm_eps", "rope_theta"})
    for (const char* number : {"1e300", "-1e300", "0", "-1", "1e-300", "1e17"}) {
      const std::string text = verdict_with(key, json::parse(number));
      EXPECT_EQ(text.rfind(std::string("config.json: ") + key + ": ", 0), 0u) << number << text;
      EXPECT_NE(text.find("expected a number in"), std::string::npos) << text;
    }
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "sliding_window", "num_local_experts", "num_experts_per_tok"})
    for (const char* number : {"0", "-1", "1e300", "1e9", "2.5", "300000000",
                               "18446744073709551615", "-9223372036854775808"}) {
      const std::string text = verdict_with(key, json::parse(number));
      EXPECT_EQ(text.rfind(std::string("config.json: ") + key + ": ", 0), 0u) << number << text;
      EXPECT_NE(text.find("expected an integer in 1.."), std::string::npos) << text;
    }
}

TEST(config, every_key_of_another_type_is_named_with_what_was_expected) {
  json values = config_of({});
  values["sliding_window"] = 16;
  values["_name_or_path"] = "x";
  values["attention_bias"] = false;
  values["partial_rotary_factor"] = 1.0;
  for (const auto& item : values.items())
    for (const json& value : json::parse(R"([null, true, 5, "text", [1], {"a": 1}])")) {
      if (value.type() == item.value().type() || (value.is_number() && item.value().is_number()))
        continue;
      const std::set<std::string> optional = {
          "sliding_window", "_name_or_path",       "attention_bias", "partial_rotary_factor",
          "hidden_act",     "num_key_value_heads", "head_dim",       "tie_word_embeddings"};
      const std::string text = verdict_with(item.key(), value);
      if (value.is_null() && optional.count(item.key()) != 0) {
        EXPECT_EQ(text, "") << item.key();
        continue;
      }
      EXPECT_EQ(text.rfind("config.json: " + item.key() + ": " + value.dump() + ", expected ", 0),
                0u)
          << item.key() << value << text;
    }
}

TEST(config, hostile_files_end_in_a_short_message) {
  std::string deep = config_of({}).dump();
  deep.insert(1, R"("x": )" + std::string(80000, '[') + std::string(80000, ']') + ",");
  std::string wide = R"({"x": [)";
  while (wide.size() < 10'000'000) wide += "{},";
  wide.back() = ']';
  wide += "}";
  std::string euros;
  while (euros.size() < 3'000'000) euros += "\xE2\x82\xAC";
  for (const std::string& text :
       {deep, wide, std::string(), std::string("null"), std::string("[]"), euros,
        std::string("{\"\xFF\": 1}"), "{\"model_type\": \"" + euros + "\"}",
        "{\"model_type\": \"mixtral\", \"" + euros + "\": 1}", std::string(100, '\0')}) {
    const std::clock_t begin = std::clock();
    const std::string said = config_verdict(text);
    EXPECT_EQ(said.rfind("config.json: ", 0), 0u) << said;
    EXPECT_LE(said.size(), 1100u);
    EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 20.0);
  }
}

}  // namespace
}  // namespace small_model
