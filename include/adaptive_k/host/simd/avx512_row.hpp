// One token's experts in vectors of 16, its best ones found by merging sorted lists of neighbouring
// lanes: for AVX-512.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/top_k_network.hpp"

#if ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Sorted lists of keys, largest first: of 4 in each quarter of a vector, or of 8 in two quarters.
class avx512_lists {
  using words = avx512_words;

 public:
  /// The best of all keys that were dropped, lane by lane.
  words lost = 0u;

  /// The best 4 of each pair of lists.
  ADAPTIVE_K_AVX512_INLINE words best_4(words a, words b) noexcept {
    return sort_quarters(keep(a, reverse_quarters(b)));
  }
  /// All 8 of each pair of lists: the first four in a, the others in b.
  static ADAPTIVE_K_AVX512_INLINE void merge_8(words& a, words& b) noexcept {
    const words others = reverse_quarters(b);
    b = sort_quarters(words::smaller(a, others));
    a = sort_quarters(words::larger(a, others));
  }
  /// The best 8 of each two lists of 8, whose first four are in a and c.
  ADAPTIVE_K_AVX512_INLINE void best_8(words& a, words& b, words c, words d) noexcept {
    const words first = keep(a, reverse_quarters(d));
    const words last = keep(b, reverse_quarters(c));
    a = sort_quarters(words::larger(first, last));
    b = sort_quarters(words::smaller(first, last));
  }

  /// From lists in the four quarters to one that is in all of them.
  ADAPTIVE_K_AVX512_INLINE words best_4(words a) noexcept {
    a = sort_quarters(keep(a, reverse_quarters(swap_halves(a))));
    return sort_quarters(keep(a, reverse(a)));
  }
  /// From lists of 8 in the quarters of a and b to one, in the first eight lanes.
  ADAPTIVE_K_AVX512_INLINE words best_8(words a, words b) noexcept {
    // Each half has the first four of a bitonic sequence of 8, or the last four, turned round.
    words eight = keep(a, reverse_quarters(swap_halves(b)));
    eight = sort_quarters(part_halves(eight, reverse_quarters(swap_halves(eight))));
    eight = keep(eight, reverse(eight));
    eight = sort_quarters(part_halves(eight, swap_halves(eight)));
    return _mm512_maskz_shuffle_i32x4(0xFFFF, eight.value, eight.value, 0x88);  // quarters 0 and 2
  }

 private:
  ADAPTIVE_K_AVX512_INLINE words keep(words a, words b) noexcept {
    lost = words::larger(lost, words::smaller(a, b));
    return words::larger(a, b);
  }
  /// The larger of each two in the lower half, the smaller in the upper.
  static ADAPTIVE_K_AVX512_INLINE words part_halves(words a, words b) noexcept {
    return _mm512_mask_max_epu32(words::smaller(a, b).value, 0x00FF, a.value, b.value);
  }
  /// Sorts what is bitonic in each quarter.
  static ADAPTIVE_K_AVX512_INLINE words sort_quarters(words a) noexcept {
    const words far = _mm512_maskz_shuffle_epi32(0xFFFF, a.value, _MM_PERM_BADC);
    a = _mm512_mask_max_epu32(words::smaller(a, far).value, 0x3333, a.value, far.value);
    const words near = _mm512_maskz_shuffle_epi32(0xFFFF, a.value, _MM_PERM_CDAB);
    return _mm512_mask_max_epu32(words::smaller(a, near).value, 0x5555, a.value, near.value);
  }
  static ADAPTIVE_K_AVX512_INLINE words reverse_quarters(words a) noexcept {
    return _mm512_maskz_shuffle_epi32(0xFFFF, a.value, _MM_PERM_ABCD);
  }
  static ADAPTIVE_K_AVX512_INLINE words swap_halves(words a) noexcept {
    return _mm512_maskz_shuffle_i32x4(0xFFFF, a.value, a.value, 0x4E);
  }
  static ADAPTIVE_K_AVX512_INLINE words reverse(words a) noexcept {
    const __m512i index = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_maskz_permutexvar_epi32(0xFFFF, index, a.value);
  }
};

/// Sums over the 32 slots, in all lanes, in the one reduction order.
ADAPTIVE_K_AVX512_INLINE score_sums<avx2_reals> fold_wide_slots(
    const avx512_reals (&score)[2], const avx512_reals (&log)[2]) noexcept {
  // score and log of the first vector, then of the second, in each quarter.
  avx512_reals sums = avx512_reals::add_neighbours(avx512_reals::add_neighbours(score[0], log[0]),
                                                   avx512_reals::add_neighbours(score[1], log[1]));
  sums = sums + avx512_reals::exchange<4>(sums);
  sums = sums + avx512_reals::exchange<8>(sums);
  const avx2_reals each = low_part<__m256>(sums.value);
  const avx2_reals both = each + avx2_reals::exchange<2>(each);
  return {avx2_reals::each_first<0>(both), avx2_reals::each_first<1>(both)};
}

/// Rows in groups of four vectors: which lanes of the last group have an expert, by E % 64; and the
/// inverted index of each place, which keys end in.
struct avx512_row_tables {
  static constexpr int lanes = 16;
  static constexpr int group = 4 * lanes;
  std::uint16_t present[group][4] = {};
  alignas(64) std::uint32_t inverted[most_lane_experts] = {};

  constexpr avx512_row_tables() noexcept {
    for (int rest = 0; rest < group; ++rest)
      for (int i = 0; i < group; ++i)
        if (rest == 0 || i < rest)
          present[rest][i / lanes] =
              static_cast<std::uint16_t>(present[rest][i / lanes] | 1u << (i % lanes));
    for (int i = 0; i < most_lane_experts; ++i)
      inverted[i] = static_cast<std::uint32_t>(most_lane_experts - 1 - i);
  }
};
inline constexpr avx512_row_tables row_tables;

