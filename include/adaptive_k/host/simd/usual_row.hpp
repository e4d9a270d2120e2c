// One token of the usual call (core/usual_call.hpp), its experts in the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/usual_call.hpp"
#include "adaptive_k/host/simd/distance_keys.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/usual_pair.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Sums over the 32 slots, 32 / lanes vectors of each kind, in all lanes.
template <class Reals, int Parts>
ADAPTIVE_K_INLINE score_sums<Reals> fold_slots(Reals (&score)[Parts],
                                               Reals (&log)[Parts]) noexcept {
  if constexpr (Reals::lanes == 8) {
    const auto by_vector = [](const Reals(&v)[Parts]) ADAPTIVE_K_INLINE_LAMBDA {
      const Reals halves = Reals::add_neighbours(Reals::add_neighbours(v[0], v[1]),
                                                 Reals::add_neighbours(v[2], v[3]));
      return halves + Reals::template exchange<4>(halves);
    };
    const Reals pairs = Reals::add_neighbours(by_vector(score), by_vector(log));
    const Reals both = Reals::add_neighbours(pairs, pairs);
    return {Reals::template each_first<0>(both), Reals::template each_first<1>(both)};
  } else {
    for (int i = 0; i < Parts; ++i) {
      score[i] = sum_of_lanes(score[i]);
      log[i] = sum_of_lanes(log[i]);
    }
    for (int count = Parts / 2; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) {
        score[i] = score[2 * i] + score[2 * i + 1];
        log[i] = log[2 * i] + log[2 * i + 1];
      }
    return {score[0], log[0]};
  }
}

/// A row's entropy, in all lanes, and its best experts.
template <int TopK, class Reals>
struct ranked_row {
  Reals entropy;
  Reals score = 1.0f;  ///< rank j's in lane j
  Reals mass = 1.0f;   ///< the sum of the first j + 1 in lane j
  Reals total = 1.0f;  ///< the last of them, in all lanes
  alignas(4 * TopK) std::uint32_t expert[TopK];
  typename Reals::words experts = 0u;  ///< the same in lanes, where K0 > 2

  /// Rank Rank's score, in all lanes.
  template <int Rank>
  ADAPTIVE_K_INLINE void add_score(const Reals& own) noexcept {
    total = total + own;
    score = Reals::template lanes_from<Rank>(own, score);
    mass = Reals::template lanes_from<Rank>(total, mass);
  }
  /// Those of all ranks but the first, whose score is 1, from `scores` by expert.
  template <int Rank = 1>
  ADAPTIVE_K_INLINE void add_scores(const float* scores) noexcept {
    if constexpr (Rank < TopK) {
      add_score<Rank>(Reals::broadcast(scores + expert[Rank]));
      add_scores<Rank + 1>(scores);
    }
  }
};

/// Whether a target ranks whole rows by vectors of its own.
template <class Target, int TopK, class = void>
inline constexpr bool has_wide_row = false;
template <class Target, int TopK>
inline constexpr bool
    has_wide_row<Target, TopK, std::void_t<typename Target::template wide_row<TopK>>> = TopK >= 4;

/// A decided row.
template <int TopK, class Reals>
struct row_decision {
  Reals weight;        ///< rank j in lane j, 0 past k_t
  std::uint64_t rank;  ///< k_t - 1
  float signal;
  alignas(4 * TopK) std::uint32_t expert[TopK];
  typename Reals::words experts;  ///< the same in lanes

  int k() const noexcept { return static_cast<int>(rank) + 1; }
};

template <int TopK, class Reals>
using decision_of = std::conditional_t<TopK == 2, decided_pair<Reals>, row_decision<TopK, Reals>>;

/// What scores become weights by, for each k in lane k - 1, where not all of the mass is restored.
template <int TopK>
struct other_factors {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    /// `mass` [lanes]: what each k keeps.
    static ADAPTIVE_K_INLINE void run(const usual_rule* rule, const float* mass,
                                      float* factor) noexcept {
      using words = typename reals::words;
      const usual_gating<TopK> model = {rule->num_experts, rule->scale};
      const reals unused = 1.0f;  // renormalised, and no score is lifted
      reals::store(factor, weight_factor<gating_kind::softmax>(
                               model, *rule, reals::load(mass), reals(mass[TopK - 1]), unused,
                               words::lane() < words(TopK - 1), unused));
    }
  };
};

