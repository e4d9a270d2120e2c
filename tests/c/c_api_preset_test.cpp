// Presets and distortion tables through the C interface, against the C++ one.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/c/adaptive_k.h"
#include "inputs.hpp"
#if defined(HAS_JSON)
#include "adaptive_k/calibration/preset.hpp"
#endif

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

struct destroy {
  void operator()(adaptive_k_router* router) const { adaptive_k_router_destroy(router); }
};
using router_handle = std::unique_ptr<adaptive_k_router, destroy>;

/// What adaptive_k_router_from_preset gave, and what it said.
struct loaded {
  std::int32_t code = 0;
  std::string message;
  router_handle router;
};

loaded load(const char* preset, const char* policy = nullptr) {
  adaptive_k_preset_params params = {};
  params.struct_size = sizeof params;
  char message[4000] = "";
  params.message = message;
  params.message_bytes = sizeof message;
  params.preset = preset;
  params.policy = policy;
  adaptive_k_router* made = reinterpret_cast<adaptive_k_router*>(&params);  // to be overwritten
  loaded result;
  result.code = adaptive_k_router_from_preset(&params, &made);
  result.message = message;
  result.router.reset(made);
  EXPECT_EQ(result.code == ADAPTIVE_K_OK, made != nullptr);
  return result;
}

void expect_same_routing(const adaptive_k_router* from_c, const router& from_cpp, int layer) {
  constexpr int tokens = 200;
  const gating& model = from_cpp.model();
  inputs::sequence from(4);
  std::vector<float> logits(static_cast<std::size_t>(tokens * model.num_experts));
  for (float& logit : logits) logit = inputs::fine_logit(from);
  const routed_batch expected =
      from_cpp.route(layer, logits_view<float>{logits.data(), tokens, model.num_experts});
  ASSERT_TRUE(expected.result.ok()) << expected.result.message();
  std::vector<std::int32_t> ids(expected.topk_ids.size()), counts(tokens);
  std::vector<float> weights(ids.size());
  adaptive_k_route_params call = {};
  call.struct_size = sizeof call;
  call.layer = layer;
  call.logits = logits.data();
  call.num_tokens = tokens;
  call.topk_ids = ids.data();
  call.topk_weights = weights.data();
  call.topk_counts = counts.data();
  ASSERT_EQ(adaptive_k_route_host(from_c, &call), ADAPTIVE_K_OK);
  EXPECT_EQ(ids, expected.topk_ids);
  EXPECT_EQ(counts, expected.topk_counts);
  EXPECT_EQ(std::memcmp(weights.data(), expected.topk_weights.data(), 4 * weights.size()), 0);
}

TEST(c_api_tables, are_copied_when_the_router_is_made) {
  gating model;
  model.num_experts = 24;
  model.top_k = 4;
  inputs::sequence from(3);
  inputs::distortion_tables tables(from, model.num_experts, model.top_k);
  const inputs::distortion_tables kept = tables;
  const router expected(
      model, k_policy::min_distortion({kept.coefficients.data(), kept.first_expert.data(),
                                       kept.next_expert.data(), 1.0f, 0.05f}));
  adaptive_k_gating gating = {};
  gating.struct_size = sizeof gating;
  gating.kind = ADAPTIVE_K_SOFTMAX;
  gating.num_experts = model.num_experts;
  gating.top_k = model.top_k;
  gating.renormalize = 1;
  adaptive_k_policy policy = {};
  policy.struct_size = sizeof policy;
  policy.rule = ADAPTIVE_K_DISTORTION;
  policy.signal = ADAPTIVE_K_TOPK_ENTROPY;
  policy.lambda = 0.05f;
  policy.coefficients = tables.coefficients.data();
  policy.first_expert = tables.first_expert.data();
  policy.next_expert = tables.next_expert.data();
  for (const int layers : {0, 2}) {
    const std::vector<adaptive_k_policy> policies(2, policy);
    adaptive_k_router_params params = {};
    params.struct_size = sizeof params;
    params.gating = &gating;
    params.policies = policies.data();
    params.num_layers = layers;
    adaptive_k_router* made = nullptr;
    ASSERT_EQ(adaptive_k_router_create(&params, &made), ADAPTIVE_K_OK);
    const router_handle router(made);
    for (auto* table : {&tables.coefficients, &tables.first_expert, &tables.next_expert})
      for (float& value : *table) value = 1e9f;  // what the caller does with its own is its affair
    expect_same_routing(router.get(), expected, 0);
    tables = kept;  // the assignment keeps the addresses
  }
}