/// The best TopK = 4 or 8 experts of a row of up to most_lane_experts.
template <int TopK>
struct avx512_row {
  static_assert(TopK == 4 || TopK == 8, "as avx512_lists has them");
  using reals = avx512_reals;
  using words = avx512_words;
  static constexpr int lanes = avx512_row_tables::lanes;
  static constexpr int group = avx512_row_tables::group;

  avx2_reals entropy;      ///< in all lanes
  avx2_words expert;       ///< rank j in lane j
  std::uint32_t in_doubt;  ///< bit j: rank j and the next cannot be told apart by keys

  /// Fills it, and `score` [num_experts, rounded up to groups]. False: a logit is not finite.
  ADAPTIVE_K_AVX512_INLINE bool rank(const float* row, int num_experts, float* score) noexcept {
    return num_experts <= group ? rank_groups<1>(row, num_experts, score)
                                : rank_groups<0>(row, num_experts, score);
  }

 private:
  /// Groups is their number where it is known to the compiler, else 0.
  template <int Groups>
  ADAPTIVE_K_AVX512_INLINE bool rank_groups(const float* row, int num_experts,
                                            float* score) noexcept {
    const int groups = Groups != 0 ? Groups : (num_experts + group - 1) / group;
    const std::uint16_t* const in_last =
        row_tables.present[static_cast<unsigned>(num_experts) % group];
    const auto present = [&](int g) ADAPTIVE_K_INLINE_LAMBDA {
      return g + 1 < groups ? row_tables.present[0] : in_last;
    };
    reals largest = -math::infinity;
    reals not_finite = 0.0f;
    reals logit[4];  // of the last group
    for (int g = 0; g < groups; ++g) {
      const std::uint16_t* const mask = present(g);
      each_of<4>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
        const avx512_mask present_here = {mask[i]};
        logit[i] = load(row + g * group + i * lanes, present_here);
        not_finite = reals::add_where(present_here, not_finite, logit[i]);
      });
      largest = reals::larger(
          reals::larger(reals::larger(logit[0], logit[1]), reals::larger(logit[2], logit[3])),
          largest);
    }
    if (math::any(not_finite * reals(0.0f) != reals(0.0f))) return false;
    const reals to_distance = to_distances(largest_of_lanes(largest));

    constexpr int indices = Groups == 1 ? group : most_lane_experts;
    const distance_keys<reals> keys(indices);
    const std::uint32_t* const inverted = row_tables.inverted + most_lane_experts - indices;
    reals scores[2], logs[2];
    words best[4];
    words lost = 0u;
    for (int g = 0; g < groups; ++g) {
      const std::uint16_t* const mask = present(g);
      words list[4];
      reals sums_of[4], logs_of[4];
      each_of<4>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
        const int first = g * group + i * lanes;
        if constexpr (Groups != 1) logit[i] = load(row + first, {mask[i]});
        const auto s = score_and_key(logit[i], to_distance, keys, words::load(inverted + first));
        reals::store(score + first, s.score);
        sums_of[i] = s.score;
        logs_of[i] = s.log_score;
        list[i] = s.key;
      });
      each_of<2>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
        scores[i] = g == 0 ? sums_of[i] : scores[i] + sums_of[i];
        logs[i] = reals::fma(sums_of[i], logs_of[i], g == 0 ? reals(0.0f) : logs[i]);
        scores[i] = scores[i] + sums_of[i + 2];
        logs[i] = reals::fma(sums_of[i + 2], logs_of[i + 2], logs[i]);
      });
      // Of eight best, more than four in a lane are so rare that they are left to another path.
      keep_best_of(list, g == 0, best, lost);
    }
    const auto sums = fold_wide_slots(scores, logs);
    entropy = entropy_nats(sums.score, sums.score_log_score);
    choose(best, lost, keys.low_bits);
    return true;
  }

  static ADAPTIVE_K_AVX512_INLINE reals load(const float* from, avx512_mask present) noexcept {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-math::infinity), present.bits, from);
  }

  /// From the best four of each lane to the best of all.
  ADAPTIVE_K_AVX512_INLINE void choose(words (&best)[4], const words& lost, int low_bits) noexcept {
    reals list[4];
    for (int i = 0; i < 4; ++i) list[i] = reals::from_bits(best[i]);
    reals::transpose_quarters(list);
    words v[4];
    for (int i = 0; i < 4; ++i) v[i] = reals::to_bits(list[i]);
    avx512_lists lists;
    lists.lost = lost;
    words chosen;
    if constexpr (TopK == 4) {
      chosen = lists.best_4(lists.best_4(lists.best_4(v[0], v[1]), lists.best_4(v[2], v[3])));
    } else {
      lists.merge_8(v[0], v[1]);
      lists.merge_8(v[2], v[3]);
      lists.best_8(v[0], v[1], v[2], v[3]);
      chosen = lists.best_8(v[0], v[1]);
    }
    const avx2_words key = low_part<__m256i>(chosen.value);
    const avx2_words low = low_bits;
    expert = low - (key & low);
    const __m256i next =
        _mm256_maskz_permutexvar_epi32(0xFF, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 7), key.value);
    in_doubt = _mm256_cmple_epu32_mask((key ^ avx2_words(next)).value, low.value) &
               ((1u << (TopK - 1)) - 1u);
    const words last =
        words(_mm512_maskz_permutexvar_epi32(0xFFFF, _mm512_set1_epi32(TopK - 1), chosen.value)) &
        words(~low_bits);
    if (_mm512_cmpge_epu32_mask(lists.lost.value, last.value) != 0) in_doubt |= 1u << (TopK - 1);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
