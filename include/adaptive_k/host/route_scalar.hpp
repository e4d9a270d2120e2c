// The reference path: one token, one expert at a time, for any call.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/host/call_metrics.hpp"
#include "adaptive_k/host/routing_call.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Decides one token, whose `row` is [E]. Here, or compiled once for the library's own types in
/// kernels/route_scalar.cpp.
template <class Gating, class Plan>
void decide_scalar(const token_request& request, const Plan& plan, const float* row,
                   token_route<max_top_k>& route) noexcept {
  constexpr int max_rows = max_experts / reduction_slots;
  const bool shadow = request.forced_k != no_forced_k;
  with_score<Gating>(request.model->kind, [&](auto score) {
    route = route_token<decltype(score), max_rows, max_top_k>(
        host_warp<1>{}, *request.model, plan, request.routing_bias, request.limits, shadow,
        logit_row<float>{row}, request, head_row<float>{request.head});
  });
}
#if ADAPTIVE_K_LINKS_SCALAR
extern template void decide_scalar<gating, k_plan>(const token_request&, const k_plan&,
                                                   const float*, token_route<max_top_k>&) noexcept;
#endif

/// Decides a token of a call, which is not padding.
template <class Call>
void decide_scalar(const Call& call, std::int64_t token, token_route<max_top_k>& route) noexcept {
  int given[max_top_k];
  float head[max_top_k];
  token_request request = call.request(token, given);
  request.head = call.head_of(token, head);
  if constexpr (std::is_same_v<decltype(call.row(token)), const float*>) {
    decide_scalar<typename Call::gating_type>(request, *call.plan, call.row(token), route);
  } else {
    float row[max_experts];
    for (int e = 0; e < call.model->num_experts; ++e) row[e] = to_float(call.row(token)[e]);
    decide_scalar<typename Call::gating_type>(request, *call.plan, row, route);
  }
}

/// Decides, counts and writes such a token.
template <class Call>
void route_token_scalar(const Call& call, std::int64_t token, call_metrics& counts) noexcept {
  token_route<max_top_k> route;
  decide_scalar(call, token, route);
  counts.add_token(route, call.model->top_k);
  call.write(token, route, call.model->top_k);
}

/// Whether a token is padding, which is then counted and written.
template <class Call>
bool skip_padding(const Call& call, std::int64_t token, call_metrics& counts) noexcept {
  if (!call.is_padding(token)) return false;
  counts.add_padding();
  const token_route<max_top_k> none = {};
  call.write(token, none, call.model->top_k);
  return true;
}

/// Tokens first to last - 1 of any call.
template <class Call>
void route_range_scalar(const Call& call, std::int64_t first, std::int64_t last,
                        call_metrics& counts) noexcept {
  for (std::int64_t token = first; token < last; ++token)
    if (!skip_padding(call, token, counts)) route_token_scalar(call, token, counts);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
