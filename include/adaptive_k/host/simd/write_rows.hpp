// Rows of logits into a block, and a block's decisions into rows.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

struct block_rows {
  const float* data;
  std::int64_t stride;
};

/// A block's rows as load_columns takes them: themselves, or floats in `copies`
/// [lanes, most_lane_experts].
template <class Reals, class Logit>
ADAPTIVE_K_INLINE block_rows float_rows(const Logit* rows, std::int64_t stride, int num_experts,
                                        float* copies) noexcept {
  if constexpr (std::is_same_v<Logit, float>) {
    if (num_experts % 4 == 0) return {rows, stride};
  }
  constexpr int lanes = Reals::lanes;
  const std::int64_t copy_stride = (num_experts + 3) / 4 * 4;
  for (int lane = 0; lane < lanes; ++lane) {
    const Logit* row = rows + lane * stride;
    float* copy = copies + lane * copy_stride;
    widen_row<Reals>(row, num_experts, copy);
    for (int expert = num_experts; expert < copy_stride; ++expert)
      copy[expert] = copy[0];  // neither larger nor infinite
  }
  return {copies, copy_stride};
}

/// Puts one token's decision where the block has it.
template <int Lanes>
void put_lane(const token_route<max_top_k>& route, int top_k, int lane,
              block_routes<Lanes>& routes) noexcept {
  for (int j = 0; j < top_k; ++j) {
    routes.expert[j][lane] = static_cast<std::uint32_t>(route.expert[j]);
    routes.weight[j][lane] = route.weight[j];
  }
  routes.count[lane] = static_cast<std::uint32_t>(route.count);
  routes.chosen[lane] = static_cast<std::uint32_t>(route.chosen);
  routes.signal[lane] = route.signal;
}

/// Stores 16 lanes of 4 or 8 ranks as rows, in whole vectors; destroys them.
template <class Reals>
ADAPTIVE_K_INLINE void store_rows(Reals (&ranks)[4], float* to) noexcept {
  Reals::transpose_quarters(ranks);
  Reals::part_halves(ranks[0], ranks[1]);
  Reals::part_halves(ranks[2], ranks[3]);
  for (int half = 0; half < 2; ++half) {
    Reals::part_quarters(ranks[half], ranks[2 + half]);
    Reals::store(to + 32 * half, ranks[half]);
    Reals::store(to + 32 * half + 16, ranks[2 + half]);
  }
}
template <class Reals>
ADAPTIVE_K_INLINE void store_rows(Reals (&low_ranks)[4], Reals (&high_ranks)[4],
                                  float* to) noexcept {
  Reals::transpose_quarters(low_ranks);
  Reals::transpose_quarters(high_ranks);
  for (int i = 0; i < 4; ++i) Reals::part_halves(low_ranks[i], high_ranks[i]);
  for (int i = 0; i < 4; i += 2) {
    Reals::part_quarters(low_ranks[i], low_ranks[i + 1]);
    Reals::part_quarters(high_ranks[i], high_ranks[i + 1]);
    Reals::store(to + 8 * i, low_ranks[i]);
    Reals::store(to + 8 * i + 32, low_ranks[i + 1]);
    Reals::store(to + 8 * i + 64, high_ranks[i]);
    Reals::store(to + 8 * i + 96, high_ranks[i + 1]);
  }
}

/// [rank][lane] to [lane, top_k]: `at(rank)` gives a rank's vector. `to` may be of any 4-byte type.
template <class Reals, class Ranks, class Count>
ADAPTIVE_K_INLINE void transpose_ranks(const Ranks& ranks, Count top_k, float* to) noexcept {
  constexpr int lanes = Reals::lanes;
  if constexpr (lanes == 16) {
    if (top_k == 4 || top_k == 8) {
      Reals low[4] = {ranks.at(0), ranks.at(1), ranks.at(2), ranks.at(3)};
      if (top_k == 4) return store_rows(low, to);
      Reals high[4] = {ranks.at(4), ranks.at(5), ranks.at(6), ranks.at(7)};
      return store_rows(low, high, to);
    }
  }
  int rank = 0;
  float* const row[4] = {to, to + top_k, to + 2 * top_k, to + 3 * top_k};
  for (; rank + 4 <= top_k; rank += 4) {
    Reals v[4] = {ranks.at(rank), ranks.at(rank + 1), ranks.at(rank + 2), ranks.at(rank + 3)};
    Reals::transpose_quarters(v);
    for (int i = 0; i < 4; ++i) Reals::store_quarters(row[i] + rank, top_k, v[i]);
  }
  if (top_k == 2) {
    Reals low = ranks.at(0);
    Reals high = ranks.at(1);
    Reals::interleave(low, high);
    Reals::store(to, low);
    Reals::store(to + lanes, high);
    return;
  }
  for (; rank < top_k; ++rank) {
    float each[lanes];
    Reals::store(each, ranks.at(rank));
    for (int lane = 0; lane < lanes; ++lane)
      std::memcpy(to + lane * top_k + rank, each + lane, sizeof *to);
  }
}

