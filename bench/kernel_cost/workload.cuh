// One routing workload in device memory, and the counting of what a launch over it costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/launch.cuh"
#include "cuda/device_buffer.hpp"
#include "inputs.hpp"
#include "measure.hpp"
#include "ptx_device.hpp"

namespace kernel_cost {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

inline void require(const status& result) {
  if (!result.ok()) throw std::runtime_error(result.message());
}

/// Entropy thresholds at the quantiles 1/3 and 2/3 of the rows' own entropies: K of K0/2, 3/4 K0
/// and K0; `half` moves them so that the mean K is about K0 / 2.
inline k_policy entropy_policy(const std::vector<float>& entropies, int top_k, bool half) {
  std::vector<float> sorted = entropies;
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](double q) {
    return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
  };
  std::vector<int> values = {std::max(1, top_k / (half ? 4 : 2)),
                             std::max(1, top_k * (half ? 2 : 3) / 4), top_k};
  std::vector<float> limits = {quantile(half ? 0.4 : 0.333), quantile(half ? 0.8 : 0.667)};
  for (std::size_t i = 1; i < values.size();) {  // small K0: equal values make one
    if (values[i] == values[i - 1]) {
      values.erase(values.begin() + static_cast<std::ptrdiff_t>(i));
      limits.erase(limits.begin() + static_cast<std::ptrdiff_t>(i) - 1);
    } else {
      ++i;
    }
  }
  for (std::size_t i = 1; i < limits.size(); ++i)  // tiny T: strictly ascending all the same
    limits[i] = std::max(limits[i], std::nextafter(limits[i - 1], 100.0f));
  k_policy policy;
  policy.set_thresholds(signal_kind::softmax_entropy, values.data(),
                        static_cast<int>(values.size()), limits.data(),
                        static_cast<int>(limits.size()));
  return policy;
}

/// A model of the case's gating, renormalised, with int32 ids, fp32 weights, counts and signal.
template <class Logit>
class workload {
 public:
  explicit workload(const routing_case& which)
      : model_(model_of(which)),
        num_tokens_(which.num_tokens),
        host_logits_(make_logits(which)),
        from_(2),
        host_bias_(make_bias(which)),
        bias_(host_bias_),
        tables_(from_, which.num_experts, which.top_k),
        policy_(policy_of(which)),
        plans_(which.multiprocessors),
        logits_(host_logits_),
        head_(make_head(which)),
        ids_(slots()),
        counts_(tokens()),
        weights_(slots()),
        signal_(tokens()) {
    require(plans_.upload(router(model_, policy_), nullptr));
  }

  const gating& model() const { return model_; }
  cuda::plans_ref plans() const { return plans_.ref(); }
  logits_view<Logit> view() const {
    const Logit* head = policy_.distortion.head != nullptr ? head_.get() : nullptr;
    return {logits_.get(), num_tokens_, model_.num_experts, 0, head, 0};
  }
  routing_output<> output() const {
    return {ids_.get(), weights_.get(), counts_.get(), signal_.get()};
  }
  routing_extras extras() const { return {model_.selection_bias ? bias_.get() : nullptr}; }
  std::size_t tokens() const { return static_cast<std::size_t>(num_tokens_); }
  std::size_t slots() const { return tokens() * static_cast<std::size_t>(model_.top_k); }

  std::size_t logit_bytes() const {
    return (host_logits_.size() + (policy_.distortion.head != nullptr ? head_size() : 0)) *
           sizeof(Logit);
  }
  std::size_t output_bytes() const { return 8 * slots() + 8 * tokens(); }

  double mean_k() const {
    double sum = 0.0;
    for (const std::int32_t k : counts_.read()) sum += k;
    return sum / static_cast<double>(num_tokens_);
  }

