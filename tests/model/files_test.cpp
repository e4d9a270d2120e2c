// Model folders: shards, and what is said about files that are wrong.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>

#include "model/files.hpp"

namespace small_model {
namespace {

using nlohmann::json;

std::vector<float> logits_of(const std::filesystem::path& folder) {
  moe_engine::engine engine = moe_engine::engine::load(folder);
  const std::vector<std::int32_t> tokens = {1, 5, 2, 9};
  std::vector<float> logits(tokens.size() * 19);
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  engine.forward(tokens.data(), 1, 4, moe_engine::route_with(router), logits.data());
  return logits;
}

TEST_F(model_folder, reads_its_configuration) {
  const auto config = moe_engine::read_config(folder.path());
  EXPECT_EQ(config.name, folder.path().filename().string());
  EXPECT_EQ(config.vocab_size, 19);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.gating.num_experts, 6);
  EXPECT_EQ(config.gating.top_k, 3);
  EXPECT_TRUE(config.gating.renormalize);
  EXPECT_EQ(config.gating.kind, adaptive_k::gating_kind::softmax);
  EXPECT_EQ(moe_engine::read_config(folder.path() / "").name, config.name);
}

TEST_F(model_folder, fills_in_what_older_and_newer_configurations_leave_out) {
  json values = config_of({});
  values.erase("head_dim");
  values.erase("num_key_value_heads");
  values.erase("rope_theta");
  values["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500.0}};
  write_config(folder.path(), values);
  const auto config = moe_engine::read_config(folder.path());
  EXPECT_EQ(config.head_dim, 6);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.rope_theta, 500.0f);
}

TEST_F(model_folder, may_be_sharded) {
  const auto whole = logits_of(folder.path());
  std::filesystem::remove(file());
  tensors shards[3];
  json map;
  std::size_t i = 0;
  for (const auto& [name, t] : weights) {
    shards[i % 3][name] = t;
    map[name] = "model-0000" + std::to_string(i % 3 + 1) + "-of-00003.safetensors";
    ++i;
  }
  for (std::size_t s = 0; s < 3; ++s)
    write_safetensors(
        folder.path() / ("model-0000" + std::to_string(s + 1) + "-of-00003.safetensors"),
        shards[s]);
  const auto index = folder.path() / "model.safetensors.index.json";
  write_text(index, json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
  EXPECT_EQ(logits_of(folder.path()), whole);

  map[router] = "model-00009-of-00003.safetensors";
  write_text(index, json{{"weight_map", map}}.dump());
  expect_words(complaint(folder.path()), {"model-00009-of-00003.safetensors", "cannot be read"});
  const bool in_first = shards[0].count(router) != 0;
  map[router] = in_first ? "model-00002-of-00003.safetensors" : "model-00001-of-00003.safetensors";
  write_text(index, json{{"weight_map", map}}.dump());
  expect_words(complaint(folder.path()), {map[router].get<std::string>(), router});
  map[router] = "../elsewhere.safetensors";
  write_text(index, json{{"weight_map", map}}.dump());
  expect_words(complaint(folder.path()), {index.string(), router, "../elsewhere.safetensors"});
  map.erase(router);
  write_text(index, json{{"weight_map", map}}.dump());
  expect_words(complaint(folder.path()), {index.string(), router});
  write_text(index, "{}");
  expect_words(complaint(folder.path()), {index.string(), "weight_map"});
}

TEST_F(model_folder, says_which_file_is_missing) {
  std::filesystem::remove(file());
  expect_words(complaint(folder.path()), {file().string(), "cannot be read"});
  std::filesystem::remove(folder.path() / "config.json");
  expect_words(complaint(folder.path()), {"config.json", "cannot be read"});
}

TEST_F(model_folder, says_which_tensor_is_missing) {
  weights.erase(router);
  write_model(folder.path(), {}, weights);
  expect_words(complaint(folder.path()), {file().string(), router, "[6, 24]"});
}

TEST_F(model_folder, says_which_tensor_has_another_shape) {
  weights[router].shape = {24, 6};
  write_model(folder.path(), {}, weights);
  expect_words(complaint(folder.path()), {file().string(), router, "[24, 6]", "[6, 24]"});
}

TEST_F(model_folder, says_which_tensor_is_not_finite) {
  for (auto& [name, values] : weights) {
    const float before = values.values[1];
    values.values[1] = NAN;
    write_model(folder.path(), {}, weights);
    expect_words(complaint(folder.path()), {file().string(), name, "element 1 is nan"});
    values.values[1] = before;
  }
}

TEST_F(model_folder, notices_truncation_anywhere) {
  const auto size = std::filesystem::file_size(file());
  for (const std::uintmax_t kept : {std::uintmax_t{0}, std::uintmax_t{5}, std::uintmax_t{8},
                                    std::uintmax_t{500}, size / 2, size - 1}) {
    write_model(folder.path(), {}, weights);
    std::filesystem::resize_file(file(), kept);
    expect_words(complaint(folder.path()), {file().string(), kept < 8 ? "truncated" : ""});
  }
  expect_words(complaint(folder.path()), {"truncated", "tensor \"", "ends at byte"});
}

TEST_F(model_folder, refuses_dtypes_that_are_no_weights) {
  write_raw(file(),
            R"({"model.embed_tokens.weight":
                {"dtype": "I32", "shape": [19, 24], "data_offsets": [0, 1824]}})",
            1824);
  expect_words(complaint(folder.path()),
               {file().string(), "model.embed_tokens.weight", "I32", "expected F32, F16 or BF16"});
}