/// Which rows a usual_row decides.
enum class row_kind {
  common,  ///< all of the mass is restored, and logits are close; of others only the latter is seen
  any,     ///< of finite logits
};

/// Decides one token of K0 = TopK and E up to most_lane_experts; Experts is E where it is known to
/// the compiler, else 0. False: it could not, as the row is not of the kind, or keys are too short
/// to tell neighbours.
template <int TopK, int Experts, row_kind Kind, class Target>
class usual_row {
  using reals = typename Target::row_reals;
  using words = typename reals::words;
  using ranking = ranked_row<TopK, reals>;
  static constexpr auto logits =
      Kind == row_kind::common ? logits_are::close : logits_are::ordinary;
  static constexpr int lanes = reals::lanes;
  static constexpr int parts = reduction_slots / lanes;
  /// Vectors a step: all slots, and whole lists.
  static constexpr int span = TopK > parts ? TopK : parts;
  static_assert(TopK <= lanes, "a rank a lane");

 public:
  static ADAPTIVE_K_INLINE bool decide(const usual_rule& rule, const float* row,
                                       row_decision<TopK, reals>& made) noexcept {
    ranking ranked;
    if constexpr (has_wide_row<Target, TopK>) {
      if (!rank_wide(row, rule.num_experts, ranked)) return false;
    } else {
      if (!rank(row, rule.num_experts, ranked)) return false;
    }
    finish(rule, ranked, made);
    return true;
  }
  static ADAPTIVE_K_INLINE bool decide(const usual_rule& rule, const float* row,
                                       decided_pair<reals>& made) noexcept {
    const int num_experts = Experts != 0 ? Experts : rule.num_experts;
    ranked_pair<reals> pair;
    if (num_experts <= lanes) {
      if (!pair.template rank<Experts, logits>(row, num_experts)) return false;
    } else if constexpr (Experts == 0 || Experts > lanes) {
      ranking ranked;
      if (!rank(row, num_experts, ranked)) return false;
      pair.entropy = ranked.entropy;
      pair.second = reals::broadcast(ranked.score, 1);
      pair.expert[0] = ranked.expert[0];
      pair.expert[1] = ranked.expert[1];
    }
    finish(rule, pair, made);
    return true;
  }

