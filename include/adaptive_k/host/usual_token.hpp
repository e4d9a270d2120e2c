// A usual call (core/usual_call.hpp) of one token, as in decoding: decided, counted and written by
// one function, since all that goes before and after takes as long as the decision.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/usual_row.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Counts a call of one token, not padding and finite; without branches on its k.
template <int TopK, class Route>
ADAPTIVE_K_INLINE void count_single_token(const Route& route, routing_metrics& metrics) noexcept {
  const auto count = static_cast<std::uint64_t>(route.count);
  const bool first = metrics.tokens == 0;
  if (first || route.signal < metrics.signal_lowest) metrics.signal_lowest = route.signal;
  if (first || route.signal > metrics.signal_highest) metrics.signal_highest = route.signal;
  metrics.calls += 1;
  metrics.tokens += 1;
  metrics.expert_calls += count;
  metrics.full_expert_calls += static_cast<std::uint64_t>(TopK);
  metrics.distinct_experts += count;
  metrics.signal_sum_fixed += signal_to_fixed(route.signal);
  ++metrics.k_histogram[route.count];
  for (int j = 0; j < TopK; ++j)
    metrics.expert_counts[route.expert[j]] += j < route.count ? 1u : 0u;
}

/// A call of one token.
template <class Logit>
struct usual_token_call {
  const gating* model;
  const k_plan* plan;
  const Logit* row;
  int filler;  ///< of ids past k
  bool fills_first;
  std::int32_t* ids;
  float* weights;
  std::int32_t* count;       ///< or null
  float* signal;             ///< or null
  routing_metrics* metrics;  ///< or null
};

/// Decides, counts and writes it; false: nothing is done, as usual_row could not decide.
template <int TopK, class Logit>
struct usual_token {
  template <class Target>
  struct body {
    static ADAPTIVE_K_INLINE bool run(const usual_token_call<Logit>* call) noexcept {
      using reals = typename Target::row_reals;
      token_route<max_top_k> route;
      const float* row = nullptr;
      [[maybe_unused]] alignas(
          64) float floats[std::is_same_v<Logit, float> ? 1 : most_lane_experts];
      if constexpr (std::is_same_v<Logit, float>) {
        row = call->row;
      } else {
        widen_row<reals>(call->row, call->model->num_experts, floats);
        row = floats;
      }
      if (!usual_row<TopK>::template body<Target>::run(call->model, call->plan, &call->plan->limits,
                                                       row, &route))
        return false;
      if (call->metrics != nullptr) count_single_token<TopK>(route, *call->metrics);
      const int filler = call->fills_first ? route.expert[0] : call->filler;
      for (int j = 0; j < TopK; ++j) {
        // Bits, as no processor can guess which way a branch would go.
        const auto kept = static_cast<std::int32_t>(j - route.count) >> 31;
        call->ids[j] = (route.expert[j] & kept) | (filler & ~kept);
        call->weights[j] =
            math::from_bits(math::to_bits(route.weight[j]) & static_cast<std::uint32_t>(kept));
      }
      if (call->count != nullptr) *call->count = route.count;
      if (call->signal != nullptr) *call->signal = route.signal;
      return true;
    }
  };
};

template <class Target, class Logit>
ADAPTIVE_K_INLINE bool run_usual_token(const usual_token_call<Logit>& call) noexcept {
  switch (call.model->top_k) {
    case 2:
      return Target::template run<usual_token<2, Logit>::template body>(&call);
    case 4:
      return Target::template run<usual_token<4, Logit>::template body>(&call);
    default:
      return Target::template run<usual_token<8, Logit>::template body>(&call);
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
