// One row under softmax ranked by logit alone: what most models do, and so worth its own path. A
// tile reduces a row to its sums and its best experts; one lane then decides
// (softmax_topk_kernel.cuh).
#pragma once

#include <cstdint>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/cuda/device_load.cuh"
#include "adaptive_k/cuda/device_select.cuh"
#include "adaptive_k/cuda/device_tile.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Selection keys of a row, larger first: the order of the logit above, the inverted id below.
/// 16-bit logits: 32 bits in all.
template <class Logit>
struct topk_key {
  /// Larger is better.
  using type = std::uint32_t;
  /// How logits come.
  using word = logit_word<Logit>;
  /// Whether two are ordered at once.
  static constexpr bool has_pair_orders = word::has_pair_arithmetic;
  static constexpr std::uint32_t zero_order = 0x8000u;  ///< of a logit that is 0
  static constexpr std::uint32_t nan_order = 1;         ///< below every other

  /// The orders of a word's two logits, both finite; -0 as +0.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t finite_orders(std::uint32_t pair) noexcept {
    const std::uint32_t positive_zero = word::fma(pair, word::one, 0);
    std::uint32_t signs;  // each sign, sixteen times (__byte_perm leaves out the sign modes)
    asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(signs) : "r"(positive_zero));
    std::uint32_t orders;  // positive_zero ^ (signs | 0x80008000)
    asm("lop3.b32 %0, %1, %2, 0x80008000, 0x1E;" : "=r"(orders) : "r"(positive_zero), "r"(signs));
    return orders;
  }
  /// The key of one half; with immediate operands, which need no registers.
  template <int Half, int Expert>
  __device__ static ADAPTIVE_K_INLINE type join_half(std::uint32_t orders) noexcept {
    type key;
    if constexpr (Half == 0)  // orders << 16 | id
      asm("mad.lo.u32 %0, %1, 0x10000, %2;" : "=r"(key) : "r"(orders), "n"(~Expert & 0xFFFF));
    else  // (orders & 0xFFFF0000) | id
      asm("lop3.b32 %0, %1, 0xFFFF0000, %2, 0xEA;"
          : "=r"(key)
          : "r"(orders), "n"(~Expert & 0xFFFF));
    return key;
  }
  /// The order of any logit.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order(std::uint32_t word, int half) noexcept {
    const std::uint32_t bits = half == 0 ? word & 0xFFFFu : word >> 16;
    const std::uint32_t upper = bits | 0x8000u;  // -0 joins the positive side
    const std::uint32_t key = bits > 0x8000u ? ~bits & 0xFFFFu : upper;
    return (bits & 0x7FFFu) > topk_key::word::infinity_bits ? nan_order : key;
  }
  /// Of an order and an expert: equal orders go by the lower expert.
  __device__ static ADAPTIVE_K_INLINE type join(std::uint32_t order, int expert) noexcept {
    return order << 16 | (~static_cast<std::uint32_t>(expert) & 0xFFFFu);
  }
  /// Adds a lane's bits to the id, which had them zero.
  __device__ static ADAPTIVE_K_INLINE type add_lane(type key, int lane_offset) noexcept {
    return key ^ static_cast<std::uint32_t>(lane_offset);
  }
  /// The logit that was ordered by.
  __device__ static ADAPTIVE_K_INLINE float logit(type key) noexcept {
    const std::uint32_t order = key >> 16;
    const std::uint32_t bits = (order & 0x8000u) != 0 ? order & 0x7FFFu : ~order & 0xFFFFu;
    return order == nan_order ? -math::infinity : word::at(bits, 0);
  }
  /// The expert.
  __device__ static ADAPTIVE_K_INLINE int expert(type key) noexcept {
    return static_cast<int>(~key & 0xFFFFu);
  }
};

/// fp32 logits: 64 bits.
template <>
struct topk_key<float> {
  /// Larger is better.
  using type = unsigned long long;
  static constexpr bool has_pair_orders = false;            ///< a word holds one
  static constexpr std::uint32_t zero_order = 0x80000000u;  ///< of a logit that is 0

