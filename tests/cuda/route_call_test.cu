// What surrounds the decision in a launch: types, sizes, refusals, errors, order of execution.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "adaptive_k/cuda/tuning.cuh"
#include "batches.hpp"
#if defined(ON_INTERPRETER)
#include "ptx_device.hpp"
#endif

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

gating softmax_model(int num_experts, int top_k) {
  gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  return g;
}

gating biased_model() {
  gating g = softmax_model(60, 6);
  g.kind = gating_kind::sigmoid;
  g.selection_bias = true;
  return g;
}

template <class Logit>
twin::batch<Logit> softmax_batch(std::uint64_t seed, const gating& g, std::int64_t num_tokens) {
  inputs::sequence from(seed);
  twin::batch<Logit> input = twin::make_batch<Logit>(from, g, num_tokens, 0);
  input.policy = k_policy::top_p(0.7f, g.top_k);
  return input;
}

template <class Id>
void every_weight_type(const twin::batch<bfloat16>& input) {
  twin::expect_equal<Id, float>(input);
  twin::expect_equal<Id, float16>(input);
  twin::expect_equal<Id, bfloat16>(input);
}

TEST(route_call, every_type_of_ids_and_weights) {
  inputs::sequence from(21);
  for (const gating& g : {softmax_model(128, 8), softmax_model(9, 3), biased_model()}) {
    for (const fill_id fill : {fill_id::minus_one, fill_id::num_experts, fill_id::first_expert}) {
      twin::batch<bfloat16> input = softmax_batch<bfloat16>(22, g, 33);
      input.fill = fill;
      twin::restrict_tokens(from, input);
      every_weight_type<std::int32_t>(input);
      every_weight_type<std::int64_t>(input);
      every_weight_type<std::int16_t>(input);
      every_weight_type<std::uint16_t>(input);
    }
  }
}

TEST(route_call, a_router_head_is_required_where_a_policy_has_one) {
  const gating g = softmax_model(16, 4);
  inputs::sequence from(31);
  const inputs::distortion_tables tables(from, 16, 4);
  distortion_ref model;
  model.coefficients = tables.head_coefficients.data();
  model.lambda = 0.03f;
  model.head = tables.head_coefficients.data();
  model.hidden_size = 1;
  const router with(g, k_policy::min_distortion(model)), without(g, k_policy::fixed(2));
  const device::buffer<float> logits(std::vector<float>(5 * 16, 0.5f));
  device::buffer<std::int32_t> ids(20), counts(5);
  device::buffer<float> weights(20);
  const auto route = [&](cuda::plans_ref plans) {
    return cuda::device_router(g, plans).route(
        0, logits_view<float>{logits.get(), 5, 16},
        routing_output<>{ids.get(), weights.get(), counts.get()}, nullptr, {}, nullptr);
  };
  cuda::device_plans plans;
  ASSERT_TRUE(plans.upload(without, nullptr).ok());
  const cuda::plans_ref before = plans.ref();
  ASSERT_TRUE(route(before).ok());
  EXPECT_EQ(counts.read(), std::vector<std::int32_t>(5, 2));
  ASSERT_TRUE(plans.upload(with, nullptr).ok());
  EXPECT_EQ(route(plans.ref()).field(), "logits.head");
  // A launch that was made before, say of a captured graph, finds none: the most experts.
  ASSERT_TRUE(route(before).ok());
  EXPECT_EQ(counts.read(), std::vector<std::int32_t>(5, 4));
  ASSERT_TRUE(plans.upload(without, nullptr).ok());
  EXPECT_TRUE(route(plans.ref()).ok());
}

TEST(route_call, any_number_of_tokens) {
  for (const std::int64_t tokens : {0, 1, 2, 3, 31, 32, 33, 127, 129, 1000, 4096})
    for (const gating& g : {softmax_model(8, 2), softmax_model(128, 8), biased_model()})
      twin::expect_equal<std::int32_t, float>(softmax_batch<bfloat16>(23, g, tokens));
}

TEST(route_call, padding_limits_shadow_and_replay_together) {
  inputs::sequence from(24);
  for (const gating& g : {softmax_model(64, 8), softmax_model(17, 5), biased_model()}) {
    for (int round = 0; round < 8; ++round) {
      twin::batch<bfloat16> input = softmax_batch<bfloat16>(25, g, 41);
      twin::restrict_tokens(from, input);
      input.shadow = round % 2 != 0;
      if (round % 4 >= 2) twin::dictate(from, input);
      twin::expect_equal<std::int32_t, float>(input);
      if (round % 3 == 0) twin::expect_equal<std::int64_t, float>(input);
    }
  }
}

