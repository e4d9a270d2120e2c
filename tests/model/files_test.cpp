// Model folders: shards, and what is said about files that are wrong.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>
#include <moe_engine/safetensors.hpp>

#include "model/small_model.hpp"

namespace small_model {
namespace {

using nlohmann::json;

/// What loading `folder` says; empty where it succeeds.
std::string complaint(const std::filesystem::path& folder) {
  try {
    moe_engine::engine::load(folder);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), std::string::npos) << '"' << word << "\" is not in: " << text;
}

std::vector<float> logits_of(const std::filesystem::path& folder) {
  moe_engine::engine engine = moe_engine::engine::load(folder);
  const std::vector<std::int32_t> tokens = {1, 5, 2, 9};
  std::vector<float> logits(tokens.size() * 19);
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::full());
  engine.forward(tokens.data(), 1, 4, moe_engine::route_with(router), logits.data());
  return logits;
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file of `header` and `data_bytes` zero bytes.
void write_raw(const std::filesystem::path& path, const std::string& header,
               std::size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i)
    text += static_cast<char>(header.size() >> (8 * static_cast<unsigned>(i)) & 0xFF);
  write_text(path, text + header + std::string(data_bytes, '\0'));
}

class model_folder : public ::testing::Test {
 protected:
  model_folder() : folder("files"), weights(weights_of({}, 3)) {
    write_model(folder.path(), {}, weights);
  }
  std::filesystem::path file() const { return folder.path() / "model.safetensors"; }

  temporary_folder folder;
  tensors weights;
  const std::string router = "model.layers.1.block_sparse_moe.gate.weight";
};

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
  expect_words(complaint(folder.path()), {"model-00009-of-00003.safetensors", "cannot be opened"});
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
  expect_words(complaint(folder.path()), {file().string(), "cannot be opened"});
  std::filesystem::remove(folder.path() / "config.json");
  expect_words(complaint(folder.path()), {"config.json", "cannot be opened"});
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

TEST_F(model_folder, refuses_malformed_headers) {
  const auto refuses = [&](const std::string& header, const std::vector<std::string>& words) {
    write_raw(file(), header, 16);
    const std::string text = complaint(folder.path());
    expect_words(text, {file().string()});
    expect_words(text, words);
  };
  refuses("no json", {"not a JSON object"});
  refuses("[]", {"not a JSON object"});
  refuses(R"({"a": 1})", {"\"a\"", "expected dtype"});
  refuses(R"({"a": {"dtype": "F32", "shape": [4]}})", {"\"a\"", "data_offsets"});
  refuses(R"({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}})", {"\"a\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}})",
          {"\"a\"", "expected 12 bytes", "[3]"});
  refuses(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}})", {"\"a\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}})",
          {"truncated", "\"a\"", "20", "16"});
  refuses(R"({"a": {"dtype": "Q4_0", "shape": [4], "data_offsets": [0, 16]}})",
          {"\"a\"", "unknown dtype \"Q4_0\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}})",
          {"\"a\"", "impossible shape"});
  write_text(file(), std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10));
  expect_words(complaint(folder.path()), {"truncated", "header"});
}

TEST_F(model_folder, refuses_dtypes_that_are_no_weights) {
  write_raw(file(),
            R"({"model.embed_tokens.weight":
                {"dtype": "I32", "shape": [19, 24], "data_offsets": [0, 1824]}})",
            1824);
  expect_words(complaint(folder.path()),
               {file().string(), "model.embed_tokens.weight", "I32", "expected F32, F16 or BF16"});
}

TEST_F(model_folder, refuses_bad_configurations) {
  const auto refuses = [&](const std::string& key, const json& value, const std::string& expected) {
    json values = config_of({});
    values[key] = value;
    write_config(folder.path(), values);
    expect_words(complaint(folder.path()),
                 {"config.json", '"' + key + "\" is " + value.dump(), expected});
  };
  refuses("model_type", "llama", "\"mixtral\"");
  refuses("hidden_act", "gelu", "\"silu\"");
  refuses("hidden_size", "24", "an integer of 1 or more");
  refuses("hidden_size", 0, "an integer of 1 or more");
  refuses("num_hidden_layers", 2.5, "an integer of 1 or more");
  refuses("num_key_value_heads", 3, "a divisor of num_attention_heads = 4");
  refuses("head_dim", 5, "an even number");
  refuses("rms_norm_eps", -1.0, "a number above 0");
  refuses("rope_scaling", {{"type", "yarn"}}, "null");
  refuses("tie_word_embeddings", 1, "true or false");
  json values = config_of({});
  values["num_experts_per_tok"] = 7;
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()), {"config.json", "top_k is 7"});
  values.erase("vocab_size");
  write_config(folder.path(), values);
  expect_words(complaint(folder.path()), {"config.json", "no \"vocab_size\""});
  write_text(folder.path() / "config.json", "{\"model_type\": ");
  expect_words(complaint(folder.path()), {"config.json", "not JSON"});
}

TEST(safetensors, reads_every_kind_of_value_exactly) {
  const temporary_folder folder("values");
  const auto path = folder.path() / "a.safetensors";
  const tensors all = {{"x", {{5}, {0.0f, -1.5f, 65504.0f, 6.103515625e-05f, 0.333251953125f}}},
                       {"none", {{0, 4}, {}}},
                       {"scalar", {{}, {2.0f}}}};
  for (const char* dtype : {"F32", "F16"}) {
    write_safetensors(path, all, dtype);
    const moe_engine::safetensors_file file(path);
    EXPECT_EQ(file.read("x"), all.at("x").values);
    EXPECT_TRUE(file.read("none", {0, 4}).empty());
    EXPECT_EQ(file.read("scalar"), std::vector<float>{2.0f});
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_THROW(file.read("y"), std::runtime_error);
    EXPECT_THROW(file.read_integers("x"), std::runtime_error);
  }
  write_raw(path,
            R"({"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
                "i": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
                "u": {"dtype": "U8", "shape": [3], "data_offsets": [5, 8]}})",
            16);
  const moe_engine::safetensors_file file(path);
  EXPECT_EQ(file.read("b"), (std::vector<float>{0.0f, 0.0f}));
  EXPECT_EQ(file.read_integers("i"), std::vector<std::int64_t>{0});
  EXPECT_EQ(file.read_integers("u"), (std::vector<std::int64_t>{0, 0, 0}));
}

}  // namespace
}  // namespace small_model
