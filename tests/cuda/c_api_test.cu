// The C interface on a device: a whole layer's bookkeeping, against its own host functions.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/c/adaptive_k.h"
#include "adaptive_k/types.hpp"
#include "device_buffer.hpp"
#include "inputs.hpp"
#include "report.hpp"
#include "schedules.hpp"
#if defined(ON_INTERPRETER)
#include "ptx_device.hpp"
#endif

namespace {

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

constexpr int num_experts = 60;
constexpr int top_k = 4;
constexpr int hidden = 24;

router_handle create(int k) {
  auto gating = sized<adaptive_k_gating>();
  gating.kind = ADAPTIVE_K_SIGMOID;
  gating.num_experts = num_experts;
  gating.top_k = top_k;
  gating.renormalize = 1;
  auto policy = sized<adaptive_k_policy>();
  policy.rule = k == 0 ? ADAPTIVE_K_THRESHOLDS : ADAPTIVE_K_FIXED;
  policy.signal = ADAPTIVE_K_MARGIN;
  policy.num_k_values = k == 0 ? 2 : 1;
  policy.k_values[0] = static_cast<std::uint8_t>(k == 0 ? 2 : k);
  policy.k_values[1] = top_k;
  policy.thresholds[0] = 0.02f;
  auto params = sized<adaptive_k_router_params>();
  params.gating = &gating;
  params.policies = &policy;
  char message[200] = "";
  params.message = message;
  params.message_bytes = sizeof message;
  adaptive_k_router* made = nullptr;
  EXPECT_EQ(adaptive_k_router_create(&params, &made), ADAPTIVE_K_OK) << message;
  return router_handle(made);
}

struct destroy_plans {
  void operator()(adaptive_k_device_plans* plans) const { adaptive_k_device_plans_destroy(plans); }
};
using plans_handle = std::unique_ptr<adaptive_k_device_plans, destroy_plans>;

/// Enqueues `router`'s policies; a null `plans` is allocated.
void upload(const adaptive_k_router* router, plans_handle& plans) {
  auto params = sized<adaptive_k_upload_params>();
  char message[200] = "";
  params.message = message;
  params.message_bytes = sizeof message;
  params.router = router;
  adaptive_k_device_plans* target = plans.release();
  EXPECT_EQ(adaptive_k_upload_plans(&params, &target, nullptr), ADAPTIVE_K_OK) << message;
  plans.reset(target);
}

plans_handle uploaded(const adaptive_k_router* router) {
  plans_handle plans;
  upload(router, plans);
  return plans;
}

/// Everything that a layer's call reads and writes, in one kind of memory.
struct host_memory {
  explicit host_memory(std::size_t tokens)
      : ids(tokens * top_k),
        counts(tokens),
        rows(tokens * top_k),
        offsets(num_experts + 1),
        sorted(tokens * top_k + num_experts * 15),
        weights(tokens * top_k),
        output(tokens * hidden) {}
  std::vector<std::int64_t> ids;
  std::vector<std::int32_t> counts, rows, offsets, sorted;
  std::vector<float> weights, output;
};

struct device_memory {
  explicit device_memory(const host_memory& like)
      : ids(like.ids),
        counts(like.counts),
        rows(like.rows),
        offsets(like.offsets),
        sorted(like.sorted),
        weights(like.weights),
        output(like.output) {}
  device::buffer<std::int64_t> ids;
  device::buffer<std::int32_t> counts, rows, offsets, sorted;
  device::buffer<float> weights, output;
};

template <class T>
T* pointer(std::vector<T>& values) {
  return values.data();
}
template <class T>
T* pointer(device::buffer<T>& values) {
  return values.get();
}

template <class Memory>
adaptive_k_route_params route_params(Memory& memory, const float* logits, std::int64_t tokens) {
  auto params = sized<adaptive_k_route_params>();
  params.logits = logits;
  params.num_tokens = tokens;
  params.topk_ids = pointer(memory.ids);
  params.topk_weights = pointer(memory.weights);
  params.ids_type = ADAPTIVE_K_INT64;
  params.topk_counts = pointer(memory.counts);
  return params;
}

template <class Memory>
adaptive_k_permute_params permute_params(Memory& memory, std::int64_t tokens) {
  auto params = sized<adaptive_k_permute_params>();
  params.topk_ids = pointer(memory.ids);
  params.topk_counts = pointer(memory.counts);
  params.num_tokens = tokens;
  params.top_k = top_k;
  params.num_experts = num_experts;
  params.ids_type = ADAPTIVE_K_INT64;
  params.block_size = 16;
  params.expert_offsets = pointer(memory.offsets);
  params.sorted_slots = pointer(memory.sorted);
  params.row_of_slot = pointer(memory.rows);
  return params;
}

template <class Memory>
adaptive_k_combine_params combine_params(Memory& memory, const float* expert_outputs,
                                         std::int64_t tokens) {
  auto params = sized<adaptive_k_combine_params>();
  params.expert_outputs = expert_outputs;
  params.output = pointer(memory.output);
  params.num_tokens = tokens;
  params.top_k = top_k;
  params.hidden_size = hidden;
  params.row_of_slot = pointer(memory.rows);
  params.topk_weights = pointer(memory.weights);
  return params;
}

template <class T>
void expect_same(const device::buffer<T>& device, const std::vector<T>& host) {
  const std::vector<T> values = device.read();
  ASSERT_EQ(values.size(), host.size());
  EXPECT_EQ(std::memcmp(values.data(), host.data(), host.size() * sizeof(T)), 0);
  report::comparisons() += static_cast<long>(host.size());
}

/// `fused`: one call routes and permutes.
void run_layer(std::int64_t tokens, bool fused) {
  SCOPED_TRACE(std::to_string(tokens) + (fused ? " tokens, one call" : " tokens, two calls"));
  inputs::sequence from(static_cast<std::uint64_t>(tokens));
  std::vector<float> logits(static_cast<std::size_t>(tokens * num_experts));
  for (float& logit : logits) logit = inputs::fine_logit(from);
  host_memory host(static_cast<std::size_t>(tokens));
  const router_handle router = create(0);
  auto metrics = std::make_unique<adaptive_k_metrics>();
  adaptive_k_route_params route = route_params(host, logits.data(), tokens);
  route.metrics = metrics.get();
  ASSERT_EQ(adaptive_k_route_host(router.get(), &route), ADAPTIVE_K_OK);
  adaptive_k_permute_params permute = permute_params(host, tokens);
  const auto capacity = static_cast<std::size_t>(adaptive_k_permuted_capacity(&permute));
  ASSERT_LE(capacity, host.sorted.size());
  host.sorted.resize(capacity);
  ASSERT_EQ(adaptive_k_permute_host(&permute), ADAPTIVE_K_OK);
  std::vector<float> expert_outputs(capacity * hidden);
  for (float& value : expert_outputs) value = inputs::fine_logit(from);
  adaptive_k_combine_params combine = combine_params(host, expert_outputs.data(), tokens);
  ASSERT_EQ(adaptive_k_combine_host(&combine), ADAPTIVE_K_OK);

  host_memory blank(static_cast<std::size_t>(tokens));
  blank.sorted.resize(capacity);
  device_memory made(blank);
  const device::buffer<float> device_logits(logits), device_outputs(expert_outputs);
  const plans_handle plans = uploaded(router.get());
  const device::buffer<unsigned char> counters(
      std::vector<unsigned char>(adaptive_k_device_metrics_bytes(), 0));
  char message[200] = "";
  route = route_params(made, device_logits.get(), tokens);
  route.plans = plans.get();
  route.metrics = counters.get();
  route.message = message;
  route.message_bytes = sizeof message;
  permute = permute_params(made, tokens);
  combine = combine_params(made, device_outputs.get(), tokens);
  std::int32_t overlap = 0;
  ASSERT_EQ(adaptive_k_overlap_supported(&overlap), ADAPTIVE_K_OK);
  route.overlap_previous = permute.overlap_previous = combine.overlap_previous = overlap;
  std::size_t bytes = 0;
  ASSERT_EQ(adaptive_k_route_permute(router.get(), &route, &permute, nullptr, &bytes, nullptr),
            ADAPTIVE_K_OK);
  const device::buffer<unsigned char> workspace(std::vector<unsigned char>(bytes, 0));
#if defined(ON_INTERPRETER)
  ptx::clear_call_log();
#endif
  if (fused) {
    ASSERT_EQ(
        adaptive_k_route_permute(router.get(), &route, &permute, workspace.get(), &bytes, nullptr),
        ADAPTIVE_K_OK)
        << message << schedules::last_fault();
  } else {
    ASSERT_EQ(adaptive_k_route(router.get(), &route, nullptr), ADAPTIVE_K_OK) << message;
    ASSERT_EQ(adaptive_k_permute(&permute, workspace.get(), &bytes, nullptr), ADAPTIVE_K_OK);
  }
  ASSERT_EQ(adaptive_k_combine(&combine, nullptr), ADAPTIVE_K_OK);
#if defined(ON_INTERPRETER)
  EXPECT_TRUE(ptx::synchronous_calls().empty()) << ptx::synchronous_calls().front();
  for (const ptx::api_call& call : ptx::call_log())
    EXPECT_TRUE(call.name == "launch" || call.name == "cudaMemsetAsync") << call.name;
#endif
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
  expect_same(made.ids, host.ids);
  expect_same(made.counts, host.counts);
  expect_same(made.weights, host.weights);
  expect_same(made.offsets, host.offsets);
  expect_same(made.sorted, host.sorted);
  expect_same(made.rows, host.rows);
  expect_same(made.output, host.output);
  auto device_counts = std::make_unique<adaptive_k_metrics>();
  const auto copied = counters.read();
  // Of a size that no header had: refused, and nothing written.
  for (std::size_t size = 0; size <= 2 * sizeof *device_counts; ++size)
    if (size != sizeof *device_counts && size != sizeof(adaptive_k_metrics_v0_1))
      ASSERT_EQ(adaptive_k_metrics_from_device(copied.data(), device_counts.get(), size),
                ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(device_counts->tokens, 0u);
  EXPECT_EQ(adaptive_k_metrics_from_device(nullptr, device_counts.get(), sizeof *device_counts),
            ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(adaptive_k_metrics_from_device(copied.data(), nullptr, sizeof *device_counts),
            ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(
      adaptive_k_metrics_from_device(copied.data(), device_counts.get(), sizeof *device_counts),
      ADAPTIVE_K_OK);
  EXPECT_EQ(std::memcmp(device_counts.get(), metrics.get(), sizeof *metrics), 0);
}

TEST(c_api_device, a_layer_equals_the_host) {
  for (const std::int64_t tokens : {1, 40, 256, 300, 777}) {
    run_layer(tokens, true);
    run_layer(tokens, false);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(c_api_device, plans_are_replaced_between_launches) {
  const router_handle first = create(1), second = create(3);
  const device::buffer<float> logits(std::vector<float>(num_experts, 0.25f));
  device_memory made{host_memory(1)};
  plans_handle plans = uploaded(first.get());
  adaptive_k_route_params route = route_params(made, logits.get(), 1);
  route.plans = plans.get();
  ASSERT_EQ(adaptive_k_route(first.get(), &route, nullptr), ADAPTIVE_K_OK);
  EXPECT_EQ(made.counts.read()[0], 1);
  upload(second.get(), plans);
  ASSERT_EQ(route.plans, plans.get());
  ASSERT_EQ(adaptive_k_route(first.get(), &route, nullptr), ADAPTIVE_K_OK);  // the call is the same
  EXPECT_EQ(made.counts.read()[0], 3);
}

#if defined(REFERENCE_PRESET)
/// The calibrated policy of each layer, by the C interface alone.
TEST(c_api_device, a_calibrated_preset_equals_the_host) {
  auto params = sized<adaptive_k_preset_params>();
  char message[400] = "";
  params.message = message;
  params.message_bytes = sizeof message;
  params.preset = REFERENCE_PRESET;
  adaptive_k_router* made = nullptr;
  ASSERT_EQ(adaptive_k_router_from_preset(&params, &made), ADAPTIVE_K_OK) << message;
  const router_handle router(made);
  params.policy = "fixed:1";
  ASSERT_EQ(adaptive_k_router_from_preset(&params, &made), ADAPTIVE_K_OK) << message;
  const router_handle one(made);  // one policy for all layers
  auto gating = sized<adaptive_k_gating>();
  ASSERT_EQ(adaptive_k_router_gating(router.get(), &gating), ADAPTIVE_K_OK);
  const int layers = adaptive_k_router_num_layers(router.get());
  ASSERT_GT(layers, 1);

  constexpr std::int64_t tokens = 300;
  inputs::sequence from(9);
  std::vector<float> logits(static_cast<std::size_t>(tokens * gating.num_experts));
  for (float& logit : logits) logit = inputs::fine_logit(from);
  const device::buffer<float> device_logits(logits);
  const auto slots = static_cast<std::size_t>(tokens * gating.top_k);
  std::vector<std::int32_t> ids(slots), counts(tokens);
  std::vector<float> weights(slots);
  device::buffer<std::int32_t> device_ids(slots), device_counts(tokens);
  device::buffer<float> device_weights(slots);
  plans_handle plans = uploaded(router.get());
  for (int layer = 0; layer < layers; ++layer) {
    auto route = sized<adaptive_k_route_params>();
    route.message = message;
    route.message_bytes = sizeof message;
    route.layer = layer;
    route.num_tokens = tokens;
    route.logits = logits.data();
    route.topk_ids = ids.data();
    route.topk_weights = weights.data();
    route.topk_counts = counts.data();
    ASSERT_EQ(adaptive_k_route_host(router.get(), &route), ADAPTIVE_K_OK) << message;
    int fewer = 0;
    for (const std::int32_t k : counts) fewer += k < gating.top_k ? 1 : 0;
    EXPECT_GT(fewer, 30) << layer;
    route.logits = device_logits.get();
    route.topk_ids = device_ids.get();
    route.topk_weights = device_weights.get();
    route.topk_counts = device_counts.get();
    route.plans = plans.get();
    ASSERT_EQ(adaptive_k_route(router.get(), &route, nullptr), ADAPTIVE_K_OK)
        << message << schedules::last_fault();
    expect_same(device_ids, ids);
    expect_same(device_weights, weights);
    expect_same(device_counts, counts);
  }
  // One policy takes the place of every layer's, by the same plans; not the reverse.
  upload(one.get(), plans);
  auto route = sized<adaptive_k_route_params>();
  route.num_tokens = tokens;
  route.logits = device_logits.get();
  route.topk_ids = device_ids.get();
  route.topk_weights = device_weights.get();
  route.topk_counts = device_counts.get();
  route.plans = plans.get();
  route.layer = layers - 1;
  ASSERT_EQ(adaptive_k_route(router.get(), &route, nullptr), ADAPTIVE_K_OK);
  expect_same(device_counts, std::vector<std::int32_t>(tokens, 1));
  const plans_handle of_one = uploaded(one.get());
  auto upload_params = sized<adaptive_k_upload_params>();
  upload_params.message = message;
  upload_params.message_bytes = sizeof message;
  upload_params.router = router.get();
  adaptive_k_device_plans* target = of_one.get();
  EXPECT_EQ(adaptive_k_upload_plans(&upload_params, &target, nullptr), ADAPTIVE_K_SHAPE_MISMATCH);
  EXPECT_STREQ(message,
               "the router has num_experts = 32, top_k = 8, num_layers = 4, these plans 32, 8, 0");
  EXPECT_EQ(target, of_one.get());
}
#endif

TEST(c_api_device, refusals_have_a_message) {
  const router_handle router = create(0);
  device_memory made{host_memory(1)};
  const device::buffer<float> logits(std::vector<float>(num_experts, 0.25f));
  char message[200] = "";
  adaptive_k_route_params route = route_params(made, logits.get(), 1);
  route.message = message;
  route.message_bytes = sizeof message;
  EXPECT_EQ(adaptive_k_route(router.get(), &route, nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "plans is null, expected what adaptive_k_upload_plans made");
  const plans_handle plans = uploaded(router.get());
  route.plans = plans.get();
  route.struct_size = 20000;
  EXPECT_EQ(adaptive_k_route(router.get(), &route, nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(message).substr(0, 34), "route_params: struct_size is 20000");
  adaptive_k_permute_params permute = permute_params(made, 1);
  permute.message = message;
  permute.message_bytes = sizeof message;
  EXPECT_EQ(adaptive_k_permute(&permute, made.output.get(), nullptr, nullptr),
            ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "workspace_bytes is null");
  std::size_t bytes = 0;
  EXPECT_EQ(adaptive_k_permute(&permute, made.output.get(), &bytes, nullptr),
            ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "workspace_bytes is 0, this shape needs 16");
  adaptive_k_combine_params combine = combine_params(made, nullptr, 1);
  combine.message = message;
  combine.message_bytes = sizeof message;
  EXPECT_EQ(adaptive_k_combine(&combine, nullptr), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "expert_outputs is null");
}

}  // namespace