TEST_F(model_folder, reads_every_tensor_that_is_stored_or_refuses_it) {
  const auto refuses = [&](const std::string& name, const tensor& value,
                           const std::vector<std::string>& words) {
    tensors more = weights;
    more[name] = value;
    write_model(folder.path(), {}, more);
    const std::string text = complaint(folder.path());
    expect_words(text, {file().string(), '"' + name + '"'});
    expect_words(text, words);
  };
  const tensor vector = {{24}, std::vector<float>(24, 0.5f)};
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.o_proj.bias",
        "model.layers.1.block_sparse_moe.gate.bias", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.block_sparse_moe.shared_expert.w1.weight",
        "model.layers.0.block_sparse_moe.experts.6.w1.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale", "model.norm.bias",
        "lm_head.bias", "score.weight", ""})
    refuses(name, vector, {"the engine does not read it"});
  refuses("model.layers.2.input_layernorm.weight", vector, {"num_hidden_layers is 2"});
  refuses("model.layers.61.eh_proj.weight", vector, {"num_hidden_layers is 2"});

  tensors with_frequencies = weights;
  with_frequencies["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{3}, {1, 2, 3}};
  write_model(folder.path(), {}, with_frequencies);
  const auto engine = moe_engine::engine::load(folder.path());
  ASSERT_EQ(engine.warnings().size(), 1u);
  expect_words(engine.warnings()[0], {file().string(), "1 tensors", "rotary_emb.inv_freq"});
  write_model(folder.path(), {}, weights);
  EXPECT_TRUE(moe_engine::engine::load(folder.path()).warnings().empty());
}

TEST_F(model_folder, refuses_to_leave_out_layers) {
  json values = config_of({});
  values["num_hidden_layers"] = 1;
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()),
               {file().string(), "model.layers.1.", "num_hidden_layers is 1 in config.json"});
  values["num_hidden_layers"] = 3;
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()),
               {file().string(), "model.layers.2.", "missing, expected one of shape [24"});
}

TEST_F(model_folder, a_tied_head_is_the_embedding_or_is_refused) {
  shape tied;
  tied.tied = true;
  tensors all = weights_of(tied, 3);
  write_model(folder.path(), tied, all);
  const auto alone = logits_of(folder.path());
  all["lm_head.weight"] = all["model.embed_tokens.weight"];
  write_model(folder.path(), tied, all);
  EXPECT_EQ(logits_of(folder.path()), alone);
  all["lm_head.weight"].values[7] += 1.0f;
  write_model(folder.path(), tied, all);
  expect_words(complaint(folder.path()),
               {file().string(), "lm_head.weight", "tie_word_embeddings is true"});
}

TEST_F(model_folder, a_file_beside_an_index_is_ambiguous) {
  write_text(folder.path() / "model.safetensors.index.json", R"({"weight_map": {}})");
  expect_words(complaint(folder.path()), {"index.json", "model.safetensors", "expected one"});
}

TEST_F(model_folder, knows_how_experts_are_stored) {
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    write_model(folder.path(), {}, weights, dtype);
    EXPECT_EQ(moe_engine::engine::load(folder.path()).expert_dtype(), dtype);
  }
}

TEST_F(model_folder, an_index_is_read_with_suspicion) {
  const auto index = folder.path() / "model.safetensors.index.json";
  std::filesystem::remove(file());
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"[]", {"[], expected an object"}},
           {R"({"weight_map": 5})", {"weight_map: 5, expected an object"}},
           {R"({"weight_map": [1]})", {"weight_map: [1], expected an object"}},
           {R"({"weight_map": {"a": null}})", {"weight_map.a: null, expected a plain file name"}},
           {R"({"weight_map": {"a": {"b": 1}}})", {"weight_map.a: ", "expected a plain file name"}},
           {R"({"weight_map": {"a": "x", "a": "y"}})", {"weight_map.a: the key comes twice"}},
           {R"({"weight_map": )" + std::string(80000, '['), {"weight_map", "deep"}},
           {R"({"weight_map": {"a": ".."}})", {"weight_map.a: \"..\""}},
           {R"({"weight_map": {"a": ""}})", {"weight_map.a: \"\""}},
       }) {
    write_text(index, text);
    const std::string said = complaint(folder.path());
    expect_words(said, {index.string()});
    expect_words(said, words);
    EXPECT_LE(said.size(), 1300u);
  }
}

}  // namespace
}  // namespace small_model
