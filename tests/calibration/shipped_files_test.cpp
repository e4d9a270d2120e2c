// The files of calibrations/: they load, match the schema, and say what is known of the models.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <vector>

#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"
#include "calibration/schema_check.hpp"

namespace {

using adaptive_k::gating_kind;
using adaptive_k::preset;
using calibration_test::json;
using calibration_test::shipped_folder;

json read_json(const std::filesystem::path& file) {
  return json::parse(std::ifstream(file));
}

std::vector<preset> shipped() {
  std::vector<preset> presets;
  for (const auto& file : adaptive_k::detail::calibration_files(shipped_folder()))
    presets.push_back(adaptive_k::load_preset_file(file));
  return presets;
}

// Typed a second time from the models' public configurations, as a check on the files.
struct known_model {
  const char* name;
  gating_kind kind;
  int num_experts, top_k;
  bool renormalize, bias;
  double scale;
  int n_group, topk_group;
  int layers, hidden, intermediate, matrices, shared, shared_intermediate;
  const char* hugging_face;
};

constexpr auto softmax = gating_kind::softmax;
constexpr auto sigmoid = gating_kind::sigmoid;
constexpr auto selected = gating_kind::top_k_softmax;
constexpr auto mixer = gating_kind::sparsemixer;

// clang-format off
const known_model models[] = {
  {"mixtral-8x7b",            softmax,    8, 2, true,  false, 1,     1, 1, 32, 4096, 14336, 3, 0, 0,     "mistralai/Mixtral-8x7B-v0.1"},
  {"mixtral-8x22b",           softmax,    8, 2, true,  false, 1,     1, 1, 56, 6144, 16384, 3, 0, 0,     "mistralai/Mixtral-8x22B-v0.1"},
  {"qwen1.5-moe-a2.7b",       softmax,   60, 4, false, false, 1,     1, 1, 24, 2048, 1408,  3, 1, 5632,  "Qwen/Qwen1.5-MoE-A2.7B"},
  {"qwen2-57b-a14b",          softmax,   64, 8, false, false, 1,     1, 1, 28, 3584, 2560,  3, 1, 20480, "Qwen/Qwen2-57B-A14B"},
  {"qwen3-30b-a3b",           softmax,  128, 8, true,  false, 1,     1, 1, 48, 2048, 768,   3, 0, 0,     "Qwen/Qwen3-30B-A3B"},
  {"qwen3-235b-a22b",         softmax,  128, 8, true,  false, 1,     1, 1, 94, 4096, 1536,  3, 0, 0,     "Qwen/Qwen3-235B-A22B"},
  {"olmoe-1b-7b",             softmax,   64, 8, false, false, 1,     1, 1, 16, 2048, 1024,  3, 0, 0,     "allenai/OLMoE-1B-7B-0924"},
  {"nemotron-3-nano-30b-a3b", sigmoid,  128, 6, true,  true,  2.5,   1, 1, 23, 2688, 1856,  2, 1, 3712,  "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"},
  {"deepseek-v2-lite",        softmax,   64, 6, false, false, 1,     1, 1, 26, 2048, 1408,  3, 2, 1408,  "deepseek-ai/DeepSeek-V2-Lite"},
  {"deepseek-v3",             sigmoid,  256, 8, true,  true,  2.5,   8, 4, 58, 7168, 2048,  3, 1, 2048,  "deepseek-ai/DeepSeek-R1"},
  {"gpt-oss-20b",             selected,  32, 4, true,  false, 1,     1, 1, 24, 2880, 2880,  3, 0, 0,     "openai/gpt-oss-20b"},
  {"gpt-oss-120b",            selected, 128, 4, true,  false, 1,     1, 1, 36, 2880, 2880,  3, 0, 0,     "openai/gpt-oss-120b"},
  {"llama-4-scout",           sigmoid,   16, 1, false, false, 1,     1, 1, 48, 5120, 8192,  3, 1, 8192,  "meta-llama/Llama-4-Scout-17B-16E"},
  {"llama-4-maverick",        sigmoid,  128, 1, false, false, 1,     1, 1, 24, 5120, 8192,  3, 1, 8192,  "meta-llama/Llama-4-Maverick-17B-128E"},
  {"kimi-k2",                 sigmoid,  384, 8, true,  true,  2.827, 1, 1, 60, 7168, 2048,  3, 1, 2048,  "moonshotai/Kimi-K2-Instruct"},
  {"glm-4.5",                 sigmoid,  160, 8, true,  true,  2.5,   1, 1, 89, 5120, 1536,  3, 1, 1536,  "zai-org/GLM-4.5"},
  {"glm-4.5-air",             sigmoid,  128, 8, true,  true,  1,     1, 1, 45, 4096, 1408,  3, 1, 1408,  "zai-org/GLM-4.5-Air"},
  {"phi-3.5-moe",             mixer,     16, 2, false, false, 1,     1, 1, 32, 4096, 6400,  3, 0, 0,     "microsoft/Phi-3.5-MoE-instruct"},
  {"dbrx",                    softmax,   16, 4, true,  false, 1,     1, 1, 40, 6144, 10752, 3, 0, 0,     "databricks/dbrx-base"},
  {"granite-3.1-3b-a800m",    selected,  40, 8, true,  false, 1,     1, 1, 32, 1536, 512,   3, 0, 0,     "ibm-granite/granite-3.1-3b-a800m-base"},
  {"granite-3.1-1b-a400m",    selected,  32, 8, true,  false, 1,     1, 1, 24, 1024, 512,   3, 0, 0,     "ibm-granite/granite-3.1-1b-a400m-base"},
  {"reference-32x8",          softmax,   32, 8, true,  false, 1,     1, 1, 4,  160,  96,    3, 0, 0,     "adaptive-k-reference"},
  {"mixtral-8x2",             softmax,    8, 2, true,  false, 1,     1, 1, 6,  128,  192,   3, 0, 0,     "mixtral-8x2"},
  {"qwen-60x4",               softmax,   60, 4, false, false, 1,     1, 1, 6,  96,   32,    3, 1, 128,   "qwen-60x4"},
  {"olmoe-64x8",              softmax,   64, 8, false, false, 1,     1, 1, 6,  96,   32,    3, 0, 0,     "olmoe-64x8"},
  {"sigmoid-128x6",           sigmoid,  128, 6, true,  true,  2.5,   1, 1, 6,  64,   32,    3, 1, 32,    "sigmoid-128x6"},
  {"jamba-1.5-mini",          softmax,   16, 2, false, false, 1,     1, 1, 16, 4096, 14336, 3, 0, 0,     "ai21labs/AI21-Jamba-1.5-Mini"},
  {"minimax-m2",              sigmoid,  256, 8, true,  true,  1,     1, 1, 62, 3072, 1536,  3, 0, 0,     "MiniMaxAI/MiniMax-M2"},
  {"hunyuan-a13b",            softmax,   64, 8, true,  false, 1,     1, 1, 32, 4096, 3072,  3, 1, 3072,  "tencent/Hunyuan-A13B-Instruct"},
};
// clang-format on

TEST(ShippedFiles, AreTheModelsKnownHereAndNoOthers) {
  std::set<std::string> expected;
  for (const known_model& model : models) expected.insert(model.name);
  std::set<std::string> found;
  for (const preset& file : shipped()) {
    found.insert(file.name);
    EXPECT_EQ(file.file.filename(), file.name + ".json");
  }
  EXPECT_EQ(found, expected);
}

TEST(ShippedFiles, StandInTheProvenanceTable) {
  std::ifstream readme(shipped_folder() / "README.md");
  const std::string text{std::istreambuf_iterator<char>(readme), {}};
  for (const known_model& model : models)
    EXPECT_NE(text.find("| " + std::string(model.name) + " |"), std::string::npos) << model.name;
}

TEST(ShippedFiles, MatchTheSchema) {
  const json schema = read_json(shipped_folder() / "schema.json");
  const schema_check::checker checker(schema);
  for (const auto& file : adaptive_k::detail::calibration_files(shipped_folder()))
    EXPECT_EQ(checker.check(read_json(file)), "") << file;
  EXPECT_EQ(checker.check(calibration_test::good_file()), "");
}

TEST(ShippedFiles, HaveGatingAndSizesOfTheModels) {
  for (const known_model& known : models) {
    SCOPED_TRACE(known.name);
    const preset file = adaptive_k::load_preset(known.name);
    EXPECT_EQ(file.model.kind, known.kind);
    EXPECT_EQ(file.model.num_experts, known.num_experts);
    EXPECT_EQ(file.model.top_k, known.top_k);
    EXPECT_EQ(file.model.renormalize, known.renormalize);
    EXPECT_EQ(file.model.selection_bias, known.bias);
    EXPECT_FLOAT_EQ(file.model.routed_scaling_factor, static_cast<float>(known.scale));
    EXPECT_EQ(file.model.n_group, known.n_group);
    EXPECT_EQ(file.model.topk_group, known.topk_group);
    EXPECT_EQ(file.model.group_rank, adaptive_k::group_score::top2_sum);
    EXPECT_EQ(file.num_moe_layers, known.layers);
    EXPECT_EQ(file.sizes.hidden, known.hidden);
    EXPECT_EQ(file.sizes.intermediate, known.intermediate);
    EXPECT_EQ(file.sizes.matrices, known.matrices);
    EXPECT_EQ(file.shared_experts.count, known.shared);
    EXPECT_EQ(file.shared_experts.intermediate, known.shared_intermediate);
    EXPECT_FALSE(file.sources.empty());
    EXPECT_EQ(adaptive_k::load_preset(known.hugging_face).name, known.name);
    EXPECT_TRUE(file.make_router().validity().ok()) << file.make_router().validity().message();
  }
}

TEST(ShippedFiles, ShareNoNameOrAlias) {
  std::map<std::string, std::string> owner;
  for (const preset& file : shipped()) {
    std::vector<std::string> names = file.aliases;
    names.push_back(file.name);
    for (const std::string& name : names) {
      const auto [entry, is_new] = owner.emplace(adaptive_k::detail::lower_case(name), file.name);
      EXPECT_TRUE(is_new) << name << " names both " << entry->second << " and " << file.name;
    }
  }
}

TEST(ShippedFiles, DefaultToFullKWhereNothingIsPublished) {
  const std::set<std::string> published = {"mixtral-8x7b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b",
                                           "nemotron-3-nano-30b-a3b"};
  const std::set<std::string> trained = {"reference-32x8", "mixtral-8x2", "qwen-60x4", "olmoe-64x8",
                                         "sigmoid-128x6"};
  for (const preset& file : shipped()) {
    SCOPED_TRACE(file.name);
    const adaptive_k::k_policy& full = file.policy("full").layers.at(0);
    EXPECT_EQ(full.rule, adaptive_k::k_rule::full);
    EXPECT_EQ(full.k_max, adaptive_k::max_top_k);
    if (trained.count(file.name) != 0) {  // what this project has measured
      EXPECT_EQ(file.policy().provenance, "measured");
      EXPECT_LT(*file.policy().measured->mean_kl, *file.policy().measured->fixed_k_mean_kl);
      continue;
    }
    EXPECT_EQ(file.default_policy, published.count(file.name) != 0 ? "published" : "full");
    for (const adaptive_k::preset_policy& policy : file.policies)
      EXPECT_EQ(policy.provenance,
                policy.name == "full" ? "the model's own routing" : "published, not reproduced");
  }
}

struct published_rule {
  const char* name;
  std::vector<int> k_values;
  std::vector<double> as_published;
  const char* unit;
  double mean_k, saving, mean_signal, baseline, adaptive;
};

TEST(ShippedFiles, CarryThePublishedRulesAsClaims) {
  const published_rule rules[] = {
      {"mixtral-8x7b", {1, 2}, {1.275}, "nats", 1.38, 0.31, 1.45, 3.84, 3.87},
      {"qwen-moe", {2, 3, 4}, {1.8, 2.4}, "nats", 2.71, 0.324, 2.81, 8.12, 8.19},
      {"olmoe", {4, 6, 8}, {2.5, 3.2}, "nats", 6.02, 0.247, 2.92, 10.45, 10.51},
      {"nemotron-3-nano", {2, 4, 6}, {4.5, 5.5}, "bits", 4.00, 0.333, 5.23, 0, 0},
  };
  for (const published_rule& rule : rules) {
    SCOPED_TRACE(rule.name);
    const preset file = adaptive_k::load_preset(rule.name);
    const adaptive_k::preset_policy& policy = file.policy();
    EXPECT_EQ(policy.name, "published");
    EXPECT_FALSE(policy.source.empty());
    ASSERT_EQ(policy.layers.size(), 1u);
    const adaptive_k::k_policy& k = policy.layers[0];
    EXPECT_EQ(k.rule, adaptive_k::k_rule::thresholds);
    EXPECT_EQ(k.signal, adaptive_k::signal_kind::softmax_entropy);
    EXPECT_EQ(k.mass_exponent, 1.0f);
    ASSERT_EQ(static_cast<std::size_t>(k.num_k_values), rule.k_values.size());
    const double nats_per_unit = rule.unit == std::string("bits") ? std::log(2.0) : 1.0;
    for (std::size_t i = 0; i < rule.k_values.size(); ++i)
      EXPECT_EQ(k.k_values[i], rule.k_values[i]);
    for (std::size_t i = 0; i < rule.as_published.size(); ++i)
      EXPECT_NEAR(k.thresholds[i], rule.as_published[i] * nats_per_unit, 1e-6);

    ASSERT_TRUE(policy.published.has_value());
    const adaptive_k::published_claims& claims = *policy.published;
    EXPECT_EQ(claims.unit, rule.unit);
    EXPECT_EQ(claims.thresholds, rule.as_published);
    EXPECT_EQ(claims.mean_k, rule.mean_k);
    EXPECT_EQ(claims.saving, rule.saving);
    EXPECT_EQ(claims.mean_signal, rule.mean_signal);
    EXPECT_EQ(claims.baseline_perplexity.value_or(0), rule.baseline);
    EXPECT_EQ(claims.adaptive_perplexity.value_or(0), rule.adaptive);
    EXPECT_FALSE(claims.contradictions.empty());
    EXPECT_FALSE(policy.measured.has_value());
  }
}

TEST(ShippedFiles, QwensPublishedFiguresCannotAllBeTrue) {
  // Tokens with K = 2, 3, 4 lie below 1.8, below 2.4 and at most at ln 60. The mean entropy is
  // greatest when all that is above K = 2 is K = 4.
  const double most_with_k4 = (2.715 - 2) / 2;
  const double mean_entropy = 1.8 * (1 - most_with_k4) + std::log(60.0) * most_with_k4;
  EXPECT_LT(mean_entropy, 2.63);
  EXPECT_LT(mean_entropy, *adaptive_k::load_preset("qwen-moe").policy().published->mean_signal);
}

TEST(ShippedFiles, MixtralsPublishedRuleTakesOneExpertBelowItsEntropy) {
  constexpr int tokens = 4000;
  std::vector<float> logits;
  std::uint32_t state = 1;
  for (int i = 0; i < tokens * 8; ++i) {
    state = state * 1664525u + 1013904223u;
    logits.push_back(static_cast<float>(state >> 20) / 512.0f);
  }
  const adaptive_k::router router = adaptive_k::from_preset("mixtral-8x7b");
  const auto routed = router.route(31, adaptive_k::logits_view<>{logits.data(), tokens, 8});
  ASSERT_TRUE(routed.result.ok()) << routed.result.message();
  int with_one = 0;
  for (int t = 0; t < tokens; ++t) {
    double sum = 0, weighted = 0;
    for (int e = 0; e < 8; ++e) {
      const double x = logits[static_cast<std::size_t>(t * 8 + e)];
      sum += std::exp(x);
      weighted += x * std::exp(x);
    }
    const double entropy = std::log(sum) - weighted / sum;
    if (std::abs(entropy - 1.275) < 1e-5) continue;
    EXPECT_EQ(routed.topk_counts[static_cast<std::size_t>(t)], entropy < 1.275 ? 1 : 2);
    with_one += entropy < 1.275 ? 1 : 0;
  }
  EXPECT_GT(with_one, tokens / 10);
  EXPECT_LT(with_one, tokens * 9 / 10);
}

}  // namespace
