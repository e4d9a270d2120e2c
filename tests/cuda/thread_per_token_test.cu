// Rows that lie whole in lanes (cuda/thread_per_token_kernel.cuh): that the kernel for them runs,
// every pair of places for the best two, each thing that sends a warp another way, and each that
// sends the launch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "adaptive_k/cuda/tuning.cuh"
#include "batches.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

constexpr int experts = 8;
constexpr int warp_rows = 32 * cuda::tokens_per_thread;
constexpr std::int64_t enough = cuda::least_tokens_thread_per_token;

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

/// Calls `launch`, in which the kernel for such rows is to execute `least` to `most` warp
/// instructions; only the interpreter counts them.
template <class Launch>
void expect_lane_instructions(std::int64_t least, std::int64_t most, Launch launch) {
#if defined(ON_INTERPRETER)
  ptx::reset_counters();
  launch();
  std::int64_t executed = 0;
  for (const auto& [kernel, counted] : ptx::kernel_counters())
    if (kernel.find("thread_per_token_route_kernel<") != std::string::npos)
      executed += static_cast<std::int64_t>(counted.warp_instructions);
  EXPECT_GE(executed, least);
  EXPECT_LE(executed, most);
#else
  (void)least, (void)most;
  launch();
#endif
}

/// No warp goes by tiles: those take 13 instructions a token and more.
template <class Launch>
void expect_all_in_lanes(std::int64_t tokens, Launch launch) {
  expect_lane_instructions(1, 9 * tokens, launch);
}

template <class Id = std::int32_t, class Weight = float, class Logit>
void expect_another_kernel(const twin::batch<Logit>& input) {
  expect_lane_instructions(0, 0, [&] { twin::expect_equal<Id, Weight>(input); });
}

/// A batch on both sides, under plans of the device's that may change; ids and weights alone.
template <class Logit>
class both_sides {
 public:
  explicit both_sides(const twin::batch<Logit>& input)
      : input_(input),
        plans_(device::uploaded(router(input.model, input.policy))),
        logits_(input.logits),
        router_(input.model, plans_.ref()) {}

