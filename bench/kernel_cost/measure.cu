#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/launch.cuh"
#include "cuda/device_buffer.hpp"
#include "inputs.hpp"
#include "ptx_device.hpp"

namespace kernel_cost {
namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// Entropy thresholds at the quantiles 1/3 and 2/3 of the rows' own entropies: K of K0/2, 3/4 K0
/// and K0; `half` moves them so that the mean K is about K0 / 2.
k_policy entropy_policy(const std::vector<float>& entropies, int top_k, bool half) {
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

void require(const status& result) {
  if (!result) throw std::runtime_error(result.message());
}

template <class Logit>
cost measure_as(const routing_case& which, bool with_metrics) {
  inputs::sequence from(1);
  gating g;
  g.num_experts = which.num_experts;
  g.top_k = which.top_k;
  const auto tokens = static_cast<std::size_t>(which.num_tokens);
  std::vector<Logit> logits;
  for (std::size_t i = 0; i < tokens * static_cast<std::size_t>(g.num_experts); ++i)
    logits.push_back(from_float<Logit>(inputs::fine_logit(from)));
  const logits_view<Logit> host_view = {logits.data(), which.num_tokens, g.num_experts, 0};

  const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
  k_policy policy = k_policy::full();
  if (which.policy == "entropy" || which.policy == "half") {
    const routed_batch probe = router(g, k_policy::full()).route(0, host_view);
    require(probe.result);
    policy = entropy_policy(probe.signal, g.top_k, which.policy == "half");
  } else if (which.policy == "distortion") {
    policy = k_policy::min_distortion({tables.coefficients.data(), tables.first_expert.data(),
                                       tables.next_expert.data(), 1.0f, 0.02f});
    policy.mass_exponent = 0.5f;
  }
  const router host(g, policy);
  require(host.validity());

  std::vector<detail::k_plan> plans = host.plans();
  const auto table = [](const float* values, std::size_t count) {
    return std::vector<float>(values, values == nullptr ? values : values + count);
  };
  const distortion_ref& d = policy.distortion;
  const auto ranks = static_cast<std::size_t>(g.top_k - 1);
  const auto cells = ranks * static_cast<std::size_t>(g.num_experts);
  const device::buffer<float> coefficients(
      table(d.coefficients, ranks * distortion_ref::num_features));
  const device::buffer<float> first(table(d.first_expert, cells));
  const device::buffer<float> next(table(d.next_expert, cells));
  if (d.coefficients != nullptr) {
    plans[0].distortion.coefficients = coefficients.get();
    plans[0].distortion.first_expert = first.get();
    plans[0].distortion.next_expert = next.get();
  }
  const device::buffer<detail::k_plan> device_plans(plans);
  const device::buffer<Logit> device_logits(logits);
  const auto slots = tokens * static_cast<std::size_t>(g.top_k);
  device::buffer<std::int32_t> ids(slots), counts(tokens);
  device::buffer<float> weights(slots), signal(tokens);
  device::buffer<cuda::device_metrics> metrics(1);
  metrics.clear();

  const cuda::device_router device(g, device_plans.get());
  const routing_output<> output = {ids.get(), weights.get(), counts.get(), signal.get()};
  ptx::reset_counters();
  const logits_view<Logit> view = {device_logits.get(), which.num_tokens, g.num_experts, 0};
  require(device.route(0, view, output, with_metrics ? metrics.get() : nullptr, {}, nullptr));
  const ptx::counters counted = ptx::total_counters();
  if (ptx::last_fault().kind != ptx::fault_kind::none)
    throw std::runtime_error(ptx::last_fault().text());

  double sum_k = 0.0;
  for (const std::int32_t k : counts.read()) sum_k += k;
  const auto each = static_cast<double>(which.num_tokens);
  const auto per_token = [&](std::uint64_t count) { return static_cast<double>(count) / each; };
  const auto sectors = [&](std::size_t bytes) {
    return static_cast<double>((bytes + 31) / 32) / each;
  };
  cost made;
  made.kernel = ptx::kernel_counters().begin()->first;
  made.mean_k = sum_k / each;
  made.warp_instructions_per_token = per_token(counted.warp_instructions);
  made.thread_instructions_per_token = per_token(counted.thread_instructions);
  made.load_sectors_per_token = per_token(counted.global_load_sectors);
  made.store_sectors_per_token = per_token(counted.global_store_sectors);
  made.least_load_sectors_per_token = sectors(logits.size() * sizeof(Logit));
  made.least_store_sectors_per_token = 2 * sectors(slots * 4) + 2 * sectors(tokens * 4);
  made.atomic_requests_per_token =
      per_token(counted.global_atomic_requests + counted.shared_atomic_requests);
  made.shared_bank_conflicts = counted.shared_bank_conflicts;
  made.launches = static_cast<int>(counted.launches);
  return made;
}

}  // namespace

cost measure(const routing_case& which, bool with_metrics) {
  switch (which.dtype) {
    case logit_type::bf16:
      return measure_as<bfloat16>(which, with_metrics);
    case logit_type::f16:
      return measure_as<float16>(which, with_metrics);
    case logit_type::f32:
      break;
  }
  return measure_as<float>(which, with_metrics);
}

const std::vector<std::string>& policies() {
  static const std::vector<std::string> known = {"full", "entropy", "half", "distortion"};
  return known;
}

}  // namespace kernel_cost
