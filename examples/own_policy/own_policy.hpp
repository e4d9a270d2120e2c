// A K policy and a gating of one's own, for the host (scalar and vectors) and for kernels.
#pragma once

#include <adaptive_k/core/plan.hpp>
#include <adaptive_k/core/score.hpp>

namespace engine {

namespace math = adaptive_k::math;

/// Keeps experts until they have `mass` of the top K0's, or the next scores below `ratio` times the
/// first: whichever is sooner.
struct mass_or_gap {
  float mass = 0.9f;   ///< in (0, 1]
  float ratio = 0.1f;  ///< in [0, 1)
};

struct mass_or_gap_plan : adaptive_k::plan_base {
  float mass;
  float ratio;

  mass_or_gap_plan(const adaptive_k::gating& g, const mass_or_gap& policy) noexcept
      : plan_base(g), mass(policy.mass), ratio(policy.ratio) {
    signal = adaptive_k::signal_kind::topk_mass;  // an entropy would be a sum over all experts
  }

  template <class Token>
  ADAPTIVE_K_HD ADAPTIVE_K_INLINE typename Token::integers choose_k(
      const Token& token) const noexcept {
    typename Token::integers k = token.top_k;
    for (int j = token.ranks - 2; j >= 0; --j) {
      const typename Token::integers here = j + 1;
      k = math::select(token.mass(j) >= token.total() * mass, here, k);
      k = math::select(token.score(j + 1) < token.score(0) * ratio, here, k);
    }
    return k;
  }
};

inline adaptive_k::status validate(const mass_or_gap& policy, const adaptive_k::gating&) noexcept {
  const auto invalid = adaptive_k::status_code::invalid_argument;
  if (!(policy.mass > 0.0f && policy.mass <= 1.0f))
    return adaptive_k::status::error(invalid, "`mass` is %g, expected above 0, at most 1",
                                     static_cast<double>(policy.mass));
  if (!(policy.ratio >= 0.0f && policy.ratio < 1.0f))
    return adaptive_k::status::error(invalid, "`ratio` is %g, expected 0 or more, below 1",
                                     static_cast<double>(policy.ratio));
  return {};
}

inline mass_or_gap_plan make_plan(const adaptive_k::gating& g, const mass_or_gap& policy) noexcept {
  return {g, policy};
}

/// Scores of a ReLU, as ReMoE's routers have them (arXiv 2412.14711).
struct relu_score {
  template <class F>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE F of(const F& logit) noexcept {
    return math::minimum(math::maximum(logit, 0.0f), 1e30f);
  }
};

struct relu_gating : adaptive_k::gating {
  using score = relu_score;
};

}  // namespace engine
