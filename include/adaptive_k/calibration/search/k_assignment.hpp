// A policy's K's, reassigned among the tokens: the controls that show whether its signal matters.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How the K's that a policy chooses are assigned to the tokens of a call.
enum class k_assignment {
  chosen,    ///< each token its own
  shuffled,  ///< at random
  inverted,  ///< the surest token gets the most
};

/// SplitMix64: the same numbers everywhere, which the standard distributions do not give.
class integer_rng {
 public:
  /// Equal seeds give equal numbers.
  explicit integer_rng(std::uint64_t seed) : state_(seed) {}

  /// Uniform in 0..2^64 - 1.
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  /// Uniform in 0..bound-1, to one part in 2^32 / bound; bound in 1..2^32.
  std::uint64_t below(std::uint64_t bound) { return ((next() >> 32) * bound) >> 32; }

 private:
  std::uint64_t state_;
};

/// Fisher-Yates: a uniformly random permutation of the same K's.
inline void shuffle_counts(std::vector<std::uint8_t>& counts, integer_rng& rng) {
  for (std::size_t i = counts.size(); i > 1; --i)
    std::swap(counts[i - 1], counts[static_cast<std::size_t>(rng.below(i))]);
}

/// The same K's in the opposite order: the token with the least K (equal K's: the surest signal,
/// then the lower index) gets the greatest, and so on.
inline void invert_counts(std::vector<std::uint8_t>& counts, const std::vector<float>& signal,
                          signal_kind kind) {
  const bool high_is_sure = detail::high_is_sure(kind);
  std::vector<std::size_t> surest_first(counts.size());
  std::iota(surest_first.begin(), surest_first.end(), std::size_t{0});
  std::stable_sort(surest_first.begin(), surest_first.end(), [&](std::size_t a, std::size_t b) {
    if (counts[a] != counts[b]) return counts[a] < counts[b];
    return high_is_sure ? signal[a] > signal[b] : signal[a] < signal[b];
  });
  const std::vector<std::uint8_t> own = counts;
  for (std::size_t rank = 0; rank < own.size(); ++rank)
    counts[surest_first[rank]] = own[surest_first[own.size() - 1 - rank]];
}

/// Reassigns the K's of one call; `signal` is that of their policy.
inline void assign_counts(k_assignment how, std::vector<std::uint8_t>& counts,
                          const std::vector<float>& signal, signal_kind kind, integer_rng& rng) {
  if (how == k_assignment::shuffled) shuffle_counts(counts, rng);
  if (how == k_assignment::inverted) invert_counts(counts, signal, kind);
}

/// Per layer full K with the policy's signal and mass_exponent: with K's given by the caller it
/// differs from the policy in its K's alone.
inline std::vector<k_policy> full_like(const std::vector<k_policy>& policies) {
  std::vector<k_policy> result;
  for (const k_policy& policy : policies) {
    k_policy full = k_policy::full();
    full.signal = policy.signal;
    full.mass_exponent = policy.mass_exponent;
    result.push_back(full);
  }
  return result;
}

ADAPTIVE_K_NAMESPACE_END
