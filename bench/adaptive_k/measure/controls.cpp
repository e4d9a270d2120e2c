#include "bench/adaptive_k/measure/controls.hpp"

#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <cstddef>
#include <utility>

namespace bench {

std::vector<adaptive_k::k_policy> restrict_to(std::vector<adaptive_k::k_policy> policies,
                                              const std::vector<bool>& adaptive) {
  const std::vector<adaptive_k::k_policy> full = adaptive_k::full_like(policies);
  for (std::size_t layer = 0; layer < policies.size(); ++layer)
    if (!adaptive[layer]) policies[layer] = full[layer];
  return policies;
}

std::vector<adaptive_k::k_policy> fixed_like(const std::vector<adaptive_k::k_policy>& policies,
                                             const std::vector<bool>& adaptive, int k) {
  std::vector<adaptive_k::k_policy> result;
  for (const adaptive_k::k_policy& policy : policies) {
    adaptive_k::k_policy fixed = adaptive_k::k_policy::fixed(k);
    fixed.signal = policy.signal;
    fixed.mass_exponent = policy.mass_exponent;
    result.push_back(fixed);
  }
  return restrict_to(std::move(result), adaptive);
}

}  // namespace bench
