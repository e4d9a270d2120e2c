// The folders of bench/models without any engine: their files are those that were recorded, and
// config.json describes the tensors.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <moe_engine/safetensors.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/sha256.hpp"

namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;
using shapes = std::map<std::string, std::vector<std::int64_t>>;

constexpr std::int64_t vocabulary = 2048;
constexpr std::uintmax_t mebibyte = std::uintmax_t{1} << 20;

fs::path models() {
  return fs::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models";
}

std::string bytes_of(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  EXPECT_TRUE(stream) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

json json_of(const fs::path& file) {
  return json::parse(bytes_of(file));
}

struct router {
  const char* folder;
  const char* architecture;
  std::int64_t num_experts, top_k;
  bool renormalize, shared_expert, selection_bias;
};

class ModelFolders : public testing::TestWithParam<router> {
 protected:
  fs::path folder() const { return models() / GetParam().folder; }
  bool trained() const { return fs::exists(folder() / "model.safetensors"); }
};

void add_mlp(shapes& all, const std::string& prefix, std::int64_t hidden, std::int64_t width,
             const std::vector<std::string>& gate_up_down) {
  all[prefix + gate_up_down[0] + ".weight"] = {width, hidden};
  all[prefix + gate_up_down[1] + ".weight"] = {width, hidden};
  all[prefix + gate_up_down[2] + ".weight"] = {hidden, width};
}

void add_attention(shapes& all, const std::string& prefix, const json& config) {
  const std::string type = config.at("model_type");
  const std::int64_t hidden = config.at("hidden_size");
  const std::int64_t heads = config.at("num_attention_heads");
  const std::int64_t kv_heads = config.at("num_key_value_heads");
  const std::int64_t head = config.value("head_dim", hidden / heads);
  const std::map<std::string, std::int64_t> rows = {
      {"q", heads * head}, {"k", kv_heads * head}, {"v", kv_heads * head}};
  for (const auto& [name, width] : rows) {
    all[prefix + name + "_proj.weight"] = {width, hidden};
    if (type == "qwen2_moe") all[prefix + name + "_proj.bias"] = {width};
    if (type == "olmoe" && name != "v") all[prefix + name + "_norm.weight"] = {width};
    if (type == "glm4_moe" && name != "v") all[prefix + name + "_norm.weight"] = {head};
  }
  all[prefix + "o_proj.weight"] = {hidden, heads * head};
}

void add_moe(shapes& all, const std::string& layer, const json& config, const router& expected) {
  const bool mixtral = config.at("model_type") == "mixtral";
  const std::int64_t hidden = config.at("hidden_size");
  const std::int64_t width = config.contains("moe_intermediate_size")
                                 ? config.at("moe_intermediate_size")
                                 : config.at("intermediate_size");
  const std::string prefix = layer + (mixtral ? "block_sparse_moe." : "mlp.");
  const std::vector<std::string> names =
      mixtral ? std::vector<std::string>{"w1", "w3", "w2"}
              : std::vector<std::string>{"gate_proj", "up_proj", "down_proj"};
  all[prefix + "gate.weight"] = {expected.num_experts, hidden};
  for (std::int64_t e = 0; e < expected.num_experts; ++e)
    add_mlp(all, prefix + "experts." + std::to_string(e) + ".", hidden, width, names);
  if (expected.selection_bias)
    all[prefix + "gate.e_score_correction_bias"] = {expected.num_experts};
  if (!expected.shared_expert) return;
  if (config.contains("shared_expert_intermediate_size")) {
    const std::int64_t shared_width = config.at("shared_expert_intermediate_size");
    add_mlp(all, prefix + "shared_expert.", hidden, shared_width, names);
    all[prefix + "shared_expert_gate.weight"] = {1, hidden};
  } else {
    const std::int64_t count = config.at("n_shared_experts");
    add_mlp(all, prefix + "shared_experts.", hidden, count * width, names);
  }
}

/// Every tensor that a model of this config.json has.
shapes tensors_of(const json& config, const router& expected) {
  shapes all;
  const std::int64_t hidden = config.at("hidden_size");
  const std::int64_t layers = config.at("num_hidden_layers");
  const std::int64_t dense = config.value("first_k_dense_replace", std::int64_t{0});
  all["model.embed_tokens.weight"] = {vocabulary, hidden};
  all["model.norm.weight"] = {hidden};
  if (!config.at("tie_word_embeddings")) all["lm_head.weight"] = {vocabulary, hidden};
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    all[layer + "input_layernorm.weight"] = {hidden};
    all[layer + "post_attention_layernorm.weight"] = {hidden};
    add_attention(all, layer + "self_attn.", config);
    if (i < dense)
      add_mlp(all, layer + "mlp.", hidden, config.at("intermediate_size"),
              {"gate_proj", "up_proj", "down_proj"});
    else
      add_moe(all, layer, config, expected);
  }
  return all;
}