  /// The order of a word's logit.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t order(std::uint32_t word, int) noexcept {
    return detail::order_key(__uint_as_float(word));
  }
  /// Of a finite logit.
  __device__ static ADAPTIVE_K_INLINE std::uint32_t finite_order(std::uint32_t word) noexcept {
    const int bits = __float_as_int(__uint_as_float(word) + 0.0f);  // -0 as +0
    return static_cast<std::uint32_t>(bits ^ (bits >> 31 | static_cast<int>(0x80000000u)));
  }
  /// Of an order and an expert: equal orders go by the lower expert.
  __device__ static ADAPTIVE_K_INLINE type join(std::uint32_t order, int expert) noexcept {
    return static_cast<type>(order) << 32 | ~static_cast<std::uint32_t>(expert);
  }
  /// Makes a slot's expert that of a lane.
  __device__ static ADAPTIVE_K_INLINE type add_lane(type key, int lane_offset) noexcept {
    return key ^ static_cast<std::uint32_t>(lane_offset);
  }
  /// The logit that was ordered by.
  __device__ static ADAPTIVE_K_INLINE float logit(type key) noexcept {
    return detail::key_value(static_cast<std::uint32_t>(key >> 32));
  }
  /// The expert.
  __device__ static ADAPTIVE_K_INLINE int expert(type key) noexcept {
    return static_cast<int>(~static_cast<std::uint32_t>(key));
  }
};

/// All that a token's decision needs of its row.
template <class Logit, int MaxTopK>
struct row_summary {
  /// What winners are ranked by.
  using key = topk_key<Logit>;
  float largest;                                     ///< logit of the row
  detail::score_sums<> sums;                         ///< over the row's scores
  sorted_list<typename key::type, MaxTopK> winners;  ///< the top K0, best first
  bool has_nonfinite;                                ///< whether a logit is NaN or infinite

  /// The ranks as core/ takes them.
  __device__ ADAPTIVE_K_INLINE void rank(int top_k,
                                         detail::ranked_experts<MaxTopK>& ranked) const noexcept {
    ranked.expert[0] = key::expert(winners.at[0]);
    ranked.score[0] = 1.0f;  // its logit is the largest
    ranked.log_score[0] = 0.0f;
    ADAPTIVE_K_UNROLL
    for (int j = 1; j < MaxTopK; ++j) {
      const detail::score_pair<> s =
          detail::score_of<detail::softmax_score>(key::logit(winners.at[j]), largest);
      ranked.expert[j] = key::expert(winners.at[j]);
      ranked.score[j] = j < top_k ? s.score : 0.0f;
      ranked.log_score[j] = j < top_k ? s.log_score : 0.0f;
    }
  }
};

namespace softmax_topk_detail {

template <detail::logits_are Logits, class Tile, int MaxRows, class Counts>
__device__ ADAPTIVE_K_INLINE detail::score_sums<> sum_row(const Tile& tile,
                                                          const token_state<Tile, MaxRows>& token,
                                                          detail::sums_needed needed,
                                                          Counts counts) noexcept {
  using score = detail::softmax_score;
  if (needed.logs)
    return detail::sum_scores<score, true, Logits>(tile, token, token.largest, counts);
  if (needed.scores)
    return detail::sum_scores<score, false, Logits>(tile, token, token.largest, counts);
  return {1.0f, 0.0f};
}

/// A warp of rows that are all finite; where their logits are close, E is `FullRow`.
template <detail::logits_are Logits, int FullRow, int MaxTopK, class Tile, int MaxRows>
__device__ ADAPTIVE_K_INLINE void summarise_finite(
    const Tile& tile, const loaded_row<Tile, MaxRows>& row, int num_experts, float largest,
    detail::sums_needed needed, row_summary<typename Tile::logit_type, MaxTopK>& summary) noexcept {
  using logit = typename Tile::logit_type;
  using key = topk_key<logit>;
  using word = logit_word<logit>;
  token_state<Tile, MaxRows> token;
  unpack(row, num_experts, token);
  token.largest = largest;
  summary.largest = largest;
  summary.has_nonfinite = false;
  const int lane_offset = Tile::expert_at(Tile::lane(), 0, 0);
  const auto exists = [=](int r, int slot) {
    return Logits != detail::logits_are::close ||
           Tile::expert_at(Tile::lanes - 1, r, slot) < FullRow ||
           Tile::expert_at(0, r, slot) + lane_offset < FullRow;
  };
  if constexpr (Logits == detail::logits_are::close) {
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < MaxRows; ++r) {
      ADAPTIVE_K_UNROLL
      for (int slot = 0; slot < Tile::slots_per_lane; ++slot)
        if (!exists(r, slot)) token.logits[0].at[r][slot] = largest;  // -inf would not be close
    }
  }
  summary.sums =
      sum_row<Logits>(tile, token, needed, [=](float, int r, int slot) { return exists(r, slot); });
  const auto add_lane = [=](typename key::type k) { return key::add_lane(k, lane_offset); };
  if constexpr (key::has_pair_orders) {
    std::uint32_t orders[MaxRows][Tile::words];
    ADAPTIVE_K_UNROLL
    for (int r = 0; r < MaxRows; ++r) {
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < Tile::words; ++i) orders[r][i] = key::finite_orders(row.words[r][i]);
    }
    summary.winners = best_of_tile<Tile, MaxRows, MaxTopK, typename key::type>(
        [&](auto r, auto slot) {
          return key::template join_half<slot % 2, Tile::expert_at(0, r, slot)>(
              orders[r][slot / 2]);
        },
        add_lane);
  } else {
    summary.winners = best_of_tile<Tile, MaxRows, MaxTopK, typename key::type>(
        [&](int r, int slot) {
          const std::uint32_t from = row.words[r][slot / word::size];
          std::uint32_t order;
          if constexpr (word::size == 1)
            order = key::finite_order(from);
          else
            order = key::order(from, slot % 2);
          return key::join(order, Tile::expert_at(0, r, slot));
        },
        add_lane);
  }
}

