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

}  // namespace
