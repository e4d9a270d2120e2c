// Every generic_gating kernel against the host path: gatings, bias, groups, replay.
#include <gtest/gtest.h>

#include <vector>

#include "shapes.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using twin::edges_of;
using twin::run_shapes;
using twin::shape;

template <class Logit>
class generic_gating : public ::testing::Test {};
TYPED_TEST_SUITE(generic_gating, twin::logit_types);

TYPED_TEST(generic_gating, softmax_of_shapes_beyond_the_softmax_topk_tiers_equals_host) {
  gating g;
  run_shapes<TypeParam>({{513, 8}, {40, 17}, {1024, 32}}, g, 11, twin::launch_size::many, true);
}

TYPED_TEST(generic_gating, softmax_with_bias_equals_host) {
  gating g;
  g.selection_bias = true;
  run_shapes<TypeParam>(edges_of(cuda::generic_gating_tiers{}), g, 4, twin::launch_size::many,
                        true);
}

TYPED_TEST(generic_gating, sigmoid_with_and_without_bias_equals_host) {
  gating g;
  g.kind = gating_kind::sigmoid;
  run_shapes<TypeParam>(edges_of(cuda::generic_gating_tiers{}), g, 5, twin::launch_size::many,
                        true);
  g.selection_bias = true;
  g.routed_scaling_factor = 2.5f;
  run_shapes<TypeParam>(edges_of(cuda::generic_gating_tiers{}), g, 6, twin::launch_size::many,
                        true);
}

TYPED_TEST(generic_gating, sqrt_softplus_equals_host) {
  gating g;
  g.kind = gating_kind::sqrt_softplus;
  g.selection_bias = true;
  run_shapes<TypeParam>(edges_of(cuda::generic_gating_tiers{}), g, 7, twin::launch_size::many,
                        true);
}

TYPED_TEST(generic_gating, sparsemixer_equals_host) {
  gating g;
  g.kind = gating_kind::sparsemixer;
  g.renormalize = false;
  run_shapes<TypeParam>(edges_of(cuda::sparsemixer_tiers{}), g, 8, twin::launch_size::many, true);
}

TYPED_TEST(generic_gating, groups_equal_host) {
  for (const group_score rank : {group_score::top2_sum, group_score::maximum}) {
    gating g;
    g.kind = gating_kind::sigmoid;
    g.selection_bias = true;
    g.group_rank = rank;
    g.n_group = 8;
    g.topk_group = 4;
    const std::vector<shape> shapes = {{16, 2}, {64, 8}, {160, 6}, {256, 8}, {512, 16}, {1024, 32}};
    run_shapes<TypeParam>(shapes, g, 9, twin::launch_size::many, true);
    g.kind = gating_kind::softmax;
    g.selection_bias = false;
    run_shapes<TypeParam>(shapes, g, 10, twin::launch_size::many, true);
  }
}

}  // namespace
