// Shapes at the edges of the kernels' tiers, and every policy over them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "adaptive_k/cuda/tuning.cuh"
#include "batches.hpp"

namespace twin {

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

/// Which kernels run: those for few tokens, or those for many.
enum class launch_size { few, many };

/// Every policy in turn over the shapes of a tier list.
template <class Logit>
void run_shapes(const std::vector<shape>& shapes, gating base, std::uint64_t seed, launch_size size,
                bool replays = false) {
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
    std::vector<checked::named_policy> policies = checked::all_policies(from, g, tables);
    distortion_ref head;
    head.coefficients = tables.head_coefficients.data();
    head.lambda = 0.03125f;
    head.head = tables.head_coefficients.data();  // of which routing looks only whether it is there
    head.hidden_size = 1;
    for (const char* place : {"a head apart", "a head behind the logits"})
      policies.push_back({place, k_policy::min_distortion(head)});
    for (checked::named_policy& named : policies) {
      named.policy.mass_exponent = checked::mass_exponent_number(index++);
      SCOPED_TRACE("E " + std::to_string(g.num_experts) + ", K0 " + std::to_string(g.top_k) + ", " +
                   named.name);
      // Few rows, and enough for a warp to take several rounds.
      std::int64_t tokens = from.chance(4) ? from.between(60, 240) : from.between(1, 37);
      if (size == launch_size::many)
        tokens += cuda::tokens_for_warps(cuda::warp_softmax_tiers{}, g.num_experts, g.top_k,
                                         sizeof(Logit));
      int gap = from.chance(2) ? 0 : from.below(4);
      if (named.name == "a head behind the logits") gap = g.top_k - 1 + from.below(4);
      batch<Logit> input = make_batch<Logit>(from, g, tokens, gap);
      input.multiprocessors = size == launch_size::many ? 1 : 1000;
      input.policy = named.policy;
      if (from.chance(3)) checked::pick_super_experts(from, g.num_experts, input.policy);
      if (from.chance(3)) checked::pick_domain(from, input.policy);
      input.fill = static_cast<fill_id>(from.below(3));
      input.shadow = from.chance(6);
      if (from.chance(3)) stretch(from, input);
      if (from.chance(3)) coarsen(from, input);
      if (from.chance(2)) spoil(from, input);
      if (named.policy.distortion.head != nullptr) give_head(from, input);
      if (from.chance(3)) restrict_tokens(from, input);
      if (replays && from.chance(6)) dictate(from, input);
      expect_equal<std::int32_t, float>(input);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

#if defined(TEST_LOGIT_f32)  // a program of its own for each, so that they run side by side
using logit_types = ::testing::Types<float>;
#elif defined(TEST_LOGIT_f16)
using logit_types = ::testing::Types<float16>;
#elif defined(TEST_LOGIT_bf16)
using logit_types = ::testing::Types<bfloat16>;
#endif

}  // namespace twin
