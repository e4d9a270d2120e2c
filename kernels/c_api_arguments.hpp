// What the two halves of the C interface share: reading structs of any age, and reporting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/c/adaptive_k.h"

struct adaptive_k_router {
  adaptive_k::router impl;
  std::shared_ptr<const void> tables;  ///< where impl does not hold them itself
};

namespace adaptive_k_c {

using adaptive_k::status;
using adaptive_k::status_code;

/// Which values of struct_size a struct may have: its required fields alone (those before
/// "optional"), and its whole size in every released version. A struct that grows keeps these and
/// adds its new size; nothing in between is a struct that any header ever had.
template <class Struct>
struct known_sizes;
template <>
struct known_sizes<adaptive_k_gating> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_gating, renormalize),
                                        sizeof(adaptive_k_gating)};
};
template <>
struct known_sizes<adaptive_k_policy> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_policy, signal),
                                        offsetof(adaptive_k_policy, head),  // 0.1
                                        sizeof(adaptive_k_policy)};
};
template <>
struct known_sizes<adaptive_k_router_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_router_params, fill),
                                        sizeof(adaptive_k_router_params)};
};
template <>
struct known_sizes<adaptive_k_route_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_route_params, row_stride),
                                        offsetof(adaptive_k_route_params, expert_counts),  // 0.1
                                        sizeof(adaptive_k_route_params)};
};
template <>
struct known_sizes<adaptive_k_preset_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_preset_params, policy),
                                        sizeof(adaptive_k_preset_params)};
};
template <>
struct known_sizes<adaptive_k_upload_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_upload_params, one_layer),
                                        sizeof(adaptive_k_upload_params)};
};
template <>
struct known_sizes<adaptive_k_permute_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_permute_params, block_size),
                                        sizeof(adaptive_k_permute_params)};
};
template <>
struct known_sizes<adaptive_k_combine_params> {
  static constexpr std::size_t all[] = {offsetof(adaptive_k_combine_params, row_stride),
                                        sizeof(adaptive_k_combine_params)};
};
// Policies lie side by side, at a distance of struct_size.
static_assert(known_sizes<adaptive_k_policy>::all[0] % alignof(adaptive_k_policy) == 0, "");

/// A caller's pointer, by the name of its field.
struct named_pointer {
  const char* name;
  const void* at;
  std::size_t alignment;
};

inline status check_aligned(std::initializer_list<named_pointer> pointers) noexcept {
  for (const named_pointer& pointer : pointers)
    if (reinterpret_cast<std::uintptr_t>(pointer.at) % pointer.alignment != 0)
      return status::error(status_code::invalid_argument, "`%s` is %p, expected a multiple of %zu",
                           pointer.name, pointer.at, pointer.alignment);
  return {};
}

/// Copies a caller's struct of one of the known sizes; what it lacks is zero.
template <class Struct>
status read_struct(const char* name, const Struct* given, Struct* copy) noexcept {
  constexpr auto invalid = status_code::invalid_argument;
  *copy = Struct{};
  if (given == nullptr) return status::error(invalid, "`%s` is null", name);
  const status aligned = check_aligned({{name, given, alignof(Struct)}});
  if (!aligned.ok()) return aligned;
  const std::uint32_t size = given->struct_size;
  if (size > sizeof(Struct))
    return status::error(
        invalid,
        "%s: `struct_size` is %u, but this library knows %zu: it is older than the "
        "caller's header",
        name, size, sizeof(Struct));
  constexpr auto& sizes = known_sizes<Struct>::all;
  bool known = false;
  for (const std::size_t one : sizes) known = known || size == one;
  if (!known) {
    static_assert(sizeof sizes <= 3 * sizeof sizes[0], "the message names three");
    const bool grew = sizeof sizes == 3 * sizeof sizes[0];
    char earlier[32] = "";
    if (grew) std::snprintf(earlier, sizeof earlier, "%zu as of version 0.1, ", sizes[1]);
    return status::error(
        invalid, "%s: `struct_size` is %u, expected %zu, %sor %zu without the optional fields",
        name, size, sizeof(Struct), earlier, sizes[0]);
  }
  std::memcpy(static_cast<void*>(copy), given, size);
  return {};
}

