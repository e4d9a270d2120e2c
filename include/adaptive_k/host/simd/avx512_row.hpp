// One token's experts in vectors of 16, its best ones found by merging sorted lists of neighbouring
// lanes: for AVX-512.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/top_k_network.hpp"

#if ADAPTIVE_K_HAS_AVX512

#include <immintrin.h>

#include <cstdint>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Which key of a list comes first: the largest, or the least.
enum class key_order { down, up };

/// Lists of keys, of 4 in each quarter of a vector or of 8 in two quarters, sorted down, or up
/// where a name says so: of two lists in opposite orders the best are found lane by lane.
class avx512_lists {
  using words = avx512_words;

 public:
  /// The best of all keys that were dropped, lane by lane, if there are any.
  words lost;
  bool any_lost;

  /// The best 4 of each pair of lists.
  template <key_order Order = key_order::down>
  ADAPTIVE_K_AVX512_INLINE words best_4(words a, words up_b) noexcept {
    return sort_quarters<Order>(keep(a, up_b));
  }
  /// All 8 of each pair of lists: the best four in a, the others in b.
  template <key_order Order = key_order::down>
  static ADAPTIVE_K_AVX512_INLINE void merge_8(words& a, words& up_b) noexcept {
    const words others = words::smaller(a, up_b);
    a = sort_quarters<Order>(words::larger(a, up_b));
    up_b = sort_quarters<Order>(others);
  }
  /// The best 8 of each two lists of 8, whose best four are in a and c.
  ADAPTIVE_K_AVX512_INLINE void best_8(words& a, words& b, words up_c, words up_d) noexcept {
    const words first = keep(a, up_d);
    const words last = keep(b, up_c);
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
    eight = sort_quarters(
        in_order<key_order::down, 0x00FF>(eight, reverse_quarters(swap_halves(eight))));
    eight = keep(eight, reverse(eight));
    eight = sort_quarters(in_order<key_order::down, 0x00FF>(eight, swap_halves(eight)));
    return _mm512_maskz_shuffle_i32x4(0xFFFF, eight.value, eight.value, 0x88);  // quarters 0 and 2
  }

