// The C interface on the host: the numbers of the C++ one, structs of other versions, refusals.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/c/adaptive_k.h"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

template <class Params>
Params sized() {
  Params params = {};
  params.struct_size = sizeof params;
  return params;
}

struct destroy {
  void operator()(adaptive_k_router* router) const { adaptive_k_router_destroy(router); }
};
using router_handle = std::unique_ptr<adaptive_k_router, destroy>;

adaptive_k_gating c_gating() {
  auto made = sized<adaptive_k_gating>();
  made.kind = ADAPTIVE_K_SOFTMAX;
  made.num_experts = 60;
  made.top_k = 6;
  made.renormalize = 1;
  return made;
}

adaptive_k_policy c_policy() {
  auto made = sized<adaptive_k_policy>();
  made.num_super_experts = 2;
  made.super_experts[0] = 59;
  made.super_experts[1] = 7;
  made.domain_given = 1;
  made.domain_signal_least = 0.9f;
  made.domain_signal_most = 1.5f;
  made.domain_first_share_least = 0.3f;
  made.domain_first_share_most = 0.6f;
  made.rule = ADAPTIVE_K_THRESHOLDS;
  made.signal = ADAPTIVE_K_TOPK_ENTROPY;
  made.num_k_values = 3;
  const std::uint8_t k_values[] = {2, 4, 6};
  std::memcpy(made.k_values, k_values, sizeof k_values);
  made.thresholds[0] = 0.8f;
  made.thresholds[1] = 1.4f;
  return made;
}

struct message_buffer {
  char text[200] = "";
  template <class Params>
  void attach(Params& params) {
    params.message = text;
    params.message_bytes = sizeof text;
  }
};

router_handle create(const adaptive_k_gating& gating, const adaptive_k_policy& policy,
                     std::string* message = nullptr) {
  auto params = sized<adaptive_k_router_params>();
  params.gating = &gating;
  params.policies = &policy;
  message_buffer buffer;
  buffer.attach(params);
  adaptive_k_router* made = nullptr;
  const std::int32_t result = adaptive_k_router_create(&params, &made);
  EXPECT_EQ(result == ADAPTIVE_K_OK, made != nullptr);
  if (message != nullptr) *message = buffer.text;
  return router_handle(made);
}

