// One token, its experts in the lanes: the path for few tokens and for many experts.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/top_k.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/host/simd/top_k.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A row of values [E] by vectors; past E they are `pad`. `Short`: one vector holds it.
template <class F32, bool Short>
class vector_row {
  using u32_vec = typename F32::u32_vec;
  static constexpr int lanes = F32::lanes;

 public:
  static constexpr int chains = Short ? 1 : 4;  ///< of operations that need not wait for another

  ADAPTIVE_K_INLINE vector_row(const float* values, int num_experts,
                               float pad = -math::infinity) noexcept
      : values_(values),
        whole_(num_experts / lanes),
        size_((num_experts + lanes - 1) / lanes),
        pad_(pad),
        last_(pad) {
    const int rest = num_experts - whole_ * lanes;
    last_ = F32::select(u32_vec::lane() < u32_vec(rest),
                        F32::load_first(values + whole_ * lanes, rest), pad_);
  }
  /// Vectors up to E.
  ADAPTIVE_K_INLINE int size() const noexcept { return Short ? 1 : size_; }
  ADAPTIVE_K_INLINE F32 operator[](int vector) const noexcept {
    if (vector < whole_) return F32::load(values_ + vector * lanes);
    return vector == whole_ ? last_ : pad_;
  }
  /// Vectors from `first` on.
  template <int Count>
  ADAPTIVE_K_INLINE void load(int first, F32 (&vectors)[Count]) const noexcept {
    if (first + Count <= whole_)
      unrolled_for<Count>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
        vectors[i] = F32::load(values_ + (first + i) * lanes);
      });
    else
      unrolled_for<Count>([&](auto i)
                              ADAPTIVE_K_INLINE_LAMBDA { vectors[i] = (*this)[first + i]; });
  }

 private:
  const float* values_;
  int whole_;  ///< vectors that are all within E
  int size_;
  F32 pad_;
  F32 last_;
};

/// The largest of a row, in all lanes.
template <class F32, bool Short>
ADAPTIVE_K_INLINE F32 largest_of_row(const vector_row<F32, Short>& row) noexcept {
  constexpr int chains = vector_row<F32, Short>::chains;
  F32 largest[chains];
  row.load(0, largest);
  for (int first = chains; first < row.size(); first += chains) {
    F32 values[chains];
    row.load(first, values);
    unrolled_for<chains>(
        [&](auto i) ADAPTIVE_K_INLINE_LAMBDA { largest[i] = F32::maximum(values[i], largest[i]); });
  }
  for (int i = 1; i < chains; ++i) largest[0] = F32::maximum(largest[i], largest[0]);
  return largest_of_lanes(largest[0]);
}

/// Whether a row has neither NaN nor infinities; past E it is 0.
template <class F32, bool Short>
ADAPTIVE_K_INLINE bool is_finite(const vector_row<F32, Short>& row) noexcept {
  F32 sum = 0.0f;  // of 0 or NaN
  for (int v = 0; v < row.size(); ++v) sum = F32::fma(row[v], 0.0f, sum);
  return !math::any(sum != sum);  // NOLINT(misc-redundant-expression)
}

/// Both sums of a row in the one reduction order: vectors that hold the same slots are added up in
/// order, then the slots of a vector, then the vectors.
template <class Score, bool WithLogs, class F32, bool Short>
ADAPTIVE_K_INLINE score_sums<F32> sum_row(const vector_row<F32, Short>& row,
                                          const F32& largest) noexcept {
  constexpr int parts = Short ? 1 : reduction_slots / F32::lanes;
  F32 score[parts], log[parts];
  unrolled_for<parts>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
    score[i] = 0.0f;
    log[i] = 0.0f;
  });
  for (int first = 0; first < row.size(); first += parts) {
    F32 logits[parts];
    row.load(first, logits);
    unrolled_for<parts>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
      const auto s = score_of<Score, logits_are::ordinary>(logits[i], largest);
      score[i] = score[i] + s.score;
      if constexpr (WithLogs) log[i] = F32::fma(s.score, s.log_score, log[i]);
    });
  }
  unrolled_for<parts>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
    score[i] = sum_of_lanes(score[i]);
    if constexpr (WithLogs) log[i] = sum_of_lanes(log[i]);
  });
  return {fold_neighbours(score), WithLogs ? fold_neighbours(log) : F32(0.0f)};
}

/// Values to select by, where they are not the logits: score + bias, as key_by_score has them.
template <class Score, class F32, bool Short>
ADAPTIVE_K_INLINE void score_row(const vector_row<F32, Short>& row, const float* bias,
                                 int num_experts, const F32& largest, const F32& total,
                                 float* values) noexcept {
  const F32 inverse_total = is_softmax<Score> ? F32::divide(1.0f, total) : F32(1.0f);
  const vector_row<F32, Short> biases(bias != nullptr ? bias : values, num_experts);
  for (int v = 0; v < row.size(); ++v) {
    const F32 offset = bias != nullptr ? biases[v] : F32(0.0f);
    const F32 score = score_of<Score>(row[v], largest).score;
    F32::store(values + v * F32::lanes, F32::fma(score, inverse_total, offset));
  }
}

