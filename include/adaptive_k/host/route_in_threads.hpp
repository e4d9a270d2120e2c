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

namespace detail {

/// Buffers and threads of a call that is split. Where memory or a thread cannot be had there are
/// fewer, and nothing is thrown.
class thread_team {
 public:
  /// Room for `parts` parts, or for none; expert_counts for `num_experts` a part.
  thread_team(std::size_t parts, bool counts_too, std::size_t num_experts) noexcept {
    ADAPTIVE_K_TRY {
      results.resize(parts);
      counts.resize(counts_too ? parts : 0);
      expert_counts.resize(parts * num_experts);
      threads_.reserve(parts);
    }
    ADAPTIVE_K_CATCH_ALL {
      results.clear();
    }
  }
  thread_team(const thread_team&) = delete;
  thread_team& operator=(const thread_team&) = delete;
  ~thread_team() { join(); }

  /// work(part) by a thread of its own; false: none could be started, and nothing was done.
  template <class Work>
  bool start(const Work& work, std::size_t part) noexcept {
    ADAPTIVE_K_TRY {
      threads_.emplace_back([&work, part] { work(part); });
      return true;
    }
    ADAPTIVE_K_CATCH_ALL {
      return false;
    }
  }

  void join() noexcept {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  std::vector<status> results;               ///< [parts], or empty: no memory
  std::vector<routing_metrics> counts;       ///< [parts], or empty: not asked for
  std::vector<std::uint64_t> expert_counts;  ///< [parts, num_experts], likewise

 private:
  std::vector<std::thread> threads_;
};

}  // namespace detail

/// `routes.route(layer, logits, output, metrics, extras)` by up to `num_threads` threads (and
/// 1024), the caller's included; outputs and metrics are the same for every number. Starting a
/// thread takes tens of microseconds and allocates: an engine with a pool calls `route_range` from
/// it. Where a thread cannot be started, or there is no memory, those that run do its part too.
/// (Compiled without exceptions, the standard library ends the process there.) With a refusal
/// nothing is counted, and what a bad k_min or k_max did not stop has been written.
template <class Logit = float, class Id = std::int32_t, class Weight = float, class Policy,
          class Gating>
status route_in_threads(const basic_router<Policy, Gating>& routes, int num_threads, int layer,
                        const logits_view<Logit>& logits, const routing_output<Id, Weight>& output,
                        routing_metrics* metrics = nullptr,
                        const routing_extras& extras = {}) noexcept {
  constexpr std::int64_t block = 64;  // tokens that stay together: whole vectors and cache lines
  constexpr int most_threads = 1024;
  const bool refused = logits.num_tokens > max_tokens;  // by route
  const std::int64_t blocks = refused ? 0 : (logits.num_tokens + block - 1) / block;
  const std::int64_t wanted = num_threads < most_threads ? num_threads : most_threads;
  const std::int64_t parts = wanted < blocks ? wanted : blocks;
  if (parts <= 1) return routes.route(layer, logits, output, metrics, extras);
  const auto number = static_cast<std::size_t>(parts);
  const auto num_experts = static_cast<std::size_t>(routes.model().num_experts);
  detail::thread_team team(number, metrics != nullptr,
                           output.expert_counts != nullptr ? num_experts : 0);
  if (team.results.empty()) return routes.route(layer, logits, output, metrics, extras);
  const auto route_part = [&](std::size_t part) noexcept {
    const auto i = static_cast<std::int64_t>(part);
    const std::int64_t end = blocks * (i + 1) / parts * block;
    routing_output<Id, Weight> own = output;
    if (own.expert_counts != nullptr)
      own.expert_counts = team.expert_counts.data() + part * num_experts;
    team.results[part] =
        routes.route_range(layer, logits, own, blocks * i / parts * block,
                           end < logits.num_tokens ? end : logits.num_tokens,
                           metrics != nullptr ? &team.counts[part] : nullptr, extras);
  };
  std::size_t started = 1;
  while (started < number && team.start(route_part, started)) ++started;
  route_part(0);
  for (std::size_t part = started; part < number; ++part) route_part(part);
  team.join();
  for (const status& result : team.results)
    if (!result.ok()) return result;
  if (metrics != nullptr) add_parts_of_call(team.counts.data(), static_cast<int>(parts), metrics);
  for (std::size_t i = 0; i < team.expert_counts.size(); ++i)
    output.expert_counts[i % num_experts] += team.expert_counts[i];
  return {};
}

ADAPTIVE_K_NAMESPACE_END
