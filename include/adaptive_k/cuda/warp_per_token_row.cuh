// A row of logits over a whole warp, and its best experts. Expert e is lane e % 32's number e / 32,
// which is its slot of the reduction tree too: a lane adds up its own, the lanes exchange sums.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/sorting_network.hpp"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/warp_ops.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// `at[Offset]` as a load leaves it: a float, or a word with 16 bits.
template <int Offset>
__device__ ADAPTIVE_K_INLINE float load_raw(const float* at) noexcept {
  float value;
  asm volatile("ld.global.f32 %0, [%1+%2];"
               : "=f"(value)
               : "l"(__cvta_generic_to_global(at)), "n"(Offset * 4));
  return value;
}
/// See above.
template <int Offset, class T>
__device__ ADAPTIVE_K_INLINE std::uint32_t load_raw(const T* at) noexcept {
  static_assert(sizeof(T) == 2, "16 bits");
  std::uint32_t word;
  asm volatile("ld.global.u16 %0, [%1+%2];"
               : "=r"(word)
               : "l"(__cvta_generic_to_global(at)), "n"(Offset * 2));
  return word;
}

/// The same where `index` is below `count`, else as it was: a predicate, no branch.
template <int Offset>
__device__ ADAPTIVE_K_INLINE void load_below(float& value, const float* at, int index,
                                             int count) noexcept {
  asm volatile("{ .reg .pred p; setp.lt.s32 p, %2, %3; @p ld.global.f32 %0, [%1+%4]; }"
               : "+f"(value)
               : "l"(__cvta_generic_to_global(at)), "r"(index), "r"(count), "n"(Offset * 4));
}
/// See above.
template <int Offset, class T>
__device__ ADAPTIVE_K_INLINE void load_below(std::uint32_t& word, const T* at, int index,
                                             int count) noexcept {
  asm volatile("{ .reg .pred p; setp.lt.s32 p, %2, %3; @p ld.global.u16 %0, [%1+%4]; }"
               : "+r"(word)
               : "l"(__cvta_generic_to_global(at)), "r"(index), "r"(count), "n"(Offset * 2));
}

/// A value an expert over the lanes of a warp: a token's logits, or a bias.
template <int Rows>
struct warp_row {
  float at[Rows];  ///< of experts lane, lane + 32, ...

  /// E values; `own` is where this lane's first one lies. -inf past E. All loads are on their way
  /// before the first of them is waited for.
  template <class T>
  __device__ ADAPTIVE_K_INLINE void load(const T* own, int lane, int num_experts) noexcept {
    using word = logit_word<T>;
    decltype(load_raw<0>(own)) raw[Rows];
    if (Rows > 1 && num_experts == 32 * Rows) {  // no question an expert
      warp::while_true<Rows>([&](auto r) {
        raw[r] = load_raw<32 * r>(own);
        return true;
      });
    } else {
      warp::while_true<Rows>([&](auto r) {
        if constexpr (std::is_same_v<T, float>)
          raw[r] = -math::infinity;
        else
          raw[r] = word::minus_infinity & 0xFFFFu;
        load_below<32 * r>(raw[r], own, 32 * r + lane, num_experts);
        return true;
      });
    }
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      if constexpr (std::is_same_v<T, float>)
        at[r] = raw[r];
      else
        at[r] = word::at(raw[r], 0);
    }
  }
};

/// Keys of 32 bits that differ from expert to expert, larger first: the order of a value above the
/// inverted id. Of 16-bit logits they hold the whole order, else they lack its last bits.
template <int Rows>
struct warp_key {
  static constexpr int id_bits = Rows <= 1    ? 5
                                 : Rows <= 2  ? 6
                                 : Rows <= 4  ? 7
                                 : Rows <= 8  ? 8
                                 : Rows <= 16 ? 9
                                              : 10;               ///< of E
  static constexpr std::uint32_t id_mask = (1u << id_bits) - 1u;  ///< the low bits
  static constexpr std::uint32_t lowest_finite = 0x00800000u;     ///< order of the least logit
  static constexpr std::uint32_t infinite = 0xFF800000u;          ///< order of +inf; NaN has more

  /// Whether an order is that of +inf or NaN, or of less than the least finite value.
  __device__ static ADAPTIVE_K_INLINE bool is_odd(std::uint32_t order) noexcept {
    return order - lowest_finite >= infinite - lowest_finite;
  }

