// Token merging for causal models: a token that resembles an earlier one takes over that one's
// expert output, and is neither routed nor run itself.
#pragma once

#include <cmath>
#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Bipartite soft matching as in ToMe (Bolya et al., arXiv 2210.09461): tokens alternate between
/// two sets, and each source is matched with its most similar destination, by cosine. The rest of
/// ToMe reads later tokens, so a causal model needs these changes:
///   - Odd positions are sources, even ones destinations; a source sees only earlier destinations.
///   - ToMe averages a group, which would put later tokens into the destination's output. Here the
///     destination stays what it was, and the source takes its output over.
///   - ToMe merges the r best pairs of a sequence, so whether a pair merges depends on later ones.
///     Here it depends on the pair's own similarity alone.
///   - Merging is for the expert stage alone: attention sees every token with its own key, so
///   ToMe's
///     log-size term does not apply. Sizes are counted, as they say how many tokens each expert
///     call stands for.
/// So no output at position t depends on later positions; sizes, which are only counted, do.
struct token_merging_policy {
  float min_similarity = 1.0f;  ///< cosine of the inputs from which a pair merges, -1..1
  int window = 16;              ///< positions that a source looks back, 1 or more
};

/// Refuses values out of range; the message names field, value and range.
inline status validate(const token_merging_policy& policy) noexcept {
  if (!(policy.min_similarity >= -1.0f && policy.min_similarity <= 1.0f))
    return status::error(status_code::invalid_argument, "`min_similarity` is %g, expected -1..1",
                         static_cast<double>(policy.min_similarity));
  if (policy.window < 1)
    return status::error(status_code::invalid_argument, "`window` is %d, expected 1 or more",
                         policy.window);
  return {};
}

/// Counters, which += adds up in any order.
struct token_merging_metrics {
  std::uint64_t tokens = 0;        ///< that took part
  std::uint64_t merged = 0;        ///< sources that took over a destination's output
  std::uint64_t comparisons = 0;   ///< pairs looked at, H multiply-adds each: what matching costs
  std::uint64_t largest_size = 0;  ///< tokens that one output stood for, at most

  /// Share of the tokens that took another's output, 0..1; 0 where there were none.
  double merged_share() const noexcept {
    return tokens == 0 ? 0.0 : static_cast<double>(merged) / static_cast<double>(tokens);
  }

  /// Adds the counters of other calls, threads or ranks.
  token_merging_metrics& operator+=(const token_merging_metrics& other) noexcept {
    tokens += other.tokens;
    merged += other.merged;
    comparisons += other.comparisons;
    if (other.largest_size > largest_size) largest_size = other.largest_size;
    return *this;
  }
};

/// Outputs and working space of a matching, all the caller's; nothing is allocated.
struct token_matching {
  /// [T]: the position whose output a token takes; its own where it is run itself.
  std::int32_t* representative = nullptr;
  /// [T]: tokens that the expert output computed here stands for: 1 + those merged into it;
  /// 0 where nothing is computed (merged, or not taking part).
  std::int32_t* sizes = nullptr;
  double* squares = nullptr;  ///< [T], working space: squared lengths
};

namespace detail {

// Products of floats are exact in double, so the bits do not depend on fused multiply-add.
inline double dot_in_order(const float* a, const float* b, int size) noexcept {
  double sum = 0.0;
  for (int i = 0; i < size; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

}  // namespace detail

/// Matches the tokens of one sequence: x [num_tokens, hidden], what the expert stage reads, in the
/// order of positions, the first at `first_position` (its parity decides the set, so that a
/// sequence may come in parts). `takes_part` [T], where given, is 0 for tokens that are not run
/// here: they neither merge nor are merged into. Of equally similar destinations the earliest
/// wins. Zero or non-finite inputs never merge. Adds to `metrics` where given. Cost
/// O(T (window / 4 + 1) H). Refuses null buffers and negative sizes.
inline status match_tokens(const token_merging_policy& policy, const float* x,
                           std::int64_t num_tokens, int hidden, const token_matching& out,
                           token_merging_metrics* metrics = nullptr,
                           const std::uint8_t* takes_part = nullptr,
                           std::int64_t first_position = 0) noexcept {
  const auto invalid = status_code::invalid_argument;
  const status valid = validate(policy);
  if (!valid.ok()) return valid;
  if (num_tokens < 0 || num_tokens > 0x7fffffff || hidden < 1 || first_position < 0)
    return status::error(invalid,
                         "num_tokens is %lld, hidden %d and first_position %lld, expected "
                         "0..2147483647, 1 or more and 0 or more",
                         static_cast<long long>(num_tokens), hidden,
                         static_cast<long long>(first_position));
  if (num_tokens > 0 && (x == nullptr || out.representative == nullptr || out.sizes == nullptr ||
                         out.squares == nullptr))
    return status::error(invalid, "x, representative, sizes or squares is null");
  token_merging_metrics counted;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const float* own = x + t * hidden;
    out.representative[t] = static_cast<std::int32_t>(t);
    out.sizes[t] = 0;
    if (takes_part != nullptr && takes_part[t] == 0) continue;
    ++counted.tokens;
    out.squares[t] = detail::dot_in_order(own, own, hidden);
    std::int64_t best = t;
    if ((first_position + t) % 2 != 0) {
      double best_similarity = static_cast<double>(policy.min_similarity);
      const std::int64_t begin = t > policy.window ? t - policy.window : 0;
      // The first destination of the window, then every other one, earliest first.
      for (std::int64_t d = begin + (first_position + begin) % 2; d < t; d += 2) {
        if (out.sizes[d] == 0) continue;
        ++counted.comparisons;
        // One root of the product: exactly 1 for equal inputs, which two rounded roots miss.
        const double similarity = detail::dot_in_order(own, x + d * hidden, hidden) /
                                  std::sqrt(out.squares[t] * out.squares[d]);
        if (best == t ? similarity >= best_similarity : similarity > best_similarity) {
          best = d;
          best_similarity = similarity;
        }
      }
    }
    const std::int32_t size = ++out.sizes[best];
    if (static_cast<std::uint64_t>(size) > counted.largest_size)
      counted.largest_size = static_cast<std::uint64_t>(size);
    if (best == t) continue;
    out.representative[t] = static_cast<std::int32_t>(best);
    ++counted.merged;
  }
  if (metrics != nullptr) *metrics += counted;
  return {};
}

ADAPTIVE_K_NAMESPACE_END
