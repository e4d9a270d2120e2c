// Scores: what a gating makes of a logit, built in or a user's own.
//
// A score of one's own is a type with one function:
//
//   struct Score {
//     template <class F>  // float, or a vector of them
//     ADAPTIVE_K_HD static F of(const F& logit) noexcept;
//   };
//
// `of` does not fall as its logit grows, from -inf to +inf, and is >= 0 and finite; a NaN logit is
// given to it as -inf. A gating of one's own derives from `gating`, names its score, `using score =
// Score;`, and leaves `kind` as it is. `basic_router` and `cuda::basic_device_router` take it as
// their Gating.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// exp(logit - the row's largest): their sum over all E is divided out where it matters.
struct softmax_score {};

/// The same for the sums over all E; the chosen are scored by masked softmaxes, shares already.
struct sparsemixer_score {};

template <class Score>
inline constexpr bool is_masked = std::is_same_v<Score, sparsemixer_score>;
/// Whether scores are relative to the row's largest logit.
template <class Score>
inline constexpr bool is_softmax = std::is_same_v<Score, softmax_score> || is_masked<Score>;

struct sigmoid_score {
  template <class F>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE F of(const F& logit) noexcept {
    return math::sigmoid(logit);
  }
};

struct sqrt_softplus_score {
  template <class F>
  ADAPTIVE_K_HD static ADAPTIVE_K_INLINE F of(const F& logit) noexcept {
    constexpr float finite = 1e30f;  // sqrt(+inf) would make every weight NaN
    return math::sqrt(math::softplus(math::minimum(logit, finite)));
  }
};

/// Whether a gating type names its score, so that its `kind` says nothing.
template <class Gating, class = void>
struct names_score : std::false_type {};
template <class Gating>
struct names_score<Gating, std::void_t<typename Gating::score>> : std::true_type {};

/// f(score), of the type that a gating's kind or its own type says.
template <class Gating = gating, class F>
decltype(auto) with_score([[maybe_unused]] gating_kind kind, F&& f) {
  if constexpr (names_score<Gating>::value) {
    return f(typename Gating::score());
  } else {
    switch (kind) {
      case gating_kind::softmax:
      case gating_kind::top_k_softmax:  // the same, renormalised
        break;
      case gating_kind::sigmoid:
        return f(sigmoid_score());
      case gating_kind::sqrt_softplus:
        return f(sqrt_softplus_score());
      case gating_kind::sparsemixer:
        return f(sparsemixer_score());
    }
    return f(softmax_score());
  }
}

/// Refuses what `validate` refuses, and a kind beside a score that the type names.
template <class Gating>
status check_gating(const Gating& g) noexcept {
  if (names_score<Gating>::value && g.kind != gating_kind::softmax)
    return status::error(status_code::invalid_argument,
                         "`kind` is %s, expected softmax, its default: the gating's type names its "
                         "score",
                         to_string(g.kind));
  return validate(g);
}

/// A score and its natural logarithm. Softmax scores are relative to the row's largest logit (their
/// largest is 1).
template <class F = float>
struct score_pair {
  F score;
  F log_score;
};

/// What a caller knows of a row's logits. It saves operations; the scores are the same.
enum class logits_are : std::uint8_t {
  any,
  ordinary,  ///< none is NaN or above the largest
  close,     ///< nor more than -exp_floor below it
};

/// The score of softmax kinds by how far a logit is from the row's largest: 0 or less.
template <logits_are Logits = logits_are::any, class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE score_pair<F> score_of_distance(const F& distance) noexcept {
  F log_score = distance;
  if constexpr (Logits != logits_are::close) log_score = math::maximum(log_score, math::exp_floor);
  if constexpr (Logits == logits_are::any) log_score = math::minimum(log_score, 0.0f);
  return {math::exp_above_floor(log_score), log_score};
}

/// The logarithm of a score that is not relative, finite.
template <class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE F log_of_score(const F& score) noexcept {
  return math::log(math::maximum(score, 1e-37f));
}

/// NaN scores as -inf does. The largest logit is given as finite: +inf is then as large as it.
template <class Score, logits_are Logits = logits_are::any, class F>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE score_pair<F> score_of(
    const F& logit, [[maybe_unused]] const F& largest_logit) noexcept {
  if constexpr (is_softmax<Score>) {
    return score_of_distance<Logits>(logit - largest_logit);
  } else {
    const F score = Score::of(math::maximum(logit, -math::infinity));
    return {score, log_of_score(score)};
  }
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