/// A batch, routed through both interfaces.
template <class Logit, class Id, class Weight>
void expect_equal(std::int32_t logits_type, std::int32_t ids_type, std::int32_t weights_type) {
  const adaptive_k_gating from_c = c_gating();
  const adaptive_k_policy policy_from_c = c_policy();
  const router_handle c_router = create(from_c, policy_from_c);
  ASSERT_NE(c_router, nullptr);
  gating g;
  g.num_experts = 60;
  g.top_k = 6;
  k_policy policy = k_policy::with_thresholds(signal_kind::topk_entropy, {2, 4, 6}, {0.8f, 1.4f});
  policy.num_super_experts = 2;
  policy.super_experts[0] = 59;
  policy.super_experts[1] = 7;
  policy.domain = {true, 0.9f, 1.5f, 0.3f, 0.6f};
  const router router(g, policy);
  ASSERT_TRUE(router.validity().ok()) << router.validity().message();

  constexpr int tokens = 40;
  inputs::sequence from(1);
  std::vector<Logit> logits(tokens * 61);
  for (Logit& logit : logits) logit = from_float<Logit>(inputs::fine_logit(from));
  std::vector<std::uint8_t> padding(tokens);
  for (std::uint8_t& one : padding) one = from.chance(5) ? 1 : 0;
  std::vector<Id> ids(tokens * 6), c_ids(tokens * 6);
  std::vector<Weight> weights(tokens * 6), c_weights(tokens * 6);
  std::vector<std::int32_t> counts(tokens), c_counts(tokens);
  std::vector<float> signal(tokens), c_signal(tokens);
  routing_metrics metrics;
  ASSERT_TRUE(router
                  .route(0, logits_view<Logit>{logits.data(), tokens, 60, 61},
                         routing_output<Id, Weight>{ids.data(), weights.data(), counts.data(),
                                                    signal.data()},
                         &metrics, {nullptr, padding.data()})
                  .ok());

  auto call = sized<adaptive_k_route_params>();
  call.logits = logits.data();
  call.num_tokens = tokens;
  call.row_stride = 61;
  call.topk_ids = c_ids.data();
  call.topk_weights = c_weights.data();
  call.logits_type = logits_type;
  call.ids_type = ids_type;
  call.weights_type = weights_type;
  call.topk_counts = c_counts.data();
  call.signal = c_signal.data();
  call.padding_mask = padding.data();
  auto c_metrics = std::make_unique<adaptive_k_metrics>();
  call.metrics = c_metrics.get();
  ASSERT_EQ(adaptive_k_route_host(c_router.get(), &call), ADAPTIVE_K_OK);
  EXPECT_EQ(c_ids, ids);
  EXPECT_EQ(std::memcmp(c_weights.data(), weights.data(), weights.size() * sizeof(Weight)), 0);
  EXPECT_EQ(c_counts, counts);
  EXPECT_EQ(c_signal, signal);
  EXPECT_EQ(std::memcmp(c_metrics.get(), &metrics, sizeof metrics), 0);
  EXPECT_GT(c_metrics->super_expert_tokens, 0u);
  EXPECT_GT(c_metrics->out_of_domain, 0u);
  EXPECT_LT(c_metrics->out_of_domain, c_metrics->tokens);

  // A caller of version 0.1 has the experts in its metrics.
  std::vector<std::uint64_t> expert_counts(60);
  call.expert_counts = expert_counts.data();
  ASSERT_EQ(adaptive_k_route_host(c_router.get(), &call), ADAPTIVE_K_OK);
  auto old_call = call;
  old_call.struct_size = offsetof(adaptive_k_route_params, expert_counts);
  auto old_metrics = std::make_unique<adaptive_k_metrics_v0_1>();
  old_call.metrics = old_metrics.get();
  for (int i = 0; i < 2; ++i)
    ASSERT_EQ(adaptive_k_route_host(c_router.get(), &old_call), ADAPTIVE_K_OK);
  EXPECT_EQ(old_metrics->tokens, 2 * metrics.tokens);
  EXPECT_EQ(old_metrics->k_histogram[6], 2 * metrics.k_histogram[6]);
  EXPECT_EQ(old_metrics->signal_lowest, metrics.signal_lowest);
  std::uint64_t slots = 0;
  for (std::size_t e = 0; e < 60; ++e) {
    EXPECT_EQ(old_metrics->expert_counts[e], 2 * expert_counts[e]) << e;
    EXPECT_EQ((c_metrics->touched_experts[0] >> e & 1) != 0, expert_counts[e] != 0) << e;
    slots += expert_counts[e];
  }
  EXPECT_EQ(slots, metrics.expert_calls);
  EXPECT_GE(adaptive_k_metrics_bytes(), sizeof *old_metrics);
  call.expert_counts = nullptr;
  call.metrics = nullptr;

  // The same experts, given back.
  call.replay_ids = ids.data();
  call.replay_counts = counts.data();
  call.padding_mask = nullptr;
  std::fill(c_weights.begin(), c_weights.end(), Weight{});
  ASSERT_EQ(adaptive_k_route_host(c_router.get(), &call), ADAPTIVE_K_OK);
  EXPECT_EQ(std::memcmp(c_weights.data(), weights.data(), weights.size() * sizeof(Weight)), 0);

  call.replay_ids = nullptr;  // counts of nothing
  char why[224] = {};
  call.message = why;
  call.message_bytes = sizeof why;
  EXPECT_EQ(adaptive_k_route_host(c_router.get(), &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(why, "replay_counts is given, but replay_ids is null");
}

TEST(c_api_host, gives_the_numbers_of_the_cpp_interface) {
  expect_equal<float, std::int32_t, float>(ADAPTIVE_K_FLOAT32, ADAPTIVE_K_INT32,
                                           ADAPTIVE_K_FLOAT32);
  expect_equal<float16, std::int64_t, bfloat16>(ADAPTIVE_K_FLOAT16, ADAPTIVE_K_INT64,
                                                ADAPTIVE_K_BFLOAT16);
  expect_equal<bfloat16, std::int16_t, float16>(ADAPTIVE_K_BFLOAT16, ADAPTIVE_K_INT16,
                                                ADAPTIVE_K_FLOAT16);
  expect_equal<bfloat16, std::uint16_t, float>(ADAPTIVE_K_BFLOAT16, ADAPTIVE_K_UINT16,
                                               ADAPTIVE_K_FLOAT32);
}

TEST(c_api_host, routes_by_the_best_instructions_and_says_which) {
  const router_handle router = create(c_gating(), c_policy());
  EXPECT_STREQ(adaptive_k_router_instruction_set(router.get()), name_of(best_instruction_set()));
  EXPECT_EQ(adaptive_k_router_instruction_set(nullptr), nullptr);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    EXPECT_STRNE(adaptive_k_router_instruction_set(router.get()), "scalar");
  }
#endif
}

TEST(c_api_host, layers_have_their_own_policies) {
  const adaptive_k_gating gating = c_gating();
  std::vector<adaptive_k_policy> policies(2, sized<adaptive_k_policy>());
  for (int i = 0; i < 2; ++i) {
    policies[static_cast<std::size_t>(i)].rule = ADAPTIVE_K_FIXED;
    policies[static_cast<std::size_t>(i)].num_k_values = 1;
    policies[static_cast<std::size_t>(i)].k_values[0] = static_cast<std::uint8_t>(2 + i);
  }
  auto params = sized<adaptive_k_router_params>();
  params.gating = &gating;
  params.policies = policies.data();
  params.num_layers = 2;
  adaptive_k_router* made = nullptr;
  ASSERT_EQ(adaptive_k_router_create(&params, &made), ADAPTIVE_K_OK);
  const router_handle router(made);
  EXPECT_EQ(adaptive_k_router_num_layers(made), 2);
  const std::vector<float> logits(60, 1.0f);
  std::vector<std::int32_t> ids(6);
  std::vector<float> weights(6);
  std::int32_t count = 0;
  auto call = sized<adaptive_k_route_params>();
  message_buffer message;
  message.attach(call);
  call.logits = logits.data();
  call.num_tokens = 1;
  call.topk_ids = ids.data();
  call.topk_weights = weights.data();
  call.topk_counts = &count;
  for (const int layer : {1, 0}) {
    call.layer = layer;
    ASSERT_EQ(adaptive_k_route_host(made, &call), ADAPTIVE_K_OK);
    EXPECT_EQ(count, 2 + layer);
  }
  call.layer = 2;
  EXPECT_EQ(adaptive_k_route_host(made, &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(message.text, "layer is 2, expected 0..1");
}

/// A struct of the first version's least size, with rubbish behind it that must not be read.
template <class Params>
Params shortened(Params params, std::size_t size) {
  std::memset(reinterpret_cast<char*>(&params) + size, 0x5A, sizeof params - size);
  params.struct_size = static_cast<std::uint32_t>(size);
  return params;
}

TEST(c_api_host, a_router_head_is_kept_and_its_columns_are_read) {
  constexpr int tokens = 40, hidden_size = 3;
  inputs::sequence from(2);
  const inputs::distortion_tables tables(from, 60, 6);
  std::vector<float> head(5 * hidden_size, 0.25f);
  auto policy = sized<adaptive_k_policy>();
  policy.rule = ADAPTIVE_K_DISTORTION;
  policy.lambda = 0.03f;
  policy.coefficients = tables.head_coefficients.data();
  policy.head = head.data();
  std::string message;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "distortion.hidden_size is 0, expected 1 or more with a head");
  policy.hidden_size = hidden_size;
  const router_handle handle = create(c_gating(), policy);
  ASSERT_NE(handle, nullptr);
  std::int32_t found_size = 0;
  const float* found = adaptive_k_router_head(handle.get(), 0, &found_size);
  ASSERT_EQ(found_size, hidden_size);
  EXPECT_EQ(std::vector<float>(found, found + 5 * hidden_size), head);
  EXPECT_NE(found, head.data());
  for (const auto& [of, layer] :
       {std::pair<const adaptive_k_router*, int>{nullptr, 0}, {handle.get(), -1}}) {
    EXPECT_EQ(adaptive_k_router_head(of, layer, &found_size), nullptr);
    EXPECT_EQ(found_size, 0);
  }
  EXPECT_EQ(adaptive_k_router_head(create(c_gating(), c_policy()).get(), 0, nullptr), nullptr);

  std::vector<float> matrix(tokens * 65);
  for (float& value : matrix) value = inputs::grid_logit(from, 64);
  distortion_ref model;
  model.coefficients = tables.head_coefficients.data();
  model.lambda = 0.03f;
  model.head = head.data();
  model.hidden_size = hidden_size;
  k_policy same = k_policy::min_distortion(model);
  same.signal = signal_kind::none;
  gating g;
  g.num_experts = 60;
  g.top_k = 6;
  const routed_batch expected = router(g, same).route(
      0, logits_view<float>{matrix.data(), tokens, 60, 65, matrix.data() + 60, 65});
  ASSERT_TRUE(expected.result.ok()) << expected.result.message();

  std::vector<std::int32_t> ids(tokens * 6), counts(tokens);
  std::vector<float> weights(tokens * 6);
  auto call = sized<adaptive_k_route_params>();
  call.logits = matrix.data();
  call.num_tokens = tokens;
  call.row_stride = 65;
  call.topk_ids = ids.data();
  call.topk_weights = weights.data();
  call.topk_counts = counts.data();
  message_buffer refusal;
  refusal.attach(call);
  EXPECT_EQ(adaptive_k_route_host(handle.get(), &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(refusal.text).find("logits.head is null"), 0u) << refusal.text;
  call.head = matrix.data() + 60;
  call.head_stride = 65;
  ASSERT_EQ(adaptive_k_route_host(handle.get(), &call), ADAPTIVE_K_OK) << refusal.text;
  EXPECT_EQ(ids, expected.topk_ids);
  EXPECT_EQ(counts, expected.topk_counts);
  EXPECT_EQ(weights, expected.topk_weights);
}

TEST(c_api_host, structs_of_older_headers_are_accepted) {
  auto gating = c_gating();
  gating.renormalize = 0;
  auto policy = sized<adaptive_k_policy>();
  policy.rule = ADAPTIVE_K_FULL;
  const auto old_gating = shortened(gating, offsetof(adaptive_k_gating, renormalize));
  const auto old_policy = shortened(policy, offsetof(adaptive_k_policy, signal));
  auto params = sized<adaptive_k_router_params>();
  params.gating = &old_gating;
  params.policies = &old_policy;
  const auto old_params = shortened(params, offsetof(adaptive_k_router_params, fill));
  adaptive_k_router* made = nullptr;
  ASSERT_EQ(adaptive_k_router_create(&old_params, &made), ADAPTIVE_K_OK);
  const router_handle router(made);

  const std::vector<float> logits(60, 0.5f);
  std::vector<std::int32_t> ids(6, -5);
  std::vector<float> weights(6);
  auto call = sized<adaptive_k_route_params>();
  call.logits = logits.data();
  call.num_tokens = 1;
  call.topk_ids = ids.data();
  call.topk_weights = weights.data();
  const auto old_call = shortened(call, offsetof(adaptive_k_route_params, row_stride));
  ASSERT_EQ(adaptive_k_route_host(made, &old_call), ADAPTIVE_K_OK);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5}));
  auto permute = sized<adaptive_k_permute_params>();
  permute.topk_ids = ids.data();
  permute.num_tokens = 1;
  permute.top_k = 6;
  permute.num_experts = 60;
  const auto old_permute = shortened(permute, offsetof(adaptive_k_permute_params, block_size));
  EXPECT_EQ(adaptive_k_permute_host(&old_permute), ADAPTIVE_K_OK);
  EXPECT_EQ(adaptive_k_permuted_capacity(&old_permute), 6);

  const std::vector<float> rows(6, 2.0f);
  float output = 0.0f;
  auto combine = sized<adaptive_k_combine_params>();
  combine.expert_outputs = rows.data();
  combine.output = &output;
  combine.num_tokens = 1;
  combine.top_k = 6;
  combine.hidden_size = 1;
  const auto old_combine = shortened(combine, offsetof(adaptive_k_combine_params, row_stride));
  EXPECT_EQ(adaptive_k_combine_host(&old_combine), ADAPTIVE_K_OK);
  EXPECT_EQ(output, 12.0f);
}

