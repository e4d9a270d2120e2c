#include "bench/adaptive_k/benchmark/run.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <cstddef>
#include <utility>
#include <vector>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/controls.hpp"
#include "bench/adaptive_k/measure/evaluation.hpp"

namespace bench {
namespace {

/// Whether the layers that may adapt give all their tokens one and the same K.
bool is_one_k(const policy_facts& policy) {
  adaptive_k::routing_metrics adaptive;
  for (std::size_t layer = 0; layer < policy.metrics.size(); ++layer)
    if (policy.is_adaptive[layer]) adaptive += policy.metrics[layer];
  int used = 0;
  for (const std::uint64_t tokens : adaptive.k_histogram) used += tokens != 0 ? 1 : 0;
  return used <= 1;
}

/// The routings of one benchmark, in the order that `evaluate` runs them.
struct line_up {
  std::vector<evaluated> all;
  static constexpr std::size_t full = 0;
  static constexpr std::size_t policy = 1;
  static constexpr std::size_t random = 2;
  static constexpr std::size_t inverted = 3;
  static constexpr std::size_t fixed = 4;  // K = 1, ..., K0 - 1 from here on
};

line_up make_line_up(const adaptive_k::gating& gating, const policy_facts& policy,
                     std::uint64_t seed) {
  const auto router_of = [&](std::vector<adaptive_k::k_policy> layers) {
    return adaptive_k::router(gating, std::move(layers), {}, policy.choice.policy.tables);
  };
  const adaptive_k::router full = router_of(adaptive_k::full_like(policy.layers));
  const adaptive_k::router adaptive = router_of(policy.layers);
  line_up routings;
  const auto add = [&](std::string name, const adaptive_k::router& router, k_assignment how) {
    routings.all.emplace_back(variant(std::move(name), router, full, how, seed));
  };
  add("full K", full, k_assignment::chosen);
  add("policy", adaptive, k_assignment::chosen);
  add("random, the same K's", adaptive, k_assignment::shuffled);
  add("inverted signal", adaptive, k_assignment::inverted);
  for (int k = 1; k < gating.top_k; ++k)
    add(fmt::format("fixed K = {}", k), router_of(fixed_like(policy.layers, policy.is_adaptive, k)),
        k_assignment::chosen);
  return routings;
}

/// Full K's continuations, and how long those of the policy and of every fixed K are the same.
continuation_result run_continuations(model_inputs& inputs, const benchmark_options& options,
                                      const line_up& routings) {
  continuation_result result;
  result.lengths.prompts = options.prompts.value_or(result.lengths.prompts);
  if (result.lengths.prompts == 0) return result;
  result.why_not =
      why_no_continuations(inputs.model.engine.config(), inputs.windows, result.lengths);
  if (options.prompts && !result.why_not.empty())
    throw failure(fmt::format("--prompts: {}", result.why_not));
  if (!result.why_not.empty()) return result;
  const auto router_of = [&](std::size_t i) -> const adaptive_k::router& {
    return routings.all[i].routing.router();
  };
  const continuations texts(inputs.model.engine, inputs.data, inputs.windows,
                            router_of(line_up::full), result.lengths);
  result.num_prompts = texts.num_prompts();
  result.full = texts.compare("full K", router_of(line_up::full));
  result.policy = texts.compare("policy", router_of(line_up::policy));
  for (std::size_t i = line_up::fixed; i < routings.all.size(); ++i)
    result.fixed.push_back(texts.compare(routings.all[i].routing.name(), router_of(i)));
  return result;
}

}  // namespace

benchmark_result run_benchmark(const benchmark_options& options, live_view& live,
                               file_roles& roles) {
  model_inputs inputs = load_inputs(options, roles);
  const moe_engine::model_config& config = inputs.model.engine.config();

  benchmark_result result;
  result.model = facts_of(inputs.model, options.policy);
  result.data = facts_of(inputs.data, inputs.windows);
  result.random_seed = options.seed;
  policy_facts& policy = result.policy;
  policy.choice = choose_policy(options.policy, inputs.model);
  policy.is_adaptive = parse_layers(options.layers, config.num_moe_layers);
  policy.layers =
      restrict_to(layer_policies(policy.choice.policy, config.num_moe_layers), policy.is_adaptive);

  line_up routings = make_line_up(config.gating, policy, options.seed);
  for (std::size_t i = 0; i < routings.all.size(); ++i) {
    variant& routing = routings.all[i].routing;
    live.watch(routing, result.model.name,
               i == line_up::policy ? policy.choice.policy.name : routing.name(),
               expected_outside(policy.choice.policy));
  }
  evaluate(inputs.model.engine, inputs.data, inputs.windows, routings.all);

  const evaluated& full = routings.all[line_up::full];
  const evaluated& adaptive = routings.all[line_up::policy];
  policy.metrics = adaptive.routing.layers();
  result.full = figures_of(full, full);
  result.adaptive = figures_of(full, adaptive);
  result.random_mix = figures_of(full, routings.all[line_up::random]);
  result.inverted = figures_of(full, routings.all[line_up::inverted]);
  std::vector<const evaluated*> by_k;
  for (std::size_t i = line_up::fixed; i < routings.all.size(); ++i)
    by_k.push_back(&routings.all[i]);
  by_k.push_back(&full);
  for (std::size_t i = 0; i < by_k.size(); ++i)
    result.fixed.push_back({static_cast<int>(i) + 1, figures_of(full, *by_k[i])});
  result.fixed_at_equal_mean_k = interpolate_fixed(by_k, result.adaptive.mean_k);
  result.comparison = compare_with_fixed(adaptive, result.fixed_at_equal_mean_k,
                                         config.gating.top_k, !is_one_k(policy));
  result.times = compare_times(full, adaptive);
  result.continuation = run_continuations(inputs, options, routings);
  return result;
}

}  // namespace bench
