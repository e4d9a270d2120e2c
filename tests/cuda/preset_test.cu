// The measured preset on the device and on the host: the same k, weights and signals, bit for bit.
#include <gtest/gtest.h>

#include "adaptive_k/calibration/preset.hpp"
#include "batches.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

template <class Logit>
void expect_every_layer_equal() {
  const preset measured = load_preset_file(REFERENCE_PRESET);
  const preset_policy policy = parse_policy("", measured);
  ASSERT_EQ(policy.layers.size(), static_cast<std::size_t>(measured.num_moe_layers));
  inputs::sequence from(71);
  for (const k_policy& layer : policy.layers) {
    ASSERT_EQ(layer.rule, k_rule::distortion);
    twin::batch<Logit> input = twin::make_batch<Logit>(from, measured.model, 500, 0);
    input.policy = layer;
    twin::expect_equal<std::int32_t, float>(input);
    const routed_batch routed =
        router(measured.model, layer)
            .route(0, logits_view<Logit>{input.logits.data(), 500, measured.model.num_experts});
    int fewer = 0;  // else nothing was compared that the policy decides
    for (const std::int32_t k : routed.topk_counts) fewer += k < measured.model.top_k ? 1 : 0;
    EXPECT_GT(fewer, 50);
  }
}

TEST(preset, calibrated_policy_chooses_as_the_host_does_f32) {
  expect_every_layer_equal<float>();
}
TEST(preset, calibrated_policy_chooses_as_the_host_does_bf16) {
  expect_every_layer_equal<bfloat16>();
}

/// Routes 300 tokens of `layer` on both sides, and compares.
void expect_layer_equal(const router& host, const cuda::device_plans& plans, int layer) {
  SCOPED_TRACE(layer);
  constexpr std::int64_t tokens = 300;
  inputs::sequence from(72);
  const twin::batch<float> input = twin::make_batch<float>(from, host.model(), tokens, 0);
  const logits_view<float> view = {input.logits.data(), tokens, host.model().num_experts};
  const routed_batch routed = host.route(layer, view);
  ASSERT_TRUE(routed.result.ok()) << routed.result.message();
  const device::buffer<float> logits(input.logits);
  const device::buffer<std::int32_t> ids(routed.topk_ids.size()), counts(tokens);
  const device::buffer<float> weights(routed.topk_ids.size());
  const status result =
      cuda::device_router(host.model(), plans.ref())
          .route(layer, logits_view<float>{logits.get(), tokens, host.model().num_experts},
                 routing_output<>{ids.get(), weights.get(), counts.get()}, nullptr, {}, nullptr);
  ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
  twin::expect_same_bits("id", ids.read(), routed.topk_ids, host.model().top_k);
  twin::expect_same_bits("weight", weights.read(), routed.topk_weights, host.model().top_k);
  twin::expect_same_bits("count", counts.read(), routed.topk_counts, 1);
}

TEST(device_plans, are_rewritten_in_place_with_their_tables) {
  const preset measured = load_preset_file(REFERENCE_PRESET);
  const int last = measured.num_moe_layers - 1;
  const router calibrated = measured.make_router();
  const router dearer = measured.make_router("calibrated,lambda=0.1");
  const router full(measured.model, std::vector<k_policy>(static_cast<std::size_t>(last) + 1));
  cuda::device_plans plans = device::uploaded(full);  // no tables, and room for them
  const detail::k_plan* const place = plans.ref().data();
  for (const router* next : {&calibrated, &full, &dearer}) {
    ASSERT_TRUE(plans.upload(*next, nullptr).ok());
    EXPECT_EQ(plans.ref().data(), place);
    for (const int layer : {0, last}) expect_layer_equal(*next, plans, layer);
  }
  // One layer: the others stay.
  ASSERT_TRUE(plans.upload(calibrated, last, nullptr).ok());
  expect_layer_equal(calibrated, plans, last);
  expect_layer_equal(dearer, plans, 0);
  ASSERT_TRUE(plans.upload(full, 0, nullptr).ok());
  expect_layer_equal(full, plans, 0);
  expect_layer_equal(calibrated, plans, last);
  // One policy for all, in every layer's place.
  ASSERT_TRUE(plans.upload(router(measured.model, k_policy::fixed(3)), nullptr).ok());
  EXPECT_EQ(plans.ref().num_layers(), last + 1);
  for (const int layer : {0, last})
    expect_layer_equal(router(measured.model, k_policy::fixed(3)), plans, layer);
  ASSERT_TRUE(plans.upload(calibrated, nullptr).ok());
  cuda::device_plans moved = std::move(plans);
  EXPECT_TRUE(plans.ref().empty());
  expect_layer_equal(calibrated, moved, last);
}

TEST(device_plans, refuse_what_does_not_fit) {
  const preset measured = load_preset_file(REFERENCE_PRESET);
  const router host = measured.make_router();
  const auto message = [](const status& s) { return std::string(s.message()); };
  cuda::device_plans plans;
  EXPECT_EQ(message(plans.upload(host, 0, nullptr)), "one layer before an upload of all of them");
  EXPECT_EQ(message(plans.upload(router(measured.model, k_policy::fixed(40)), nullptr)),
            "fixed k is 40, expected 1..top_k = 8");
  EXPECT_TRUE(plans.ref().empty());

  // Tables that are in device memory already.
  const device::buffer<float> table(std::vector<float>(1000, 0.0f));
  distortion_ref tables = host.policy(0).distortion;
  tables.next_expert = table.get();
  EXPECT_EQ(
      message(plans.upload(router(measured.model, k_policy::min_distortion(tables)), nullptr)),
      "layer 0: distortion.next_expert points to device memory, expected host memory: an "
      "upload copies it");
  EXPECT_TRUE(plans.ref().empty());
  ASSERT_TRUE(plans.upload(host, nullptr).ok());
  cuda::device_plans of_one = device::uploaded(router(measured.model, k_policy::full()));
  EXPECT_EQ(of_one.upload(host, nullptr).code(), status_code::shape_mismatch);
  EXPECT_EQ(message(of_one.upload(router(measured.model, k_policy::full()), 0, nullptr)),
            "one layer of plans that have one policy for all");
  gating other = measured.model;
  other.top_k = 4;
  EXPECT_EQ(plans.upload(router(other, std::vector<k_policy>(host.plans().size())), nullptr).code(),
            status_code::shape_mismatch);
  EXPECT_EQ(message(plans.upload(host, measured.num_moe_layers, nullptr)),
            "layer is " + std::to_string(measured.num_moe_layers) + ", expected 0.." +
                std::to_string(measured.num_moe_layers - 1) + " (num_layers - 1)");
  expect_layer_equal(host, plans, 0);  // none of them changed anything
}

}  // namespace
