// A checked routing call on the host: what it reads, and how its outputs are written.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/weights.hpp"
#include "adaptive_k/host/host_paths.hpp"
#include "adaptive_k/host/simd/expert_lanes.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Plain data; whoever makes one keeps alive what it points to.
template <class Logit, class Id, class Weight, class Plan, class Gating>
struct routing_call {
  using logit_type = Logit;
  using gating_type = Gating;
  const Gating* model;
  const Plan* plan;
  fill_id fill;
  logits_view<Logit> logits;  ///< with its row_stride set
  routing_replay<Id> given;
  routing_output<Id, Weight> output;
  routing_extras extras;

  const Logit* row(std::int64_t token) const noexcept {
    return logits.data + token * logits.row_stride;
  }
  /// By the mask, or as none of its experts are given back.
  bool is_padding(std::int64_t token) const noexcept {
    if (extras.padding_mask != nullptr && extras.padding_mask[token] != 0) return true;
    return replays() && num_given(token) == 0;
  }
  bool in_shadow() const noexcept { return output.chosen_counts != nullptr; }
  bool has_token_limits() const noexcept {
    return extras.k_min != nullptr || extras.k_max != nullptr;
  }
  bool replays() const noexcept { return given.topk_ids != nullptr; }
  int forced_k() const noexcept { return in_shadow() ? model->top_k : no_forced_k; }

  int num_given(std::int64_t token) const noexcept {
    return given.topk_counts != nullptr ? given.topk_counts[token] : model->top_k;
  }
  /// `ids` is room for given experts, which may be written over where they were.
  token_request<Plan> request(std::int64_t token, int (&ids)[max_top_k]) const noexcept {
    k_limits limits = plan->limits;
    if (has_token_limits())
      limits = narrow_limits(limits, extras.k_min != nullptr ? extras.k_min[token] : 1,
                             extras.k_max != nullptr ? extras.k_max[token] : max_top_k);
    token_request<Plan> made = {model, plan, extras.routing_bias, limits, forced_k()};
    if (replays()) {
      made.given = ids;
      made.num_given = made.forced_k = num_given(token);
      for (int j = 0; j < made.num_given; ++j)
        ids[j] = static_cast<int>(given.topk_ids[token * model->top_k + j]);
    }
    return made;
  }

  /// What stands in id slots past k_t, unless that is the first expert.
  int pad_id() const noexcept { return fill == fill_id::num_experts ? model->num_experts : -1; }

  void write(std::int64_t token, const token_route<max_top_k>& route) const noexcept {
    const int top_k = model->top_k;
    Id* __restrict ids = output.topk_ids + token * top_k;
    Weight* __restrict weights = output.topk_weights + token * top_k;
    const int past = fill == fill_id::first_expert ? route.expert[0] : pad_id();
    for (int j = 0; j < top_k; ++j) {  // by masks: no processor can guess k
      const int kept = -static_cast<int>(j < route.count);
      const std::uint32_t weight = math::to_bits(route.weight[j]) & static_cast<unsigned>(kept);
      ids[j] = static_cast<Id>((route.expert[j] & kept) | (past & ~kept));
      weights[j] = from_float<Weight>(math::from_bits(weight));
    }
    if (output.topk_counts != nullptr) output.topk_counts[token] = route.count;
    if (output.chosen_counts != nullptr) output.chosen_counts[token] = route.chosen;
    if (output.signal != nullptr) output.signal[token] = route.signal;
    if (output.weight_factors != nullptr)
      output.weight_factors[token] =
          route.count < top_k ? mass_factor(route.kept_mass, route.total_mass, plan->mass_exponent)
                              : 1.0f;
  }
  void write_padding(std::int64_t token) const noexcept {
    const token_route<max_top_k> none = {};
    write(token, none);
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
