// What the two halves of the C interface share: reading structs of any age, and reporting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/c/adaptive_k.h"

struct adaptive_k_router {
  adaptive_k::router impl;
};

namespace adaptive_k_c {

using adaptive_k::status;
using adaptive_k::status_code;

/// Copies a caller's struct of `least` bytes or more; what it lacks is zero. `least` ends where the
/// optional fields of the first version begin, and never changes.
template <class Struct>
status read_struct(const char* name, const Struct* given, std::size_t least,
                   Struct* copy) noexcept {
  *copy = Struct{};
  if (given == nullptr) return status::error(status_code::invalid_argument, "%s is null", name);
  std::uint32_t size;
  std::memcpy(&size, given, sizeof size);
  if (size < least)
    return status::error(status_code::invalid_argument,
                         "%s: struct_size is %u, expected at least %zu", name, size, least);
  if (size > sizeof(Struct))
    return status::error(status_code::invalid_argument,
                         "%s: struct_size is %u, but this library knows %zu: it is older than the "
                         "caller's header",
                         name, size, sizeof(Struct));
  std::memcpy(copy, given, size);
  return {};
}

/// Writes the reason where the struct says, if it is long enough to say so; returns the code.
template <class Params>
std::int32_t report(const Params* params, const status& result) noexcept {
  if (!result && params != nullptr) {
    std::uint32_t size;
    std::memcpy(&size, params, sizeof size);
    if (size >= offsetof(Params, message) + sizeof(char*) && params->message != nullptr &&
        params->message_bytes != 0)
      std::snprintf(params->message, params->message_bytes, "%s", result.message());
  }
  return static_cast<std::int32_t>(result.code());
}

inline status check_choice(const char* field, std::int32_t value, std::int32_t last) noexcept {
  if (value >= 0 && value <= last) return {};
  return status::error(status_code::invalid_argument, "%s is %d, expected 0..%d", field, value,
                       last);
}

/// f(a value of the type); `type` has been checked.
template <class F>
status with_float_type(std::int32_t type, F f) {
  switch (type) {
    case ADAPTIVE_K_FLOAT16:
      return f(adaptive_k::float16{});
    case ADAPTIVE_K_BFLOAT16:
      return f(adaptive_k::bfloat16{});
    default:
      return f(0.0f);
  }
}

template <class F>
status with_id_type(std::int32_t type, F f) {
  switch (type) {
    case ADAPTIVE_K_INT64:
      return f(std::int64_t{});
    case ADAPTIVE_K_INT16:
      return f(std::int16_t{});
    case ADAPTIVE_K_UINT16:
      return f(std::uint16_t{});
    default:
      return f(std::int32_t{});
  }
}

inline status check_route_types(const adaptive_k_route_params& params) noexcept {
  status result = check_choice("logits_type", params.logits_type, ADAPTIVE_K_BFLOAT16);
  if (result) result = check_choice("ids_type", params.ids_type, ADAPTIVE_K_UINT16);
  if (result) result = check_choice("weights_type", params.weights_type, ADAPTIVE_K_BFLOAT16);
  if (result) result = check_choice("reserved", params.reserved, 0);
  return result;
}

/// f(logits, output, replay) with the types that `params` names.
template <class F>
status with_route_types(const adaptive_k_route_params& params, int num_experts, F f) {
  return with_float_type(params.logits_type, [&](auto logit) {
    return with_id_type(params.ids_type, [&](auto id) {
      return with_float_type(params.weights_type, [&](auto weight) {
        using id_type = decltype(id);
        using weight_type = decltype(weight);
        const adaptive_k::logits_view<decltype(logit)> logits = {
            static_cast<const decltype(logit)*>(params.logits), params.num_tokens, num_experts,
            params.row_stride};
        const adaptive_k::routing_output<id_type, weight_type> output = {
            static_cast<id_type*>(params.topk_ids), static_cast<weight_type*>(params.topk_weights),
            params.topk_counts, params.signal, params.chosen_counts};
        const adaptive_k::routing_replay<id_type> replay = {
            static_cast<const id_type*>(params.replay_ids), params.replay_counts};
        return f(logits, output, replay);
      });
    });
  });
}

inline adaptive_k::routing_extras extras_of(const adaptive_k_route_params& params) noexcept {
  return {params.routing_bias, params.padding_mask, params.k_min, params.k_max};
}

inline adaptive_k::permutation_shape shape_of(const adaptive_k_permute_params& params) noexcept {
  return {params.num_tokens, params.top_k, params.num_experts, params.num_local_experts,
          params.block_size == 0 ? 1 : params.block_size};
}

inline adaptive_k::permutation_output output_of(const adaptive_k_permute_params& params) noexcept {
  return {params.expert_counts, params.expert_offsets, params.sorted_slots,
          params.sorted_tokens, params.row_of_slot,    params.block_experts};
}

inline status check_combine_types(const adaptive_k_combine_params& params) noexcept {
  status result = check_choice("values_type", params.values_type, ADAPTIVE_K_BFLOAT16);
  if (result) result = check_choice("weights_type", params.weights_type, ADAPTIVE_K_BFLOAT16);
  if (result) result = check_choice("reserved", params.reserved, 0);
  return result;
}

/// f(shape, input, output) with the types that `params` names.
template <class F>
status with_combine_types(const adaptive_k_combine_params& params, F f) {
  const adaptive_k::combine_shape shape = {params.num_tokens, params.top_k, params.hidden_size,
                                           params.row_stride};
  return with_float_type(params.values_type, [&](auto value) {
    return with_float_type(params.weights_type, [&](auto weight) {
      using value_type = decltype(value);
      const adaptive_k::combine_input<value_type, decltype(weight)> input = {
          static_cast<const value_type*>(params.expert_outputs), params.row_of_slot,
          params.topk_counts, static_cast<const decltype(weight)*>(params.topk_weights),
          static_cast<const value_type*>(params.addend)};
      return f(shape, input, static_cast<value_type*>(params.output));
    });
  });
}

// Where the optional fields of the first version begin.
inline constexpr std::size_t least_gating = offsetof(adaptive_k_gating, renormalize);
inline constexpr std::size_t least_policy = offsetof(adaptive_k_policy, signal);
inline constexpr std::size_t least_router = offsetof(adaptive_k_router_params, fill);
inline constexpr std::size_t least_route = offsetof(adaptive_k_route_params, row_stride);
inline constexpr std::size_t least_permute = offsetof(adaptive_k_permute_params, block_size);
inline constexpr std::size_t least_combine = offsetof(adaptive_k_combine_params, row_stride);

}  // namespace adaptive_k_c