/// Group-limited selection, as keep_best_groups of keys: leaves -inf outside of the best groups.
inline void keep_best_groups(const gating& model, float* values) noexcept {
  const int size = model.num_experts / model.n_group;
  float group_value[max_groups];
  for (int group = 0; group < model.n_group; ++group) {
    float first = -math::infinity;
    float second = -math::infinity;
    for (int i = 0; i < size; ++i) {
      const float value = values[group * size + i];
      second = math::maximum(second, math::minimum(first, value));
      first = math::maximum(first, value);
    }
    const bool sums = model.group_rank == group_score::top2_sum && size > 1;
    group_value[group] = sums ? first + second : first;
  }
  std::uint32_t kept = 0;  // one bit a group
  for (int round = 0; round < model.topk_group; ++round) {
    int best = -1;
    for (int group = 0; group < model.n_group; ++group)
      if ((kept >> group & 1u) == 0 && (best < 0 || group_value[group] > group_value[best]))
        best = group;
    kept |= 1u << best;
  }
  for (int e = 0; e < model.num_experts; ++e)
    if ((kept >> (e / size) & 1u) == 0) values[e] = -math::infinity;
}

/// Keys of a row's vectors.
template <class F32, bool Short>
struct row_keys {
  using u32_vec = typename F32::u32_vec;
  const vector_row<F32, Short>& row;
  key_maker<F32> maker;

  ADAPTIVE_K_INLINE row_keys(const vector_row<F32, Short>& values, int num_indices) noexcept
      : row(values), maker(num_indices) {}
  template <int N>
  ADAPTIVE_K_INLINE void load(int first, u32_vec (&keys)[N]) noexcept {
    const u32_vec inverted = maker.low - u32_vec::lane() - u32_vec(first * F32::lanes);
    F32 vectors[N];
    row.load(first, vectors);
    unrolled_for<N>([&](auto i) ADAPTIVE_K_INLINE_LAMBDA {
      keys[i] = maker.key_of(vectors[i], inverted - u32_vec(i * F32::lanes));
    });
  }
};

/// What choose_row writes; entries past top_k are experts too.
struct token_choice {
  alignas(64) std::uint32_t expert[max_top_k];
  bool ambiguous_ties;
};

/// The best top_k <= N of a row.
template <int N, bool Short>
struct choose_row {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    using u32_vec = typename f32_vec::u32_vec;
    static ADAPTIVE_K_INLINE void run(const vector_row<f32_vec, Short>* row, int num_experts,
                                      int top_k, token_choice* choice) noexcept {
      constexpr int lanes = f32_vec::lanes;
      constexpr int per_lane = Short ? 1 : N;  // NOLINT(bugprone-branch-clone): N may be 1
      const int count = (row->size() + per_lane - 1) / per_lane * per_lane;
      const int padded = count * lanes;
      row_keys<f32_vec, Short> keys(*row, padded <= 64 ? 64 : padded <= 256 ? 256 : max_experts);
      u32_vec list[per_lane];
      u32_vec best[N];
      u32_vec best_rejected = 0;
      top_k_of_lanes(keys, count, list, best_rejected);
      merge_lanes<N>(list, best, best_rejected);
      keys.maker.dropped =
          reduce_lanes(keys.maker.dropped,
                       [](const auto& a, const auto& b) ADAPTIVE_K_INLINE_LAMBDA { return a | b; });
      choice->ambiguous_ties = math::any(keys.maker.ambiguous_ties(best, best_rejected, top_k));
      const u32_vec last = num_experts - 1;  // keys of NaN may hold no expert
      for (int first = 0; first < N; first += lanes) {
        u32_vec experts = 0;
        for (int j = first; j < N && j < first + lanes; ++j) {
          const u32_vec expert = u32_vec::minimum(keys.maker.expert_of(best[j]), last);
          experts = u32_vec::select(u32_vec::lane() == u32_vec(j - first), expert, experts);
        }
        u32_vec::store(choice->expert + first, experts);
      }
    }
  };
};

/// A token's head, a column in all lanes.
template <class F32>
struct head_values {
  const float* data;  ///< [K0 - 1]
  ADAPTIVE_K_INLINE F32 operator()(int j) const noexcept { return F32(data[j]); }
};

/// Decides one token, whose row is [E], and gives its route to `done(route, ranks)`. False: it
/// could not, as a number was not finite or keys were ambiguous. TopK is K0, or 0 where only the
/// run knows it; where it is not, experts are ranked by their logits. Short: one vector holds the
/// row.
template <class Score, int TopK, bool Short>
struct decide_token {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    using u32_vec = typename f32_vec::u32_vec;
    using vectors = vector_row<f32_vec, Short>;
    static constexpr int most_ranks = TopK != 0 ? TopK : max_top_k;

