// Types of ids and weights that a kernel is told at run time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

enum class id_type : std::uint8_t { int32, int64, int16, uint16 };
enum class float_type : std::uint8_t { float32, float16, bfloat16 };

template <class Id>
constexpr id_type id_type_of() noexcept {
  if (std::is_same_v<Id, std::int64_t>) return id_type::int64;
  if (std::is_same_v<Id, std::int16_t>) return id_type::int16;
  if (std::is_same_v<Id, std::uint16_t>) return id_type::uint16;
  return id_type::int32;
}

template <class Weight>
constexpr float_type float_type_of() noexcept {
  if (std::is_same_v<Weight, float16>) return float_type::float16;
  if (std::is_same_v<Weight, bfloat16>) return float_type::bfloat16;
  return float_type::float32;
}

/// -1 where an int64 is no expert's.
__device__ ADAPTIVE_K_INLINE int load_id(const void* base, std::int64_t at, id_type type) noexcept {
  switch (type) {
    case id_type::int32:
      return static_cast<const std::int32_t*>(base)[at];
    case id_type::int64: {
      const std::int64_t id = static_cast<const std::int64_t*>(base)[at];
      return id >= 0 && id < max_experts ? static_cast<int>(id) : -1;
    }
    case id_type::int16:
      return static_cast<const std::int16_t*>(base)[at];
    case id_type::uint16:
      return static_cast<const std::uint16_t*>(base)[at];
  }
  return -1;
}

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
