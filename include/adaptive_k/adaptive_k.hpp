// The host library in one include: no CUDA, no JSON, no dependency but the standard library.
//
//   adaptive_k::gating gating;
//   gating.num_experts = 8;
//   gating.top_k = 2;
//   auto policy = adaptive_k::k_policy::entropy({1, 2}, {1.275f});
//   adaptive_k::router router{gating, policy};
//   adaptive_k::routing_metrics metrics;
//   router.route(layer, logits, {ids, weights, counts}, &metrics);
//   std::printf("saved %.1f%%\n", 100 * metrics.expert_savings());
//
// Presets of known models are in adaptive_k/calibration/preset.hpp.
// The decision itself: core/route_token.hpp ranks the experts, core/choose_k.hpp says how many, and
// core/finish_route.hpp sets their weights.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/expert_combine.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/permutation.hpp"
#include "adaptive_k/host/router.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"
