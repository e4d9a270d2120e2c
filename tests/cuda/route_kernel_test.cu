// Every route kernel against the host path: all tiers and their edges, types, gatings and policies.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "adaptive_k/cuda/tuning.cuh"
#include "batches.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

struct shape {
  int num_experts;
  int top_k;
};

template <class... Tiers>
std::vector<shape> edges_of(cuda::tier_list<Tiers...>) {
  std::vector<shape> shapes;
  int below = 0;
  (void)std::initializer_list<int>{
      (shapes.push_back({Tiers::max_experts, Tiers::max_top_k}),
       shapes.push_back(
           {Tiers::max_experts - 1, std::min(Tiers::max_top_k, Tiers::max_experts - 1)}),
       shapes.push_back({below + 1, 1}), below = Tiers::max_experts, 0)...};
  return shapes;
}

/// Every policy in turn over the shapes of a tier list.
template <class Logit>
void run_shapes(const std::vector<shape>& shapes, gating base, std::uint64_t seed) {
  inputs::sequence from(seed);
  for (const shape& s : shapes) {
    gating g = base;
    g.num_experts = s.num_experts;
    g.top_k = g.kind == gating_kind::sparsemixer ? std::min(s.top_k, 2) : s.top_k;
    if (g.n_group > 1 &&
        (g.num_experts % g.n_group != 0 || g.topk_group * (g.num_experts / g.n_group) < g.top_k))
      continue;
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    int index = 0;
    for (checked::named_policy& named : checked::all_policies(from, g, tables)) {
      named.policy.mass_exponent = checked::mass_exponent_number(index++);
      SCOPED_TRACE("E " + std::to_string(g.num_experts) + ", K0 " + std::to_string(g.top_k) + ", " +
                   named.name);
      twin::batch<Logit> input =
          twin::make_batch<Logit>(from, g, from.between(1, 37), from.below(4));
      input.policy = named.policy;
      input.fill = static_cast<fill_id>(from.below(3));
      input.shadow = from.chance(6);
      twin::spoil(from, input);
      if (from.chance(3)) twin::restrict_tokens(from, input);
      if (from.chance(8)) twin::dictate(from, input);
      twin::expect_equal<std::int32_t, float>(input);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

template <class Logit>
class route_kernel : public ::testing::Test {};
#if defined(TEST_LOGIT_f32)  // a program of its own for each, so that they run side by side
using logit_types = ::testing::Types<float>;
#elif defined(TEST_LOGIT_f16)
using logit_types = ::testing::Types<float16>;
#elif defined(TEST_LOGIT_bf16)
using logit_types = ::testing::Types<bfloat16>;
#endif
TYPED_TEST_SUITE(route_kernel, logit_types);

TYPED_TEST(route_kernel, softmax_equals_host) {
  gating g;
  run_shapes<TypeParam>(edges_of(cuda::plain_tiers{}), g, 1);
}

TYPED_TEST(route_kernel, softmax_not_renormalised_equals_host) {
  gating g;
  g.renormalize = false;
  g.routed_scaling_factor = 2.5f;
  run_shapes<TypeParam>(edges_of(cuda::plain_tiers{}), g, 2);
}

TYPED_TEST(route_kernel, top_k_softmax_equals_host) {
  gating g;
  g.kind = gating_kind::top_k_softmax;
  g.renormalize = false;
  run_shapes<TypeParam>(edges_of(cuda::plain_tiers{}), g, 3);
}

TYPED_TEST(route_kernel, softmax_with_bias_equals_host) {
  gating g;
  g.selection_bias = true;
  run_shapes<TypeParam>(edges_of(cuda::general_tiers{}), g, 4);
}

TYPED_TEST(route_kernel, sigmoid_with_and_without_bias_equals_host) {
  gating g;
  g.kind = gating_kind::sigmoid;
  run_shapes<TypeParam>(edges_of(cuda::general_tiers{}), g, 5);
  g.selection_bias = true;
  g.routed_scaling_factor = 2.5f;
  run_shapes<TypeParam>(edges_of(cuda::general_tiers{}), g, 6);
}

TYPED_TEST(route_kernel, sqrt_softplus_equals_host) {
  gating g;
  g.kind = gating_kind::sqrt_softplus;
  g.selection_bias = true;
  run_shapes<TypeParam>(edges_of(cuda::general_tiers{}), g, 7);
}

TYPED_TEST(route_kernel, sparsemixer_equals_host) {
  gating g;
  g.kind = gating_kind::sparsemixer;
  g.renormalize = false;
  run_shapes<TypeParam>(edges_of(cuda::general_tiers{}), g, 8);
}

TYPED_TEST(route_kernel, groups_equal_host) {
  for (const group_score rank : {group_score::top2_sum, group_score::maximum}) {
    gating g;
    g.kind = gating_kind::sigmoid;
    g.selection_bias = true;
    g.group_rank = rank;
    g.n_group = 8;
    g.topk_group = 4;
    const std::vector<shape> shapes = {{16, 2}, {64, 8}, {160, 6}, {256, 8}, {512, 16}, {1024, 32}};
    run_shapes<TypeParam>(shapes, g, 9);
    g.kind = gating_kind::softmax;
    g.selection_bias = false;
    run_shapes<TypeParam>(shapes, g, 10);
  }
}

}  // namespace
