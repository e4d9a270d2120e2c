// Gatings of every kind, and policies with thresholds that their signals fall on both sides of.
#pragma once

#include <list>
#include <string>
#include <utility>
#include <vector>

#include "checked_batch.hpp"

namespace checked {

struct named_policy {
  std::string name;
  k_policy policy;
};

/// Ascending K values that end at K0 or below, at most `most` of them.
inline std::vector<int> k_values_of(inputs::sequence& from, int top_k, int most) {
  std::vector<int> values;
  for (int k = 1; k <= top_k; ++k)
    if (from.chance(2)) values.push_back(k);
  if (values.empty()) values.push_back(from.between(1, top_k));
  while (static_cast<int>(values.size()) > most) values.erase(values.begin() + from.below(most));
  return values;
}

/// Thresholds spread over low..high, a hair off any round number that a signal might equal.
inline k_policy spread_thresholds(inputs::sequence& from, signal_kind kind, int top_k, double low,
                                  double high) {
  const std::vector<int> values = k_values_of(from, top_k, 5);
  const int count = static_cast<int>(values.size()) - 1;
  std::vector<float> limits;
  for (int i = 0; i < count; ++i) {
    const double part = (i + 0.5 + 0.3 * (from.below(1000) / 1000.0 - 0.5)) / count;
    limits.push_back(static_cast<float>(low + (high - low) * part + 0.000123));
  }
  k_policy policy;
  policy.set_thresholds(kind, values.data(), count + 1, limits.data(), count);
  return policy;
}

/// Every rule and every signal; `tables` must outlive the result.
inline std::vector<named_policy> all_policies(inputs::sequence& from, const gating& g,
                                              const inputs::distortion_tables& tables) {
  const double log_e = std::log(static_cast<double>(g.num_experts));
  const double log_k = std::log(static_cast<double>(g.top_k));
  std::vector<named_policy> made;
  made.push_back({"full", k_policy::full()});
  made.back().policy.signal = signal_kind::none;
  made.push_back({"fixed", k_policy::fixed(from.between(1, g.top_k))});
  made.push_back({"entropy", spread_thresholds(from, signal_kind::softmax_entropy, g.top_k,
                                               0.4 * log_e, 0.95 * log_e)});
  made.push_back({"normalized_entropy",
                  spread_thresholds(from, signal_kind::normalized_entropy, g.top_k, 0.4, 0.95)});
  made.push_back({"topk_entropy", spread_thresholds(from, signal_kind::topk_entropy, g.top_k,
                                                    0.5 * log_k, 0.99 * log_k)});
  made.push_back(
      {"topk_mass", spread_thresholds(from, signal_kind::topk_mass, g.top_k, 0.1, 0.99)});
  made.push_back(
      {"score_ratio", spread_thresholds(from, signal_kind::score_ratio, g.top_k, 0.05, 0.99)});
  made.push_back({"margin", spread_thresholds(from, signal_kind::margin, g.top_k, 0.5, 0.01)});
  made.push_back({"top_p", k_policy::top_p(0.7312f, g.top_k)});
  made.push_back({"every score_ratio", k_policy::score_ratio(0.4321f, g.top_k)});

  distortion_ref model;
  model.coefficients = tables.coefficients.data();
  model.lambda = 0.03125f;
  made.push_back({"distortion", k_policy::min_distortion(model)});
  model.first_expert = tables.first_expert.data();
  model.next_expert = tables.next_expert.data();
  model.sensitivity = 1.75f;
  made.push_back({"distortion with id tables", k_policy::min_distortion(model)});
  return made;
}

/// Some experts as super experts, more often one than eight.
inline void pick_super_experts(inputs::sequence& from, int num_experts, k_policy& policy) {
  const int most = std::min(num_experts, max_super_experts);
  policy.num_super_experts = static_cast<std::uint8_t>(from.between(1, from.between(1, most)));
  for (int i = 0; i < policy.num_super_experts; ++i) {
    bool taken = true;
    while (taken) {
      policy.super_experts[i] = static_cast<std::uint16_t>(from.below(num_experts));
      taken = false;
      for (int before = 0; before < i; ++before)
        taken = taken || policy.super_experts[before] == policy.super_experts[i];
    }
  }
}

/// A domain of which some tokens of grid logits are outside, by either end of either range.
inline void pick_domain(inputs::sequence& from, k_policy& policy) {
  const float middle = policy.signal == signal_kind::softmax_entropy ? 2.0f : 0.5f;
  const auto part = [&] { return static_cast<float>(from.between(1, 63)) / 64.0f; };
  policy.domain = {true, middle * part() - 0.2f, middle * (1.0f + part()), 0.4f * part(),
                   0.4f + 0.6f * part()};
}

/// Exponents in turn, the model's own among them.
inline float mass_exponent_number(int index) {
  const float exponents[] = {k_policy::mass_exponent_of_model, 0.0f, 0.3f, 0.5f, 0.7f, 1.0f};
  return exponents[index % 6];
}

inline const std::vector<int>& expert_counts_to_try() {
  static const std::vector<int> counts = {1,  2,   3,   7,   8,   16,  31,  32,  33,   60,
                                          64, 100, 128, 160, 255, 256, 384, 512, 1000, 1024};
  return counts;
}

/// K0 of 1, of everything, and of something in between.
inline std::vector<int> top_k_to_try(inputs::sequence& from, int num_experts) {
  const int most = std::min(num_experts, max_top_k);
  std::vector<int> values = {1, from.between(1, most), most};
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

/// A gating of every kind, renormalised and not, with bias and groups where it may have them. A
/// list: g++ 12 warns of its own vector here.
inline std::list<gating> all_gatings() {
  std::list<gating> made;
  for (const gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid,
                                 gating_kind::top_k_softmax, gating_kind::sqrt_softplus}) {
    gating g;
    g.kind = kind;
    g.num_experts = 48;
    g.top_k = 8;
    made.push_back(g);
    g.top_k = 6;
    g.renormalize = false;
    g.routed_scaling_factor = 2.5f;
    made.push_back(g);
    g.selection_bias = true;
    made.push_back(g);
    g.n_group = 4;
    g.topk_group = 2;
    made.push_back(g);
  }
  gating sparse;
  sparse.kind = gating_kind::sparsemixer;
  sparse.num_experts = 16;
  sparse.top_k = 2;
  sparse.renormalize = false;
  made.push_back(sparse);
  return made;
}

}  // namespace checked
