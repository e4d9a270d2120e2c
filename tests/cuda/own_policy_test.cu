// A user's own K policy and gating as template arguments of the kernels: the host's bits.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "../../examples/own_policy/own_policy.hpp"
#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/launch.cuh"
#include "device_buffer.hpp"
#include "host_twin.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test

template <class Logit, class Gating>
void expect_host_bits(const Gating& model, const engine::mass_or_gap& policy,
                      std::int64_t num_tokens, std::uint64_t seed) {
  SCOPED_TRACE(testing::Message() << "E " << model.num_experts << ", K0 " << model.top_k);
  const basic_router host(model, policy);
  ASSERT_TRUE(host.validity().ok()) << host.validity().message();
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto experts = static_cast<std::size_t>(model.num_experts);
  const auto slots = tokens * static_cast<std::size_t>(model.top_k);
  inputs::sequence from(seed);
  std::vector<Logit> logits(tokens * experts);
  for (Logit& logit : logits) logit = from_float<Logit>(inputs::fine_logit(from));
  std::vector<float> bias(model.selection_bias ? experts : 0);
  for (float& value : bias) value = inputs::grid_logit(from, 8);
  routing_extras extras;
  extras.routing_bias = twin::data_or_null(bias);
  routing_metrics metrics;
  const routed_batch routed = host.route(
      0, logits_view<Logit>{logits.data(), num_tokens, model.num_experts}, &metrics, extras);
  ASSERT_TRUE(routed.result.ok()) << routed.result.message();
  ASSERT_LT(metrics.expert_calls, metrics.full_expert_calls);
  ASSERT_GT(metrics.expert_calls, metrics.tokens);

  using plan = engine::mass_or_gap_plan;
  cuda::basic_device_plans<plan> plans;
  ASSERT_TRUE(plans.upload(host, nullptr).ok());
  const cuda::basic_device_router<plan, Gating> on_device(model, plans.ref());
  const device::buffer<Logit> device_logits(logits);
  const device::optional_copy<float> device_bias(bias);
  const device::buffer<std::int32_t> ids(slots), counts(tokens);
  const device::buffer<float> weights(slots), signal(tokens);
  extras.routing_bias = device_bias.get();
  const status result =
      on_device.route(0, logits_view<Logit>{device_logits.get(), num_tokens, model.num_experts},
                      routing_output<>{ids.get(), weights.get(), counts.get(), signal.get()},
                      nullptr, extras, nullptr);
  ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
  twin::expect_same_bits("id", ids.read(), routed.topk_ids, model.top_k);
  twin::expect_same_bits("weight", weights.read(), routed.topk_weights, model.top_k);
  twin::expect_same_bits("count", counts.read(), routed.topk_counts, 1);
  twin::expect_same_bits("signal", signal.read(), routed.signal, 1);
}

template <class Gating>
Gating model_of(int num_experts, int top_k) {
  Gating model;
  model.num_experts = num_experts;
  model.top_k = top_k;
  return model;
}

TEST(own_policy, gives_the_hosts_bits_under_softmax) {
  const engine::mass_or_gap policy;
  expect_host_bits<float>(model_of<gating>(8, 2), policy, 100, 1);
  expect_host_bits<bfloat16>(model_of<gating>(64, 8), policy, 70, 2);
  expect_host_bits<float>(model_of<gating>(130, 9), policy, 33, 3);
  gating biased = model_of<gating>(64, 6);  // by a generic_gating kernel
  biased.selection_bias = true;
  expect_host_bits<float>(biased, policy, 33, 4);
}

TEST(own_policy, gives_the_hosts_bits_under_a_gating_of_its_own) {
  const engine::mass_or_gap policy = {0.8f, 0.3f};
  expect_host_bits<float>(model_of<engine::relu_gating>(64, 8), policy, 65, 5);
  engine::relu_gating scaled = model_of<engine::relu_gating>(60, 4);
  scaled.renormalize = false;
  scaled.routed_scaling_factor = 2.5f;
  expect_host_bits<bfloat16>(scaled, policy, 40, 6);
}

TEST(own_policy, is_refused_by_its_own_words) {
  const basic_router host(model_of<gating>(8, 2), engine::mass_or_gap{1.5f, 0.1f});
  EXPECT_STREQ(host.validity().message(), "mass is 1.5, expected above 0, at most 1");
  cuda::basic_device_plans<engine::mass_or_gap_plan> plans;
  EXPECT_STREQ(plans.upload(host, nullptr).message(), host.validity().message());
}

}  // namespace