    template <class Plan, class Done>
    static ADAPTIVE_K_INLINE bool run(const token_request* request, const Plan* plan_of_token,
                                      const float* values, const Done* done) noexcept {
      const gating& model = *request->model;
      const Plan& plan = *plan_of_token;
      const int num_experts = model.num_experts;
      const loop_count<(TopK != 0), most_ranks> ranks = {model.top_k};
      const bool by_score = TopK == 0 && selects_by_score(model);
      const vectors row(values, num_experts);
      if (!is_finite(vectors(values, num_experts, 0.0f))) return false;
      const head_values<f32_vec> head = {request->head};
      if (plan.reads_head() && math::any(head_defect<f32_vec>(head, ranks, ranks) != f32_vec(0.0f)))
        return false;
      const f32_vec largest = largest_of_row(row);

      const sums_needed needed = sums_for<Score>(model, plan, by_score);
      score_sums<f32_vec> sums = {f32_vec(1.0f), f32_vec(0.0f)};
      if (needed.logs)
        sums = sum_row<Score, true>(row, largest);
      else if (needed.scores)
        sums = sum_row<Score, false>(row, largest);

      token_choice choice;
      if constexpr (TopK != 0)
        choose_row<TopK, Short>::template body<Set>::run(&row, num_experts, TopK, &choice);
      else if (!choose_any(*request, row, largest, sums.score, choice))
        return false;
      if (choice.ambiguous_ties) return false;

      alignas(64) float score[max_top_k];
      alignas(64) float log_score[max_top_k];
      for (int first = 0; first < ranks; first += f32_vec::lanes) {
        f32_vec logit = largest;  // a rank in each lane; a gather would take longer
        for (int j = first; j < ranks && j < first + f32_vec::lanes; ++j)
          logit = f32_vec::select(u32_vec::lane() == u32_vec(j - first),
                                  f32_vec(values[choice.expert[j]]), logit);
        const auto s = score_of<Score>(logit, largest);
        f32_vec::store(score + first, s.score);
        f32_vec::store(log_score + first, s.log_score);
      }
      ranked_experts<most_ranks, f32_vec> ranked;
      for (int j = 0; j < ranks; ++j) {
        ranked.expert[j] = u32_vec(choice.expert[j]);
        ranked.score[j] = f32_vec(score[j]);
        ranked.log_score[j] = f32_vec(log_score[j]);
      }
      token_route<most_ranks, f32_vec> wide;  // the same in all lanes
      finish_route<Score>(model, plan, sums, request->limits, request->forced_k, ranks, ranked,
                          wide, head);
      token_route<most_ranks> route;
      for (int j = 0; j < ranks; ++j) {
        route.expert[j] = static_cast<int>(choice.expert[j]);
        route.weight[j] = f32_vec::first(wide.weight[j]);
      }
      route.count = static_cast<int>(u32_vec::first(wide.count));
      route.chosen = static_cast<int>(u32_vec::first(wide.chosen));
      route.raised = static_cast<int>(u32_vec::first(wide.raised));
      route.outside = static_cast<int>(u32_vec::first(wide.outside));
      route.signal = f32_vec::first(wide.signal);
      route.kept_mass = f32_vec::first(wide.kept_mass);
      route.total_mass = f32_vec::first(wide.total_mass);
      route.has_nonfinite = false;
      (*done)(route, ranks);
      return true;
    }

   private:
    /// By logit or score + bias, within groups, after experts that are given. False: a score with
    /// its bias was not finite.
    static ADAPTIVE_K_INLINE bool choose_any(const token_request& request, const vectors& row,
                                             const f32_vec& largest, const f32_vec& total,
                                             token_choice& choice) noexcept {
      const gating& model = *request.model;
      const int num_experts = model.num_experts;
      const int num_given = request.given != nullptr ? request.num_given : 0;
      if (!selects_by_score(model) && model.n_group == 1 && num_given == 0) {
        choose(row, num_experts, model.top_k, choice);
        return true;
      }
      alignas(64) float values[max_experts] = {};
      if (selects_by_score(model)) {
        score_row<Score>(row, request.routing_bias, num_experts, largest, total,
                         static_cast<float*>(values));
        if (!is_finite(vectors(values, num_experts, 0.0f))) return false;
      } else {
        for (int v = 0; v < row.size(); ++v) f32_vec::store(values + v * f32_vec::lanes, row[v]);
      }
      if (model.n_group > 1) keep_best_groups(model, values);
      for (int j = 0; j < num_given; ++j) values[request.given[j]] = -math::infinity;
      choice.ambiguous_ties = false;
      if (num_given < model.top_k)
        choose(vectors(values, num_experts), num_experts, model.top_k - num_given, choice);
      for (int j = model.top_k - 1; j >= num_given; --j)
        choice.expert[j] = choice.expert[j - num_given];
      for (int j = 0; j < num_given; ++j)
        choice.expert[j] = static_cast<std::uint32_t>(request.given[j]);
      return true;
    }

    static ADAPTIVE_K_INLINE void choose(const vectors& row, int num_experts, int top_k,
                                         token_choice& choice) noexcept {
      with_power_of_two_from<(Short ? Set::lanes : max_top_k)>(top_k, [&](auto n) {
        Set::template run<choose_row<n(), Short>::template body>(&row, num_experts, top_k, &choice);
      });
    }
  };
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
