// The controls that every savings figure stands beside: fixed K, the policy's own K's dealt out at
// random, and the same dealt out the wrong way round.
#pragma once

#include <adaptive_k/calibration/dealt_k.hpp>
#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/core/k_policy.hpp>
#include <vector>

namespace bench {

using adaptive_k::integer_rng;
using adaptive_k::invert_counts;
using adaptive_k::shuffle_counts;

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

}  // namespace bench
