// What each k costs each token by a router's own policy: what assign_k_by_budget takes.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/check_call.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/host/router.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A plan that writes down what the k's cost one token by another plan, and chooses K0.
struct cost_plan : plan_base {
  const k_plan* of;
  float* costs;  ///< [K0]

  cost_plan(const k_plan& plan, float* to) noexcept : plan_base(plan), of(&plan), costs(to) {
    signal = signal_kind::none;
  }
  bool reads_topk_share() const noexcept { return of->reads_topk_share(); }
  bool reads_head() const noexcept { return of->reads_head(); }

  template <class Token>
  int choose_k(const Token& token) const noexcept {
    const int top_k = token.top_k;
    const cost_terms<> terms(token.total(), token.score(0), token.topk_share);
    rank_split<> split[max_top_k] = {};  // after j + 1 ranks
    for (int j = top_k - 1; j > 0; --j) {
      const float w = token.score(j) * terms.inverse_mass;
      const rank_split<>& behind = split[j];
      split[j - 1].dropped_mass =
          math::fma(token.score(j), terms.inverse_mass, behind.dropped_mass);
      split[j - 1].dropped_squares = math::fma(w, w, behind.dropped_squares);
    }
    float squares = 0.0f;
    for (int j = 0; j < top_k; ++j) {
      const float w = token.score(j) * terms.inverse_mass;
      split[j].kept_squares = squares = math::fma(w, w, squares);
      split[j].kept_mass = token.mass(j);
    }
    const int kept = of->has_super_experts
                         ? least_k_with(of->super_experts(), token.ranked, token.ranks, top_k)
                         : 0;
    int least = kept > token.limits.k_min ? kept : token.limits.k_min;
    const int most = kept > token.limits.k_max ? kept : token.limits.k_max;
    // As the router does where a head is not finite.
    if (of->reads_head() && !(head_defect<float>(token.columns, top_k, token.ranks) == 0.0f))
      least = most;
    for (int j = 0; j < top_k; ++j) {
      const bool allowed = j + 1 >= least && j + 1 <= most;
      costs[j] = allowed ? cost(token, terms, split[j], j) : math::infinity;
    }
    return top_k;
  }

 private:
  template <class Token>
  float cost(const Token& token, const cost_terms<>& terms, const rank_split<>& split,
             int j) const noexcept {
    if (j + 1 >= token.top_k) return 0.0f;
    distortion_ref model = of->distortion;
    switch (of->choice) {
      case k_choice::thresholds:
        break;
      case k_choice::distortion:
        return distortion(model, of->mass_exponent, terms, split, j, token.num_experts,
                          token.expert(0), token.expert(j + 1)) *
               model.sensitivity;
      case k_choice::head:
        model.lambda = 0.0f;
        return head_cost(model, split.dropped_mass, token.head(j), j + 1);
    }
    return split.dropped_mass;
  }
};

}  // namespace detail

/// Writes to `costs` [num_tokens, K0] what k = 1..K0 cost each token, as assign_k_by_budget takes
/// it. By policies with a distortion that is g d(k), without the price of experts; by all others
/// the share of the top K0's scores that k drops. 0 at K0; infinite where k is outside of the
/// policy's and the token's limits, drops a super expert, or is not k_max where a head is not
/// finite; all 0 for padding. Refuses what router::route refuses. One token at a time, without
/// vectors: about the time of router_options{scalar}. No allocation.
template <class Logit = float>
status router_costs(const router& of, int layer, const logits_view<Logit>& logits, float* costs,
                    const routing_extras& extras = {}) noexcept {
  status checked = detail::check_call(of.validity(), of.model(), of.num_layers(), layer, logits,
                                      true, true, extras);
  if (checked.ok()) checked = detail::check_head(of.model(), of.reads_head(layer), layer, logits);
  if (checked.ok() && logits.num_tokens > 0 && costs == nullptr)
    checked = status::error(status_code::invalid_argument, "`costs` is null");
  if (!checked.ok()) return checked;
  const gating& model = of.model();
  const int top_k = model.top_k;
  const std::int64_t stride = logits.row_stride != 0 ? logits.row_stride : model.num_experts;
  const std::int64_t head_stride = logits.head_stride != 0 ? logits.head_stride : top_k - 1;
  const detail::k_plan& plan =
      of.plans()[of.num_layers() == 0 ? 0 : static_cast<std::size_t>(layer)];
  for (std::int64_t t = 0; t < logits.num_tokens; ++t, costs += top_k) {
    if (extras.padding_mask != nullptr && extras.padding_mask[t] != 0) {
      for (int j = 0; j < top_k; ++j) costs[j] = 0.0f;
      continue;
    }
    const k_limits limits =
        detail::narrow_limits(plan.limits, extras.k_min != nullptr ? extras.k_min[t] : 1,
                              extras.k_max != nullptr ? extras.k_max[t] : top_k);
    float head[max_top_k] = {};
    for (int j = 0; of.reads_head(layer) && j + 1 < top_k; ++j)
      head[j] = to_float(logits.head[t * head_stride + j]);
    detail::with_score<gating>(model.kind, [&](auto score) {
      (void)detail::route_token<decltype(score), max_experts / detail::reduction_slots, max_top_k>(
          detail::host_warp<1>{}, model, detail::cost_plan(plan, costs), extras.routing_bias,
          limits, false, detail::logit_row<Logit>{logits.data + t * stride}, detail::no_replay{},
          detail::head_row<float>{head});
    });
  }
  return {};
}

ADAPTIVE_K_NAMESPACE_END
