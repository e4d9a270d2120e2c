#include "bench/adaptive_k/controls.hpp"

#include <cstddef>
#include <utility>

namespace bench {

bool high_is_sure(adaptive_k::signal_kind signal) {
  return signal == adaptive_k::signal_kind::topk_mass || signal == adaptive_k::signal_kind::margin;
}

float resolved_mass_exponent(const adaptive_k::k_policy& policy, const adaptive_k::gating& model) {
  if (policy.mass_exponent != adaptive_k::k_policy::mass_exponent_of_model)
    return policy.mass_exponent;
  const bool renormalizes =
      model.renormalize || model.kind == adaptive_k::gating_kind::top_k_softmax;
  return renormalizes ? 1.0f : 0.0f;
}

std::vector<adaptive_k::k_policy> full_like(const std::vector<adaptive_k::k_policy>& policies) {
  std::vector<adaptive_k::k_policy> result;
  for (const adaptive_k::k_policy& policy : policies) {
    adaptive_k::k_policy full = adaptive_k::k_policy::full();
    full.signal = policy.signal;
    full.mass_exponent = policy.mass_exponent;
    result.push_back(full);
  }
  return result;
}

std::vector<adaptive_k::k_policy> restrict_to(std::vector<adaptive_k::k_policy> policies,
                                              const std::vector<bool>& adaptive) {
  const std::vector<adaptive_k::k_policy> full = full_like(policies);
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
