// Rows that lie whole in lanes (cuda/lane_rows.cuh): batches long enough for several rows a lane,
// every pair of places for the best two, and each thing that sends a warp another way.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "adaptive_k/cuda/tuning.cuh"
#include "batches.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

constexpr int experts = 8;
constexpr int warp_rows = 32 * cuda::rows_of_lane;
constexpr std::int64_t enough = 4096;
static_assert(cuda::rounds_of<cuda::tier<8, 2, 1>>(enough) == cuda::rows_of_lane, "enough tokens");

gating small_model() {
  gating g;
  g.num_experts = experts;
  g.top_k = 2;
  return g;
}

template <class Logit>
twin::batch<Logit> long_batch(std::uint64_t seed, std::int64_t num_tokens, int gap = 0) {
  inputs::sequence from(seed);
  twin::batch<Logit> input = twin::make_batch<Logit>(from, small_model(), num_tokens, gap);
  input.policy = k_policy::entropy({1, 2}, {1.5f});
  return input;
}

template <class Logit>
void set_row(twin::batch<Logit>& input, std::int64_t token, const float (&row)[experts]) {
  for (int e = 0; e < experts; ++e)
    input.logits[static_cast<std::size_t>(token * input.row_stride + e)] =
        from_float<Logit>(row[e]);
}

using all_logits = ::testing::Types<float, float16, bfloat16>;
template <class Logit>
class lane_rows : public ::testing::Test {};
TYPED_TEST_SUITE(lane_rows, all_logits);

TYPED_TEST(lane_rows, any_number_of_tokens) {
  for (const std::int64_t tokens : {enough, enough + 1, enough + 31, enough + 32, enough + 33,
                                    enough + warp_rows - 1, enough + 3 * warp_rows + 40})
    twin::expect_equal<std::int32_t, float>(long_batch<TypeParam>(41, tokens));
}

TYPED_TEST(lane_rows, every_place_of_the_best_two) {
  // First, second, the rest: ordinary, equal, zeros of both signs, all negative, the smallest
  // steps.
  const float tiny = inputs::from_bits(1);
  const float values[][3] = {
      {3.0f, 1.0f, -1.0f},       {2.0f, 2.0f, -2.0f},          {0.0f, -0.0f, -1.0f},
      {-0.0f, 0.0f, -1.0f},      {1.0f, 0.0f, -0.0f},          {1.0f, -0.0f, 0.0f},
      {0.0f, 0.0f, -0.0f},       {-1.0f, -2.0f, -3.0f},        {-1.0f, -1.0f, -1.0f},
      {4.0f, -80.0f, -83.0f},    {tiny, 0.0f, -0.0f},          {0.0f, -tiny, -tiny},
      {80.0f, 1.0f, 0.9921875f}, {1.0f, 0.9921875f, 0.984375f}};
  twin::batch<TypeParam> input = long_batch<TypeParam>(42, enough);
  std::int64_t token = 0;
  for (const auto& value : values) {
    for (int first = 0; first < experts; ++first) {
      for (int second = 0; second < experts; ++second) {
        if (first == second) continue;
        float row[experts];
        for (float& logit : row) logit = value[2];
        row[first] = value[0];
        row[second] = value[1];
        set_row(input, token++, row);
      }
    }
  }
  ASSERT_LE(token, enough);
  twin::expect_equal<std::int32_t, float>(input);
}

// Equal and nearly equal logits all over, as routers in 16 bits have them.
TYPED_TEST(lane_rows, ties) {
  for (std::uint64_t seed = 43; seed < 46; ++seed) {
    inputs::sequence from(seed);
    twin::batch<TypeParam> input = long_batch<TypeParam>(seed, enough + 5);
    twin::coarsen(from, input);
    twin::expect_equal<std::int32_t, float>(input);
  }
}

