// config.json and weights of the model types beside mixtral: what is taken, and what is refused by
// name.
#include <gtest/gtest.h>
#include <moe_engine/config.hpp>

#include <fstream>
#include <iterator>

#include "model/files.hpp"
#include "model/fixture_models.hpp"

namespace small_model {
namespace {

using adaptive_k::gating_kind;
using moe_engine::model_config;
using moe_engine::query_key_norm;
using nlohmann::json;

json json_of(const std::filesystem::path& file) {
  std::ifstream stream(file);
  EXPECT_TRUE(stream) << file;
  return json::parse(stream);
}

json config_of_fixture(const char* name) {
  return json_of(fixture_models::folder_of(name) / "config.json");
}

model_config parse(const json& values) {
  return moe_engine::parse_config(values.dump(), "config.json");
}

std::string verdict(const json& values) {
  try {
    parse(values);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

void expect_refused(const char* fixture, const std::string& key, const json& value,
                    const std::string& expected) {
  json values = config_of_fixture(fixture);
  values[key] = value;
  const std::string said = verdict(values);
  EXPECT_EQ(said.rfind("config.json: " + key + ": " + value.dump() + ", expected ", 0), 0u) << said;
  EXPECT_NE(said.find(expected), std::string::npos) << said;
}

TEST(kinds, configurations_of_the_models_are_taken) {
  const auto folder = std::filesystem::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models";
  const auto config = [&](const char* name) { return moe_engine::read_config(folder / name); };

  const model_config mixtral = config("mixtral-8x2");
  EXPECT_EQ(mixtral.gating.num_experts, 8);
  EXPECT_EQ(mixtral.gating.top_k, 2);
  EXPECT_TRUE(mixtral.gating.renormalize);
  EXPECT_EQ(mixtral.num_kv_heads, 2);

  const model_config qwen = config("qwen-60x4");
  EXPECT_EQ(qwen.gating.num_experts, 60);
  EXPECT_EQ(qwen.gating.kind, gating_kind::softmax);
  EXPECT_FALSE(qwen.gating.renormalize);
  EXPECT_EQ(qwen.intermediate_size, 32);
  EXPECT_EQ(qwen.shared_intermediate_size, 128);
  EXPECT_EQ(qwen.num_shared_experts, 1);
  EXPECT_TRUE(qwen.shared_expert_gate);
  EXPECT_TRUE(qwen.qkv_bias);
  EXPECT_FALSE(qwen.o_bias);
  EXPECT_EQ(qwen.num_moe_layers, qwen.num_layers);

  const model_config olmoe = config("olmoe-64x8");
  EXPECT_EQ(olmoe.gating.top_k, 8);
  EXPECT_FALSE(olmoe.gating.renormalize);
  EXPECT_EQ(olmoe.qk_norm, query_key_norm::all_heads);
  EXPECT_EQ(olmoe.shared_intermediate_size, 0);

  const model_config glm = config("sigmoid-128x6");
  EXPECT_EQ(glm.gating.kind, gating_kind::sigmoid);
  EXPECT_TRUE(glm.gating.selection_bias);
  EXPECT_TRUE(glm.gating.renormalize);
  EXPECT_EQ(glm.gating.routed_scaling_factor, 2.5f);
  EXPECT_EQ(glm.qk_norm, query_key_norm::each_head);
  EXPECT_EQ(glm.rotary_dim, 16);
  EXPECT_EQ(glm.head_dim, 32);
  EXPECT_EQ(glm.num_layers, 7);
  EXPECT_EQ(glm.num_moe_layers, 6);
  EXPECT_EQ(glm.is_dense, (std::vector<std::uint8_t>{1, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(glm.dense_intermediate_size, 128);
  EXPECT_FALSE(glm.shared_expert_gate);
}

// What a class of transformers takes for a setting that is left out.
TEST(kinds, settings_left_out_have_the_defaults_of_the_class) {
  const auto without = [](const char* fixture, const std::vector<const char*>& keys) {
    json values = config_of_fixture(fixture);
    for (const char* key : keys) values.erase(key);
    return parse(values);
  };
  const model_config qwen = without("qwen2_moe", {"qkv_bias", "norm_topk_prob", "mlp_only_layers",
                                                  "decoder_sparse_step", "layer_types"});
  EXPECT_TRUE(qwen.qkv_bias);
  EXPECT_FALSE(qwen.gating.renormalize);
  EXPECT_EQ(qwen.num_moe_layers, 3);
  const model_config olmoe = without("olmoe", {"attention_bias", "norm_topk_prob"});
  EXPECT_FALSE(olmoe.qkv_bias);
  EXPECT_FALSE(olmoe.o_bias);
  EXPECT_FALSE(olmoe.gating.renormalize);
  json bare = config_of_fixture("glm4_moe_plain");
  for (const char* key : {"n_shared_experts", "first_k_dense_replace", "norm_topk_prob", "n_group",
                          "routed_scaling_factor", "topk_group", "attention_bias", "use_qk_norm"})
    bare.erase(key);
  bare["rope_parameters"].erase("partial_rotary_factor");
  const model_config glm = parse(bare);
  EXPECT_EQ(glm.num_shared_experts, 1);
  EXPECT_EQ(glm.num_moe_layers, 1);
  EXPECT_TRUE(glm.gating.renormalize);
  EXPECT_EQ(glm.gating.n_group, 1);
  EXPECT_EQ(glm.gating.routed_scaling_factor, 1.0f);
  EXPECT_EQ(glm.rotary_dim, glm.head_dim / 2);
  EXPECT_EQ(glm.qk_norm, query_key_norm::none);
  EXPECT_FALSE(glm.qkv_bias);
}

TEST(kinds, settings_that_are_not_computed_are_refused) {
  expect_refused("mixtral", "model_type", "qwen3_moe",
                 R"("mixtral", "qwen2_moe", "olmoe" or "glm4_moe")");
  expect_refused("qwen2_moe", "use_sliding_window", true, "false");
  expect_refused("qwen2_moe", "head_dim", 7, "an even number");
  expect_refused("qwen2_moe", "decoder_sparse_step", 0, "an integer in 1..");
  expect_refused("qwen2_moe", "norm_topk_prob", 1, "true or false");
  expect_refused("qwen2_moe", "attention_bias", true, "false");
  expect_refused("qwen2_moe", "partial_rotary_factor", 0.5, "1.0");
  expect_refused("qwen2_moe", "n_group", 2, "a setting that the engine knows");
  expect_refused("olmoe", "clip_qkv", 8.0, "null");
  expect_refused("olmoe", "sliding_window", 16, "a setting that the engine knows");
  expect_refused("olmoe", "head_dim", 8, "hidden_size / num_attention_heads");
  expect_refused("olmoe", "use_qk_norm", true, "false");
  expect_refused("olmoe", "shared_expert_intermediate_size", 8, "0");
  expect_refused("glm4_moe", "num_nextn_predict_layers", 1, "0");
  expect_refused("glm4_moe", "scoring_func", "softmax", "\"sigmoid\"");
  expect_refused("glm4_moe", "partial_rotary_factor", 0.0, "a number above 0 and at most 1");
  expect_refused("glm4_moe", "routed_scaling_factor", -1.0, "a number in");
  expect_refused("glm4_moe", "n_shared_experts", 0, "an integer in 1..");
  expect_refused("glm4_moe", "n_shared_experts", 1 << 28, "fewer");
  expect_refused("glm4_moe", "first_k_dense_replace", -1, "an integer in 0..3");
  expect_refused("glm4_moe", "num_experts_per_tok", 13, "an integer in 1..12");
  expect_refused("glm4_moe", "layer_types", {"full_attention"}, "a setting that the engine knows");
  expect_refused("glm4_moe", "hidden_act", "gelu", "\"silu\"");
  const auto refuses = [](const char* fixture, const char* key, const json& value,
                          const std::vector<std::string>& words) {
    json values = config_of_fixture(fixture);
    values[key] = value;
    const std::string said = verdict(values);
    expect_words(said, {"config.json: "});
    expect_words(said, words);
  };
  refuses("qwen2_moe", "mlp_only_layers", {0, 3}, {"mlp_only_layers[1]: 3", "0..2"});
  refuses("qwen2_moe", "mlp_only_layers", {0, 1, 2}, {"num_hidden_layers: 3", "nothing to route"});
  refuses("qwen2_moe", "layer_types", {"full_attention", "sliding_attention", "full_attention"},
          {"layer_types[1]: \"sliding_attention\"", "expected \"full_attention\""});
  refuses("qwen2_moe", "layer_types", {"full_attention"},
          {"layer_types: ", "num_hidden_layers = 3"});
  refuses("qwen2_moe", "rope_scaling", {{"rope_type", "yarn"}},
          {"rope_scaling.rope_type: \"yarn\"", "expected \"default\""});
  refuses("qwen2_moe", "layer_types", 5, {"layer_types: 5", "expected an array"});
  refuses("glm4_moe", "first_k_dense_replace", 3, {"num_hidden_layers: 3", "nothing to route"});
  refuses("glm4_moe", "n_group", 5, {"n_group is 5", "a divisor of num_experts = 12"});
  refuses("glm4_moe", "topk_group", 5, {"topk_group is 5", "1..n_group = 4"});
  refuses("glm4_moe", "partial_rotary_factor", 0.9, {"partial_rotary_factor"});  // beside 0.5
  json odd = config_of_fixture("glm4_moe");
  odd["rope_parameters"]["partial_rotary_factor"] = 0.4;
  expect_words(verdict(odd), {"partial_rotary_factor: 0.4", "3 of head_dim = 8", "an even number"});
}

TEST(kinds, sliding_settings_of_qwen_say_nothing_while_none_slides) {
  json values = config_of_fixture("qwen2_moe");
  values["sliding_window"] = 16;
  values["max_window_layers"] = 1;
  values["use_sliding_window"] = false;
  EXPECT_EQ(parse(values).sliding_window, 0);
}

TEST(kinds, every_tensor_is_missed_and_none_is_left_over) {
  for (const char* name : fixture_models::names) {
    const temporary_folder folder("kinds");
    const auto from = fixture_models::folder_of(name);
    std::filesystem::copy_file(from / "config.json", folder.path() / "config.json");
    const moe_engine::safetensors_file file(from / "model.safetensors");
    tensors all;
    for (const auto& [tensor_name, entry] : file.tensors())
      all[tensor_name] = {entry.shape, file.read(tensor_name)};
    const auto target = folder.path() / "model.safetensors";
    write_safetensors(target, all);
    EXPECT_EQ(complaint(folder.path()), "") << name;
    for (const auto& [tensor_name, values] : all) {
      const bool is_expert = tensor_name.find(".experts.") != std::string::npos;
      if (is_expert && tensor_name.find(".experts.2.") == std::string::npos) continue;
      tensors fewer = all;
      fewer.erase(tensor_name);
      write_safetensors(target, fewer);
      expect_words(complaint(folder.path()),
                   {target.string(), '"' + tensor_name + '"',
                    "missing, expected one of shape " + moe_engine::text_of(values.shape)});
    }
    for (const char* more :
         {"model.layers.0.mlp.shared_expert.bias", "model.layers.0.self_attn.q_norm.bias",
          "model.layers.0.mlp.gate.bias", "model.layers.0.self_attn.sinks"}) {
      tensors beyond = all;
      beyond[more] = {{4}, {1, 2, 3, 4}};
      write_safetensors(target, beyond);
      expect_words(complaint(folder.path()),
                   {target.string(), more, "the engine does not read it"});
    }
  }
}

}  // namespace
}  // namespace small_model
