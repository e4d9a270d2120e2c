// The most common call, specialised: softmax gating with renormalised weights, K0 known at compile
// time, and a policy that compares the softmax entropy or nothing. Its decision has no branches.
// The arithmetic is that of the rest of core/.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A gating as core/ reads it, with all but two members known at compile time.
template <int TopK>
struct renormalized_softmax {
  static constexpr gating_kind kind = gating_kind::softmax;
  static constexpr bool renormalize = true;
  static constexpr int top_k = TopK;
  int num_experts;
  float routed_scaling_factor;
};
template <int TopK>
struct ranks_by_logit<renormalized_softmax<TopK>> : std::true_type {};

/// A plan as core/ reads it.
template <int TopK>
struct entropy_plan {
  static constexpr signal_kind signal = signal_kind::softmax_entropy;
  static constexpr float log_experts = 0.0f;  // not read
  static constexpr float inverse_log_experts = 0.0f;
  k_limits limits;
  int last_k;
  std::uint32_t tried;
  float mass_exponent;
  float threshold[TopK];

  ADAPTIVE_K_HD static constexpr bool reads_topk_share() noexcept { return false; }
  template <class Token>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(
      const Token& token) const noexcept {
    return first_k_met(*this, token);
  }
};
template <int TopK>
struct keeps_limits<entropy_plan<TopK>> : std::true_type {};

/// A plan prepared for many tokens: the limits are applied to its k's, and a rank without a
/// threshold has one that no entropy is below.
template <int TopK>
struct limited_plan : entropy_plan<TopK> {
  int k_at[TopK];  ///< by the rank whose threshold is met; the last where none is

  ADAPTIVE_K_HD ADAPTIVE_K_INLINE explicit limited_plan(const entropy_plan<TopK>& plan) noexcept
      : entropy_plan<TopK>(plan) {
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < TopK; ++j) {
      k_at[j] = within(j + 1 < TopK ? j + 1 : plan.last_k, plan.limits);
      if ((plan.tried >> j & 1u) == 0) this->threshold[j] = -math::infinity;
    }
    this->limits = {1, TopK};
  }

  template <class Token>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(
      const Token& token) const noexcept {
    using integers = typename Token::integers;
    integers k = k_at[TopK - 1];
    ADAPTIVE_K_UNROLL
    for (int j = TopK - 2; j >= 0; --j)
      k = math::select(is_enough(*this, token, j), integers(k_at[j]), k);
    if (token.limits.k_min <= 1 && token.limits.k_max >= TopK)
      return k;  // the plan's own are in k_at
    return within(k, token.limits);
  }
};
template <int TopK>
struct keeps_limits<limited_plan<TopK>> : std::true_type {};

/// The same with a mass exponent of 1, known at compile time.
template <int TopK>
struct whole_mass_plan : limited_plan<TopK> {
  static constexpr float mass_exponent = 1.0f;
};
template <int TopK>
struct keeps_limits<whole_mass_plan<TopK>> : std::true_type {};

ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool compares_entropy(const k_plan_head& head) noexcept {
  return head.signal == signal_kind::softmax_entropy && head.choice == k_choice::thresholds;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
