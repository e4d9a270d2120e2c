// The decision of core/finish_route.hpp where lane j has rank j: the same operations, those of a
// rank by its lane, those of the token by all.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/weights.hpp"
#include "adaptive_k/cuda/plan_head.cuh"
#include "adaptive_k/cuda/route_params.cuh"
#include "adaptive_k/cuda/warp_ops.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// In lane j rank j of a token; in lanes past K0 a score of 0.
struct lane_rank {
  int expert;       ///< 0..E - 1
  float score;      ///< s, up to a common factor
  float log_score;  ///< ln s, finite; any number past K0
  float mass;       ///< sum of the scores of ranks 0 to this
  float total;      ///< of all ranks, in every lane

  /// Adds up the scores in the order of ranks, and brings each to every lane; 0 past K0.
  template <int MaxTopK>
  __device__ ADAPTIVE_K_INLINE void add_up(int lane, int top_k, float (&scores)[MaxTopK]) noexcept {
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < MaxTopK; ++j) scores[j] = 0.0f;
    scores[0] = warp::of_lane<0>(score);
    total = mass = scores[0];
    warp::while_true<MaxTopK>([&](auto j) {
      if (j > 1 && j % 4 == 0 && j >= top_k) return false;
      if constexpr (j > 0) {
        scores[j] = warp::of_lane<j>(score);
        total = total + scores[j];
        mass = lane < j ? mass : total;
      }
      return true;
    });
  }

  /// What signals read of all ranks; `scores` in every lane.
  template <int MaxTopK>
  __device__ ADAPTIVE_K_INLINE detail::ranked_experts<MaxTopK> gather_scores(
      const float (&scores)[MaxTopK]) const noexcept {
    detail::ranked_experts<MaxTopK> ranked;
    warp::while_true<MaxTopK>([&](auto j) {
      ranked.score[j] = scores[j];
      ranked.log_score[j] = warp::of_lane<j>(log_score);
      return true;
    });
    ranked.total = total;
    return ranked;
  }
  /// All of all ranks.
  template <int MaxTopK>
  __device__ ADAPTIVE_K_INLINE detail::ranked_experts<MaxTopK> gather(
      const float (&scores)[MaxTopK]) const noexcept {
    detail::ranked_experts<MaxTopK> ranked = gather_scores(scores);
    warp::while_true<MaxTopK>([&](auto j) {
      ranked.expert[j] = warp::of_lane(expert, j);
      ranked.mass[j] = warp::of_lane<j>(mass);
      return true;
    });
    return ranked;
  }
};

/// A head's columns, column j in lane j.
struct lane_columns {
  float own;  ///< of this lane
  /// Column j, in every lane.
  __device__ ADAPTIVE_K_INLINE float operator()(int j) const noexcept {
    return warp::of_lane(own, j);
  }
};

/// One rank as `is_enough` sees a token; its j is the lane.
struct lane_token {
  using real = float;     ///< as ranked_token
  const lane_rank& rank;  ///< of this lane
  float signal;           ///< of the token
  float first_score;      ///< of rank 0
  float next_score;       ///< of the rank behind this one
  /// Of ranks 0 to this one.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float mass(int) const noexcept { return rank.mass; }
  /// Of all ranks.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float total() const noexcept { return rank.total; }
  /// Asked of rank 0 and of the next.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float score(int j) const noexcept {
    return j == 0 ? first_score : next_score;
  }
};

/// A lane's threshold of a plan, loaded before it is needed.
struct lane_threshold {
  float value;  ///< threshold[lane]
  /// Asked for the lane.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float operator[](int) const noexcept { return value; }
};
/// What `is_enough` reads of a plan.
struct lane_plan {
  signal_kind signal;        ///< what is compared
  lane_threshold threshold;  ///< with what
};

/// As core's first_k_met: the lowest lane whose threshold is met.
__device__ ADAPTIVE_K_INLINE int first_k_met(const detail::k_plan_head& plan, float threshold,
                                             int lane, const lane_rank& rank, float signal,
                                             k_limits limits) noexcept {
  lane_token token = {rank, signal, 0.0f, 0.0f};
  if (plan.signal == signal_kind::score_ratio) {
    token.first_score = warp::of_lane<0>(rank.score);
    token.next_score = warp::of_next_lane(rank.score);
  }
  const bool enough = detail::is_enough(lane_plan{plan.signal, {threshold}}, token, lane);
  const unsigned met = warp::lanes_where(enough && (plan.tried >> lane & 1u) != 0);
  return detail::within(met != 0 ? __ffs(static_cast<int>(met)) : static_cast<int>(plan.last_k),
                        limits);
}