/// A block's decisions: in memory, or in registers as token_route has them.
template <class Reals>
struct stored_routes {
  using words = typename Reals::words;
  const block_routes<Reals::lanes>& routes;
  ADAPTIVE_K_INLINE words expert(int rank) const noexcept {
    return words::load(routes.expert[rank]);
  }
  ADAPTIVE_K_INLINE Reals weight(int rank) const noexcept {
    return Reals::load(routes.weight[rank]);
  }
  ADAPTIVE_K_INLINE words count() const noexcept { return words::load(routes.count); }
  ADAPTIVE_K_INLINE words chosen() const noexcept { return words::load(routes.chosen); }
  ADAPTIVE_K_INLINE Reals signal() const noexcept { return Reals::load(routes.signal); }
};
template <int MaxTopK, class Reals>
struct held_routes {
  using words = typename Reals::words;
  const token_route<MaxTopK, Reals>& route;
  ADAPTIVE_K_INLINE words expert(int rank) const noexcept { return route.expert[rank]; }
  ADAPTIVE_K_INLINE Reals weight(int rank) const noexcept { return route.weight[rank]; }
  ADAPTIVE_K_INLINE words count() const noexcept { return route.count; }
  ADAPTIVE_K_INLINE words chosen() const noexcept { return route.chosen; }
  ADAPTIVE_K_INLINE Reals signal() const noexcept { return route.signal; }
};

/// The first expert is always kept.
template <class Reals, class Routes>
struct kept_weights {
  const Routes& routes;
  typename Reals::words count;
  ADAPTIVE_K_INLINE Reals at(int rank) const noexcept {
    const Reals weight = routes.weight(rank);
    return rank == 0 ? weight : Reals::select(count > typename Reals::words(rank), weight, 0.0f);
  }
};

/// Ids as bits of floats, so that one transposition serves both.
template <class Reals, class Routes>
struct kept_ids {
  using words = typename Reals::words;
  const Routes& routes;
  words count;
  words filler;
  ADAPTIVE_K_INLINE Reals at(int rank) const noexcept {
    const words expert = routes.expert(rank);
    return Reals::from_bits(rank == 0 ? expert
                                      : words::select(count > words(rank), expert, filler));
  }
};

/// Writes a block's decisions from `token` on. `ranks` is a loop_count of K0.
template <class Reals, class Routes, class Ranks>
ADAPTIVE_K_INLINE void write_block(const Routes& routes, Ranks ranks, bool fill_first,
                                   int fixed_filler, std::int64_t token,
                                   const routing_output<std::int32_t, float>& output) noexcept {
  using words = typename Reals::words;
  const int top_k = ranks;
  const words count = routes.count();
  const words filler = fill_first ? routes.expert(0) : words(fixed_filler);
  const kept_weights<Reals, Routes> weights = {routes, count};
  const kept_ids<Reals, Routes> ids = {routes, count, filler};
  transpose_ranks<Reals>(weights, ranks, output.topk_weights + token * top_k);
  transpose_ranks<Reals>(ids, ranks, reinterpret_cast<float*>(output.topk_ids + token * top_k));
  if (output.topk_counts != nullptr)
    words::store(reinterpret_cast<std::uint32_t*>(output.topk_counts + token), count);
  if (output.chosen_counts != nullptr)
    words::store(reinterpret_cast<std::uint32_t*>(output.chosen_counts + token), routes.chosen());
  if (output.signal != nullptr) Reals::store(output.signal + token, routes.signal());
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