 private:
  static ADAPTIVE_K_INLINE bool rank(const float* row, int num_experts, ranking& ranked) noexcept {
    alignas(64) float score[most_lane_experts];
    const int whole = num_experts / lanes;
    const int rest = num_experts % lanes;
    reals largest = -math::infinity;
    reals not_finite = 0.0f;  // NaN or infinite where a logit is
    for (int v = 0; v < whole; ++v) {
      const reals logit = reals::load(row + v * lanes);
      largest = reals::larger(logit, largest);
      not_finite = not_finite + logit;
    }
    reals tail = -math::infinity;
    if (rest != 0) {
      tail = load_tail<reals>(row + whole * lanes, rest);
      largest = reals::larger(tail, largest);
      not_finite = not_finite + reals::load_first(row + whole * lanes, rest);
    }
    if (math::any(not_finite * reals(0.0f) != reals(0.0f))) return false;
    const reals to_distance = to_distances(largest_of_lanes(largest));

    const int vectors = whole + (rest != 0 ? 1 : 0);
    const distance_keys<reals> keys(vectors * lanes <= 64 ? 64 : most_lane_experts);
    const words inverted = keys.low - words::lane();
    reals score_parts[parts], log_parts[parts];
    words list[TopK];
    words lost = 0u;
    each_of<parts>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
      score_parts[i] = reals(0.0f);
      log_parts[i] = reals(0.0f);
    });
    for (int first = 0; first < vectors; first += span) {
      words key[span];
      const auto add = [&](const reals& logit, auto i) ADAPTIVE_K_INLINE_LAMBDA {
        const int start = (first + i) * lanes;
        const auto s = score_and_key(logit, to_distance, keys, inverted - words(start));
        reals::store(score + start, s.score);
        score_parts[i % parts] = score_parts[i % parts] + s.score;
        log_parts[i % parts] = reals::fma(s.score, s.log_score, log_parts[i % parts]);
        key[i] = s.key;
      };
      if (first + span <= whole) {
        each_of<span>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
          add(reals::load(row + (first + i) * lanes), i);
        });
      } else {
        each_of<span>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
          const int v = first + i;
          add(v < whole ? reals::load(row + v * lanes) : (v == whole ? tail : -math::infinity), i);
        });
      }
      keep_best_of(key, first == 0, list, lost);
    }
    const auto sums = fold_slots(score_parts, log_parts);
    ranked.entropy = reals::now(entropy_nats(sums.score, sums.score_log_score));
    words best[TopK];
    combine_lanes<TopK, 1>(list, best, lost);
    const words key = by_rank<0>(best, lost);
    ranked.experts = keys.expert_of(key);
    const auto tied = keys.same_distance(key, by_rank<1>(best, lost));
    const std::uint32_t ties = reals::mask::to_bits(tied) & ((1u << TopK) - 1u);
    if (ties != 0 && !in_order(row, num_experts, ranked.experts, ties)) return false;
    reals::template store_first<TopK>(ranked.expert, reals::from_bits(ranked.experts));
    ranked.add_scores(score);
    return true;
  }

  static ADAPTIVE_K_INLINE bool rank_wide(const float* row, int num_experts,
                                          ranking& ranked) noexcept {
    alignas(64) float score[most_lane_experts];
    typename Target::template wide_row<TopK> wide;
    if (!wide.template rank<logits>(row, num_experts, score)) return false;
    ranked.experts = wide.expert;
    const auto sums = wide.sums();
    ranked.entropy = entropy_nats(sums.score, sums.score_log_score);
    if (__builtin_expect(wide.is_unsure(), 0) &&
        (wide.has_nan() || !in_order(row, num_experts, ranked.experts, wide.ties())))
      return false;
    reals::template store_first<TopK>(ranked.expert, reals::from_bits(ranked.experts));
    ranked.add_scores(score);
    return true;
  }

  struct whole_mass {
    static constexpr float mass_exponent = 1.0f;
  };
  static ADAPTIVE_K_INLINE bool restores_whole_mass(const usual_rule& rule) noexcept {
    return Kind == row_kind::common || math::to_bits(rule.mass_exponent) == math::to_bits(1.0f);
  }
  /// What scores become weights by where `kept` is restored to the whole mass.
  static ADAPTIVE_K_INLINE reals whole_factor(const usual_rule& rule, const reals& kept) noexcept {
    const usual_gating<TopK> model = {rule.num_experts, rule.scale};
    const reals unused = 1.0f;
    return weight_factor<gating_kind::softmax>(model, whole_mass{}, kept, unused, unused,
                                               unused < reals(0.0f), unused);
  }
  /// The same for each k, where less is restored; `mass` is what each keeps.
  static ADAPTIVE_K_INLINE reals other_factor(const usual_rule& rule, const reals& mass) noexcept {
    float masses[lanes];
    float factors[lanes];
    reals::store(masses, mass);
    Target::template run<other_factors<TopK>::template body>(
        &rule, static_cast<const float*>(masses), static_cast<float*>(factors));
    return reals::load(factors);
  }

  /// As finish_route, but what each k would give lies side by side, and k picks from it: a division
  /// need not wait for the entropy.
  static ADAPTIVE_K_INLINE void finish(const usual_rule& rule, const ranking& ranked,
                                       row_decision<TopK, reals>& made) noexcept {
    const reals factor =  // of k in lane k - 1
        restores_whole_mass(rule) ? whole_factor(rule, ranked.mass)
                                  : other_factor(rule, ranked.mass);
    const std::uint64_t enough = reals::mask::to_bits(ranked.entropy < reals::load(rule.threshold));
    made.rank = reals::lowest_bit(enough);
    made.signal = reals::first(ranked.entropy);
    made.weight = reals::select(
        words::lane() < words(made.k()),
        ranked.score * reals::broadcast(factor, static_cast<std::uint32_t>(made.rank)), 0.0f);
    made.experts = ranked.experts;
    for (int j = 0; j < TopK; ++j) made.expert[j] = ranked.expert[j];
  }
  static ADAPTIVE_K_INLINE void finish(const usual_rule& rule, const ranked_pair<reals>& ranked,
                                       decided_pair<reals>& made) noexcept {
    const reals total = ranked.second + reals(1.0f);
    reals of_one, of_both;
    if (restores_whole_mass(rule)) {
      of_one = whole_factor(rule, 1.0f);
      of_both = whole_factor(rule, total);
    } else {
      of_one = other_factor(rule, reals::template lanes_from<1>(total, 1.0f));
      of_both = reals::broadcast(of_one, 1);
    }
    const auto enough = ranked.entropy < reals(rule.threshold[0]);
    made.extra = (reals::mask::to_bits(enough) & 1u) ^ 1u;
    made.weight = reals::select(enough, reals::template lanes_from<1>(0.0f, of_one),
                                reals::template lanes_from<1>(ranked.second * of_both, of_both));
    made.signal = reals::first(ranked.entropy);
    made.expert[0] = ranked.expert[0];
    made.expert[1] = ranked.expert[1];
  }

  /// The key of rank j + From in lane j; past the ranks, `lost`.
  template <int From, int Rank = 0>
  static ADAPTIVE_K_INLINE words by_rank(const words (&best)[TopK], const words& lost) noexcept {
    if constexpr (Rank + From < TopK)
      return words::template lanes_from<Rank + 1>(by_rank<From, Rank + 1>(best, lost),
                                                  best[Rank + From]);
    else
      return lost;
  }

  /// Whether ranks that keys cannot tell from the next one, a bit each in `ties`, are right all the
  /// same.
  static ADAPTIVE_K_INLINE bool in_order(const float* row, int num_experts, const words& experts,
                                         std::uint32_t ties) noexcept {
    std::uint32_t expert[lanes];
    words::store(expert, experts);
    // Of equal logits among the best, keys have the first expert first.
    for (int j = 0; j + 1 < TopK; ++j)
      if ((ties >> j & 1u) != 0 && row[expert[j]] < row[expert[j + 1]]) return false;
    if (ties >> (TopK - 1) == 0) return true;
    // All that come before the last one are among the best, and no others. A wide row keeps only
    // so many of each lane that one which comes before may be lost.
    const std::uint32_t last = expert[TopK - 1];
    const reals least = reals::broadcast(row + last);
    int before = 0;
    for (int first = 0; first < num_experts; first += lanes) {
      const int left = num_experts - first;
      const reals logit =
          left < lanes ? load_tail<reals>(row + first, left) : reals::load(row + first);
      const auto first_of_equals = (logit == least) & (words::lane() + words(first) < words(last));
      before += __builtin_popcount(reals::mask::to_bits((logit > least) | first_of_equals));
    }
    return before == TopK - 1;
  }
};

/// The same for a row that is counted and written with others.
template <int TopK>
struct usual_row_alone {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    static ADAPTIVE_K_INLINE bool run(const usual_rule* rule, const float* row,
                                      token_route<max_top_k>* route) noexcept {
      decision_of<TopK, reals> made;
      if (!usual_row<TopK, 0, row_kind::any, Target>::decide(*rule, row, made)) return false;
      for (int j = 0; j < TopK; ++j) route->expert[j] = static_cast<int>(made.expert[j]);
      reals::template store_first<TopK>(route->weight, made.weight);
      route->count = made.k();
      route->chosen = made.k();
      route->signal = made.signal;
      route->has_nonfinite = false;
      return true;
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