/// The largest k of those that `counts` and cost least, each in lane k - 1; else `otherwise`.
__device__ ADAPTIVE_K_INLINE int cheapest_lane(float cost, bool counts, int otherwise) noexcept {
  const std::uint32_t order = counts ? ~detail::order_key(cost) : 0u;
  const std::uint32_t best = warp::largest(order);
  const unsigned at = warp::lanes_where(counts && order == best);
  return at != 0 ? 32 - __clz(static_cast<int>(at)) : otherwise;
}

/// As core's least_cost_k, the cost of k by lane k - 1. `scores` in every lane; past K0 they add 0.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE int least_cost_k(const distortion_ref& model, float mass_exponent,
                                              int lane, const lane_rank& rank,
                                              const float (&scores)[MaxTopK], int top_k,
                                              int num_experts, float topk_share,
                                              k_limits limits) noexcept {
  const int k = lane + 1;
  const detail::cost_terms<> terms(rank.total, scores[0], topk_share);
  detail::rank_split<> split = {rank.mass, 0.0f, 0.0f, 0.0f};
  float w[MaxTopK];
  float squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j < MaxTopK; ++j) {
    w[j] = scores[j] * terms.inverse_mass;
    squares = math::fma(w[j], w[j], squares);
    split.kept_squares = lane < j ? split.kept_squares : squares;
  }
  float mass = 0.0f;
  squares = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = MaxTopK - 1; j > 0; --j) {
    mass = math::fma(scores[j], terms.inverse_mass, mass);
    squares = math::fma(w[j], w[j], squares);
    split.dropped_mass = lane < j ? mass : split.dropped_mass;
    split.dropped_squares = lane < j ? squares : split.dropped_squares;
  }
  const int first = warp::of_lane(rank.expert, 0);
  const int next = warp::of_next_lane(rank.expert);
  float cost = model.lambda * static_cast<float>(k);
  if (k < top_k)
    cost = math::fma(
        detail::distortion(model, mass_exponent, terms, split, lane, num_experts, first, next),
        model.sensitivity, cost);
  return cheapest_lane(cost, k >= limits.k_min && k <= limits.k_max && cost == cost, limits.k_max);
}

/// As core's least_head_cost_k; `column` is the head's column k - 1 in lane k - 1.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE int least_head_cost_k(const distortion_ref& model, int lane,
                                                   const lane_rank& rank,
                                                   const float (&scores)[MaxTopK], float column,
                                                   int top_k, k_limits limits) noexcept {
  const int k = lane + 1;
  if (warp::any(k < top_k && !(math::abs(column) < math::infinity))) return limits.k_max;
  const float inverse_mass = math::divide(1.0f, rank.total);
  float mass = 0.0f;
  float dropped_mass = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = MaxTopK - 1; j > 0; --j) {  // all: past K0 they add 0
    mass = math::fma(scores[j], inverse_mass, mass);
    dropped_mass = lane < j ? mass : dropped_mass;
  }
  float cost = model.lambda * static_cast<float>(k);
  if (k < top_k) cost = detail::head_cost(model, dropped_mass, column, k);
  return cheapest_lane(cost, k >= limits.k_min && k <= limits.k_max && k <= top_k, limits.k_max);
}

/// As core's least_k_with: the last lane whose expert is on the list, and the lanes before it.
__device__ ADAPTIVE_K_INLINE int least_k_with(const detail::super_expert_list& list,
                                              const lane_rank& rank, int lane, int top_k) noexcept {
  bool listed = false;
  for (int i = 0; i < list.count; ++i) listed = listed || rank.expert == list.expert[i];
  return 32 - __clz(static_cast<int>(warp::lanes_where(listed && lane < top_k)));
}