  /// The order of a value that is not -0, nor NaN but as operations give it: that is more than
  /// +inf's.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order_of_result(float value) noexcept {
    std::uint32_t signs;  // the sign, in every bit (__byte_perm leaves out the sign modes)
    asm("prmt.b32 %0, %1, 0, 0xBBBB;" : "=r"(signs) : "f"(value));
    std::uint32_t order;  // value ^ (signs | 0x80000000)
    asm("lop3.b32 %0, %1, %2, 0x80000000, 0x1E;" : "=r"(order) : "f"(value), "r"(signs));
    return order;
  }
  /// The order of a value; of NaN more than that of +inf.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order(float value) noexcept {
    return order_of_result(value + 0.0f);  // -0 as +0, and one NaN
  }
  /// The value behind an order.
  __device__ static ADAPTIVE_K_INLINE float value(std::uint32_t order) noexcept {
    const auto bits = static_cast<int>(order);
    float value;  // bits ^ (~(bits >> 31) | 0x80000000)
    asm("lop3.b32 %0, %1, %2, 0x80000000, 0x4B;" : "=f"(value) : "r"(bits), "r"(bits >> 31));
    return value;
  }
  /// What a lane's keys have in their low bits, all but the row.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t lane_bits(int lane) noexcept {
    return static_cast<std::uint32_t>(lane) ^ 31u;
  }
  /// An order without its last bits; 0 where `kept` is, which is else all ones.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t shorten(std::uint32_t order,
                                                            std::uint32_t kept) noexcept {
    std::uint32_t shortened;  // order & kept & ~id_mask
    asm("lop3.b32 %0, %1, %2, %3, 0x80;" : "=r"(shortened) : "r"(order), "r"(kept), "n"(~id_mask));
    return shortened;
  }
  /// See above.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t shorten(std::uint32_t order) noexcept {
    return order & ~id_mask;
  }
  /// The key of an expert by its shortened order.
  template <int Row>
  __device__ static ADAPTIVE_K_INLINE std::uint32_t join(std::uint32_t shortened,
                                                         std::uint32_t lane_bits) noexcept {
    std::uint32_t key;  // shortened | lane_bits | the inverted row
    asm("lop3.b32 %0, %1, %2, %3, 0xFE;"
        : "=r"(key)
        : "r"(shortened), "r"(lane_bits), "n"(id_mask & ~31u & ~(32u * Row)));
    return key;
  }
  /// The expert of a key.
  __device__ static ADAPTIVE_K_INLINE int expert(std::uint32_t key) noexcept {
    return static_cast<int>(~key & id_mask);
  }
};

/// In lane j the key of rank j, for `ranks` of them; past them some key or 0. A lane sorts its own
/// keys; then each rank is the largest of the lanes' first ones, whose lane moves on.
template <int MaxRanks, int Rows>
__device__ ADAPTIVE_K_INLINE std::uint32_t rank_keys(const std::uint32_t (&keys)[Rows], int lane,
                                                     int ranks) noexcept {
  static_assert(MaxRanks <= 32, "a lane each");
  constexpr int size = Rows <= 1 ? 1 : Rows <= 2 ? 2 : Rows <= 4 ? 4 : Rows <= 8 ? 8 : 16;
  static_assert(Rows <= size, "sorted by a network for a power of two");
  std::uint32_t list[size];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < size; ++i) list[i] = i < Rows ? keys[i < Rows ? i : 0] : 0u;
  detail::sort_descending(list);
  std::uint32_t own = 0;
  warp::while_true<MaxRanks>([&](auto j) {
    // Asked twice: branches would keep what does not wait for the ranks from running meanwhile.
    if (j > 0 && (j == (MaxRanks + 1) / 2 || j == MaxRanks - 2) && j >= ranks) return false;
    const std::uint32_t best = warp::largest(list[0]);
    own = j == 0 || lane == j ? best : own;  // in lanes without a rank the first
    const bool taken = list[0] == best;
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const std::uint32_t next = i + 1 < Rows ? list[i + 1 < Rows ? i + 1 : 0] : 0u;
      list[i] = taken ? next : list[i];
    }
    return true;
  });
  return own;
}