TEST(c_api_host, refusals_name_the_field) {
  std::string message;
  auto gating = c_gating();
  gating.top_k = 61;
  EXPECT_EQ(create(gating, c_policy(), &message), nullptr);
  EXPECT_EQ(message, "top_k is 61, expected 1..32 for 60 experts");
  gating = c_gating();
  gating.renormalize = 2;
  EXPECT_EQ(create(gating, c_policy(), &message), nullptr);
  EXPECT_EQ(message, "renormalize is 2, expected 0..1");
  gating = c_gating();
  gating.kind = 9;
  EXPECT_EQ(create(gating, c_policy(), &message), nullptr);
  EXPECT_EQ(message, "kind is 9, expected 0..4");
  auto policy = c_policy();
  policy.num_k_values = 33;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "num_k_values is 33, expected 0..32");
  policy = c_policy();
  policy.num_super_experts = 9;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "num_super_experts is 9, expected 0..8");
  policy = c_policy();
  policy.super_experts[1] = 60;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "super_experts[1] is 60, expected 0..59 (num_experts - 1)");
  policy = c_policy();
  policy.domain_given = 2;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "domain_given is 2, expected 0..1");
  policy = c_policy();
  policy.domain_signal_most = 0.5f;
  EXPECT_EQ(create(c_gating(), policy, &message), nullptr);
  EXPECT_EQ(message, "domain.signal_most is 0.5, expected signal_least = 0.9 or more, below 1e30");

  EXPECT_EQ(adaptive_k_router_create(nullptr, nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(adaptive_k_permute_host(nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(adaptive_k_combine_host(nullptr), ADAPTIVE_K_INVALID_ARGUMENT);

  const router_handle router = create(c_gating(), c_policy());
  EXPECT_EQ(adaptive_k_route_host(router.get(), nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  auto call = sized<adaptive_k_route_params>();
  message_buffer text;
  text.attach(call);
  call.num_tokens = 1;
  EXPECT_EQ(adaptive_k_route_host(router.get(), &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(text.text, "logits.data is null");
  call.ids_type = 4;
  EXPECT_EQ(adaptive_k_route_host(router.get(), &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(text.text, "ids_type is 4, expected 0..3");
  EXPECT_EQ(adaptive_k_route_host(nullptr, &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(text.text, "router is null");
  call.message_bytes = 7;  // cut, and still a string
  EXPECT_EQ(adaptive_k_route_host(nullptr, &call), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(text.text, "router");
}

TEST(c_api_host, every_status_has_a_text) {
  for (std::int32_t status = 0; status <= ADAPTIVE_K_OUT_OF_MEMORY; ++status)
    EXPECT_STRNE(adaptive_k_status_text(status), adaptive_k_status_text(-1)) << status;
  EXPECT_EQ(adaptive_k_version(), 10000 * ADAPTIVE_K_VERSION_MAJOR +
                                      100 * ADAPTIVE_K_VERSION_MINOR + ADAPTIVE_K_VERSION_PATCH);
}

}  // namespace