/// What a plan's choice reads of it; loaded at first, so that it is there when it is needed.
template <class Plan>
struct loaded_plan {
  Plan head;  ///< all of it
  /// Whether it compares the entropy with thresholds, or nothing: then choose_k_by_entropy chooses.
  __device__ static constexpr bool compares_entropy() noexcept { return false; }
  /// Never called.
  __device__ static int choose_k_by_entropy(int, const lane_rank&, k_limits, float) noexcept {
    return 1;
  }
  /// Whether its choice or its signal may read the scores' logarithms.
  __device__ static constexpr bool reads_log_scores() noexcept { return true; }
  /// The least k that keeps its super experts, of which it has none.
  __device__ static constexpr int least_k(int, const lane_rank&, int) noexcept { return 0; }
  /// 1 where a token is outside of its domain, of which it has none.
  __device__ static constexpr int outside(const lane_rank&, float) noexcept { return 0; }
  /// From device memory.
  __device__ ADAPTIVE_K_INLINE explicit loaded_plan(const void* plan, int) noexcept
      : head(*static_cast<const Plan*>(plan)) {}
  /// How many experts the token gets, within its limits.
  template <int MaxTopK>
  __device__ ADAPTIVE_K_INLINE int choose_k(int, const lane_rank& rank,
                                            const float (&scores)[MaxTopK], float column, int top_k,
                                            int num_experts, k_limits limits, float signal,
                                            float topk_share) const noexcept {
    using ranks = detail::loop_count<true, MaxTopK>;
    const detail::ranked_experts<MaxTopK> ranked = rank.gather(scores);
    const lane_columns columns = {column};
    return detail::choose_k(
        head, ranked_token<MaxTopK, float, ranks, lane_columns>{
                  ranked, {top_k}, top_k, num_experts, limits, signal, topk_share, columns});
  }
};
/// Of a built-in one its head, and a threshold a lane.
template <>
struct loaded_plan<detail::k_plan> {
  const detail::k_plan* plan;  ///< in device memory
  detail::k_plan_head head;    ///< of it
  float threshold;             ///< of this lane
  /// From device memory.
  __device__ ADAPTIVE_K_INLINE explicit loaded_plan(const void* from, int lane) noexcept
      : plan(static_cast<const detail::k_plan*>(from)),
        head(load_plan_head(from)),
        threshold(plan->threshold[lane]) {}
  /// Whether it compares the entropy with thresholds, or nothing.
  __device__ ADAPTIVE_K_INLINE bool compares_entropy() const noexcept {
    return head.signal == signal_kind::softmax_entropy &&
           head.choice == detail::k_choice::thresholds && !head.has_super_experts &&
           !head.has_domain;
  }
  /// The least k that keeps its super experts.
  __device__ ADAPTIVE_K_INLINE int least_k(int lane, const lane_rank& rank,
                                           int top_k) const noexcept {
    return head.has_super_experts ? cuda::least_k_with(plan->super_expert_ids, rank, lane, top_k)
                                  : 0;
  }
  /// 1 where a token is outside of its domain, else 0; lane 0 asks.
  __device__ ADAPTIVE_K_INLINE int outside(const lane_rank& rank, float signal) const noexcept {
    return head.has_domain ? detail::is_outside(plan->domain_limits, signal, rank.score, rank.total)
                           : 0;
  }
  /// How many experts the token then gets, within its limits.
  __device__ ADAPTIVE_K_INLINE int choose_k_by_entropy(int lane, const lane_rank& rank,
                                                       k_limits limits,
                                                       float entropy) const noexcept {
    detail::k_plan_head known = head;
    known.signal = signal_kind::softmax_entropy;  // for the compiler
    return first_k_met(known, threshold, lane, rank, entropy, limits);
  }
  /// Whether its choice or its signal reads the scores' logarithms.
  __device__ ADAPTIVE_K_INLINE bool reads_log_scores() const noexcept {
    return head.signal == signal_kind::topk_entropy;
  }
  /// How many experts the token gets, within its limits.
  template <int MaxTopK>
  __device__ ADAPTIVE_K_INLINE int choose_k(int lane, const lane_rank& rank,
                                            const float (&scores)[MaxTopK], float column, int top_k,
                                            int num_experts, k_limits limits, float signal,
                                            float topk_share) const noexcept {
    if (head.choice == detail::k_choice::head)
      return least_head_cost_k(plan->distortion, lane, rank, scores, column, top_k, limits);
    if (head.choice == detail::k_choice::distortion)
      return least_cost_k(plan->distortion, head.mass_exponent, lane, rank, scores, top_k,
                          num_experts, topk_share, limits);
    return first_k_met(head, threshold, lane, rank, signal, limits);
  }
};

/// What a token gets: its k and signal in every lane, a weight in each.
struct warp_choice {
  int count;      ///< k_t
  int chosen;     ///< what the policy chose
  int raised;     ///< 1 where super experts raised `chosen`, else 0
  int outside;    ///< in lane 0: 1 where the token is outside of the plan's domain, else 0
  bool odd_head;  ///< this lane's column of the head, where the plan reads one, is not finite
  float signal;   ///< in its unit
  float weight;   ///< of this lane's rank
};

/// The scores of the first ranks, in their order; past them they are 0.
template <int MaxTopK>
__device__ ADAPTIVE_K_INLINE float sum_of_ranks(float score, int top_k) noexcept {
  float sum = warp::of_lane<0>(score);
  warp::while_true<MaxTopK>([&](auto j) {
    if (j > 1 && j == MaxTopK / 2 && j >= top_k) return false;
    if constexpr (j > 0) sum = sum + warp::of_lane<j>(score);
    return true;
  });
  return sum;
}