/// The same from whole order keys, 0 where there is no expert, exact for all: in lane j the expert
/// of rank j. Seldom needed, so short rather than fast. Destroys the keys.
template <int Rows>
__device__ ADAPTIVE_K_INLINE int rank_whole_keys(std::uint32_t (&keys)[Rows], int lane,
                                                 int ranks) noexcept {
  int own = 0;
#pragma unroll 1
  for (int j = 0; j < ranks; ++j) {
    std::uint32_t best = 0;
    std::uint32_t at = max_experts;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const bool better = keys[r] > best;
      best = better ? keys[r] : best;
      at = better ? 32u * r + static_cast<std::uint32_t>(lane) : at;
    }
    const bool equal = best == warp::largest(best);
    const std::uint32_t winner =
        warp::smallest(equal ? at : static_cast<std::uint32_t>(max_experts));
    own = lane == j ? static_cast<int>(winner) : own;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r)
      keys[r] = 32u * r + static_cast<std::uint32_t>(lane) == winner ? 0u : keys[r];
  }
  return own;
}

/// Whether short keys may have put a rank where its value does not: in lane j the key of rank j and
/// its value, which is finite, for j up to `top_k`, the first that is not chosen.
template <int Rows>
__device__ ADAPTIVE_K_INLINE bool is_unsure(std::uint32_t key, float value, int lane,
                                            int top_k) noexcept {
  const bool meets = (key ^ warp::of_next_lane(key)) <= warp_key<Rows>::id_mask;
  // Equal ones are in the order of their ids. Behind the last there may be more than one.
  const bool in_order = value >= warp::of_next_lane(value) && lane != top_k - 1;
  return meets && !in_order && lane < top_k;
}

/// The scores of a row and their logarithms.
template <int Rows>
struct warp_scores {
  warp_row<Rows> score;      ///< s
  warp_row<Rows> log_score;  ///< ln s

  /// Softmax of logits among which no +inf is; NaN scores as -inf. Returns the sums of s and of
  /// s ln s in the order of the host's.
  __device__ ADAPTIVE_K_INLINE detail::score_sums<> set_softmax(const warp_row<Rows>& logits,
                                                                int lane, float largest) noexcept {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const detail::score_pair<> s =
          detail::score_of<detail::softmax_score, detail::logits_are::ordinary>(logits.at[r],
                                                                                largest);
      score.at[r] = s.score;
      log_score.at[r] = s.log_score;
    }
    return add_up(lane);
  }
  /// The sums over all lanes.
  __device__ ADAPTIVE_K_INLINE detail::score_sums<> add_up(int lane) const noexcept {
    float sum = 0.0f;
    float logs = 0.0f;
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < Rows; ++r) {
      sum = r == 0 ? score.at[r] : sum + score.at[r];
      logs = math::fma(score.at[r], log_score.at[r], logs);
    }
    warp::sum_both(lane, sum, logs);
    return {sum, logs};
  }
};

/// The order of the largest logit; of NaN more than that of +inf.
template <int Rows>
__device__ ADAPTIVE_K_INLINE std::uint32_t largest_order(const warp_row<Rows>& row) noexcept {
  float most = row.at[0];
  ADAPTIVE_K_UNROLL
  for (int r = 1; r < Rows; ++r) most = logit_range<float, false>::maximum(most, row.at[r]);
  return warp::largest(warp_key<Rows>::order(most));
}

/// Whether a logit of the row is NaN or infinite.
template <int Rows>
__device__ ADAPTIVE_K_INLINE bool has_nonfinite(const warp_row<Rows>& row, int lane,
                                                int num_experts) noexcept {
  bool odd = false;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r)
    odd = odd || (32 * r + lane < num_experts && !(math::abs(row.at[r]) < math::infinity));
  return warp::any(odd);
}

/// Replaces +inf by what is finite, as core's examine_logits makes the largest, and NaN by -inf; a
/// row with nothing finite by zeros. Returns whether something was.
template <int Rows>
__device__ ADAPTIVE_K_INLINE bool make_finite(warp_row<Rows>& row, int lane,
                                              int num_experts) noexcept {
  bool finite = false;
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) finite = finite || math::abs(row.at[r]) < math::infinity;
  finite = warp::any(finite);
  ADAPTIVE_K_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const float zero = 32 * r + lane < num_experts ? 0.0f : -math::infinity;
    const float logit = math::maximum(row.at[r], -math::infinity);
    row.at[r] = finite ? math::minimum(logit, math::largest_finite) : zero;
  }
  return finite;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
