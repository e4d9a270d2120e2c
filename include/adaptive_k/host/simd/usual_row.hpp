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

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Sums over the lanes of two vectors, in all lanes.
template <class Reals>
ADAPTIVE_K_INLINE score_sums<Reals> fold_lanes(const Reals& score, const Reals& log) noexcept {
  if constexpr (Reals::lanes == 8) {
    const Reals pairs = Reals::add_neighbours(score, log);
    const Reals halves = pairs + Reals::template exchange<1>(pairs);
    const Reals both = halves + Reals::template exchange<4>(halves);
    return {Reals::template each_first<0>(both), Reals::template each_first<2>(both)};
  } else {
    return {sum_of_lanes(score), sum_of_lanes(log)};
  }
}

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

/// The two largest of a vector's lanes, in all lanes.
template <class Reals>
struct largest_two {
  Reals first;
  Reals second;
};
template <int Distance, class Reals>
ADAPTIVE_K_INLINE largest_two<Reals> largest_two_of_lanes(const largest_two<Reals>& a) noexcept {
  if constexpr (Distance < Reals::lanes) {
    const Reals first = Reals::template exchange<Distance>(a.first);
    const Reals beaten = Reals::smaller(a.first, first);
    const Reals second =
        Distance == 1
            ? beaten
            : Reals::larger(beaten,
                            Reals::larger(a.second, Reals::template exchange<Distance>(a.second)));
    return largest_two_of_lanes<2 * Distance>(
        largest_two<Reals>{Reals::larger(a.first, first), second});
  } else {
    return a;
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
  /// Those of all ranks but the first, whose score is 1, from `scores` [num_experts].
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
  Reals weight;  ///< rank j in lane j, as if all were kept
  int count;     ///< k_t in 1..K0
  float signal;
  alignas(4 * TopK) std::uint32_t expert[TopK];
  typename Reals::words experts;  ///< the same in lanes, where K0 > 2
};

/// What a score becomes a weight by, for each k where not all of the mass is restored.
template <int TopK>
struct other_factors {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    static ADAPTIVE_K_INLINE void run(const gating* gating, const k_plan* plan, const float* mass,
                                      float* factor) noexcept {
      using words = typename reals::words;
      const usual_gating<TopK> model = {gating->num_experts, gating->routed_scaling_factor};
      const reals unused = 1.0f;  // renormalised, and no score is lifted
      reals::store(factor, weight_factor<gating_kind::softmax>(
                               model, *plan, reals::load(mass), reals(mass[TopK - 1]), unused,
                               words::lane() < words(TopK - 1), unused));
    }
  };
};

/// Decides one token of K0 = TopK and E up to most_lane_experts; Experts is E where it is known to
/// the compiler, else 0. False: it could not, as a logit is not finite or neighbours are too close
/// for keys.
template <int TopK, int Experts, class Target>
class usual_row {
  using reals = typename Target::row_reals;
  using words = typename reals::words;
  using decision = row_decision<TopK, reals>;
  using ranking = ranked_row<TopK, reals>;
  static constexpr int lanes = reals::lanes;
  static constexpr int parts = reduction_slots / lanes;
  /// Vectors a step: all slots, and whole lists.
  static constexpr int span = TopK > parts ? TopK : parts;
  static_assert(TopK <= lanes, "a rank a lane");

 public:
  static ADAPTIVE_K_INLINE bool decide(const gating& model, const k_plan& plan,
                                       const k_limits& limits, const float* row,
                                       decision& made) noexcept {
    const int num_experts = Experts != 0 ? Experts : model.num_experts;
    ranking ranked;
    if (TopK == 2 && num_experts <= lanes) {
      if (!rank_two(row, num_experts, ranked)) return false;
    } else if constexpr (has_wide_row<Target, TopK>) {
      if (!rank_wide(row, num_experts, ranked)) return false;
    } else if constexpr (Experts == 0 || Experts > lanes) {
      if (!rank(row, num_experts, ranked)) return false;
    }
    finish(model, plan, limits, ranked, made);
    return true;
  }

 private:
  /// The last `count` logits of a row, and -inf.
  static ADAPTIVE_K_INLINE reals load_tail(const float* from, int count) noexcept {
    return reals::select(words::lane() < words(count), reals::load_first(from, count),
                         -math::infinity);
  }