// One condition of a plain call (cuda/route_params.cuh) fails at a time.
TEST(route_call, almost_a_plain_call) {
  for (const gating& model : {softmax_model(8, 2), softmax_model(60, 4), softmax_model(128, 8)}) {
    inputs::sequence from(28);
    twin::batch<bfloat16> plain = softmax_batch<bfloat16>(29, model, 45);
    plain.policy = k_policy::entropy({1, model.top_k}, {1.5f});
    twin::expect_equal<std::int32_t, float>(plain);
    twin::expect_equal<std::int64_t, float>(plain);
    twin::expect_equal<std::int16_t, float>(plain);
    twin::expect_equal<std::int32_t, bfloat16>(plain);
    twin::expect_equal<std::int32_t, float16>(plain);

    twin::batch<bfloat16> restricted = plain;
    twin::restrict_tokens(from, restricted);
    twin::batch<bfloat16> padded = plain, at_least = plain, at_most = plain, shadow = plain;
    padded.padding_mask = restricted.padding_mask;
    at_least.k_min = restricted.k_min;
    at_most.k_max = restricted.k_max;
    shadow.shadow = true;
    for (const auto* input : {&padded, &at_least, &at_most, &shadow})
      twin::expect_equal<std::int32_t, float>(*input);

    for (int gap = 1; gap < 4; ++gap) {
      twin::batch<bfloat16> ids_apart = plain, weights_apart = plain;
      ids_apart.id_gap = gap;
      weights_apart.weight_gap = gap;
      twin::expect_equal<std::int32_t, float>(ids_apart);
      twin::expect_equal<std::int32_t, float>(weights_apart);
    }

    gating raw_weights = model, fewer = model;
    raw_weights.renormalize = false;
    fewer.top_k = model.top_k - 1;
    for (const gating& g : {raw_weights, fewer}) {
      twin::batch<bfloat16> input = softmax_batch<bfloat16>(30, g, 45);
      if (g.top_k > 1) input.policy = k_policy::entropy({1, g.top_k}, {1.5f});
      twin::expect_equal<std::int32_t, float>(input);
    }
  }
}

TEST(route_call, rows_at_any_address) {
  const gating g = softmax_model(64, 8);
  for (int gap = 0; gap < 9; ++gap) {
    inputs::sequence from(26);
    twin::batch<bfloat16> input = twin::make_batch<bfloat16>(from, g, 21, gap);
    input.policy = k_policy::entropy({4, 8}, {2.5f});
    twin::expect_equal<std::int32_t, float>(input);
  }
}

TEST(route_call, layers_have_their_own_plans) {
  const gating g = softmax_model(16, 4);
  const router host(g, {k_policy::fixed(1), k_policy::fixed(3)});
  const cuda::device_plans plans = device::uploaded(host);
  const cuda::device_router router(g, plans.ref());
  const std::vector<float> rows(16, 1.0f);
  const device::buffer<float> logits(rows);
  device::buffer<std::int32_t> ids(4), counts(1);
  device::buffer<float> weights(4);
  const logits_view<float> view = {logits.get(), 1, 16, 0};
  const routing_output<> output = {ids.get(), weights.get(), counts.get()};
  ASSERT_TRUE(router.route(1, view, output, nullptr, {}, nullptr).ok());
  EXPECT_EQ(counts.read()[0], 3);
  ASSERT_TRUE(router.route(0, view, output, nullptr, {}, nullptr).ok());
  EXPECT_EQ(counts.read()[0], 1);
  EXPECT_FALSE(router.route(2, view, output, nullptr, {}, nullptr).ok());
}

TEST(route_call, host_router_in_a_cuda_file_takes_the_compiled_vectors) {
  const router host(softmax_model(16, 4), k_policy::full());
#if defined(__x86_64__)
  const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  const bool vectors = true;
#endif
  EXPECT_EQ(host.instructions() != instruction_set::scalar, vectors);
}

TEST(route_call, metrics_add_up_over_launches) {
  const gating g = softmax_model(24, 4);
  const twin::batch<bfloat16> input = softmax_batch<bfloat16>(27, g, 50);
  const router host(g, input.policy);
  const cuda::device_plans plans = device::uploaded(host);
  const device::buffer<bfloat16> logits(input.logits);
  device::buffer<std::int32_t> ids(200);
  device::buffer<float> weights(200);
  device::buffer<cuda::device_metrics> metrics(1);
  metrics.clear();
  routing_metrics expected;
  std::vector<std::int32_t> host_ids(200);
  std::vector<float> host_weights(200);
  const cuda::device_router router(g, plans.ref());
  for (const std::int64_t tokens : {50, 7, 1}) {
    const logits_view<bfloat16> view = {logits.get(), tokens, 24, 0};
    ASSERT_TRUE(
        router
            .route(0, view, routing_output<>{ids.get(), weights.get()}, metrics.get(), {}, nullptr)
            .ok());
    ASSERT_TRUE(host.route(0, logits_view<bfloat16>{input.logits.data(), tokens, 24, 0},
                           routing_output<>{host_ids.data(), host_weights.data()}, &expected)
                    .ok());
  }
  twin::expect_same_metrics(cuda::to_metrics<routing_metrics>(metrics.read()[0]), expected);
}

