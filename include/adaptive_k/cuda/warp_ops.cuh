// What the lanes of a whole warp do together where one warp decides one token. Floats are exchanged
// without moves to integer registers, and integers reduced by one instruction where there is one.
#pragma once

#include <cstdint>
#include <utility>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// An index that the compiler knows, so that keys can be made with immediate operands.
template <int Value>
struct constant {
  /// The value.
  __device__ constexpr operator int() const noexcept { return Value; }
};

/// Every lane of the warp takes part in all of these.
namespace warp {

inline constexpr unsigned all_lanes = 0xFFFFFFFFu;  ///< mask of them

/// This lane, 0..31, of a block in one dimension. Volatile: it is read once and kept.
__device__ ADAPTIVE_K_INLINE int lane() noexcept {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// The same integer, which the compiler then keeps and does not compute again.
__device__ ADAPTIVE_K_INLINE int kept(int value) noexcept {
  asm volatile("" : "+r"(value));
  return value;
}

/// f(constant j) for j = 0, 1, ... Count - 1, until one returns false.
template <int... J, class F>
__device__ ADAPTIVE_K_INLINE void while_true(std::integer_sequence<int, J...>, F f) noexcept {
  (void)(f(constant<J>{}) && ...);
}
/// See above.
template <int Count, class F>
__device__ ADAPTIVE_K_INLINE void while_true(F f) noexcept {
  while_true(std::make_integer_sequence<int, Count>{}, f);
}

/// What lane (this ^ Mask) has.
template <int Mask>
__device__ ADAPTIVE_K_INLINE float exchange(float value) noexcept {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(value), "n"(Mask));
  return other;
}
/// See above.
template <int Mask>
__device__ ADAPTIVE_K_INLINE std::uint32_t exchange(std::uint32_t value) noexcept {
  std::uint32_t other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=r"(other) : "r"(value), "n"(Mask));
  return other;
}
/// What lane Lane has.
template <int Lane>
__device__ ADAPTIVE_K_INLINE float of_lane(float value) noexcept {
  float other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(value), "n"(Lane));
  return other;
}
/// What a lane has that is known at run time.
__device__ ADAPTIVE_K_INLINE float of_lane(float value, int lane) noexcept {
  float other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(value), "r"(lane));
  return other;
}
/// See above.
template <class Integer>
__device__ ADAPTIVE_K_INLINE Integer of_lane(Integer value, int lane) noexcept {
  Integer other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=r"(other) : "r"(value), "r"(lane));
  return other;
}
/// What the next lane has; the last lane keeps its own.
__device__ ADAPTIVE_K_INLINE float of_next_lane(float value) noexcept {
  float other;
  asm volatile("shfl.sync.down.b32 %0, %1, 1, 31, -1;" : "=f"(other) : "f"(value));
  return other;
}
/// See above.
template <class Integer>
__device__ ADAPTIVE_K_INLINE Integer of_next_lane(Integer value) noexcept {
  Integer other;
  asm volatile("shfl.sync.down.b32 %0, %1, 1, 31, -1;" : "=r"(other) : "r"(value));
  return other;
}

/// Which lanes say so, a bit each; whether any does.
__device__ ADAPTIVE_K_INLINE unsigned lanes_where(bool condition) noexcept {
  return __ballot_sync(all_lanes, condition);
}
/// See above.
__device__ ADAPTIVE_K_INLINE bool any(bool condition) noexcept {
  return __any_sync(all_lanes, condition) != 0;
}

/// Whether this is the lowest lane that says so.
__device__ ADAPTIVE_K_INLINE bool is_first(bool condition, int lane) noexcept {
  const unsigned where = lanes_where(condition);
  return condition && (where & ((1u << lane) - 1u)) == 0;
}

/// The largest of all lanes.
__device__ ADAPTIVE_K_INLINE std::uint32_t largest(std::uint32_t value) noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(all_lanes, value);
#else
  ADAPTIVE_K_UNROLL
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::uint32_t other = __shfl_xor_sync(all_lanes, value, offset);
    value = value > other ? value : other;
  }
  return value;
#endif
}
/// The smallest of all lanes.
__device__ ADAPTIVE_K_INLINE std::uint32_t smallest(std::uint32_t value) noexcept {
  return ~largest(~value);
}
/// The sum over all lanes.
__device__ ADAPTIVE_K_INLINE int sum(int value) noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(all_lanes, value);
#else
  ADAPTIVE_K_UNROLL
  for (int offset = 1; offset < 32; offset *= 2) value += __shfl_xor_sync(all_lanes, value, offset);
  return value;
#endif
}

/// The sums of two floats over all lanes, a tree each, neighbours first. Together they take little
/// more than one: after the first level even lanes go on with the one, odd lanes with the other.
__device__ ADAPTIVE_K_INLINE void sum_both(int lane, float& first, float& second) noexcept {
  const bool odd = (lane & 1) != 0;
  const float given = odd ? first : second;
  float own = odd ? second : first;
  own = own + exchange<1>(given);
  own = own + exchange<2>(own);
  own = own + exchange<4>(own);
  own = own + exchange<8>(own);
  own = own + exchange<16>(own);
  first = of_lane<0>(own);
  second = of_lane<1>(own);
}
/// The sum of one float, in the same tree.
__device__ ADAPTIVE_K_INLINE float sum(float value) noexcept {
  value = value + exchange<1>(value);
  value = value + exchange<2>(value);
  value = value + exchange<4>(value);
  value = value + exchange<8>(value);
  return value + exchange<16>(value);
}

}  // namespace warp

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