/// Writes the reason where the struct says, if it is long enough to say so; returns the code.
template <class Params>
std::int32_t report(const Params* params, status_code code, const char* text) noexcept {
  if (code != status_code::ok && params != nullptr) {
    // By bytes: the struct may be what is refused, for its address or its size.
    const auto* bytes = reinterpret_cast<const char*>(params);
    std::uint32_t size;
    std::memcpy(&size, bytes, sizeof size);
    if (size >= offsetof(Params, message) + sizeof(char*)) {
      std::uint32_t room;
      char* message;
      std::memcpy(&room, bytes + offsetof(Params, message_bytes), sizeof room);
      std::memcpy(&message, bytes + offsetof(Params, message), sizeof message);
      if (message != nullptr && room != 0) {
        const std::size_t length = adaptive_k::detail::whole_characters(
            text, std::strlen(text), static_cast<std::size_t>(room) - 1);
        std::memcpy(message, text, length);
        message[length] = '\0';
      }
    }
  }
  return static_cast<std::int32_t>(code);
}

template <class Params>
std::int32_t report(const Params* params, const status& result) noexcept {
  return report(params, result.code(), result.message());
}

inline status check_choice(const char* field, std::int32_t value, std::int32_t last) noexcept {
  if (value >= 0 && value <= last) return {};
  return status::error(status_code::invalid_argument, "`%s` is %d, expected 0..%d", field, value,
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

constexpr std::size_t float_bytes(std::int32_t type) noexcept {
  return type == ADAPTIVE_K_FLOAT32 ? 4 : 2;
}
constexpr std::size_t id_bytes(std::int32_t type) noexcept {
  return type == ADAPTIVE_K_INT32 ? 4 : type == ADAPTIVE_K_INT64 ? 8 : 2;
}

/// What stands in the fields themselves: types, and addresses that fit them.
inline status check_fields(const adaptive_k_route_params& params) noexcept {
  status result = check_choice("logits_type", params.logits_type, ADAPTIVE_K_BFLOAT16);
  if (result.ok()) result = check_choice("ids_type", params.ids_type, ADAPTIVE_K_UINT16);
  if (result.ok()) result = check_choice("weights_type", params.weights_type, ADAPTIVE_K_BFLOAT16);
  if (result.ok()) result = check_choice("overlap_previous", params.overlap_previous, 1);
  if (result.ok()) result = check_choice("reserved", params.reserved, 0);
  if (!result.ok()) return result;
  const std::size_t id = id_bytes(params.ids_type);
  result = check_aligned({{"logits", params.logits, float_bytes(params.logits_type)},
                          {"head", params.head, float_bytes(params.logits_type)},
                          {"topk_ids", params.topk_ids, id},
                          {"topk_weights", params.topk_weights, float_bytes(params.weights_type)},
                          {"topk_counts", params.topk_counts, alignof(std::int32_t)},
                          {"signal", params.signal, alignof(float)},
                          {"chosen_counts", params.chosen_counts, alignof(std::int32_t)},
                          {"routing_bias", params.routing_bias, alignof(float)},
                          {"replay_ids", params.replay_ids, id},
                          {"replay_counts", params.replay_counts, alignof(std::int32_t)},
                          {"metrics", params.metrics, alignof(adaptive_k_metrics)},
                          {"expert_counts", params.expert_counts, alignof(std::uint64_t)}});
  if (result.ok() && params.replay_ids == nullptr && params.replay_counts != nullptr)
    result = status::error(status_code::invalid_argument,
                           "`replay_counts` is given, but replay_ids is null");
  return result;
}

/// The arrays of a permutation, without those that it reads from a routing call.
inline status check_order(const adaptive_k_permute_params& params) noexcept {
  const status result = check_choice("overlap_previous", params.overlap_previous, 1);
  if (!result.ok()) return result;
  return check_aligned({{"expert_map", params.expert_map, alignof(std::int32_t)},
                        {"expert_counts", params.expert_counts, alignof(std::int32_t)},
                        {"expert_offsets", params.expert_offsets, alignof(std::int32_t)},
                        {"sorted_slots", params.sorted_slots, alignof(std::int32_t)},
                        {"sorted_tokens", params.sorted_tokens, alignof(std::int32_t)},
                        {"row_of_slot", params.row_of_slot, alignof(std::int32_t)},
                        {"block_experts", params.block_experts, alignof(std::int32_t)}});
}

inline status check_fields(const adaptive_k_permute_params& params) noexcept {
  status result = check_choice("ids_type", params.ids_type, ADAPTIVE_K_UINT16);
  if (result.ok()) result = check_order(params);
  if (!result.ok()) return result;
  return check_aligned({{"topk_ids", params.topk_ids, id_bytes(params.ids_type)},
                        {"topk_counts", params.topk_counts, alignof(std::int32_t)}});
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
            static_cast<const decltype(logit)*>(params.logits),
            params.num_tokens,
            num_experts,
            params.row_stride,
            static_cast<const decltype(logit)*>(params.head),
            params.head_stride};
        const adaptive_k::routing_output<id_type, weight_type> output = {
            static_cast<id_type*>(params.topk_ids),
            static_cast<weight_type*>(params.topk_weights),
            params.topk_counts,
            params.signal,
            params.chosen_counts,
            params.expert_counts};
        const adaptive_k::routing_replay<id_type> replay = {
            static_cast<const id_type*>(params.replay_ids), params.replay_counts};
        return f(logits, output, replay);
      });
    });
  });
}

