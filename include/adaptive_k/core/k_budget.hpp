// A batch's budget of expert calls, written once for host and device: each token's steps down the
// lower convex hull of its costs, and which of all steps the budget pays for.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Whether a token may have a k that costs this.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool is_allowed(float cost) noexcept {
  return math::abs(cost) < math::infinity;  // not NaN either
}

/// The least k that a token may have; K0 where its costs allow none.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE int least_allowed_k(const float* costs, int top_k) noexcept {
  int k = 1;
  while (k < top_k && !is_allowed(costs[k - 1])) ++k;
  return k;
}

/// One edge of the hull.
struct hull_step {
  int k;       ///< where it ends; where it began if there is none
  float gain;  ///< cost saved by each expert of it, above 0
};

/// The edge that begins at k: to the k that saves most by expert, the nearest of equals. `most` is
/// the gain of the edge before, which rounding must not let this one exceed.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE hull_step next_step(const float* costs, int top_k, int k,
                                                    float most) noexcept {
  hull_step best = {k, 0.0f};
  if (!is_allowed(costs[k - 1])) return best;
  for (int next = k + 1; next <= top_k; ++next) {
    if (!is_allowed(costs[next - 1])) continue;
    const float saved = costs[k - 1] - costs[next - 1];
    const float gain = math::divide(saved, static_cast<float>(next - k));
    if (gain > best.gain) best = {next, gain};
  }
  best.gain = math::minimum(best.gain, most);
  return best;
}

/// Writes the key of each expert beyond a token's least k, [K0 - 1]: of the gain of its edge, 0
/// where there is none. Keys never ascend from rank to rank. Returns the least k.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE int write_gain_keys(const float* costs, int top_k,
                                                    std::uint32_t* keys) noexcept {
  const int least = least_allowed_k(costs, top_k);
  for (int k = 1; k < top_k; ++k) keys[k - 1] = 0;
  float most = math::largest_finite;
  for (int k = least; k < top_k;) {
    const hull_step step = next_step(costs, top_k, k, most);
    if (step.k == k) break;
    for (; k < step.k; ++k) keys[k - 1] = order_key(step.gain);
    most = step.gain;
  }
  return least;
}

/// Which experts the budget pays for: those with keys above `key`, and of those with that key the
/// first `equal`, by token and rank.
struct budget_cut {
  std::uint32_t key;
  std::int64_t equal;
};

/// The last corner of the hull at `k` or before: a budget may end within an edge.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE int corner_before(const float* costs, int top_k, int k) noexcept {
  int corner = least_allowed_k(costs, top_k);
  for (;;) {
    const hull_step step = next_step(costs, top_k, corner, math::largest_finite);
    if (step.k == corner || step.k > k) return corner;
    corner = step.k;
  }
}

inline constexpr int key_digits = 256;  ///< that a pass of the selection tells apart
inline constexpr int key_digit_bits = 8;

/// A key's digit at `shift`.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE int digit_of(std::uint32_t key, int shift) noexcept {
  return static_cast<int>(key >> shift & (key_digits - 1));
}
/// Whether two keys agree in the digits above that at `shift`.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE bool has_prefix(std::uint32_t key, std::uint32_t prefix,
                                                int shift) noexcept {
  return static_cast<std::uint64_t>(key ^ prefix) >> (shift + key_digit_bits) == 0;
}

/// One pass over the digit at `shift`: the counts of the keys by that digit, among those that agree
/// with `cut.key` in the digits above. Finds the digit of the key at place `cut.equal`, from the
/// largest, and its place among its equals.
template <class Counts>
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void narrow_cut(const Counts& counts, int shift,
                                                budget_cut& cut) noexcept {
  int digit = key_digits - 1;
  for (; digit > 0 && static_cast<std::int64_t>(counts[digit]) < cut.equal; --digit)
    cut.equal -= static_cast<std::int64_t>(counts[digit]);
  cut.key |= static_cast<std::uint32_t>(digit) << shift;
}

/// The share of the weights that k = 1..K0 drops, summed from the last rank; by ranks that weigh 0
/// alone nothing is dropped. `costs` may be `weights`.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE void write_mass_costs(const float* weights, int top_k,
                                                      float* costs) noexcept {
  float total = 0.0f;
  for (int j = top_k - 1; j >= 0; --j) total = total + weights[j];
  float dropped = 0.0f;
  for (int j = top_k - 1; j >= 0; --j) {
    const float weight = weights[j];
    costs[j] = total > 0.0f ? math::divide(dropped, total) : 0.0f;
    dropped = dropped + weight;
  }
}

inline status check_mass_costs(const float* weights, std::int64_t num_tokens, int top_k,
                               const float* costs) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (num_tokens < 0 || num_tokens > max_tokens)
    return status::error(invalid, "`num_tokens` is %lld, expected 0..%d",
                         static_cast<long long>(num_tokens), max_tokens);
  if (top_k < 1 || top_k > max_top_k)
    return status::error(invalid, "`top_k` is %d, expected 1..%d", top_k, max_top_k);
  if (num_tokens > 0 && (weights == nullptr || costs == nullptr))
    return status::error(invalid, "weights or costs is null");
  return {};
}

inline status check_k_budget(const float* costs, std::int64_t num_tokens, int top_k,
                             const std::uint32_t* gains, const std::uint8_t* assigned_k) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (num_tokens < 0 || num_tokens > max_tokens)
    return status::error(invalid, "`num_tokens` is %lld, expected 0..%d",
                         static_cast<long long>(num_tokens), max_tokens);
  if (top_k < 1 || top_k > max_top_k)
    return status::error(invalid, "`top_k` is %d, expected 1..%d", top_k, max_top_k);
  if (num_tokens > 0 && (costs == nullptr || assigned_k == nullptr))
    return status::error(invalid, "costs or assigned_k is null");
  if (num_tokens > 0 && top_k > 1 && gains == nullptr)
    return status::error(invalid, "`gains` is null, expected room for [num_tokens, %d]", top_k - 1);
  return {};
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