  /// A row that fits one vector, without keys.
  static ADAPTIVE_K_INLINE bool rank_two(const float* row, int num_experts,
                                         ranking& ranked) noexcept {
    const bool whole = num_experts == lanes;
    const reals given = whole ? reals::load(row) : reals::load_first(row, num_experts);
    if (math::any(given * reals(0.0f) != reals(0.0f))) return false;  // NaN or infinite
    const reals logit = whole ? given : load_tail(row, num_experts);
    const auto best = largest_two_of_lanes<1>(largest_two<reals>{logit, logit});
    const auto s = score_of<gating_kind::softmax, logits_are::ordinary>(logit, best.first);
    const auto sums = fold_lanes<reals>(s.score, reals::fma(s.score, s.log_score, 0.0f));
    ranked.entropy = reals::now(entropy_nats(sums.score, sums.score_log_score));
    const std::uint32_t first = reals::mask::to_bits(logit == best.first);
    const std::uint32_t second =
        reals::mask::to_bits(logit == best.second) & ~(first & (0u - first));
    ranked.expert[0] = static_cast<std::uint32_t>(__builtin_ctz(first));
    ranked.expert[1] = static_cast<std::uint32_t>(__builtin_ctz(second));
    ranked.template add_score<1>(reals::broadcast(s.score, ranked.expert[1]));
    return true;
  }

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
      tail = load_tail(row + whole * lanes, rest);
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
    reals::template store_first<TopK>(ranked.expert, reals::from_bits(ranked.experts));
    const auto tied = keys.same_distance(key, by_rank<1>(best, lost));
    const std::uint32_t ties = reals::mask::to_bits(tied) & ((1u << TopK) - 1u);
    if (ties != 0 && !in_order(row, ranked.expert, ties)) return false;
    ranked.add_scores(score);
    return true;
  }

  static ADAPTIVE_K_INLINE bool rank_wide(const float* row, int num_experts,
                                          ranking& ranked) noexcept {
    alignas(64) float score[most_lane_experts];
    typename Target::template wide_row<TopK> wide;
    if (!wide.rank(row, num_experts, score)) return false;
    ranked.entropy = wide.entropy;
    ranked.experts = wide.expert;
    reals::template store_first<TopK>(ranked.expert, reals::from_bits(ranked.experts));
    if (wide.in_doubt != 0 && !in_order(row, ranked.expert, wide.in_doubt)) return false;
    ranked.add_scores(score);
    return true;
  }

  /// As finish_route, but what each k would give lies side by side, and k picks from it: a division
  /// need not wait for the entropy.
  static ADAPTIVE_K_INLINE void finish(const gating& gating, const k_plan& plan,
                                       const k_limits& limits, const ranking& ranked,
                                       decision& made) noexcept {
    reals factor;  // of k in lane k - 1
    const reals unused = 1.0f;
    if (math::to_bits(plan.mass_exponent) == math::to_bits(1.0f)) {
      const usual_gating<TopK> model = {gating.num_experts, gating.routed_scaling_factor};
      factor = weight_factor<gating_kind::softmax>(model, whole_mass{}, ranked.mass, ranked.total,
                                                   unused, ranked.mass < ranked.total, unused);
    } else {
      float masses[lanes];
      float factors[lanes];
      reals::store(masses, ranked.mass);
      Target::template run<other_factors<TopK>::template body>(
          &gating, &plan, static_cast<const float*>(masses), static_cast<float*>(factors));
      factor = reals::load(factors);
    }

    const auto enough =
        reals::mask::to_bits(ranked.entropy < reals::load(plan.threshold)) & plan.tried;
    // Without a threshold that is met, last_k, which is above all that are tried.
    const int last = plan.last_k < limits.k_max ? plan.last_k : limits.k_max;
    int rank = __builtin_ctz(enough | 1u << (last - 1));
    rank = rank < limits.k_min - 1 ? limits.k_min - 1 : rank;
    made.count = rank + 1;
    made.signal = reals::first(ranked.entropy);
    made.weight = ranked.score * reals::broadcast(factor, static_cast<std::uint32_t>(rank));
    made.experts = ranked.experts;
    for (int j = 0; j < TopK; ++j) made.expert[j] = ranked.expert[j];
  }
  struct whole_mass {
    static constexpr float mass_exponent = 1.0f;
  };

  /// The key of rank j + From in lane j; past the ranks, `lost`.
  template <int From, int Rank = 0>
  static ADAPTIVE_K_INLINE words by_rank(const words (&best)[TopK], const words& lost) noexcept {
    if constexpr (Rank + From < TopK)
      return words::template lanes_from<Rank + 1>(by_rank<From, Rank + 1>(best, lost),
                                                  best[Rank + From]);
    else
      return lost;
  }

  /// Whether ranks that keys cannot tell from the next one are in order all the same. The first and
  /// the last of them may tie with experts that are not among the best.
  static bool in_order(const float* row, const std::uint32_t* experts,
                       std::uint32_t ties) noexcept {
    if ((ties & 1u) != 0 || (ties >> (TopK - 1)) != 0) return false;
    for (int j = 1; j + 1 < TopK; ++j)
      if ((ties >> j & 1u) != 0 && row[experts[j]] < row[experts[j + 1]]) return false;
    return true;
  }
};

/// The same for a row that is counted and written with others.
template <int TopK>
struct usual_row_alone {
  template <class Target>
  struct body {
    static ADAPTIVE_K_INLINE bool run(const gating* model, const k_plan* plan,
                                      const k_limits* limits, const float* row,
                                      token_route<max_top_k>* route) noexcept {
      using reals = typename Target::row_reals;
      row_decision<TopK, reals> made;
      if (!usual_row<TopK, 0, Target>::decide(*model, *plan, *limits, row, made)) return false;
      for (int j = 0; j < TopK; ++j) route->expert[j] = static_cast<int>(made.expert[j]);
      reals::template store_first<TopK>(route->weight, made.weight);
      route->count = made.count;
      route->chosen = made.count;
      route->signal = made.signal;
      route->has_nonfinite = false;
      return true;
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
