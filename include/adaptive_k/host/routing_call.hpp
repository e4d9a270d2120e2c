// A checked routing call on the host: what it reads, and how its outputs are written.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/weights.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// All of a call but its logits. Plain data; whoever makes one keeps alive what it points to.
/// Pointers, as a copy of what its caller has just written, member by member, would wait until that
/// has left the processor's store buffer.
template <class Id, class Weight, class Plan, class Gating>
struct call_context {
  using gating_type = Gating;
  const Gating* model;
  const Plan* plan;
  fill_id fill;
  const routing_replay<Id>* given;
  const routing_output<Id, Weight>* output;
  const routing_extras* extras;

  /// By the mask, or as none of its experts are given back.
  bool is_padding(std::int64_t token) const noexcept {
    if (extras->padding_mask != nullptr && extras->padding_mask[token] != 0) return true;
    return replays() && num_given(token) == 0;
  }
  bool in_shadow() const noexcept { return output->chosen_counts != nullptr; }
  bool has_token_limits() const noexcept {
    return extras->k_min != nullptr || extras->k_max != nullptr;
  }
  bool replays() const noexcept { return given->topk_ids != nullptr; }
  int num_given(std::int64_t token) const noexcept {
    return given->topk_counts != nullptr ? given->topk_counts[token] : model->top_k;
  }

  /// What all tokens have in common.
  token_request request() const noexcept {
    return {model, extras->routing_bias, plan->limits, in_shadow() ? model->top_k : no_forced_k};
  }
  /// `ids` is room for given experts, which may be written over where they were.
  token_request request(std::int64_t token, int (&ids)[max_top_k]) const noexcept {
    token_request made = request();
    if (has_token_limits())
      made.limits = narrow_limits(made.limits, extras->k_min != nullptr ? extras->k_min[token] : 1,
                                  extras->k_max != nullptr ? extras->k_max[token] : max_top_k);
    if (replays()) {
      made.given = ids;
      made.num_given = made.forced_k = num_given(token);
      for (int j = 0; j < made.num_given; ++j)
        ids[j] = static_cast<int>(given->topk_ids[token * model->top_k + j]);
    }
    return made;
  }

  /// What stands in id slots past k_t, unless that is the first expert.
  int pad_id() const noexcept { return fill == fill_id::num_experts ? model->num_experts : -1; }

  /// `ranks` is a loop_count of K0.
  template <int MaxTopK, class Ranks>
  ADAPTIVE_K_INLINE void write(std::int64_t token, const token_route<MaxTopK>& route,
                               Ranks ranks) const noexcept {
    Id* __restrict ids = output->topk_ids + token * ranks;
    Weight* __restrict weights = output->topk_weights + token * ranks;
    const int pad = fill == fill_id::first_expert ? route.expert[0] : pad_id();
    for (int j = 0; j < ranks; ++j) {  // by masks: no processor can guess k
      const int kept = -static_cast<int>(j < route.count);
      const std::uint32_t weight = math::to_bits(route.weight[j]) & static_cast<unsigned>(kept);
      ids[j] = static_cast<Id>((route.expert[j] & kept) | (pad & ~kept));
      weights[j] = from_float<Weight>(math::from_bits(weight));
    }
    if (output->topk_counts != nullptr) output->topk_counts[token] = route.count;
    if (output->chosen_counts != nullptr) output->chosen_counts[token] = route.chosen;
    if (output->signal != nullptr) output->signal[token] = route.signal;
    if (output->weight_factors != nullptr)
      output->weight_factors[token] =
          route.count < ranks ? mass_factor(route.kept_mass, route.total_mass, plan->mass_exponent)
                              : 1.0f;
  }
};

/// A checked call.
template <class Logit, class Id, class Weight, class Plan, class Gating>
struct routing_call : call_context<Id, Weight, Plan, Gating> {
  const Logit* logits;
  std::int64_t row_stride;  ///< elements from row to row, not 0
  const Logit* head;        ///< [num_tokens, K0 - 1], or null: the plan reads none
  std::int64_t head_stride;

  const Logit* row(std::int64_t token) const noexcept { return logits + token * row_stride; }
  /// A token's columns of the head as floats, or null; `room` may hold them.
  const float* head_of(std::int64_t token, float (&room)[max_top_k]) const noexcept {
    if (head == nullptr) return nullptr;
    const Logit* columns = head + token * head_stride;
    if constexpr (std::is_same_v<Logit, float>) {
      return columns;
    } else {
      for (int j = 0; j < this->model->top_k - 1; ++j) room[j] = to_float(columns[j]);
      return room;
    }
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