#if defined(HAS_JSON)

const std::string folder = std::string(ADAPTIVE_K_SOURCE_DIR) + "/calibrations";
const std::string reference = folder + "/reference-32x8.json";

TEST(c_api_preset, gives_the_routing_of_the_cpp_interface) {
  const loaded calibrated = load(reference.c_str());
  ASSERT_EQ(calibrated.code, ADAPTIVE_K_OK) << calibrated.message;
  const router expected = from_preset(reference);
  EXPECT_EQ(adaptive_k_router_num_layers(calibrated.router.get()), expected.num_layers());
  for (int layer = 0; layer < expected.num_layers(); ++layer)
    expect_same_routing(calibrated.router.get(), expected, layer);
  const loaded spelled = load(reference.c_str(), "top_p:0.9");
  ASSERT_EQ(spelled.code, ADAPTIVE_K_OK) << spelled.message;
  expect_same_routing(spelled.router.get(), from_preset(reference, "top_p:0.9"), 0);
}

TEST(c_api_preset, of_every_shipped_file_has_its_gating) {
  for (const preset& known : list_presets()) {
    const loaded made = load(known.file.string().c_str());
    ASSERT_EQ(made.code, ADAPTIVE_K_OK) << made.message;
    adaptive_k_gating gating = {};
    gating.struct_size = sizeof gating;
    ASSERT_EQ(adaptive_k_router_gating(made.router.get(), &gating), ADAPTIVE_K_OK);
    EXPECT_EQ(gating.kind, static_cast<int>(known.model.kind));
    EXPECT_EQ(gating.num_experts, known.model.num_experts);
    EXPECT_EQ(gating.top_k, known.model.top_k);
    EXPECT_EQ(gating.renormalize != 0, known.model.renormalize);
    EXPECT_EQ(gating.selection_bias != 0, known.model.selection_bias);
    EXPECT_EQ(gating.routed_scaling_factor, known.model.routed_scaling_factor);
    EXPECT_EQ(gating.n_group, known.model.n_group);
    EXPECT_EQ(gating.topk_group, known.model.topk_group);
    EXPECT_EQ(gating.group_rank, static_cast<int>(known.model.group_rank));
    EXPECT_EQ(gating.jitter_epsilon, known.model.jitter_epsilon);
  }
}

TEST(c_api_preset, names_are_looked_up_where_the_environment_says) {
  ASSERT_EQ(setenv("ADAPTIVE_K_CALIBRATIONS", folder.c_str(), 1), 0);
  const loaded by_name = load("reference-32x8");
  const loaded unknown = load("no-such-model");
  unsetenv("ADAPTIVE_K_CALIBRATIONS");
  EXPECT_EQ(by_name.code, ADAPTIVE_K_OK) << by_name.message;
  EXPECT_EQ(unknown.code, ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_NE(unknown.message.find("preset 'no-such-model'"), std::string::npos) << unknown.message;
  EXPECT_NE(unknown.message.find("mixtral-8x7b"), std::string::npos)
      << "a list longer than a status holds: " << unknown.message;
}

TEST(c_api_preset, refusals_name_what_is_wrong) {
  EXPECT_NE(load("/no/such/file.json").message.find("/no/such/file.json"), std::string::npos);
  const loaded policy = load(reference.c_str(), "sideways");
  EXPECT_EQ(policy.code, ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_NE(policy.message.find("sideways"), std::string::npos) << policy.message;
  const loaded nothing = load(nullptr);
  EXPECT_EQ(nothing.code, ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(nothing.message, "preset is null");
  adaptive_k_preset_params params = {};
  params.struct_size = sizeof params;
  params.preset = reference.c_str();
  EXPECT_EQ(adaptive_k_router_from_preset(&params, nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  adaptive_k_router* made = nullptr;
  params.fill = 3;
  EXPECT_EQ(adaptive_k_router_from_preset(&params, &made), ADAPTIVE_K_INVALID_ARGUMENT);
  params.fill = ADAPTIVE_K_FILL_NUM_EXPERTS;
  params.struct_size = 16;
  EXPECT_EQ(adaptive_k_router_from_preset(&params, &made), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(made, nullptr);
}

#else

TEST(c_api_preset, is_unsupported_without_json) {
  const loaded made = load("mixtral-8x7b");
  EXPECT_EQ(made.code, ADAPTIVE_K_UNSUPPORTED);
  EXPECT_EQ(made.message, "presets: this library was built without nlohmann/json");
}

#endif

}  // namespace