 private:
  ADAPTIVE_K_AVX512_INLINE words keep(words a, words b) noexcept {
    const words dropped = words::smaller(a, b);
    lost = any_lost ? words::larger(lost, dropped) : dropped;
    any_lost = true;
    return words::larger(a, b);
  }
  /// Sorts what is bitonic in each quarter.
  template <key_order Order = key_order::down>
  static ADAPTIVE_K_AVX512_INLINE words sort_quarters(words a) noexcept {
    const words across = _mm512_maskz_shuffle_epi32(0xFFFF, a.value, _MM_PERM_BADC);
    a = in_order<Order, 0x3333>(a, across);
    const words beside = _mm512_maskz_shuffle_epi32(0xFFFF, a.value, _MM_PERM_CDAB);
    return in_order<Order, 0x5555>(a, beside);
  }
  /// What comes first of each two in the lanes of First, the other one elsewhere.
  template <key_order Order, __mmask16 First>
  static ADAPTIVE_K_AVX512_INLINE words in_order(words a, words b) noexcept {
    if constexpr (Order == key_order::down)
      return _mm512_mask_max_epu32(words::smaller(a, b).value, First, a.value, b.value);
    else
      return _mm512_mask_min_epu32(words::larger(a, b).value, First, a.value, b.value);
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

/// From lists of 4 in the lanes of four vectors, largest first, to lists in the quarters of each
/// vector; those of the second and the fourth are turned round.
ADAPTIVE_K_AVX512_INLINE void lists_to_quarters(const avx512_words (&lists)[4],
                                                avx512_words (&quarters)[4]) noexcept {
  constexpr __mmask16 whole = 0xFFFF;
  const __m512 first = _mm512_castsi512_ps(lists[0].value);
  const __m512 second = _mm512_castsi512_ps(lists[1].value);
  const __m512 third = _mm512_castsi512_ps(lists[2].value);
  const __m512 fourth = _mm512_castsi512_ps(lists[3].value);
  const __m512 a = _mm512_maskz_unpacklo_ps(whole, first, second);
  const __m512 b = _mm512_maskz_unpackhi_ps(whole, first, second);
  const __m512 c = _mm512_maskz_unpacklo_ps(whole, third, fourth);
  const __m512 d = _mm512_maskz_unpackhi_ps(whole, third, fourth);
  quarters[0] = _mm512_castps_si512(_mm512_maskz_shuffle_ps(whole, a, c, 0x44));
  quarters[1] = _mm512_castps_si512(_mm512_maskz_shuffle_ps(whole, c, a, 0xBB));
  quarters[2] = _mm512_castps_si512(_mm512_maskz_shuffle_ps(whole, b, d, 0x44));
  quarters[3] = _mm512_castps_si512(_mm512_maskz_shuffle_ps(whole, d, b, 0xBB));
}

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

/// Rows in groups of four vectors: which lanes of the last group have an expert, by E % 64.
struct avx512_row_tables {
  static constexpr int lanes = 16;
  static constexpr int group = 4 * lanes;
  std::uint16_t present[group][4] = {};

  constexpr avx512_row_tables() noexcept {
    for (int rest = 0; rest < group; ++rest)
      for (int i = 0; i < group; ++i)
        if (rest == 0 || i < rest)
          present[rest][i / lanes] =
              static_cast<std::uint16_t>(present[rest][i / lanes] | 1u << (i % lanes));
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

  avx2_words expert;  ///< rank j in lane j

  /// Whether a logit is NaN, or keys do not tell some of the best from the next one.
  ADAPTIVE_K_AVX512_INLINE bool is_unsure() const noexcept {
    return !_mm512_kortestz(_mm512_kor(neighbours_, nan_), lost_);
  }
  ADAPTIVE_K_AVX512_INLINE bool has_nan() const noexcept { return nan_ != 0; }
  /// Those they do not tell, a bit each: rank j, and of the last one's which is not among the best.
  ADAPTIVE_K_AVX512_INLINE std::uint32_t ties() const noexcept {
    return (neighbours_ & ((1u << (TopK - 1)) - 1u)) | (lost_ != 0 ? 1u << (TopK - 1) : 0u);
  }

  /// Sums over all experts, in all lanes.
  ADAPTIVE_K_AVX512_INLINE score_sums<avx2_reals> sums() const noexcept {
    return fold_wide_slots(scores_, logs_);
  }

  /// Fills it, and `score` [num_experts, rounded up to groups]. False: a logit is not as Logits
  /// says; NaN may be left to has_nan().
  template <logits_are Logits>
  ADAPTIVE_K_AVX512_INLINE bool rank(const float* row, int num_experts, float* score) noexcept {
    if constexpr (Logits == logits_are::close)
      if (num_experts > group - lanes && num_experts <= group)
        return rank_groups<1, Logits>(row, num_experts, score);
    return rank_groups<0, Logits>(row, num_experts, score);
  }

 private:
  /// Groups is 1 where there is one, of which only the last vector may have gaps, else 0.
  template <int Groups, logits_are Logits>
  ADAPTIVE_K_AVX512_INLINE bool rank_groups(const float* row, int num_experts,
                                            float* score) noexcept {
    constexpr int whole = Groups == 1 ? 3 : 0;
    const int groups = Groups != 0 ? Groups : (num_experts + group - 1) / group;
    const std::uint16_t* const in_last =
        row_tables.present[static_cast<unsigned>(num_experts) % group];
    const auto present = [&](int g, int i) ADAPTIVE_K_INLINE_LAMBDA {
      return avx512_mask{g + 1 < groups ? __mmask16{0xFFFF} : __mmask16{in_last[i]}};
    };
    const auto load = [&](int g, auto i) ADAPTIVE_K_INLINE_LAMBDA {
      const float* const from = row + g * group + i * lanes;
      return i < whole ? reals::load(from) : load_present(from, present(g, i));
    };
    reals largest;
    for (int g = 0; g < groups; ++g) {
      const reals here = reals::larger(reals::larger(load(g, first_), load(g, second_)),
                                       reals::larger(load(g, third_), load(g, fourth_)));
      largest = g == 0 ? here : reals::larger(here, largest);
    }
    const reals to_distance = to_distances(largest_of_lanes(largest));

    constexpr int indices = Groups == 1 ? group : most_lane_experts;
    const distance_keys<reals> keys(indices);
    const std::uint32_t* const inverted = keys.inverted();
    const auto distance_of = [&](int g, auto i) ADAPTIVE_K_INLINE_LAMBDA {
      // Where there is no expert the score is 0, and the key below those of all there are.
      return i < whole
                 ? load(g, i) + to_distance
                 : reals::add_or(present(g, i), load(g, i), to_distance, least_distance<Logits>);
    };
    const auto key_of = [&](const reals& distance, int g, auto i) ADAPTIVE_K_INLINE_LAMBDA {
      return keys.key_of(distance, words::load(inverted + g * group + i * lanes));
    };
    const auto score_of = [&](const reals& distance, int g, auto i) ADAPTIVE_K_INLINE_LAMBDA {
      const auto s = score_of_distance<Logits>(distance);
      reals::store(score + g * group + i * lanes, s.score);
      return s;
    };
    words best[4] = {0u, 0u, 0u, 0u};  // set by the first group, which g++ does not see
    words lost = 0u;
    words least;
    nan_ = 0;
    for (int g = 0; g < groups; ++g) {
      const reals da = distance_of(g, first_), db = distance_of(g, second_);
      const reals dc = distance_of(g, third_), dd = distance_of(g, fourth_);
      words list[4] = {key_of(da, g, first_), key_of(db, g, second_), key_of(dc, g, third_),
                       key_of(dd, g, fourth_)};
      if constexpr (Logits != logits_are::close)  // whose scores hide them
        nan_ = static_cast<__mmask16>(nan_ | unordered(da, db) | unordered(dc, dd));
      const auto a = score_of(da, g, first_), b = score_of(db, g, second_);
      const auto c = score_of(dc, g, third_), d = score_of(dd, g, fourth_);
      scores_[0] = (g == 0 ? a.score : scores_[0] + a.score) + c.score;
      scores_[1] = (g == 0 ? b.score : scores_[1] + b.score) + d.score;
      const reals none = 0.0f;
      logs_[0] = reals::fma(a.score, a.log_score, g == 0 ? none : logs_[0]);
      logs_[1] = reals::fma(b.score, b.log_score, g == 0 ? none : logs_[1]);
      logs_[0] = reals::fma(c.score, c.log_score, logs_[0]);
      logs_[1] = reals::fma(d.score, d.log_score, logs_[1]);
      // Of eight best, more than four in a lane are so rare that they are left to another path.
      sort_keys(list);
      least = g == 0 ? list[3] : words::smaller(least, list[3]);
      if (g == 0)
        copy_keys<0>(list, best, std::make_index_sequence<4>());
      else
        keep_best(best, list, lost);
    }
    // -inf is less than that, and NaN with a sign.
    if (math::any(least < keys.key_of(least_distance<Logits>, 0u))) return false;
    nan_ |= unordered(scores_[0], scores_[1]);
    choose(best, lost, Groups != 1, keys.low_bits);
    return true;
  }

  // A group's vectors, as constants that lambdas can take.
  static constexpr std::integral_constant<int, 0> first_ = {};
  static constexpr std::integral_constant<int, 1> second_ = {};
  static constexpr std::integral_constant<int, 2> third_ = {};
  static constexpr std::integral_constant<int, 3> fourth_ = {};

  static ADAPTIVE_K_AVX512_INLINE __mmask16 unordered(reals a, reals b) noexcept {
    return _mm512_cmp_ps_mask(a.value, b.value, _CMP_UNORD_Q);
  }
  static ADAPTIVE_K_AVX512_INLINE reals load_present(const float* from,
                                                     avx512_mask present) noexcept {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-math::infinity), present.bits, from);
  }

  /// From the best four of each lane to the best of all.
  ADAPTIVE_K_AVX512_INLINE void choose(const words (&best)[4], const words& lost, bool any_lost,
                                       int low_bits) noexcept {
    words v[4];
    lists_to_quarters(best, v);
    avx512_lists lists;
    lists.lost = lost;
    lists.any_lost = any_lost;
    words chosen;
    if constexpr (TopK == 4) {
      const words half = lists.best_4(v[0], v[1]);
      chosen = lists.best_4(lists.best_4(half, lists.best_4<key_order::up>(v[2], v[3])));
    } else {
      lists.merge_8(v[0], v[1]);
      lists.merge_8<key_order::up>(v[2], v[3]);
      lists.best_8(v[0], v[1], v[2], v[3]);
      chosen = lists.best_8(v[0], v[1]);
    }
    const words low = low_bits;
    expert = low_part<__m256i>(words::and_not(chosen, low).value);
    words next, last;  // what comes next of the last one is the first: they tie where all do
    if constexpr (TopK == 4) {
      next = _mm512_maskz_shuffle_epi32(0xFFFF, chosen.value, _MM_PERM_ADCB);
      last = _mm512_maskz_shuffle_epi32(0xFFFF, chosen.value, _MM_PERM_DDDD);
    } else {
      const __m512i after = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0);
      next = _mm512_maskz_permutexvar_epi32(0xFFFF, after, chosen.value);
      last = _mm512_maskz_permutexvar_epi32(0xFFFF, _mm512_set1_epi32(7), chosen.value);
    }
    neighbours_ = _mm512_cmple_epu32_mask((chosen ^ next).value, low.value);
    lost_ = _mm512_cmpge_epu32_mask(lists.lost.value, (last & words(~low_bits)).value);
  }

  reals scores_[2];
  reals logs_[2];
  __mmask16 nan_;
  __mmask16 neighbours_;
  __mmask16 lost_;
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
