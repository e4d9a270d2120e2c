// The host library in one include: no CUDA, no JSON, no dependency but the standard library.
//
//   adaptive_k::gating gating;
//   gating.num_experts = 8;
//   gating.top_k = 2;
//   auto policy = adaptive_k::k_policy::top_p(0.9f, gating.top_k);
//   adaptive_k::router router{gating, policy};
//   adaptive_k::routing_metrics metrics;
//   const adaptive_k::status routed =
//       router.route(layer, logits, {ids, weights, counts}, &metrics);
//   if (!routed.ok()) std::fprintf(stderr, "%s\n", routed.message());
//   std::printf("saved %.1f%%\n", 100 * metrics.expert_savings());
//
// Presets of known models are in adaptive_k/calibration/preset.hpp.
// The decision: core/route_token.hpp ranks a token's experts (by vectors: host/host_paths.hpp),
// core/choose_k.hpp says how many run, and core/finish_route.hpp sets their weights.
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
