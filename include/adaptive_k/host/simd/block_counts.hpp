// What blocks of tokens count, lane by lane, until there are too many for the small fields.
#pragma once

#include <cstdint>
#include <cstring>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/simd/lanes.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Fields of 4 bits hold the counts of so many blocks; 2^31 the fixed-point entropies of as many.
inline constexpr int most_counted_blocks = 15;
/// Up to this K0, block_counts counts k; up to twice as many experts, experts.
inline constexpr int fields_of_word = 8;

/// Counts of up to most_counted_blocks blocks. Lanes that a set of vectors does not have stay 0.
struct block_counts {
  static constexpr int most_lanes = 16;
  alignas(64) std::uint32_t k[most_lanes];           ///< field k - 1: tokens with that k
  alignas(64) std::uint32_t experts[2][most_lanes];  ///< field e % 8 of word e / 8: its tokens
  alignas(64) std::uint32_t signal[most_lanes];      ///< sum in units of 2^-24
  alignas(64) float lowest[most_lanes];
  alignas(64) float highest[most_lanes];
  int blocks;
};

/// Kept experts of a block that wait to be counted one by one, a few at a time between operations
/// on vectors: a processor does both at once.
template <int TopK, int Lanes>
struct waiting_counts {
  static constexpr int few = 2 * TopK;
  alignas(64) std::uint32_t expert[TopK * Lanes];
  int waiting = 0;

  ADAPTIVE_K_INLINE void count_few(std::uint32_t* expert_counts) noexcept {
    if (waiting == 0) return;
    waiting -= few;
    const std::uint32_t* const last = expert + waiting;
    for (int i = 0; i < few; ++i) ++expert_counts[last[i]];
  }
  ADAPTIVE_K_INLINE void count_all(std::uint32_t* expert_counts) noexcept {
    while (waiting != 0) count_few(expert_counts);
  }
  /// Experts that are not kept count where none is, in another place for each lane.
  template <class Reals>
  ADAPTIVE_K_INLINE void add(const token_route<TopK, Reals>& route) noexcept {
    using words = typename Reals::words;
    const words nowhere = words::lane() + words(max_experts);
    for (int j = 0; j < TopK; ++j)
      words::store(expert + j * Lanes,
                   j == 0 ? route.expert[0]
                          : words::select(route.count > words(j), route.expert[j], nowhere));
    waiting = TopK * Lanes;
  }
};

/// Adds a decided block whose signal is the entropy. Where there are no fields for its experts,
/// they wait.
template <int TopK, int Experts, class Reals>
ADAPTIVE_K_INLINE void count_block(const token_route<TopK, Reals>& route, block_counts& counts,
                                   waiting_counts<TopK, Reals::lanes>& waiting) noexcept {
  using words = typename Reals::words;
  static_assert(TopK <= fields_of_word && Experts <= 2 * fields_of_word, "fields for all");
  const auto add = [](std::uint32_t* to, const words& number)
                       ADAPTIVE_K_INLINE_LAMBDA { words::store(to, words::load(to) + number); };
  const words one = 1;
  if constexpr (Experts != 0) {
    for (int word = 0; word * fields_of_word < Experts; ++word) {
      words sum = words::load(counts.experts[word]);
      for (int j = 0; j < TopK; ++j) {
        const words shift = (route.expert[j] - words(word * fields_of_word)) << 2;
        // A shift of 32 or more, and so a negative one, leaves nothing.
        const words field = words::shift_left(one, shift);
        sum = sum + (j == 0 ? field : words::select(route.count > words(j), field, words(0)));
      }
      words::store(counts.experts[word], sum);
    }
  } else {
    waiting.add(route);
  }
  add(counts.k, words::shift_left(one, (route.count - one) << 2));
  add(counts.signal, Reals::truncate(route.signal * Reals(static_cast<float>(signal_scale))));
  Reals::store(counts.lowest, Reals::smaller(Reals::load(counts.lowest), route.signal));
  Reals::store(counts.highest, Reals::larger(Reals::load(counts.highest), route.signal));
  ++counts.blocks;
}

/// Adds the sums over all lanes of a word's eight fields to `to`.
inline void add_fields(const std::uint32_t (&lanes)[block_counts::most_lanes],
                       std::uint32_t* to) noexcept {
  constexpr std::uint64_t low_fields = 0x0F0F0F0F0F0F0F0Fu;
  std::uint64_t even = 0;  // by bytes, 16 x 15 at most when the halves are added up
  std::uint64_t odd = 0;
  for (int lane = 0; lane < block_counts::most_lanes; lane += 2) {
    std::uint64_t two;
    std::memcpy(&two, lanes + lane, sizeof two);
    even += two & low_fields;
    odd += two >> 4 & low_fields;
  }
  even += even >> 32;
  odd += odd >> 32;
  for (int pair = 0; pair < fields_of_word / 2; ++pair) {
    to[2 * pair] += static_cast<std::uint32_t>(even >> (8 * pair) & 0xFFu);
    to[2 * pair + 1] += static_cast<std::uint32_t>(odd >> (8 * pair) & 0xFFu);
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