  /// Counts what `launch()`, which returns a status, makes run.
  template <class Launch>
  cost count(Launch launch, std::size_t least_loaded, std::size_t least_stored,
             int dynamic_shared_bytes = 0) const {
    ptx::reset_counters();
    require(launch());
    const ptx::counters counted = ptx::total_counters();
    if (ptx::last_fault().kind != ptx::fault_kind::none)
      throw std::runtime_error(ptx::last_fault().text());
    const auto each = static_cast<double>(num_tokens_);
    const auto per_token = [&](std::uint64_t number) { return static_cast<double>(number) / each; };
    cost made;
    made.times = ptx::modelled_times();
    for (const auto& [name, unused] : ptx::kernel_counters())
      if (made.kernel.empty() || name.find("route_kernel") != std::string::npos) made.kernel = name;
    made.mean_k = mean_k();
    made.warp_instructions_per_token = per_token(counted.warp_instructions);
    made.thread_instructions_per_token = per_token(counted.thread_instructions);
    made.load_sectors_per_token = per_token(counted.global_load_sectors);
    made.store_sectors_per_token = per_token(counted.global_store_sectors);
    made.least_load_sectors_per_token = per_token((least_loaded + 31) / 32);
    made.least_store_sectors_per_token = per_token((least_stored + 31) / 32);
    made.atomic_requests_per_token =
        per_token(counted.global_atomic_requests + counted.shared_atomic_requests);
    made.shared_bank_conflicts = counted.shared_bank_conflicts;
    made.launches = static_cast<int>(counted.launches);
    made.dynamic_shared_bytes = dynamic_shared_bytes;
    made.threads_per_block = made.kernel.find("permute_kernel") == std::string::npos
                                 ? cuda::threads_per_block
                                 : cuda::permute_threads;
    return made;
  }

 private:
  static gating model_of(const routing_case& which) {
    gating g;
    g.num_experts = which.num_experts;
    g.top_k = which.top_k;
    if (which.gating == "softmax") return g;
    g.kind = gating_kind::sigmoid;
    g.selection_bias = true;
    if (which.gating == "groups") {
      g.n_group = 8;
      g.topk_group = 4;
    }
    return g;
  }

  static std::vector<Logit> make_logits(const routing_case& which) {
    inputs::sequence from(1);
    std::vector<Logit> logits;
    const std::int64_t count = which.num_tokens * which.num_experts;
    for (std::int64_t i = 0; i < count; ++i)
      logits.push_back(from_float<Logit>(inputs::fine_logit(from)));
    return logits;
  }

  std::size_t head_size() const { return tokens() * static_cast<std::size_t>(model_.top_k - 1); }

  std::vector<Logit> make_head(const routing_case& which) const {
    inputs::sequence from(3);
    std::vector<Logit> head;
    for (std::int64_t i = 0; i < which.num_tokens * (which.top_k - 1); ++i)
      head.push_back(from_float<Logit>(inputs::grid_logit(from, 48)));
    return head;
  }

  std::vector<float> make_bias(const routing_case& which) {
    std::vector<float> bias;
    for (int e = 0; e < which.num_experts; ++e) bias.push_back(inputs::fine_logit(from_) / 64.0f);
    return bias;
  }

  k_policy policy_of(const routing_case& which) const {
    if (which.policy == "head") {
      distortion_ref model;
      model.coefficients = tables_.head_coefficients.data();
      model.lambda = 0.02f;
      model.head = tables_.head_coefficients.data();  // the engine's, not read here
      model.hidden_size = 1;
      k_policy policy = k_policy::min_distortion(model);
      policy.mass_exponent = 0.5f;
      return policy;
    }
    if (which.policy == "entropy" || which.policy == "half") {
      const logits_view<Logit> rows = {host_logits_.data(), num_tokens_, model_.num_experts, 0};
      const routing_extras given = {model_.selection_bias ? host_bias_.data() : nullptr};
      const routed_batch probe = router(model_, k_policy::full()).route(0, rows, nullptr, given);
      require(probe.result);
      return entropy_policy(probe.signal, model_.top_k, which.policy == "half");
    }
    if (which.policy != "distortion") return k_policy::full();
    k_policy policy =
        k_policy::min_distortion({tables_.coefficients.data(), tables_.first_expert.data(),
                                  tables_.next_expert.data(), 1.0f, 0.02f});
    policy.mass_exponent = 0.5f;
    return policy;
  }

  gating model_;
  std::int64_t num_tokens_;
  std::vector<Logit> host_logits_;
  inputs::sequence from_;
  std::vector<float> host_bias_;
  device::buffer<float> bias_;
  inputs::distortion_tables tables_;
  k_policy policy_;
  cuda::device_plans plans_;
  device::buffer<Logit> logits_, head_;
  device::buffer<std::int32_t> ids_, counts_;
  device::buffer<float> weights_, signal_;
};

}  // namespace kernel_cost