TEST_P(ModelFolders, ConfigurationIsThatOfTheRouter) {
  const router& expected = GetParam();
  const json config = json_of(folder() / "config.json");
  EXPECT_EQ(config.at("architectures"), json::array({expected.architecture}));
  const char* const experts = config.contains("num_local_experts")  ? "num_local_experts"
                              : config.contains("n_routed_experts") ? "n_routed_experts"
                                                                    : "num_experts";
  EXPECT_EQ(config.at(experts), expected.num_experts);
  EXPECT_EQ(config.at("num_experts_per_tok"), expected.top_k);
  EXPECT_EQ(config.value("norm_topk_prob", true), expected.renormalize);
  EXPECT_EQ(config.at("vocab_size"), vocabulary);
  for (const char* const width : {"hidden_size", "intermediate_size", "moe_intermediate_size",
                                  "shared_expert_intermediate_size"})
    EXPECT_EQ(config.value(width, 0) % 32, 0) << width;
  const int moe_layers =
      config.at("num_hidden_layers").get<int>() - config.value("first_k_dense_replace", 0);
  EXPECT_GE(moe_layers, 6);
  EXPECT_LE(moe_layers, 8);
}

TEST_P(ModelFolders, TensorsAreThoseOfTheConfiguration) {
  if (!trained()) GTEST_SKIP() << GetParam().folder << " has no weights yet";
  const moe_engine::safetensors_file file(folder() / "model.safetensors");
  const shapes expected = tensors_of(json_of(folder() / "config.json"), GetParam());
  for (const auto& [name, shape] : expected) {
    ASSERT_EQ(file.tensors().count(name), 1u) << name;
    const auto& tensor = file.tensors().at(name);
    EXPECT_EQ(tensor.shape, shape) << name;
    const bool bias = name.find("e_score_correction_bias") != std::string::npos;
    EXPECT_EQ(tensor.dtype, bias ? "F32" : "F16") << name;
  }
  EXPECT_EQ(file.tensors().size(), expected.size());
}

TEST_P(ModelFolders, FilesAreTheRecordedOnes) {
  if (!trained()) GTEST_SKIP() << GetParam().folder << " has no weights yet";
  const json losses = json_of(folder() / "expected_loss.json");
  EXPECT_EQ(bench::sha256_hex(bytes_of(folder() / "model.safetensors")),
            losses.at("weights_sha256"));
  const json domains = json_of(models() / "texts.json").at("domains");
  EXPECT_EQ(losses.at("texts").size(), 2 * domains.size());
  for (const auto& [domain, texts] : domains.items())
    for (const char* const part : {"calibration", "test"}) {
      const json& loss = losses.at("texts").at(domain + "_" + part);
      EXPECT_EQ(loss.at("sha256"), texts.at(part).at("sha256")) << domain << ' ' << part;
      EXPECT_GT(loss.at("nats_per_token"), 0.5);
      EXPECT_LT(loss.at("nats_per_token"), 5.0);  // 7.6 before training
    }
  for (const double load : losses.at("largest_load")) EXPECT_LE(load, 3.0);
  for (const char* const name : {"tokenizer.json", "tokenizer_config.json"})
    EXPECT_EQ(bytes_of(folder() / name), bytes_of(models() / "tokenizer" / name)) << name;
}

