// Storage types and the views a routing call reads and writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {
template <class To, class From>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE To bit_cast(const From& from) noexcept {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace detail

/// IEEE binary16 as stored (fp16). Conversions are exact up, round-to-nearest-even down.
struct float16 {
  std::uint16_t bits;  ///< sign, 5 of exponent, 10 of fraction
};

/// The upper half of a binary32 (bf16). Conversions are exact up, round-to-nearest-even down.
struct bfloat16 {
  std::uint16_t bits;  ///< sign, 8 of exponent, 7 of fraction
};

/// The value itself.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float to_float(float value) noexcept {
  return value;
}

/// Exact.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float to_float(bfloat16 value) noexcept {
  return detail::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// Exact.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float to_float(float16 value) noexcept {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7FFFu;
  const std::uint32_t normal = (magnitude << 13) + 0x38000000u;
  const std::uint32_t special = (magnitude << 13) | 0x7F800000u;
  // A subnormal half is its integer times 2^-24, exactly.
  const std::uint32_t subnormal =
      detail::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 5.9604644775390625e-8f);
  const std::uint32_t bits =
      magnitude >= 0x7C00u ? special : (magnitude < 0x0400u ? subnormal : normal);
  return detail::bit_cast<float>(sign | bits);
#endif
}

/// Rounds a binary32 to the storage type `T` (float, float16 or bfloat16).
template <class T>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE T from_float(float value) noexcept;

/// The value itself.
template <>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float from_float<float>(float value) noexcept {
  return value;
}

/// To nearest, ties to even; NaN stays NaN, made quiet.
template <>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE bfloat16 from_float<bfloat16>(float value) noexcept {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {static_cast<std::uint16_t>((is_nan ? (bits | 0x00400000u) : rounded) >> 16)};
}

/// To nearest, ties to even; 65520 and above is infinity, every NaN the same.
template <>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE float16 from_float<float16>(float value) noexcept {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  std::uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x47800000u) {  // 65536 and above
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at the right bit
    const float shifted = detail::bit_cast<float>(magnitude) + 0.5f;
    half = detail::bit_cast<std::uint32_t>(shifted) - 0x3F000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

/// Whether logits, weights and values may be stored as T.
template <class T>
inline constexpr bool is_float_storage =
    std::is_same_v<T, float> || std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

/// Whether expert ids may be stored as T.
template <class T>
inline constexpr bool is_expert_id =
    std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t> ||
    std::is_same_v<T, std::int16_t> || std::is_same_v<T, std::uint16_t>;

/// Router logits, row-major.
template <class T = float>
struct logits_view {
  static_assert(is_float_storage<T>, "adaptive_k: logits must be float, float16 or bfloat16");
  const T* data = nullptr;      ///< [num_tokens, num_experts], row stride `row_stride`
  std::int64_t num_tokens = 0;  ///< T in 0..2^31 - 1
  int num_experts = 0;          ///< E in 1..1024
  std::int64_t row_stride = 0;  ///< elements from row to row; 0 means num_experts
  /// [num_tokens, top_k - 1], what a router head (distortion_ref::head) gives, or null. Read by
  /// policies that have one alone. Columns E to E + top_k - 2 of the logits' own matrix are
  /// `data + num_experts` with its row stride.
  const T* head = nullptr;
  std::int64_t head_stride = 0;  ///< elements from row to row of `head`; 0 means top_k - 1
};

/// Where a routing call writes. Null members are skipped, except `topk_ids` and `topk_weights`.
template <class Id = std::int32_t, class Weight = float>
struct routing_output {
  static_assert(is_expert_id<Id>, "adaptive_k: ids must be int32, int64, int16 or uint16");
  static_assert(is_float_storage<Weight>, "adaptive_k: weights must be float, float16 or bfloat16");
  Id* topk_ids = nullptr;               ///< [num_tokens, top_k], best first; fill past k_t
  Weight* topk_weights = nullptr;       ///< [num_tokens, top_k]; 0 past k_t
  std::int32_t* topk_counts = nullptr;  ///< [num_tokens], k_t
  float* signal = nullptr;              ///< [num_tokens], unit of the policy's signal
  /// [num_tokens]. Where given, the call is in shadow mode: it routes full K, as the model would,
  /// and records here the k that the policy would have chosen. What that would have saved is
  /// routing_metrics::shadow_expert_savings().
  std::int32_t* chosen_counts = nullptr;
  /// [num_experts], added to: the tokens of each expert, without padding. Threads that share a call
  /// by `route_range` need an array each.
  std::uint64_t* expert_counts = nullptr;
  /// [num_tokens], r^-a of core/weights.hpp, 1 or more: an engine that keeps its own weights
  /// multiplies those of the kept experts by it. 1 at k = K0 and for padding. Host only.
  float* weight_factors = nullptr;
};

/// Optional inputs of a routing call; null means absent.
struct routing_extras {
  const float* routing_bias = nullptr;         ///< [num_experts], selects, never weighs
  const std::uint8_t* padding_mask = nullptr;  ///< [num_tokens], non-zero: skip this token (k = 0)
  const std::uint8_t* k_min = nullptr;         ///< [num_tokens], 1..top_k, on top of the policy's
  const std::uint8_t* k_max = nullptr;         ///< [num_tokens], k_min..top_k, likewise
};

/// Experts chosen earlier, laid out as a routing call wrote them: what `replay` takes.
template <class Id = std::int32_t>
struct routing_replay {
  static_assert(is_expert_id<Id>, "adaptive_k: ids must be int32, int64, int16 or uint16");
  const Id* topk_ids = nullptr;  ///< [num_tokens, top_k]; ids past k_t are not read
  const std::int32_t* topk_counts =
      nullptr;  ///< [num_tokens], 0..top_k (0: padding); null: all top_k
};

/// What stands in the id slots past k_t (their weights are 0).
enum class fill_id : std::uint8_t {
  minus_one,     ///< -1 (65535 as uint16)
  num_experts,   ///< E, one past the last expert
  first_expert,  ///< the token's own first expert again, for engines that cannot skip
};

ADAPTIVE_K_NAMESPACE_END
