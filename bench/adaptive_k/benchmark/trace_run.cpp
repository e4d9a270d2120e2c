// `adaptive-k benchmark --trace`: routes recorded logits; there is no model to ask for quality.
#include <fmt/format.h>

#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "bench/adaptive_k/benchmark/analysis.hpp"
#include "bench/adaptive_k/benchmark/run.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "bench/adaptive_k/measure/controls.hpp"
#include "bench/adaptive_k/measure/variant.hpp"
#include "bench/adaptive_k/output/progress.hpp"

namespace bench {
namespace {

/// Routes windows of recorded logits under every variant, some windows of one layer at a time.
void route_trace(const trace_reader& trace, std::vector<variant>& variants, std::int64_t windows) {
  const trace_info& info = trace.info();
  const std::int64_t at_once =
      std::clamp<std::int64_t>((std::int64_t{1} << 16) / info.window, 1, windows);
  std::vector<std::vector<float>> biases;
  for (int layer = 0; layer < info.num_layers; ++layer)
    biases.push_back(trace.selection_bias(layer));
  for (variant& each : variants) each.prepare(info.num_layers, info.window);

  const auto slots =
      static_cast<std::size_t>(at_once * info.window) * static_cast<std::size_t>(info.gating.top_k);
  std::vector<std::int32_t> ids(slots);
  std::vector<float> weights(slots);
  progress line("trace", windows);
  for (std::int64_t first = 0; first < windows; first += at_once) {
    const std::int64_t count = std::min(at_once, windows - first);
    const std::int64_t rows = count * info.window;
    for (int layer = 0; layer < info.num_layers; ++layer) {
      const std::vector<float> logits = trace.logits(layer, first * info.window, rows);
      const std::vector<float>& bias = biases[static_cast<std::size_t>(layer)];
      adaptive_k::routing_extras extras;
      extras.routing_bias = bias.empty() ? nullptr : bias.data();
      for (variant& each : variants) {
        const adaptive_k::status routed =
            each.route(layer, {logits.data(), rows, info.gating.num_experts, 0},
                       {ids.data(), weights.data(), nullptr, nullptr}, extras);
        if (!routed.ok()) throw failure(routed.message());
      }
    }
    for (variant& each : variants) each.count_distinct(count);
    line.update(first + count);
  }
}

}  // namespace

trace_result run_trace_benchmark(const benchmark_options& options, live_view& live,
                                 file_roles& roles) {
  const trace_reader trace(options.trace);
  const trace_info& info = trace.info();
  trace_result result;
  result.model.name = info.model;
  result.model.path = options.trace;
  result.model.num_layers = info.num_layers;
  result.model.gating = info.gating;

  const std::int64_t recorded = info.num_tokens / info.window;
  const std::int64_t windows = options.windows > 0 ? std::min(recorded, options.windows) : recorded;
  result.data = {info.dataset,
                 info.dataset_sha256,
                 "tokens",
                 {info.window, windows, info.num_tokens - windows * info.window}};

  const auto preset = find_preset({info.model}, info.gating, result.model.preset_note);
  if (preset) roles.reads("model's preset", preset->file);
  if (preset || !options.policy.empty()) result.model.preset_note.clear();
  policy_facts& policy = result.policy;
  policy.choice = choose_policy(options.policy, info.gating, info.num_layers, preset);
  policy.is_adaptive = parse_layers(options.layers, info.num_layers);
  policy.layers =
      restrict_to(layer_policies(policy.choice.policy, info.num_layers), policy.is_adaptive);

  const auto router_of = [&](std::vector<adaptive_k::k_policy> layers) {
    return adaptive_k::router(info.gating, std::move(layers), {}, policy.choice.policy.tables);
  };
  const adaptive_k::router full = router_of(adaptive_k::full_like(policy.layers));
  std::vector<variant> variants;
  variants.emplace_back("policy", router_of(policy.layers), full);
  for (int k = 1; k < info.gating.top_k; ++k)
    variants.emplace_back(fmt::format("fixed K = {}", k),
                          router_of(fixed_like(policy.layers, policy.is_adaptive, k)), full);
  variants.emplace_back("full K", full, full);
  for (std::size_t i = 0; i < variants.size(); ++i)
    live.watch(variants[i], result.model.name,
               i == 0 ? policy.choice.policy.name : variants[i].name(),
               expected_outside(policy.choice.policy));
  route_trace(trace, variants, windows);

  policy.metrics = variants.front().layers();
  const adaptive_k::routing_metrics total = variants.front().total();
  result.mean_k = total.mean_k();
  result.expert_savings = total.expert_savings();
  result.distinct_policy = distinct_of(variants.front());
  result.distinct_full = distinct_of(variants.back());
  std::vector<const variant*> by_k;
  for (std::size_t i = 1; i < variants.size(); ++i) by_k.push_back(&variants[i]);
  result.distinct_fixed = distinct_at(by_k, bracket_mean_k(by_k, result.mean_k));
  return result;
}

}  // namespace bench
