// What a K policy is to the router, built in or a user's own.
//
// A policy is a copyable type with two functions in its namespace:
//
//   status validate(const Policy&, const gating&) noexcept;  // refuses what does not fit
//   Plan make_plan(const gating&, const Policy&) noexcept;   // of what validate accepts
//
// Its plan is plain data that the decision reads, on a device from device memory. It must hold all
// that it reads, as what a pointer leads to is not copied there.
//
//   struct Plan : plan_base {
//     template <class Token>  // a ranked_token
//     ADAPTIVE_K_HD typename Token::integers choose_k(const Token& token) const noexcept;
//   };
//
// `signal` of plan_base says what is reported; an entropy of the softmax costs a sum over all E.
// choose_k is compiled for one token (Token::real is float), for a token in each lane of a vector,
// and as device code; mark it ADAPTIVE_K_INLINE, so that it is inlined there. It gives the same k
// everywhere if it uses math::select instead of branches on a Token::real, and feeds a product to
// a sum only through math::fma. What it returns is brought within the token's limits.
// `basic_router<Policy>` and `cuda::basic_device_router<Plan>` are routers of such types. The
// plans of k_policy, in core/choose_k.hpp, are such types too.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Bounds on k within 1..K0.
struct k_limits {
  int k_min;  ///< 1 or more
  int k_max;  ///< k_min or more, at most K0
};

namespace detail {
/// A call without a router head. Another type with this member gives column j of a token's head.
struct no_head {
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE float operator()(int) const noexcept { return 0.0f; }
};
}  // namespace detail

/// What every plan has.
struct plan_base {
  signal_kind signal = signal_kind::softmax_entropy;  ///< what a token's `signal` is
  k_limits limits = {1, max_top_k};                   ///< within 1..K0
  float mass_exponent = 1.0f;                         ///< a in [0, 1], as k_policy::mass_exponent
  float log_experts = 0.0f;                           ///< ln E
  float inverse_log_experts = 0.0f;                   ///< 1 / ln E; 0 for E = 1

  plan_base() noexcept = default;
  /// Limits 1..K0, and the mass exponent that suits the gating.
  explicit plan_base(const gating& g) noexcept
      : limits{1, g.top_k},
        mass_exponent(detail::renormalizes(g) ? 1.0f : 0.0f),
        log_experts(math::log(static_cast<float>(g.num_experts))) {
    if (g.num_experts > 1) inverse_log_experts = math::divide(1.0f, log_experts);
  }

  /// Whether `topk_share` is read: of softmax gatings it may cost a sum over all E.
  ADAPTIVE_K_HD static constexpr bool reads_topk_share() noexcept { return false; }
  /// Whether `head` is read: calls must then give one (logits_view::head), and tokens with a NaN or
  /// an infinity in it get the largest k within their limits.
  ADAPTIVE_K_HD static constexpr bool reads_head() noexcept { return false; }
};

/// One token, or one in each lane, as a plan's choose_k sees it: experts by rank j in 0..K0-1, best
/// first. Scores are >= 0, up to a common factor.
template <int MaxTopK, class F, class Ranks, class Head = detail::no_head>
struct ranked_token {
  using real = F;                      ///< float, or a vector of them
  using integers = math::integers<F>;  ///< int, or a vector of them

  const detail::ranked_experts<MaxTopK, F>& ranked;  ///< what the functions below read
  Ranks ranks;  ///< for loops over ranks: K0, or more where they are unrolled (scores are 0 there)
  int top_k;    ///< K0
  int num_experts;    ///< E
  k_limits limits;    ///< of this token, within 1..K0
  F signal;           ///< as the plan's `signal` says
  F topk_share;       ///< S_K0, as distortion_ref means it; 0 unless reads_topk_share()
  Head columns = {};  ///< what `head` reads

  /// Id of the expert at rank j.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE const integers& expert(int j) const noexcept {
    return ranked.expert[j];
  }
  /// Its score, 0 or more.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE const F& score(int j) const noexcept { return ranked.score[j]; }
  /// The natural logarithm of its score, finite.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE const F& log_score(int j) const noexcept {
    return ranked.log_score[j];
  }
  /// Sum of the scores of ranks 0 to j.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE const F& mass(int j) const noexcept { return ranked.mass[j]; }
  /// Column j of the router head, j in 0..K0-2, for plans that read it.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE F head(int j) const noexcept { return columns(j); }
  /// Sum of the scores of all K0 ranks.
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE const F& total() const noexcept { return ranked.total; }
};

namespace detail {

/// Whether a plan's choose_k keeps to the token's limits by itself.
template <class Plan>
struct keeps_limits : std::false_type {};

template <class Policy>
using plan_of = decltype(make_plan(std::declval<const gating&>(), std::declval<const Policy&>()));

template <class Policy, class = void>
struct has_plan : std::false_type {};
template <class Policy>
struct has_plan<Policy, std::void_t<plan_of<Policy>>>
    : std::bool_constant<std::is_base_of_v<plan_base, plan_of<Policy>> &&
                         std::is_trivially_copyable_v<plan_of<Policy>>> {};

template <class Policy, class = void>
struct has_validate : std::false_type {};
template <class Policy>
struct has_validate<Policy, std::void_t<decltype(validate(std::declval<const Policy&>(),
                                                          std::declval<const gating&>()))>>
    : std::is_same<status, decltype(validate(std::declval<const Policy&>(),
                                             std::declval<const gating&>()))> {};

/// A plan's limits within a token's own, which win where the two do not overlap.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE k_limits narrow_limits(k_limits limits, int k_min,
                                                       int k_max) noexcept {
  const auto clamp = [=](int k) { return k < k_min ? k_min : (k > k_max ? k_max : k); };
  return {clamp(limits.k_min), clamp(limits.k_max)};
}

template <class Integers>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE Integers within(const Integers& k, k_limits limits) noexcept {
  const Integers at_most = math::select(k > limits.k_max, Integers(limits.k_max), k);
  return math::select(at_most < limits.k_min, Integers(limits.k_min), at_most);
}

/// 0, or NaN where one of the K0 - 1 columns of a head is NaN or infinite.
template <class F, class Head, class Ranks>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F head_defect(const Head& head, int top_k, Ranks ranks) noexcept {
  F defect = 0.0f;
  ADAPTIVE_K_UNROLL
  for (int j = 0; j + 1 < ranks; ++j)
    if (j + 1 < top_k) defect = math::fma(F(head(j)), 0.0f, defect);
  return defect;
}

/// How many experts a token gets, within its limits.
template <class Plan, class Token>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(const Plan& plan,
                                                                  const Token& token) noexcept {
  using integers = typename Token::integers;
  integers k = plan.choose_k(token);
  if constexpr (!keeps_limits<Plan>::value) k = within(k, token.limits);
  if (!plan.reads_head()) return k;
  const auto defect = head_defect<typename Token::real>(token.columns, token.top_k, token.ranks);
  return math::select(defect == typename Token::real(0.0f), k, integers(token.limits.k_max));
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