TEST(route_call, supported_tells_what_the_tiers_hold) {
  for (int experts = 1; experts <= max_experts;
       experts = experts < 40 ? experts + 1 : experts + 41) {
    for (int k = 1; k <= std::min(experts, max_top_k); ++k) {
      gating g = softmax_model(experts, k);
      EXPECT_TRUE(cuda::supported(g)) << experts << ", " << k;
      g.kind = gating_kind::sigmoid;
      EXPECT_TRUE(cuda::supported(g)) << experts << ", " << k;
    }
  }
  EXPECT_FALSE(cuda::supported(softmax_model(1025, 8)));
  EXPECT_FALSE(cuda::supported(softmax_model(64, 33)));
}

TEST(route_call, refuses_before_it_launches) {
  const gating g = softmax_model(8, 2);
  const router host(g, k_policy::full());
  const cuda::device_plans plans = device::uploaded(host);
  const device::buffer<float> logits(std::vector<float>(8, 0.0f));
  device::buffer<std::int32_t> ids(2);
  device::buffer<float> weights(2);
  const logits_view<float> view = {logits.get(), 1, 8, 0};
  const routing_output<> output = {ids.get(), weights.get()};
  const cuda::device_router router(g, plans.ref());
  const auto message = [](const status& s) { return std::string(s.message()); };
  EXPECT_EQ(message(cuda::device_router(g, {}).route(0, view, output, nullptr, {}, nullptr)),
            "plans is empty: nothing uploaded");
  EXPECT_EQ(message(cuda::device_router(softmax_model(9, 2), plans.ref()).validity()),
            "plans are for num_experts = 8, top_k = 2, the gating has 9, 2");
  EXPECT_EQ(message(router.replay(0, view, routing_replay<>{}, output, nullptr, {}, nullptr)),
            "given.topk_ids is null");
  EXPECT_FALSE(
      router.route(0, logits_view<float>{logits.get(), 1, 9, 0}, output, nullptr, {}, nullptr)
          .ok());
  EXPECT_FALSE(
      router.route(0, logits_view<float>{logits.get(), -1, 8, 0}, output, nullptr, {}, nullptr)
          .ok());
  EXPECT_FALSE(router.route(0, view, routing_output<>{}, nullptr, {}, nullptr).ok());
  EXPECT_TRUE(
      router
          .route(0, logits_view<float>{nullptr, 0, 8, 0}, routing_output<>{}, nullptr, {}, nullptr)
          .ok());
}

TEST(route_call, a_device_that_the_kernels_were_not_compiled_for_is_told_apart) {
  const std::string said = cuda::to_status(cudaErrorNoKernelImageForDevice).message();
  EXPECT_NE(said.find("CMAKE_CUDA_ARCHITECTURES"), std::string::npos) << said;
  EXPECT_NE(said.find("cudaErrorNoKernelImageForDevice"), std::string::npos) << said;
}

#if defined(ON_INTERPRETER)
TEST(route_call, errors_of_the_runtime_become_a_status) {
  const gating g = softmax_model(8, 2);
  const router host(g, k_policy::full());
  const cuda::device_plans plans = device::uploaded(host);
  const device::buffer<float> logits(std::vector<float>(8, 0.0f));
  device::buffer<std::int32_t> ids(2);
  device::buffer<float> weights(2);
  const status result = cuda::device_router(g, plans.ref())
                            .route(0, logits_view<float>{logits.get(), 3, 8, 0},
                                   routing_output<>{ids.get(), weights.get()}, nullptr, {},
                                   nullptr);  // three rows where there is one
  EXPECT_EQ(result.code(), status_code::cuda_error);
  EXPECT_NE(std::string(result.message()).find("cudaError"), std::string::npos) << result.message();
  EXPECT_NE(ptx::last_fault().kind, ptx::fault_kind::none);
  ptx::clear_fault();
}

TEST(route_call, no_order_of_execution_shows) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    ptx::set_seed(seed);
    for (const gating& g : {softmax_model(8, 2), softmax_model(60, 4), softmax_model(128, 8),
                            softmax_model(300, 12), biased_model()}) {
      inputs::sequence from(seed);
      twin::batch<bfloat16> input = softmax_batch<bfloat16>(seed, g, 70);
      twin::spoil(from, input);
      twin::expect_equal<std::int32_t, float>(input);
    }
  }
  ptx::set_seed(0);
}

TEST(route_call, one_launch_and_nothing_that_waits) {
  const twin::batch<bfloat16> input = softmax_batch<bfloat16>(28, softmax_model(64, 8), 9);
  const router host(input.model, input.policy);
  const cuda::device_plans plans = device::uploaded(host);
  const device::buffer<bfloat16> logits(input.logits);
  device::buffer<std::int32_t> ids(72);
  device::buffer<float> weights(72);
  ptx::clear_call_log();
  ASSERT_TRUE(cuda::device_router(input.model, plans.ref())
                  .route(0, logits_view<bfloat16>{logits.get(), 9, 64, 0},
                         routing_output<>{ids.get(), weights.get()}, nullptr, {}, nullptr)
                  .ok());
  EXPECT_TRUE(ptx::synchronous_calls().empty());
  int launches = 0;
  for (const ptx::api_call& call : ptx::call_log()) launches += call.name == "launch" ? 1 : 0;
  EXPECT_EQ(launches, 1);
}
#endif

}  // namespace
