#include "bench/adaptive_k/controls.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace bench {

std::uint64_t integer_rng::next() {
  std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::uint64_t integer_rng::below(std::uint64_t bound) {
  return ((next() >> 32) * bound) >> 32;
}

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

void shuffle_counts(std::vector<std::uint8_t>& counts, integer_rng& rng) {
  for (std::size_t i = counts.size(); i > 1; --i)
    std::swap(counts[i - 1], counts[static_cast<std::size_t>(rng.below(i))]);
}

void invert_counts(std::vector<std::uint8_t>& counts, const std::vector<float>& signal,
                   bool high_is_sure) {
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

}  // namespace bench