  detail::k_plan plan() const {
    detail::k_plan plan;
    EXPECT_EQ(cudaMemcpy(&plan, plans_.ref().data(), sizeof plan, cudaMemcpyDeviceToHost),
              cudaSuccess);
    return plan;
  }
  void write(const detail::k_plan& plan) {
    EXPECT_EQ(cudaMemcpy(const_cast<detail::k_plan*>(plans_.ref().data()), &plan, sizeof plan,
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }

  /// `tokens` rows from the `skipped`-th logit on give what `policy` does.
  void expect_equal(const k_policy& policy, std::int64_t tokens, std::int64_t skipped = 0) {
    const auto slots = static_cast<std::size_t>(2 * tokens);
    std::vector<std::int32_t> ids(slots);
    std::vector<float> weights(slots);
    const logits_view<Logit> host_logits = {input_.logits.data() + skipped, tokens, experts};
    ASSERT_TRUE(router(input_.model, policy)
                    .route(0, host_logits, routing_output<>{ids.data(), weights.data()})
                    .ok());
    const device::buffer<std::int32_t> device_ids(slots);
    const device::buffer<float> device_weights(slots);
    const status result = router_.route(
        0, logits_view<Logit>{logits_.get() + skipped, tokens, experts},
        routing_output<>{device_ids.get(), device_weights.get()}, nullptr, {}, nullptr);
    ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
    twin::expect_same_bits("id", device_ids.read(), ids, 2);
    twin::expect_same_bits("weight", device_weights.read(), weights, 2);
  }

 private:
  const twin::batch<Logit>& input_;
  cuda::device_plans plans_;
  device::buffer<Logit> logits_;
  cuda::device_router router_;
};

using all_logits = ::testing::Types<float, float16, bfloat16>;
template <class Logit>
class thread_per_token : public ::testing::Test {};
TYPED_TEST_SUITE(thread_per_token, all_logits);

TYPED_TEST(thread_per_token, any_number_of_tokens) {
  for (const std::int64_t tokens : {enough, enough + 1, enough + 31, enough + 32, enough + 33,
                                    enough + warp_rows - 1, enough + 3 * warp_rows + 40})
    twin::expect_equal<std::int32_t, float>(long_batch<TypeParam>(41, tokens));
}

TYPED_TEST(thread_per_token, every_place_of_the_best_two) {
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
TYPED_TEST(thread_per_token, ties) {
  for (std::uint64_t seed = 43; seed < 46; ++seed) {
    inputs::sequence from(seed);
    twin::batch<TypeParam> input = long_batch<TypeParam>(seed, enough + 5);
    twin::coarsen(from, input);
    twin::expect_equal<std::int32_t, float>(input);
  }
}

TYPED_TEST(thread_per_token, one_odd_row_sends_its_warp_another_way) {
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

TYPED_TEST(thread_per_token, any_policy) {
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

// One condition of the kernel fails at a time.
TYPED_TEST(thread_per_token, almost_such_rows) {
  const twin::batch<TypeParam> such = long_batch<TypeParam>(50, enough);
  expect_another_kernel(long_batch<TypeParam>(49, enough - 1));
  expect_another_kernel(long_batch<TypeParam>(49, enough, 1));
  expect_another_kernel(long_batch<TypeParam>(49, enough, 8));
  expect_another_kernel<std::int64_t>(such);
  expect_another_kernel<std::int32_t, float16>(such);

  twin::batch<TypeParam> shadow = such, raw = such, one = such;
  shadow.shadow = true;
  raw.model.renormalize = false;
  one.model.top_k = 1;
  one.policy = k_policy::full();
  for (const auto* input : {&shadow, &raw, &one}) expect_another_kernel(*input);
  for (const int gap : {1, 2, 3}) {
    twin::batch<TypeParam> ids_apart = such, weights_apart = such;
    ids_apart.id_gap = gap;
    weights_apart.weight_gap = gap;
    expect_another_kernel(ids_apart);
    expect_another_kernel(weights_apart);
  }

  inputs::sequence from(51);
  twin::batch<TypeParam> padding = such, k_min = such, k_max = such;
  for (std::int64_t t = 0; t < enough; ++t) {
    padding.padding_mask.push_back(from.chance(4) ? 1 : 0);
    k_min.k_min.push_back(from.chance(2) ? 1 : 2);
    k_max.k_max.push_back(from.chance(2) ? 1 : 2);
  }
  for (const auto* input : {&padding, &k_min, &k_max}) expect_another_kernel(*input);

  inputs::sequence again(52);
  gating seven = small_model();
  seven.num_experts = 7;
  for (const int gap : {0, 1}) {
    twin::batch<TypeParam> fewer = twin::make_batch<TypeParam>(again, seven, enough, gap);
    fewer.policy = such.policy;
    expect_another_kernel(fewer);
  }
}

TYPED_TEST(thread_per_token, run_in_the_kernel_for_them) {
  const twin::batch<TypeParam> input = long_batch<TypeParam>(53, enough);
  both_sides<TypeParam> sides(input);
  expect_all_in_lanes(enough, [&] { sides.expect_equal(input.policy, enough); });
}

// Counts, signal and metrics are optional, and logits may begin between two loads of 16 bytes.
TYPED_TEST(thread_per_token, ids_and_weights_alone_from_any_address) {
  const twin::batch<TypeParam> input = long_batch<TypeParam>(54, enough + 1);
  both_sides<TypeParam> sides(input);
  for (const std::int64_t skipped : {0, 1, 2, 4, 8})
    sides.expect_equal(input.policy, enough, skipped);
}

// Scores end at -exp_floor: rows that span as much lie in lanes, and none that spans more.
TYPED_TEST(thread_per_token, rows_as_far_apart_as_may_be) {
  constexpr float most = -math::exp_floor;
  const auto fill = [](twin::batch<TypeParam>& input, std::int64_t token, float span) {
    // As largest and least, or from 0 on; the second is the largest, the least or in between.
    const float high = token % 2 == 0 ? span : span / 2;
    const float low = token % 2 == 0 ? 0.0f : -span / 2;
    float row[experts];
    for (float& logit : row) logit = low;
    row[token % 7] = high;
    row[7] = token % 3 == 0 ? high : token % 3 == 1 ? low : high - 1.0f;
    set_row(input, token, row);
  };
  const auto spans = [](float span) {
    const auto rounded = [](float x) { return to_float(from_float<TypeParam>(x)); };
    return std::max(rounded(span), rounded(span / 2) - rounded(-span / 2));
  };

  twin::batch<TypeParam> near = long_batch<TypeParam>(55, enough);
  std::int64_t token = 0;
  for (float span = 86.9f; span <= most; span += 1.0f / 1024.0f)
    if (spans(span) <= most) fill(near, token++, span);
  fill(near, token++, 87.0f);
  if (std::is_same_v<TypeParam, float>) fill(near, 2 * token, most);
  ASSERT_LE(2 * token, enough);
  both_sides<TypeParam> sides(near);
  expect_all_in_lanes(enough, [&] { sides.expect_equal(near.policy, enough); });
  twin::expect_equal<std::int32_t, float>(near);

  twin::batch<TypeParam> far = long_batch<TypeParam>(56, 16 * enough);
  token = 0;
  fill(far, token, std::nextafter(most, 100.0f));
  for (float span = most; span <= 88.1f; span += 1.0f / 512.0f) {
    token += warp_rows + 3;  // each in a warp of its own
    fill(far, token, span);
  }
  ASSERT_LT(token, far.num_tokens);
  far.policy = k_policy::full();  // whose second weight shows a wrong score
  twin::expect_equal<std::int32_t, float>(far);
}

// What the host cannot see of a plan when it chooses the kernel.
TYPED_TEST(thread_per_token, plans_that_change_between_launches) {
  const twin::batch<TypeParam> input = long_batch<TypeParam>(57, enough + 40);
  both_sides<TypeParam> sides(input);
  const detail::k_plan first = sides.plan();
  sides.expect_equal(input.policy, input.num_tokens);

  detail::k_plan stale = first;  // its threshold is left, and not tried
  stale.tried = 0;
  sides.write(stale);
  sides.expect_equal(k_policy::full(), input.num_tokens);
  stale.last_k = 1;
  sides.write(stale);
  sides.expect_equal(k_policy::fixed(1), input.num_tokens);

  for (const k_policy& policy : {k_policy::top_p(0.7f, 2), k_policy::score_ratio(0.5f, 2),
                                 k_policy::entropy({1, 2}, {0.9f})}) {
    sides.write(router(input.model, policy).plans()[0]);
    sides.expect_equal(policy, input.num_tokens);
  }
  sides.write(first);
  sides.expect_equal(input.policy, input.num_tokens);
}

}  // namespace