/// As core's finish_route. `rank` has expert, score and log_score, and is completed. `divisor`: the
/// sum over all E where scores are relative to the row's largest logit, else 1. `Bounded`: no score
/// is above 2^50.
template <class Logit, int MaxTopK, bool Bounded, class Gating, class Plan>
__device__ ADAPTIVE_K_INLINE warp_choice finish_warp(const route_params& params, std::int64_t token,
                                                     const Gating& model,
                                                     const loaded_plan<Plan>& plan, int lane,
                                                     const detail::score_sums<>& sums,
                                                     float divisor, lane_rank& rank) noexcept {
  constexpr bool first_is_one = detail::ranks_by_logit<Gating>::value;
  const auto& head = plan.head;
  const int top_k = model.top_k;
  k_limits limits = head.limits;
  if (!params.plain) limits = limits_of(params, limits, token);
  bool weighs = true;
  const auto share_alike = [&] {  // where every chosen score underflowed
    weighs = first_is_one || rank.total > 0.0f;
    if (!weighs) {
      rank.score = lane < top_k ? 1.0f : 0.0f;
      rank.log_score = 0.0f;
      rank.mass = static_cast<float>(lane < top_k ? lane + 1 : top_k);
      rank.total = static_cast<float>(top_k);
    }
  };
  warp_choice made;
  // Adding up in the order of ranks is much of a token's time, so masses are asked for late.
  const bool by_row = plan.compares_entropy();
  if (by_row) {
    rank.total = 1.0f;
    made.raised = made.outside = 0;
    made.odd_head = false;
    made.signal = detail::full_entropy_of(head, sums, first_is_one);
    made.chosen = plan.choose_k_by_entropy(lane, rank, limits, made.signal);
  } else {
    float scores[MaxTopK];
    rank.add_up(lane, top_k, scores);
    const float mass = rank.total;
    share_alike();
    if (!weighs) {
      ADAPTIVE_K_UNROLL
      for (int j = 0; j < MaxTopK; ++j) scores[j] = j < top_k ? 1.0f : 0.0f;
    }
    float full_entropy = 0.0f;
    if (detail::is_full_entropy(head.signal)) {
      full_entropy = detail::full_entropy_of(head, sums, first_is_one);
      made.signal =
          detail::signal_value(head.signal, full_entropy, head.inverse_log_experts,
                               detail::ranked_experts<1>{}, detail::loop_count<true, 1>{1});
    } else {
      made.signal = detail::signal_value(head.signal, full_entropy, head.inverse_log_experts,
                                         rank.gather_scores(scores),
                                         detail::loop_count<true, MaxTopK>{top_k});
    }
    float topk_share = 0.0f;
    if (head.reads_topk_share()) topk_share = math::divide(mass, divisor);
    const bool has_column = lane + 1 < top_k;
    float column = math::from_bits(0x7FC00000u);  // where a launch has none, as device_head
    if (params.head != nullptr && has_column) column = device_head<Logit>(params, token)(lane);
    made.odd_head = head.reads_head() && has_column && !(math::abs(column) < math::infinity);
    made.chosen = plan.choose_k(lane, rank, scores, column, top_k, model.num_experts, limits,
                                made.signal, topk_share);
    const int least = plan.least_k(lane, rank, top_k);
    made.raised = least > made.chosen ? 1 : 0;
    made.outside = plan.outside(rank, made.signal);
    made.chosen = least > made.chosen ? least : made.chosen;
  }
  const bool shadow = params.chosen_counts != nullptr;
  made.count = shadow ? top_k : made.chosen;

  const auto sum_kept = [&] {
    return sum_of_ranks<MaxTopK>(lane < made.count ? rank.score : 0.0f, top_k);
  };
  float kept = sum_kept();
  // Weights that restore the whole mass read the total only to raise a kept share of less than
  // 2^-100: no such is one of 2^-40 of a total below 2^55.
  const bool reads_total = !detail::renormalizes(model) || head.mass_exponent != 1.0f ||
                           !(first_is_one || (Bounded && kept >= 9.0949470e-13f));
  const auto factor_of_ranks = [&] {
    return detail::weight_factor<detail::softmax_score>(model, head, kept, rank.total, divisor,
                                                        made.count < top_k,
                                                        detail::underflow_scale_of(model, kept));
  };
  float factor;
  if (reads_total) {
    if (by_row) {
      rank.total = sum_of_ranks<MaxTopK>(rank.score, top_k);
      share_alike();
      if (!weighs) kept = sum_kept();
    }
    factor = factor_of_ranks();
  } else {
    factor = factor_of_ranks();
  }
  if (!weighs && !detail::renormalizes(model)) factor = 0.0f;
  made.weight = rank.score * detail::underflow_scale_of(model, kept) * factor;
  return made;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
