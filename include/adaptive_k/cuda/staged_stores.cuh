// What a warp chose on its way out: through shared memory, so that neighbouring lanes write
// neighbouring words whatever K0 is.
#pragma once

#include <cstdint>
#include <cstring>

#include "adaptive_k/config.hpp"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// A warp's ids or weights on their way out, as 32-bit words in the order of memory.
template <int MaxTopK>
struct staged_slots {
  static constexpr int most = 32 * MaxTopK;  ///< slots of a warp's tokens
  uint4 words[most / 4];                     ///< of 16 bytes, so that they are stored as such

  /// The same, slot by slot.
  __device__ ADAPTIVE_K_INLINE std::uint32_t* word() noexcept {
    return reinterpret_cast<std::uint32_t*>(words);
  }
};

/// Writes `count` staged values from `base[first]` on, a warp's neighbouring lanes side by side.
template <int MaxTopK, class T, class Convert>
__device__ ADAPTIVE_K_INLINE void copy_out(staged_slots<MaxTopK>& staged, T* base, int count,
                                           Convert convert) noexcept {
  struct alignas(4 * sizeof(T)) four {
    T at[4];
  };
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool aligned = reinterpret_cast<std::uintptr_t>(base) % sizeof(four) == 0;
  const int wide = aligned ? count / 4 * 4 : 0;
  for (int i = lane * 4; i < wide; i += 128) {
    const uint4 from = staged.words[i / 4];
    *reinterpret_cast<four*>(base + i) = {
        {convert(from.x), convert(from.y), convert(from.z), convert(from.w)}};
  }
  for (int i = wide + lane; i < count; i += 32) base[i] = convert(staged.word()[i]);
}

/// Writes `count` staged ids to number `first` of `base` and on.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE void copy_ids(staged_slots<MaxTopK>& staged, void* base,
                                           std::int64_t first, int count, id_type type) noexcept {
  const auto narrow = [](std::uint32_t id) { return static_cast<std::int16_t>(id); };
  switch (type) {
    case id_type::int32:
      return copy_out(staged, static_cast<std::int32_t*>(base) + first, count,
                      [](std::uint32_t id) { return static_cast<std::int32_t>(id); });
    case id_type::int64:
      return copy_out(staged, static_cast<std::int64_t*>(base) + first, count,
                      [](std::uint32_t id) {
                        return static_cast<std::int64_t>(static_cast<std::int32_t>(id));
                      });
    case id_type::int16:
    case id_type::uint16:
      return copy_out(staged, static_cast<std::int16_t*>(base) + first, count, narrow);
  }
}

/// Writes `count` staged weights to number `first` of `base` and on, rounded to nearest even.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE void copy_weights(staged_slots<MaxTopK>& staged, void* base,
                                               std::int64_t first, int count,
                                               float_type type) noexcept {
  switch (type) {
    case float_type::float32:
      return copy_out(staged, static_cast<float*>(base) + first, count,
                      [](std::uint32_t bits) { return __uint_as_float(bits); });
    case float_type::float16:
      return copy_out(staged, static_cast<float16*>(base) + first, count, [](std::uint32_t bits) {
        return from_float<float16>(__uint_as_float(bits));
      });
    case float_type::bfloat16:
      return copy_out(staged, static_cast<bfloat16*>(base) + first, count, [](std::uint32_t bits) {
        return from_float<bfloat16>(__uint_as_float(bits));
      });
  }
}

/// Writes K0 = MaxTopK words a token from `base` on, which is 16-byte aligned: `own` to row
/// `own_row` where `has_own`, `rows` in all. Every lane takes part.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE void store_rows(staged_slots<MaxTopK>& staged, void* base,
                                             const std::uint32_t (&own)[MaxTopK], int own_row,
                                             bool has_own, int rows) noexcept {
  if constexpr (MaxTopK <= 4) {
    struct alignas(4 * MaxTopK) row {
      std::uint32_t at[MaxTopK];
    };
    row whole;
    std::memcpy(&whole, own, sizeof whole);
    if (has_own) static_cast<row*>(base)[own_row] = whole;
  } else {
    constexpr int fours = MaxTopK / 4;
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (has_own) {
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < fours; ++i)
        staged.words[own_row * fours + i] = {own[4 * i], own[4 * i + 1], own[4 * i + 2],
                                             own[4 * i + 3]};
    }
    __syncwarp();
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < fours; ++i) {
      const int at = lane + 32 * i;
      if (at < rows * fours) static_cast<uint4*>(base)[at] = staged.words[at];
    }
    __syncwarp();  // `staged` is written again
  }
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
