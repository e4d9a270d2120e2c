// A routing call by threads of its own, for programs without a pool. Link with the threads library.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/router.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// `router.route(layer, logits, output, metrics, extras)` by up to `num_threads` threads, the
/// caller's included; outputs and metrics are the same for every number. Starting a thread takes
/// tens of microseconds and allocates: an engine with a pool calls `route_range` from it. With a
/// refusal nothing is counted, and what a bad k_min or k_max did not stop has been written.
template <class Logit = float, class Id = std::int32_t, class Weight = float>
status route_in_threads(const router& router, int num_threads, int layer,
                        const logits_view<Logit>& logits, const routing_output<Id, Weight>& output,
                        routing_metrics* metrics = nullptr, const routing_extras& extras = {}) {
  constexpr std::int64_t block = 64;  // tokens that stay together: whole vectors and cache lines
  const std::int64_t blocks = (logits.num_tokens + block - 1) / block;
  const std::int64_t parts = num_threads < blocks ? num_threads : blocks;
  if (parts <= 1) return router.route(layer, logits, output, metrics, extras);
  const auto number = static_cast<std::size_t>(parts);
  std::vector<routing_metrics> counts(metrics != nullptr ? number : 0);
  std::vector<status> results(number);
  const auto route_part = [&](std::size_t part) {
    const auto i = static_cast<std::int64_t>(part);
    const std::int64_t end = blocks * (i + 1) / parts * block;
    results[part] = router.route_range(layer, logits, output, blocks * i / parts * block,
                                       end < logits.num_tokens ? end : logits.num_tokens,
                                       metrics != nullptr ? &counts[part] : nullptr, extras);
  };
  std::vector<std::thread> threads;
  threads.reserve(number - 1);
  for (std::size_t part = 1; part < number; ++part) threads.emplace_back(route_part, part);
  route_part(0);
  for (std::thread& thread : threads) thread.join();
  for (const status& result : results)
    if (!result) return result;
  if (metrics != nullptr) add_parts_of_call(counts.data(), static_cast<int>(parts), metrics);
  return {};
}

ADAPTIVE_K_NAMESPACE_END