/// Whether the caller's metrics are those of version 0.1.
inline bool has_old_metrics(const adaptive_k_route_params& params) noexcept {
  return params.metrics != nullptr && params.struct_size < sizeof(adaptive_k_route_params);
}

// The counters of C and C++ are the same, member by member; those of 0.1 had the experts between.
static_assert(sizeof(adaptive_k_metrics) == sizeof(adaptive_k::routing_metrics), "");
static_assert(offsetof(adaptive_k_metrics, signal_sum_fixed) ==
                  offsetof(adaptive_k::routing_metrics, signal_sum_fixed),
              "");
static_assert(offsetof(adaptive_k_metrics, signal_sum_high) ==
                  offsetof(adaptive_k::routing_metrics, signal_sum_high),
              "");
static_assert(offsetof(adaptive_k_metrics, touched_experts) ==
                  offsetof(adaptive_k::routing_metrics, touched_experts),
              "");
static_assert(offsetof(adaptive_k_metrics, out_of_domain) ==
                  offsetof(adaptive_k::routing_metrics, out_of_domain),
              "");
static_assert(offsetof(adaptive_k_metrics, signal_sum_high) ==
                  offsetof(adaptive_k_metrics_v0_1, expert_counts),
              "");
inline constexpr std::size_t counters_before = offsetof(adaptive_k_metrics, signal_sum_high);
inline constexpr std::size_t counters_after =
    sizeof(adaptive_k_metrics_v0_1) - offsetof(adaptive_k_metrics_v0_1, signal_sum_high);

inline void copy_metrics(const adaptive_k_metrics_v0_1& from,
                         adaptive_k::routing_metrics* to) noexcept {
  std::memcpy(static_cast<void*>(to), &from, counters_before);
  std::memcpy(static_cast<void*>(&to->signal_sum_high), &from.signal_sum_high, counters_after);
}
inline void copy_metrics(const adaptive_k::routing_metrics& from,
                         adaptive_k_metrics_v0_1* to) noexcept {
  std::memcpy(to, static_cast<const void*>(&from), counters_before);
  std::memcpy(&to->signal_sum_high, &from.signal_sum_high, counters_after);
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

inline status check_fields(const adaptive_k_combine_params& params) noexcept {
  status result = check_choice("values_type", params.values_type, ADAPTIVE_K_BFLOAT16);
  if (result.ok()) result = check_choice("weights_type", params.weights_type, ADAPTIVE_K_BFLOAT16);
  if (result.ok()) result = check_choice("overlap_previous", params.overlap_previous, 1);
  if (result.ok()) result = check_choice("reserved", params.reserved, 0);
  if (!result.ok()) return result;
  const std::size_t value = float_bytes(params.values_type);
  return check_aligned({{"expert_outputs", params.expert_outputs, value},
                        {"output", params.output, value},
                        {"row_of_slot", params.row_of_slot, alignof(std::int32_t)},
                        {"topk_counts", params.topk_counts, alignof(std::int32_t)},
                        {"topk_weights", params.topk_weights, float_bytes(params.weights_type)},
                        {"addend", params.addend, value}});
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

}  // namespace adaptive_k_c
