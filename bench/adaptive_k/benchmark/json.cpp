#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <utility>

#include "bench/adaptive_k/benchmark/result.hpp"
#include "bench/adaptive_k/measure/variant.hpp"

namespace bench {

using json = nlohmann::ordered_json;

namespace {

// NaN, a standard error that one window cannot give, is written as null by the JSON library.

json distinct_json(const distinct_means& distinct) {
  json result = json::object();
  for (std::size_t b = 0; b < distinct.size(); ++b)
    result[std::to_string(decode_batches[b])] = distinct[b] ? json(*distinct[b]) : json(nullptr);
  return result;
}

/// Expert weight bytes that one decode step reads, over all layers.
json step_bytes_json(const distinct_means& distinct, const model_facts& model) {
  json result = json::object();
  for (std::size_t b = 0; b < distinct.size(); ++b)
    result[std::to_string(decode_batches[b])] =
        distinct[b] ? json(*distinct[b] * model.num_layers * model.sizes.expert_bytes())
                    : json(nullptr);
  return result;
}

json histogram_json(const adaptive_k::routing_metrics& metrics, int top_k) {
  json result = json::object();
  for (int k = 1; k <= top_k; ++k) result[std::to_string(k)] = metrics.k_histogram[k];
  return result;
}

void add_figures(json& target, const routing_figures& figures, const model_facts& model) {
  add_quality(target, figures.quality);
  target["kl_p99"] = figures.quality.kl_p99;
  target["top1_agreement"] = figures.quality.top1_agreement.value;
  target["top1_agreement_se"] = figures.quality.top1_agreement.se;
  target["mean_k"] = figures.mean_k;
  target["expert_savings"] = figures.expert_savings;
  target["distinct_experts"] = distinct_json(figures.distinct_experts);
  target["expert_bytes_per_step"] = step_bytes_json(figures.distinct_experts, model);
  target["moe_seconds"] = figures.moe_seconds;
  target["total_seconds"] = figures.total_seconds;
}

json figures_json(const routing_figures& figures, const model_facts& model) {
  json result = json::object();
  add_figures(result, figures, model);
  return result;
}

json policy_part(const policy_facts& policy, const model_facts& model) {
  json result = policy_json(policy, model.gating);
  result["adaptive_layers"] = json::array();
  for (std::size_t layer = 0; layer < policy.is_adaptive.size(); ++layer)
    if (policy.is_adaptive[layer]) result["adaptive_layers"].push_back(layer);
  return result;
}

json layers_json(const policy_facts& policy, const model_facts& model) {
  json result = json::array();
  for (std::size_t layer = 0; layer < policy.metrics.size(); ++layer) {
    const adaptive_k::routing_metrics& metrics = policy.metrics[layer];
    const adaptive_k::signal_kind signal = policy.layers[layer].signal;
    result.push_back({
        {"layer", layer},
        {"adaptive", static_cast<bool>(policy.is_adaptive[layer])},
        {"mean_k", metrics.mean_k()},
        {"expert_savings", metrics.expert_savings()},
        {"k_histogram", histogram_json(metrics, model.gating.top_k)},
        {"signal", adaptive_k::to_string(signal)},
        {"signal_unit", adaptive_k::unit_of(signal)},
        {"mean_signal", metrics.mean_signal()},
        {"signal_min", metrics.signal_lowest},
        {"signal_max", metrics.signal_highest},
        {"nonfinite_rows", metrics.nonfinite_rows},
        {"super_expert_tokens", metrics.super_expert_tokens},
        {"out_of_domain", metrics.out_of_domain},
    });
  }
  return result;
}

json continuation_row(const continuation_figures& figures) {
  return {{"name", figures.name},
          {"mean_k", figures.mean_k},
          {"median_tokens", figures.median},
          {"never_differs", figures.never_differs},
          {"tokens", figures.agreed}};
}

json continuation_json(const continuation_result& result) {
  if (result.num_prompts == 0) return nullptr;
  json rows = json::array({continuation_row(result.full), continuation_row(result.policy)});
  for (const continuation_figures& fixed : result.fixed) rows.push_back(continuation_row(fixed));
  return {{"prompts", result.num_prompts},
          {"prompt_tokens", result.lengths.prompt_tokens},
          {"new_tokens", result.lengths.new_tokens},
          {"routings", std::move(rows)}};
}

}  // namespace

nlohmann::ordered_json to_json(const benchmark_result& result) {
  const model_facts& model = result.model;
  json report = report_header("adaptive_k.benchmark");
  report["model"] = model_json(model);
  report["dataset"] = dataset_json(result.data);
  report["dataset"]["predictions"] = result.adaptive.quality.predictions;
  report["dataset"]["copies"] = result.adaptive.quality.copies;

  report["baseline"] = {
      {"perplexity", result.full.quality.perplexity},
      {"mean_nll", result.full.quality.mean_nll},
      {"copy_accuracy", result.full.quality.copy_accuracy.value},
      {"copy_accuracy_se", result.full.quality.copy_accuracy.se},
      {"mean_k", result.full.mean_k},
      {"distinct_experts", distinct_json(result.full.distinct_experts)},
      {"expert_bytes_per_step", step_bytes_json(result.full.distinct_experts, model)},
      {"moe_seconds", result.full.moe_seconds},
      {"total_seconds", result.full.total_seconds},
  };
  json policy = policy_part(result.policy, model);
  add_figures(policy, result.adaptive, model);
  policy["k_histogram"] = histogram_json(sum_of(result.policy.metrics), model.gating.top_k);
  policy["moe_speedup"] = result.times.moe_speedup;
  policy["total_speedup"] = result.times.total_speedup;
  report["policy"] = std::move(policy);
  report["layers"] = layers_json(result.policy, model);

  json fixed = json::array();
  for (const fixed_figures& entry : result.fixed) {
    json row = {{"k", entry.k}};
    add_figures(row, entry.figures, model);
    fixed.push_back(std::move(row));
  }
  const fixed_at_mean_k& equal = result.fixed_at_equal_mean_k;
  json at_equal = {{"low_k", equal.low_k},
                   {"high_k", equal.high_k},
                   {"share_of_high", equal.share_of_high},
                   {"mean_k", equal.mean_k}};
  add_quality(at_equal, equal.quality);
  at_equal["distinct_experts"] = distinct_json(equal.distinct_experts);
  at_equal["expert_bytes_per_step"] = step_bytes_json(equal.distinct_experts, model);
  report["controls"] = {{"fixed_k", std::move(fixed)},
                        {"fixed_at_equal_mean_k", std::move(at_equal)},
                        {"random_mix", figures_json(result.random_mix, model)},
                        {"inverted", figures_json(result.inverted, model)}};
  report["controls"]["random_mix"]["seed"] = result.random_seed;
  report["beats_fixed_k"] = {{"delta_mean_kl", result.comparison.delta_mean_kl.value},
                             {"se", result.comparison.delta_mean_kl.se},
                             {"delta_perplexity", result.comparison.delta_perplexity.value},
                             {"delta_perplexity_se", result.comparison.delta_perplexity.se},
                             {"verdict", to_string(result.comparison.outcome)},
                             {"sentence", result.comparison.sentence}};
  report["continuation"] = continuation_json(result.continuation);
  return report;
}

nlohmann::ordered_json to_json(const trace_result& result) {
  json report = report_header("adaptive_k.benchmark_trace");
  report["model"] = model_json(result.model);
  report["dataset"] = dataset_json(result.data);
  report["baseline"] = {{"mean_k", result.model.gating.top_k},
                        {"distinct_experts", distinct_json(result.distinct_full)}};
  json policy = policy_part(result.policy, result.model);
  policy["mean_k"] = result.mean_k;
  policy["expert_savings"] = result.expert_savings;
  policy["k_histogram"] = histogram_json(sum_of(result.policy.metrics), result.model.gating.top_k);
  policy["distinct_experts"] = distinct_json(result.distinct_policy);
  report["policy"] = std::move(policy);
  report["layers"] = layers_json(result.policy, result.model);
  report["controls"]["fixed_at_equal_mean_k"] = {
      {"mean_k", result.mean_k},
      {"expert_savings", result.expert_savings},
      {"distinct_experts", distinct_json(result.distinct_fixed)}};
  report["quality"] = nullptr;  // a trace holds no outputs
  return report;
}

adaptive_k::routing_metrics sum_of(const std::vector<adaptive_k::routing_metrics>& layers) {
  adaptive_k::routing_metrics sum;
  for (const adaptive_k::routing_metrics& layer : layers) sum += layer;
  return sum;
}

}  // namespace bench
