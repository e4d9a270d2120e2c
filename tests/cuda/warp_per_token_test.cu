// Launches in which a warp decides each token (cuda/warp_per_token_kernel.cuh), against the host
// path: all tiers, each thing that sends a warp the long way, addresses, and which launches they
// are.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "shapes.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using twin::edges_of;
using twin::launch_size;
using twin::run_shapes;

constexpr float inf = math::infinity;

template <class Logit>
class warp_per_token : public ::testing::Test {};
TYPED_TEST_SUITE(warp_per_token, twin::logit_types);

gating softmax_of(int num_experts, int top_k) {
  gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  return g;
}

template <class Logit>
twin::batch<Logit> batch_of(std::uint64_t seed, const gating& g, std::int64_t tokens, int gap = 0) {
  inputs::sequence from(seed);
  twin::batch<Logit> input = twin::make_batch<Logit>(from, g, tokens, gap);
  input.policy = g.top_k > 1 ? k_policy::entropy({1, g.top_k}, {2.0f}) : k_policy::full();
  input.multiprocessors = 1000;  // so that no launch is long
  return input;
}

template <class Logit>
void set_row(twin::batch<Logit>& input, std::int64_t token, const std::vector<float>& row) {
  for (std::size_t e = 0; e < row.size(); ++e)
    input.logits[static_cast<std::size_t>(token * input.row_stride) + e] =
        from_float<Logit>(row[e]);
}

/// Warp instructions that kernels of a name executed in `launch`; -1 where nothing counts them.
template <class Launch>
std::int64_t instructions_of(const std::string& name, Launch launch) {
#if defined(ON_INTERPRETER)
  ptx::reset_counters();
  launch();
  std::int64_t executed = 0;
  for (const auto& [kernel, counted] : ptx::kernel_counters())
    if (kernel.find(name) != std::string::npos)
      executed += static_cast<std::int64_t>(counted.warp_instructions);
  return executed;
#else
  (void)name;
  launch();
  return -1;
#endif
}

TYPED_TEST(warp_per_token, softmax_equals_host) {
  gating g;
  run_shapes<TypeParam>(edges_of(cuda::warp_softmax_tiers{}), g, 21, launch_size::few);
  run_shapes<TypeParam>({{8, 2}, {60, 4}, {40, 8}, {100, 3}, {129, 12}, {200, 16}, {1, 1}}, g, 22,
                        launch_size::few);
}

TYPED_TEST(warp_per_token, softmax_not_renormalised_equals_host) {
  gating g;
  g.renormalize = false;
  g.routed_scaling_factor = 2.5f;
  run_shapes<TypeParam>(edges_of(cuda::warp_softmax_tiers{}), g, 23, launch_size::few);
}

TYPED_TEST(warp_per_token, top_k_softmax_equals_host) {
  gating g;
  g.kind = gating_kind::top_k_softmax;
  g.renormalize = false;
  run_shapes<TypeParam>({{32, 4}, {64, 8}, {128, 4}, {40, 8}}, g, 24, launch_size::few);
}

// Other gatings, their bias and groups: rows of the warp as groups, and groups of any size.
TYPED_TEST(warp_per_token, any_gating_equals_host) {
  const std::vector<twin::shape> shapes = {{128, 6}, {256, 8}, {384, 8}, {100, 5}, {17, 8}};
  gating g;
  g.selection_bias = true;
  run_shapes<TypeParam>(shapes, g, 40, launch_size::few);
  for (const gating_kind kind : {gating_kind::sigmoid, gating_kind::sqrt_softplus}) {
    g.kind = kind;
    g.selection_bias = false;
    run_shapes<TypeParam>(shapes, g, 41, launch_size::few);
    g.selection_bias = true;
    g.routed_scaling_factor = 2.5f;
    run_shapes<TypeParam>(shapes, g, 42, launch_size::few);
  }
}

TYPED_TEST(warp_per_token, groups_equal_host) {
  for (const group_score rank : {group_score::top2_sum, group_score::maximum}) {
    gating g;
    g.kind = gating_kind::sigmoid;
    g.selection_bias = true;
    g.group_rank = rank;
    for (const int groups : {8, 4, 12}) {
      g.n_group = groups;
      g.topk_group = groups / 2;
      const std::vector<twin::shape> shapes = {{256, 8}, {128, 6}, {384, 8}, {96, 4}, {160, 6}};
      run_shapes<TypeParam>(shapes, g, 43, launch_size::few);
    }
    g.kind = gating_kind::softmax;
    g.selection_bias = false;
    g.renormalize = false;
    g.n_group = 8;
    g.topk_group = 3;
    run_shapes<TypeParam>({{256, 6}, {160, 6}}, g, 44, launch_size::few);
  }
}

