// The controls that every savings figure stands beside: fixed K, the policy's own K's assigned at
// random, and the same in inverted order.
#pragma once

#include <adaptive_k/core/k_policy.hpp>
#include <vector>

namespace bench {

/// Per layer: the policy where `adaptive[layer]`, else full K.
std::vector<adaptive_k::k_policy> restrict_to(std::vector<adaptive_k::k_policy> policies,
                                              const std::vector<bool>& adaptive);

/// Per layer: fixed K with the policy's mass_exponent where `adaptive[layer]`, else full K.
std::vector<adaptive_k::k_policy> fixed_like(const std::vector<adaptive_k::k_policy>& policies,
                                             const std::vector<bool>& adaptive, int k);

}  // namespace bench
