// Types of ids and weights that a kernel is told at run time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// How ids are stored.
enum class id_type : std::uint8_t { int32, int64, int16, uint16 };
/// How logits and weights are stored.
enum class float_type : std::uint8_t { float32, float16, bfloat16 };

/// Of a type that is_expert_id allows.
template <class Id>
constexpr id_type id_type_of() noexcept {
  if (std::is_same_v<Id, std::int64_t>) return id_type::int64;
  if (std::is_same_v<Id, std::int16_t>) return id_type::int16;
  if (std::is_same_v<Id, std::uint16_t>) return id_type::uint16;
  return id_type::int32;
}

/// Of a type that is_float_storage allows.
template <class Weight>
constexpr float_type float_type_of() noexcept {
  if (std::is_same_v<Weight, float16>) return float_type::float16;
  if (std::is_same_v<Weight, bfloat16>) return float_type::bfloat16;
  return float_type::float32;
}

/// An id, or a negative number where it does not fit 31 bits (as uint16: 15). Written so that
/// loads of several ids are in flight at once: predicates, no branches by type.
__device__ ADAPTIVE_K_INLINE int load_id(const void* base, std::int64_t at, id_type type) noexcept {
  if (type == id_type::int16 || type == id_type::uint16)
    return static_cast<const std::int16_t*>(base)[at];
  const int words = type == id_type::int64 ? 2 : 1;
  const std::int32_t* word = static_cast<const std::int32_t*>(base) + at * words;
  const int low = word[0];
  return words == 2 && word[1] != 0 ? -1 : low;
}

/// Weight number `at`, counted from `base`, as a float.
__device__ ADAPTIVE_K_INLINE float load_weight(const void* base, std::int64_t at,
                                               float_type type) noexcept {
  switch (type) {
    case float_type::float32:
      return static_cast<const float*>(base)[at];
    case float_type::float16:
      return to_float(static_cast<const float16*>(base)[at]);
    case float_type::bfloat16:
      return to_float(static_cast<const bfloat16*>(base)[at]);
  }
  return 0.0f;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
