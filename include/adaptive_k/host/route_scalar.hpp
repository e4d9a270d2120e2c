// The reference path: one token, one expert at a time, for any call.
#pragma once

#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// One token's dictated experts; none where `ids` is null.
struct host_replay {
  static constexpr bool possible = true;
  const int* ids;
  int number;
  ADAPTIVE_K_HD bool active() const noexcept { return ids != nullptr; }
  ADAPTIVE_K_HD int count() const noexcept { return number; }
  ADAPTIVE_K_HD int expert(int rank) const noexcept { return ids[rank]; }
};

/// Decides one token, whose `row` is [E]. Here, or compiled once in kernels/route_scalar.cpp.
template <class Logit>
void route_scalar(const row_request& request, const Logit* row, const host_replay& replay,
                  token_route<max_top_k>& route) noexcept;

#if !ADAPTIVE_K_LINKS_SCALAR

template <gating_kind Kind>
void route_floats(const row_request& request, const float* row, const host_replay& replay,
                  token_route<max_top_k>& route) noexcept {
  constexpr int max_rows = max_experts / reduction_slots;
  const bool shadow = request.dictated != choice_counts;
  route = route_token<Kind, max_rows, max_top_k>(host_warp<1>{}, *request.model, *request.plan,
                                                 request.routing_bias, request.limits, shadow,
                                                 logit_row<float>{row}, replay);
}

inline void route_floats(const row_request& request, const float* row, const host_replay& replay,
                         token_route<max_top_k>& route) noexcept {
  switch (request.model->kind) {
    case gating_kind::softmax:
      return route_floats<gating_kind::softmax>(request, row, replay, route);
    case gating_kind::sigmoid:
      return route_floats<gating_kind::sigmoid>(request, row, replay, route);
    case gating_kind::top_k_softmax:
      return route_floats<gating_kind::top_k_softmax>(request, row, replay, route);
    case gating_kind::sqrt_softplus:
      return route_floats<gating_kind::sqrt_softplus>(request, row, replay, route);
    case gating_kind::sparsemixer:
      return route_floats<gating_kind::sparsemixer>(request, row, replay, route);
  }
}

template <class Logit>
void route_scalar(const row_request& request, const Logit* row, const host_replay& replay,
                  token_route<max_top_k>& route) noexcept {
  if constexpr (std::is_same_v<Logit, float>) {
    route_floats(request, row, replay, route);
  } else {
    float floats[max_experts];
    for (int e = 0; e < request.model->num_experts; ++e) floats[e] = to_float(row[e]);
    route_floats(request, floats, replay, route);
  }
}

#endif

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
