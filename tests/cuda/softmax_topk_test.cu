// Every softmax_topk kernel against the host path: all tiers and their edges, types and policies.
#include <gtest/gtest.h>

#include <vector>

#include "shapes.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using twin::edges_of;
using twin::run_shapes;

template <class Logit>
class softmax_topk : public ::testing::Test {};
TYPED_TEST_SUITE(softmax_topk, twin::logit_types);

TYPED_TEST(softmax_topk, softmax_equals_host) {
  gating g;
  run_shapes<TypeParam>(edges_of(cuda::softmax_topk_tiers{}), g, 1, twin::launch_size::many);
}

TYPED_TEST(softmax_topk, softmax_not_renormalised_equals_host) {
  gating g;
  g.renormalize = false;
  g.routed_scaling_factor = 2.5f;
  run_shapes<TypeParam>(edges_of(cuda::softmax_topk_tiers{}), g, 2, twin::launch_size::many);
}

TYPED_TEST(softmax_topk, top_k_softmax_equals_host) {
  gating g;
  g.kind = gating_kind::top_k_softmax;
  g.renormalize = false;
  run_shapes<TypeParam>(edges_of(cuda::softmax_topk_tiers{}), g, 3, twin::launch_size::many);
}

}  // namespace
