// Gating: how router logits become scores, which scores select experts, and what their weights are.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How a logit becomes a score s >= 0.
enum class gating_kind : std::uint8_t {
  softmax,        ///< s = softmax over all E (Mixtral, Qwen, OLMoE, DeepSeek-V2)
  sigmoid,        ///< s = 1 / (1 + e^-x) (DeepSeek-V3, Nemotron 3, Kimi K2, GLM-4.5, Llama 4)
  top_k_softmax,  ///< s = softmax over the selected logits (gpt-oss, Granite); always
                  ///< renormalised. What a bias or groups select 87 below the row's largest logit
                  ///< scores 0
  sqrt_softplus,  ///< s = sqrt(ln(1 + e^x)), x counting as 1e30 at most, so that s is finite
  sparsemixer,    ///< two masked softmaxes, top_k <= 2, never renormalised (Phi-3.5-MoE)
};

/// How many values there are: 0 to one less.
constexpr int num_values(gating_kind) noexcept {
  return static_cast<int>(gating_kind::sparsemixer) + 1;
}
/// The word of calibration files and the command line; "?" for no such value. Static text.
inline const char* to_string(gating_kind kind) noexcept {
  switch (kind) {
    case gating_kind::softmax:
      return "softmax";
    case gating_kind::sigmoid:
      return "sigmoid";
    case gating_kind::top_k_softmax:
      return "top_k_softmax";
    case gating_kind::sqrt_softplus:
      return "sqrt_softplus";
    case gating_kind::sparsemixer:
      return "sparsemixer";
  }
  return "?";
}

/// What ranks the groups of group-limited selection.
enum class group_score : std::uint8_t {
  top2_sum,  ///< sum of the two best selection values of the group (DeepSeek-V3)
  maximum,   ///< the best one (DeepSeek-V2)
};

/// How many values there are: 0 to one less.
constexpr int num_values(group_score) noexcept {
  return static_cast<int>(group_score::maximum) + 1;
}
/// The word of calibration files; "?" for no such value. Static text.
inline const char* to_string(group_score score) noexcept {
  switch (score) {
    case group_score::top2_sum:
      return "top2_sum";
    case group_score::maximum:
      return "maximum";
  }
  return "?";
}

/// A model's own routing, apart from how many experts a token gets. Plain data.
struct gating {
  gating_kind kind = gating_kind::softmax;  ///< how a logit becomes a score
  int num_experts = 0;                      ///< E in 1..1024
  int top_k = 0;                            ///< K0 in 1..min(E, 32): the model's own top-k
  bool renormalize = true;                  ///< weights of the top K0 divided by their sum
  bool selection_bias = false;         ///< routing_extras::routing_bias is added for selection only
  float routed_scaling_factor = 1.0f;  ///< > 0; multiplies every weight
  int n_group = 1;                     ///< groups of E / n_group neighbours; 1 is no grouping
  int topk_group = 1;                  ///< groups that may be chosen from
  group_score group_rank = group_score::top2_sum;  ///< what groups are ranked by
  float jitter_epsilon = 0.01f;  ///< sparsemixer: mask logits more than 2 eps below, relatively
};

/// Refuses values outside the ranges above; the message names the field, its value and the range.
inline status validate(const gating& g) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (static_cast<int>(g.kind) >= num_values(g.kind))
    return status::error(invalid, "`kind` is %d, expected a gating_kind, 0..%d",
                         static_cast<int>(g.kind), num_values(g.kind) - 1);
  if (static_cast<int>(g.group_rank) >= num_values(g.group_rank))
    return status::error(invalid, "`group_rank` is %d, expected a group_score, 0..%d",
                         static_cast<int>(g.group_rank), num_values(g.group_rank) - 1);
  if (g.num_experts < 1 || g.num_experts > max_experts)
    return status::error(invalid, "`num_experts` is %d, expected 1..%d", g.num_experts,
                         max_experts);
  const int most = g.num_experts < max_top_k ? g.num_experts : max_top_k;
  if (g.top_k < 1 || g.top_k > most)
    return status::error(invalid, "`top_k` is %d, expected 1..%d for %d experts", g.top_k, most,
                         g.num_experts);
  if (!(g.routed_scaling_factor > 0.0f && g.routed_scaling_factor < 1e6f))
    return status::error(invalid, "`routed_scaling_factor` is %g, expected above 0 and below 1e6",
                         static_cast<double>(g.routed_scaling_factor));
  if (g.n_group < 1 || g.n_group > g.num_experts || g.num_experts % g.n_group != 0)
    return status::error(invalid, "`n_group` is %d, expected a divisor of num_experts = %d",
                         g.n_group, g.num_experts);
  if (g.topk_group < 1 || g.topk_group > g.n_group)
    return status::error(invalid, "`topk_group` is %d, expected 1..n_group = %d", g.topk_group,
                         g.n_group);
  if (g.n_group > 32)
    return status::error(status_code::unsupported, "`n_group` is %d, at most 32 are supported",
                         g.n_group);
  if (g.topk_group * (g.num_experts / g.n_group) < g.top_k)
    return status::error(invalid,
                         "`topk_group` is %d: its groups hold %d experts, fewer than top_k = %d",
                         g.topk_group, g.topk_group * (g.num_experts / g.n_group), g.top_k);
  if (g.kind == gating_kind::sparsemixer) {
    if (g.top_k > 2)
      return status::error(status_code::unsupported,
                           "`top_k` is %d, sparsemixer is defined for 1..2", g.top_k);
    if (g.renormalize || g.selection_bias || g.n_group != 1)
      return status::error(status_code::unsupported,
                           "sparsemixer takes neither renormalize, selection_bias nor groups: they "
                           "are %d, %d and n_group = %d, expected 0, 0 and 1",
                           g.renormalize ? 1 : 0, g.selection_bias ? 1 : 0, g.n_group);
    if (!(g.jitter_epsilon >= 0.0f && g.jitter_epsilon < 1.0f))
      return status::error(invalid, "`jitter_epsilon` is %g, expected 0 or more and below 1",
                           static_cast<double>(g.jitter_epsilon));
  }
  return {};
}

namespace detail {

/// Softmax over the selected is softmax over all, renormalised.
template <class Gating>
ADAPTIVE_K_HD constexpr bool renormalizes(const Gating& g) noexcept {
  return g.renormalize || g.kind == gating_kind::top_k_softmax;
}

/// Whether experts are ranked by score + bias rather than by logit. Every score grows with its
/// logit (sqrt_softplus near 0 up to rounding: neighbours may fall by an ULP), so without bias or
/// summed groups the logits give the same order, and finer.
ADAPTIVE_K_HD inline bool selects_by_score(const gating& g) noexcept {
  return g.selection_bias || (g.n_group > 1 && g.group_rank == group_score::top2_sum);
}

/// Whether a gating type is softmax ranked by logit and nothing else, so that the first score is 1.
template <class Gating>
struct ranks_by_logit : std::false_type {};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
