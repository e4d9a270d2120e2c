// The controls that every savings figure stands beside: fixed K, the policy's own K's dealt out at
// random, and the same dealt out the wrong way round.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/core/k_policy.hpp>
#include <cstdint>
#include <vector>

namespace bench {

/// SplitMix64: the same numbers everywhere, which the standard distributions do not give.
class integer_rng {
 public:
  explicit integer_rng(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// Uniform in 0..bound-1, to one part in 2^32 / bound; bound in 1..2^32.
  std::uint64_t below(std::uint64_t bound);

 private:
  std::uint64_t state_;
};

/// Whether a high value of the signal means a sure router.
bool high_is_sure(adaptive_k::signal_kind signal);

/// The exponent a policy comes to under a gating: its own, or the model's for -1.
float resolved_mass_exponent(const adaptive_k::k_policy& policy, const adaptive_k::gating& model);

/// Per layer: the policy where `adaptive[layer]`, else full K.
std::vector<adaptive_k::k_policy> restrict_to(std::vector<adaptive_k::k_policy> policies,
                                              const std::vector<bool>& adaptive);

/// Per layer: full K with the policy's own signal and mass_exponent, so that a control differs
/// from the policy in its K's alone.
std::vector<adaptive_k::k_policy> full_like(const std::vector<adaptive_k::k_policy>& policies);

/// Per layer: fixed K with the policy's mass_exponent where `adaptive[layer]`, else full K.
std::vector<adaptive_k::k_policy> fixed_like(const std::vector<adaptive_k::k_policy>& policies,
                                             const std::vector<bool>& adaptive, int k);

/// Fisher-Yates: the same K's, each token's equally likely to be any of them.
void shuffle_counts(std::vector<std::uint8_t>& counts, integer_rng& rng);

/// The same K's in the opposite order: the token with the least K (equal K's: the surest signal,
/// then the lower index) gets the greatest, and so on.
void invert_counts(std::vector<std::uint8_t>& counts, const std::vector<float>& signal,
                   bool high_is_sure);

}  // namespace bench