/// Bytes of the weights as float16, with a safetensors header.
std::uintmax_t bytes_of_weights(const shapes& tensors) {
  std::uintmax_t bytes = 0;
  for (const auto& [name, shape] : tensors) {
    std::int64_t values = 1;
    for (const std::int64_t extent : shape) values *= extent;
    bytes += 2 * static_cast<std::uintmax_t>(values) + name.size() + 80;
  }
  return bytes;
}

TEST_P(ModelFolders, FitsTheRepository) {
  const shapes tensors = tensors_of(json_of(folder() / "config.json"), GetParam());
  EXPECT_LE(bytes_of_weights(tensors), 10 * mebibyte);
  if (trained()) {
    EXPECT_LE(fs::file_size(folder() / "model.safetensors"), 10 * mebibyte);
  }
}

INSTANTIATE_TEST_SUITE_P(
    , ModelFolders,
    testing::Values(router{"mixtral-8x2", "MixtralForCausalLM", 8, 2, true, false, false},
                    router{"qwen-60x4", "Qwen2MoeForCausalLM", 60, 4, false, true, false},
                    router{"olmoe-64x8", "OlmoeForCausalLM", 64, 8, false, false, false},
                    router{"sigmoid-128x6", "Glm4MoeForCausalLM", 128, 6, true, true, true}),
    [](const auto& tested) {
      std::string name = tested.param.folder;
      name[name.find('-')] = '_';
      return name;
    });

TEST(ModelTexts, AreTheRecordedOnes) {
  const json domains = json_of(models() / "texts.json").at("domains");
  EXPECT_EQ(domains.size(), 3);
  for (const auto& [domain, texts] : domains.items())
    for (const char* const part : {"calibration", "test"}) {
      const json& text = texts.at(part);
      const std::string bytes = bytes_of(models() / text.at("file").get<std::string>());
      EXPECT_EQ(bytes.size(), text.at("bytes").get<std::size_t>()) << domain << ' ' << part;
      EXPECT_EQ(bench::sha256_hex(bytes), text.at("sha256")) << domain << ' ' << part;
    }
}

TEST(ModelTexts, HeldOutDocumentsAreInOneTextOnly) {
  const json domains = json_of(models() / "texts.json").at("domains");
  for (const char* const domain : {"technical", "code"}) {
    std::map<std::string, std::string> part_of;
    for (const char* const part : {"calibration", "test", "validation"})
      for (const std::string name : domains.at(domain).at(part).at("sources"))
        EXPECT_TRUE(part_of.emplace(name, part).second) << name;
  }
}

TEST(ModelTokenizer, HasEveryByteAndTheVocabularyOfTheModels) {
  const json tokenizer = json_of(models() / "tokenizer" / "tokenizer.json");
  const json& tokens = tokenizer.at("model").at("vocab");
  EXPECT_EQ(tokenizer.at("model").at("type"), "BPE");
  EXPECT_EQ(tokens.size(), vocabulary);
  std::size_t single = 0;  // one character of the byte alphabet is one or two bytes of UTF-8
  for (const auto& [text, id] : tokens.items()) {
    const bool two = text.size() == 2 && (static_cast<unsigned char>(text[0]) & 0xe0) == 0xc0;
    single += text.size() == 1 || two ? 1 : 0;
  }
  EXPECT_EQ(single, 256);
}

TEST(ModelFolder, NoneIsUntested) {
  std::uintmax_t total = 0;
  for (const auto& entry : fs::directory_iterator(models())) {
    const std::string name = entry.path().filename().string();
    if (name == "reference-32x8" || !fs::exists(entry.path() / "config.json")) continue;
    EXPECT_TRUE(name == "mixtral-8x2" || name == "qwen-60x4" || name == "olmoe-64x8" ||
                name == "sigmoid-128x6")
        << name;
    const fs::path weights = entry.path() / "model.safetensors";
    if (fs::exists(weights)) total += fs::file_size(weights);
  }
  EXPECT_LE(total, 36 * mebibyte);
}

}  // namespace
