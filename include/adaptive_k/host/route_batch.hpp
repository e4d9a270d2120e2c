// The batch loop: a call's tokens by the widest means that fit it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/host/call_metrics.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/route_scalar.hpp"
#include "adaptive_k/host/route_vectors.hpp"
#include "adaptive_k/host/routing_call.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Whether this file's vectors can be handed to a user's functions. Where nothing is inlined (-O0,
/// -fno-inline) these are not part of what is compiled for an instruction set, unless the whole
/// file is.
#if !defined(__NO_INLINE__)
inline constexpr bool has_vectors_for_users = ADAPTIVE_K_SIMD == 1;
#else
inline constexpr bool has_vectors_for_users = ADAPTIVE_K_SIMD == 1 && ADAPTIVE_K_EVERY_SET == 0;
#endif

/// Whether this file has vectors for a plan and a gating: its own, or the library's.
template <class Plan, class Gating>
inline constexpr bool has_vectors_for = has_vectors_for_users;
template <>
inline constexpr bool has_vectors_for<k_plan, gating> = ADAPTIVE_K_VECTORS == 1;

template <class T>
T* offset(T* array, std::int64_t number) noexcept {
  return array != nullptr ? array + number : nullptr;
}

/// Other ids and weights than vectors write: routed in pieces, then converted.
template <class Logit, class Id, class Weight, class Plan, class Gating>
void route_then_convert(const routing_call<Logit, Id, Weight, Plan, Gating>& call, host_path path,
                        instruction_set set, std::int64_t first, std::int64_t last,
                        call_metrics& counts) noexcept {
  constexpr int piece = 32;
  std::int32_t ids[piece * max_top_k];
  std::int32_t given[piece * max_top_k];
  float weights[piece * max_top_k];
  const int top_k = call.model->top_k;
  for (; first < last; first += piece) {
    const std::int64_t number = last - first < piece ? last - first : piece;
    const auto& output = *call.output;
    const routing_output<> part_output = {ids,
                                          weights,
                                          offset(output.topk_counts, first),
                                          offset(output.signal, first),
                                          offset(output.chosen_counts, first),
                                          nullptr,
                                          offset(output.weight_factors, first)};
    const auto& extras = *call.extras;
    const routing_extras part_extras = {extras.routing_bias, offset(extras.padding_mask, first),
                                        offset(extras.k_min, first), offset(extras.k_max, first)};
    routing_replay<> part_given;
    if (call.replays()) {
      for (std::int64_t i = 0; i < number * top_k; ++i)
        given[i] = static_cast<std::int32_t>(call.given->topk_ids[first * top_k + i]);
      part_given = {given, offset(call.given->topk_counts, first)};
    }
    const vector_call<Logit, Plan, Gating> part = {
        {call.model, call.plan, call.fill, &part_given, &part_output, &part_extras},
        call.row(first),
        call.row_stride,
        call.head != nullptr ? call.head + first * call.head_stride : nullptr,
        call.head_stride};
    route_vectors(part, path, set, 0, number, counts);
    for (std::int64_t i = 0; i < number * top_k; ++i) {
      output.topk_ids[first * top_k + i] = static_cast<Id>(ids[i]);
      output.topk_weights[first * top_k + i] = from_float<Weight>(weights[i]);
    }
  }
}

/// Tokens first to last - 1. `path` serves the model's calls without limits of tokens and replay.
template <class Logit, class Id, class Weight, class Plan, class Gating>
void route_batch(const routing_call<Logit, Id, Weight, Plan, Gating>& call, host_path path,
                 instruction_set set, std::int64_t first, std::int64_t last,
                 call_metrics& counts) noexcept {
  if constexpr (has_vectors_for<Plan, Gating>) {
    if (call.has_token_limits() || call.replays())
      path = path_for(*call.model, call.has_token_limits(), call.replays());
    if (set != instruction_set::scalar && path != host_path::scalar) {
      if constexpr (std::is_same_v<Id, std::int32_t> && std::is_same_v<Weight, float>)
        return route_vectors(call, path, set, first, last, counts);
      else
        return route_then_convert(call, path, set, first, last, counts);
    }
  }
  route_range_scalar(call, first, last, counts);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