/// Rows of any kind.
template <int MaxTopK, class Tile, int MaxRows>
__device__ ADAPTIVE_K_INLINE void summarise_any(
    const Tile& tile, const loaded_row<Tile, MaxRows>& row, int num_experts,
    detail::sums_needed needed, row_summary<typename Tile::logit_type, MaxTopK>& summary) noexcept {
  using logit = typename Tile::logit_type;
  using key = topk_key<logit>;
  using word = logit_word<logit>;
  token_state<Tile, MaxRows> token;
  unpack(row, num_experts, token);
  detail::examine_logits(tile, token);
  summary.largest = token.largest;
  summary.has_nonfinite = token.has_nonfinite;
  summary.sums =
      sum_row<detail::logits_are::any>(tile, token, needed, [](float, int, int) { return true; });
  const int lane_offset = Tile::expert_at(Tile::lane(), 0, 0);
  summary.winners = best_of_tile<Tile, MaxRows, MaxTopK, typename key::type>(
      [&](int r, int slot) {
        const int expert = Tile::expert_at(0, r, slot);
        const std::uint32_t order =
            token.has_finite ? key::order(row.words[r][slot / word::size], slot % word::size)
                             : key::zero_order;
        return key::join(expert + lane_offset < num_experts ? order : 0u, expert);
      },
      [=](typename key::type k) { return key::add_lane(k, lane_offset); });
}

}  // namespace softmax_topk_detail

/// Every lane of the warp takes part; every lane of a tile gets the summary of its row. `FullRow`
/// as in fetch_row.
template <int FullRow, int MaxTopK, class Tile, int MaxRows>
__device__ ADAPTIVE_K_INLINE void summarise(
    const Tile& tile, const loaded_row<Tile, MaxRows>& row, int num_experts,
    detail::sums_needed needed, row_summary<typename Tile::logit_type, MaxTopK>& summary) noexcept {
  using range = logit_range<typename Tile::logit_type, false>;
  using detail::logits_are;
  const float largest = tile.reduce(row.largest, range::maximum);
  const float least = tile.reduce(row.least, range::minimum);
  const float spread = largest - least;  // not finite, or NaN, where a logit is not
  const bool full_row = num_experts == FullRow;
  if (__all_sync(Tile::whole_warp, full_row && spread <= -math::exp_floor))
    softmax_topk_detail::summarise_finite<logits_are::close, FullRow>(tile, row, num_experts,
                                                                      largest, needed, summary);
  else if (__all_sync(Tile::whole_warp,
                      spread < math::infinity && math::abs(largest) < math::infinity))
    softmax_topk_detail::summarise_finite<logits_are::ordinary, FullRow>(tile, row, num_experts,
                                                                         largest, needed, summary);
  else
    softmax_topk_detail::summarise_any(tile, row, num_experts, needed, summary);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