// What short keys and the sums over groups' best are not made for: a bias that is NaN or infinite,
// in a group that is chosen and in one that is not, and chosen scores so small that the total
// counts.
TYPED_TEST(warp_per_token, odd_biases) {
  const float nan = inputs::from_bits(0x7FC00000u), minus_nan = inputs::from_bits(0xFFC00001u);
  inputs::sequence from(45);
  for (const gating_kind kind :
       {gating_kind::softmax, gating_kind::sigmoid, gating_kind::sqrt_softplus}) {
    for (const int groups : {1, 8, 5}) {
      for (const float odd : {nan, minus_nan, inf, -inf, -0.0f, -1e30f}) {
        for (const int every : {1, 3, 70}) {
          gating g;
          g.kind = kind;
          g.num_experts = groups == 5 ? 160 : groups == 8 ? 256 : 100;
          g.top_k = 7;
          g.selection_bias = true;
          g.n_group = groups;
          g.topk_group = groups == 1 ? 1 : groups - 3;
          twin::batch<TypeParam> input = batch_of<TypeParam>(46, g, 6);
          for (std::size_t e = 0; e < input.bias.size(); ++e)
            if (from.below(every) == 0) input.bias[e] = odd;
          for (TypeParam& logit : input.logits)  // some so low that their scores underflow
            if (from.chance(3)) logit = from_float<TypeParam>(from.chance(2) ? -60.0f : -95.0f);
          input.policy.mass_exponent = from.chance(2) ? 1.0f : 0.5f;
          twin::expect_equal<std::int32_t, float>(input);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

// Policies that the others do not reach with a plain call: limits of the plan, every exponent.
TYPED_TEST(warp_per_token, limits_of_the_plan_and_every_exponent) {
  for (const gating& g : {softmax_of(8, 2), softmax_of(64, 8), softmax_of(300, 6)}) {
    for (int index = 0; index < 12; ++index) {
      twin::batch<TypeParam> input = batch_of<TypeParam>(25, g, 9);
      input.policy = index % 2 == 0 ? k_policy::entropy({1, 2}, {1.2f}) : k_policy::fixed(1);
      if (g.top_k > 2 && index % 2 == 0)
        input.policy = k_policy::entropy({2, 3, g.top_k}, {1.0f, 2.0f});
      input.policy.k_min = static_cast<std::uint8_t>(index < 6 ? 1 : 2);
      input.policy.k_max =
          static_cast<std::uint8_t>(index % 3 == 0 ? std::max(2, g.top_k - 1) : 32);
      input.policy.mass_exponent = checked::mass_exponent_number(index);
      input.fill = static_cast<fill_id>(index % 3);
      twin::expect_equal<std::int32_t, float>(input);
    }
  }
}

TYPED_TEST(warp_per_token, any_number_of_tokens) {
  for (const std::int64_t tokens : {0, 1, 2, 3, 4, 5, 7, 31, 33, 63, 255, 257})
    for (const gating& g : {softmax_of(8, 2), softmax_of(128, 8), softmax_of(33, 5)})
      twin::expect_equal<std::int32_t, float>(batch_of<TypeParam>(26, g, tokens));
}

TYPED_TEST(warp_per_token, rows_and_outputs_at_any_address) {
  for (int gap = 0; gap < 9; ++gap) {
    twin::batch<TypeParam> input = batch_of<TypeParam>(27, softmax_of(70, 5), 6, gap);
    input.id_gap = gap % 4;
    input.weight_gap = 3 - gap % 4;
    twin::expect_equal<std::int32_t, float>(input);
    twin::expect_equal<std::int64_t, float16>(input);
    twin::expect_equal<std::int16_t, bfloat16>(input);
  }
}

// One odd logit at every place, and rows that hold nothing else.
TYPED_TEST(warp_per_token, odd_logits) {
  const float nan = inputs::from_bits(0x7FC00000u), minus_nan = inputs::from_bits(0xFFC00001u);
  for (const int num_experts : {5, 32, 33, 64, 100}) {
    const gating g = softmax_of(num_experts, std::min(num_experts, 6) - 1);
    std::vector<std::vector<float>> rows;
    inputs::sequence from(28);
    const auto row_of = [&](float all) {
      return std::vector<float>(static_cast<std::size_t>(num_experts), all);
    };
    for (const float odd : {nan, minus_nan, inf, -inf, -0.0f}) {
      rows.push_back(row_of(odd));
      for (int e = 0; e < num_experts; ++e) {
        std::vector<float> row = row_of(0.0f), only = row_of(odd), two = row_of(-inf);
        for (float& logit : row) logit = inputs::fine_logit(from);
        row[oracle::at(e)] = only[oracle::at(e)] = odd;
        only[oracle::at(e)] = 1.5f;  // and all others odd
        two[oracle::at(e)] = odd;    // among -inf
        rows.push_back(row);
        rows.push_back(only);
        rows.push_back(two);
      }
    }
    rows.push_back(row_of(0.0f));
    rows.push_back(row_of(-3.0f));
    rows.push_back(row_of(-math::largest_finite));
    rows.push_back(row_of(math::largest_finite));
    twin::batch<TypeParam> input =
        batch_of<TypeParam>(29, g, static_cast<std::int64_t>(rows.size()));
    input.policy = k_policy::entropy({1, g.top_k}, {1.0f});
    for (std::size_t t = 0; t < rows.size(); ++t)
      set_row(input, static_cast<std::int64_t>(t), rows[t]);
    twin::expect_equal<std::int32_t, float>(input);
    input.policy = k_policy::top_p(0.6f, g.top_k);
    input.model.renormalize = false;
    twin::expect_equal<std::int32_t, float>(input);
  }
}

// Keys of fp32 logits lack their last bits: values that differ in those alone, at neighbouring
// ranks, behind the last rank, in one lane and in several, more of them than there are ranks.
TYPED_TEST(warp_per_token, logits_a_last_bit_apart) {
  inputs::sequence from(30);
  for (const gating& g : {softmax_of(24, 3), softmax_of(64, 4), softmax_of(128, 8),
                          softmax_of(256, 8), softmax_of(512, 16)}) {
    constexpr int tokens = 48;
    twin::batch<TypeParam> input = batch_of<TypeParam>(31, g, tokens);
    for (int t = 0; t < tokens; ++t) {
      const bool negative = t % 5 == 4;
      const float base = negative ? -4.0f : 5.0f;
      const int group = t % 3 == 0 ? 2 : t % 3 == 1 ? g.top_k + 3 : g.num_experts;
      std::vector<float> row;
      for (int e = 0; e < g.num_experts; ++e)
        row.push_back(negative ? base - 2.0f - inputs::fine_logit(from) / 8.0f
                               : inputs::fine_logit(from) / 2.0f);
      for (int i = 0; i < group; ++i) {
        const int steps = from.below(t % 2 == 0 ? 3 : 300);  // within a key's last bits, and beyond
        const float near =
            inputs::from_bits(inputs::bits_of(base) + static_cast<std::uint32_t>(steps));
        const int at = t % 7 == 0 ? (32 * i) % g.num_experts : from.below(g.num_experts);
        row[oracle::at(at)] = near;
      }
      set_row(input, t, row);
    }
    twin::expect_equal<std::int32_t, float>(input);
  }
}

// Nothing but ids and weights is asked for; and a launch is one of the kernels by its length.
TYPED_TEST(warp_per_token, short_launches_alone) {
  const gating g = softmax_of(64, 8);
  const k_policy policy = k_policy::entropy({4, 8}, {2.5f});
  const router host(g, policy);
  cuda::device_plans plans(1);
  ASSERT_TRUE(plans.upload(host, nullptr).ok());
  const cuda::device_router on_device(g, plans.ref());
  const std::int64_t most =
      cuda::tokens_for_warps(cuda::warp_softmax_tiers{}, g.num_experts, g.top_k, sizeof(TypeParam));
  ASSERT_GT(most, 0);
  for (const std::int64_t tokens : {std::int64_t{1}, most, most + 1}) {
    const twin::batch<TypeParam> input = batch_of<TypeParam>(32, g, tokens);
    const device::buffer<TypeParam> logits(input.logits);
    const auto slots = static_cast<std::size_t>(8 * tokens);
    const device::buffer<std::int32_t> ids(slots);
    const device::buffer<float> weights(slots);
    const std::int64_t executed = instructions_of("warp_per_token_route_kernel<", [&] {
      ASSERT_TRUE(on_device
                      .route(0, logits_view<TypeParam>{logits.get(), tokens, 64},
                             routing_output<>{ids.get(), weights.get()}, nullptr, {}, nullptr)
                      .ok());
    });
    if (executed >= 0) EXPECT_EQ(executed > 0, tokens <= most) << tokens;
    const routed_batch routed =
        host.route(0, logits_view<TypeParam>{input.logits.data(), tokens, 64});
    ASSERT_TRUE(routed.result.ok());
    twin::expect_same_bits("id", ids.read(), routed.topk_ids, 8);
    twin::expect_same_bits("weight", weights.read(), routed.topk_weights, 8);
  }
}

}  // namespace