TYPED_TEST(lane_rows, one_odd_row_sends_its_warp_another_way) {
  const float inf = math::infinity;
  const float nan = inputs::from_bits(0x7FC00000u);
  const float rows[][experts] = {
      {1, nan, 2, 3, 4, 5, 6, 7},
      {nan, 1, 2, 3, 4, 5, 6, 7},
      {1, 2, 3, 4, 5, 6, 7, inputs::from_bits(0xFFC00001u)},
      {1, 2, inf, 3, inf, 4, 5, 6},
      {1, 2, -inf, 3, 4, 5, 6, 7},
      {-inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf},
      {nan, nan, nan, nan, nan, nan, nan, nan},
      {0, 1, 2, 3, 4, 5, 6, -87.0f},  // the scores of these are 0
      {0, 1, 2, 3, 4, 5, 6, -500.0f},
      {50, -50, 50, -50, 50, -50, 50, -50},
  };
  twin::batch<TypeParam> input = long_batch<TypeParam>(47, enough + 70);
  std::int64_t token = 3;
  for (const auto& row : rows) {
    set_row(input, token, row);
    token += 2 * warp_rows + 37;  // every second warp stays ordinary
  }
  ASSERT_LE(token, enough);
  twin::expect_equal<std::int32_t, float>(input);
}

TYPED_TEST(lane_rows, any_policy) {
  k_policy both_at_least = k_policy::entropy({1, 2}, {1.5f});
  both_at_least.k_min = 2;
  k_policy one_at_most = k_policy::entropy({1, 2}, {1.5f});
  one_at_most.k_max = 1;
  for (const k_policy& policy :
       {k_policy::full(), k_policy::fixed(1), k_policy::entropy({1, 2}, {0.9f}), both_at_least,
        one_at_most, k_policy::top_p(0.7f, 2), k_policy::score_ratio(0.5f, 2)}) {
    for (int index = 0; index < 6; ++index) {
      twin::batch<TypeParam> input = long_batch<TypeParam>(48, enough + 8);
      input.policy = policy;
      input.policy.mass_exponent = checked::mass_exponent_number(index);
      input.fill = static_cast<fill_id>(index % 3);
      if (index >= 3) input.model.routed_scaling_factor = 2.5f;
      twin::expect_equal<std::int32_t, float>(input);
    }
  }
}

// One condition of lane rows fails at a time.
TYPED_TEST(lane_rows, almost_such_rows) {
  twin::expect_equal<std::int32_t, float>(long_batch<TypeParam>(49, enough, 8));
  twin::expect_equal<std::int32_t, float>(long_batch<TypeParam>(49, enough, 1));
  twin::batch<TypeParam> plain = long_batch<TypeParam>(50, enough);
  twin::expect_equal<std::int64_t, float>(plain);
  twin::expect_equal<std::int32_t, float16>(plain);
  twin::batch<TypeParam> shadow = plain, ids_apart = plain, raw = plain, padded = plain;
  shadow.shadow = true;
  ids_apart.id_gap = 1;
  raw.model.renormalize = false;
  inputs::sequence from(51);
  twin::restrict_tokens(from, padded);
  for (const auto* input : {&shadow, &ids_apart, &raw, &padded})
    twin::expect_equal<std::int32_t, float>(*input);

  inputs::sequence again(52);
  gating seven = small_model();
  seven.num_experts = 7;
  twin::batch<TypeParam> fewer = twin::make_batch<TypeParam>(again, seven, enough, 1);
  fewer.policy = plain.policy;
  twin::expect_equal<std::int32_t, float>(fewer);
}

// Counts, signal and metrics are optional, and logits may begin between two loads of 16 bytes.
TYPED_TEST(lane_rows, ids_and_weights_alone_from_any_address) {
  const twin::batch<TypeParam> input = long_batch<TypeParam>(53, enough + 1);
  const router host(input.model, input.policy);
  const device::buffer<detail::k_plan> plans(host.plans());
  const device::buffer<TypeParam> logits(input.logits);
  for (const std::int64_t skipped : {0, 1, 2, 4, 8}) {
    const std::int64_t tokens = enough;
    std::vector<std::int32_t> ids(2 * enough);
    std::vector<float> weights(2 * enough);
    ASSERT_TRUE(host.route(0,
                           logits_view<TypeParam>{input.logits.data() + skipped, tokens, experts},
                           routing_output<>{ids.data(), weights.data()}));
    device::buffer<std::int32_t> device_ids(2 * enough);
    device::buffer<float> device_weights(2 * enough);
    ASSERT_TRUE(cuda::device_router(input.model, plans.get())
                    .route(0, logits_view<TypeParam>{logits.get() + skipped, tokens, experts},
                           routing_output<>{device_ids.get(), device_weights.get()}, nullptr, {},
                           nullptr));
    twin::expect_same_bits("id", device_ids.read(), ids, 2);
    twin::expect_same_bits("weight", device_weights.read(), weights, 2);
  }
}

}  // namespace
