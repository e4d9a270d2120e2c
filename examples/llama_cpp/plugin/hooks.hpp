// For programs that have the plug-in in them: they decide in the policy's place, and see what the
// experts put out.
#pragma once

#include <functional>

#include "adaptive_k/host/router.hpp"
#include "moe_layer.hpp"

namespace adaptive_k_ggml {

/// What a program asks for; one for the process, set while no graph runs.
struct layer_hooks {
  /// Fills ids [T, K0], weights [T, K0] and counts [T] of the MoE layer `index`, counted from 0.
  /// Null: the policy of the environment decides.
  std::function<adaptive_k::status(
      int index, const moe_layer& layer, const adaptive_k::logits_view<float>& logits,
      const adaptive_k::routing_output<>& output, const adaptive_k::routing_extras& extras)>
      route;
  /// Sees `outputs` [T, K0, width], before their weights, and their weighted sum [T, width], of
  /// layers whose tokens all have K0 experts.
  std::function<void(int index, const moe_layer& layer, const float* logits, const float* outputs,
                     const float* sum)>
      observe;
  double layer_seconds = 0.0;  ///< added to: router, routing and experts
};

layer_hooks& hooks();

}  // namespace adaptive_k_ggml
