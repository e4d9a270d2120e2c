#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <string>

#include "bench/adaptive_k/benchmark/result.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/measure/variant.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

std::string copying_text(const quality_summary& q) {
  return q.copies == 0 ? "" : percent(q.copy_accuracy.value);
}

std::vector<std::string> quality_row(const std::string& name, double mean_k, double savings,
                                     const quality_summary& q) {
  return {name,
          fmt::format("{:.2f}", mean_k),
          percent(savings),
          fmt::format("{:.4f}", q.perplexity),
          with_se(q.perplexity_difference, 4, "+"),
          with_se(q.perplexity_ratio, 4),
          with_se(q.mean_kl, 5),
          copying_text(q)};
}

void print_quality(const benchmark_result& r) {
  text_table table({"<", "mean K", "saving", "perplexity", "- full", "/ full", "mean KL", "copying",
                    "99% KL", "top-1"});
  const auto add = [&](const std::string& name, const routing_figures& f) {
    auto row = quality_row(name, f.mean_k, f.expert_savings, f.quality);
    row.push_back(fmt::format("{:.4f}", f.quality.kl_p99));
    row.push_back(percent(f.quality.top1_agreement.value));
    table.add_row(row);
  };
  table.add_row({"full K", fmt::format("{:.2f}", r.full.mean_k), percent(0.0),
                 fmt::format("{:.4f}", r.full.quality.perplexity), "", "", "",
                 copying_text(r.full.quality)});
  add("policy", r.adaptive);
  table.add_row({"controls"});
  table.add_row(quality_row("  fixed K at equal mean K", r.fixed_at_equal_mean_k.mean_k,
                            1.0 - r.fixed_at_equal_mean_k.mean_k / r.full.mean_k,
                            r.fixed_at_equal_mean_k.quality));
  add("  random, the same K's", r.random_mix);
  add("  inverted signal", r.inverted);
  for (const fixed_figures& fixed : r.fixed)
    if (fixed.k < r.model.gating.top_k) add(fmt::format("  fixed K = {}", fixed.k), fixed.figures);
  fmt::print("\nQuality against full K ({} predictions; +- standard error, paired by window)\n{}",
             r.adaptive.quality.predictions, table.text());
}

void print_histogram(const adaptive_k::routing_metrics& metrics, int top_k, double expected) {
  if (metrics.nonfinite_rows != 0)
    fmt::print("\nOf {} routed tokens {} had a NaN or infinite logit: do not trust these figures\n",
               metrics.tokens, metrics.nonfinite_rows);
  if (metrics.out_of_domain != 0)
    fmt::print(
        "\n{} of the tokens look to the router unlike those that the policy was calibrated on{}\n",
        percent(metrics.out_of_domain_share(), 2),
        expected > 0.0 ? fmt::format("; of those {} do", percent(expected, 2)) : "");
  fmt::print("\nTokens by K, all layers\n");
  text_table table({"K", "share", "<"});
  for (int k = 1; k <= top_k; ++k) {
    const double share = metrics.tokens == 0 ? 0.0
                                             : static_cast<double>(metrics.k_histogram[k]) /
                                                   static_cast<double>(metrics.tokens);
    table.add_row({std::to_string(k), percent(share),
                   std::string(static_cast<std::size_t>(std::lround(share * 50.0)), '#')});
  }
  fmt::print("{}", table.text());
}

void print_layers(const policy_facts& policy) {
  fmt::print("\nBy layer\n");
  text_table table({"layer", "mean K", "saving", "mean signal", "min", "max", "<"});
  for (std::size_t layer = 0; layer < policy.metrics.size(); ++layer) {
    const adaptive_k::routing_metrics& m = policy.metrics[layer];
    const adaptive_k::signal_kind signal = policy.layers[layer].signal;
    const std::string unit = adaptive_k::unit_of(signal);
    table.add_row({std::to_string(layer), fmt::format("{:.2f}", m.mean_k()),
                   percent(m.expert_savings()), fmt::format("{:.3f}", m.mean_signal()),
                   fmt::format("{:.3f}", static_cast<double>(m.signal_lowest)),
                   fmt::format("{:.3f}", static_cast<double>(m.signal_highest)),
                   std::string(adaptive_k::to_string(signal)) + (unit.empty() ? "" : ", " + unit) +
                       (policy.is_adaptive[layer] ? "" : " (held at full K)")});
  }
  fmt::print("{}", table.text());
}

void print_distinct(const distinct_means& full, const distinct_means& policy,
                    const distinct_means& fixed, const model_facts& model) {
  fmt::print("\nDistinct experts of a decode step, mean per layer\n");
  const bool has_bytes = model.sizes.hidden > 0;
  text_table table({"batch", "full K", "policy", "saving", "fixed K at equal mean K", "saving",
                    has_bytes ? "bytes a step, full K" : "", has_bytes ? "policy" : ""});
  std::string missing;
  for (std::size_t b = 0; b < full.size(); ++b) {
    if (!full[b] || !policy[b] || !fixed[b]) {
      missing += (missing.empty() ? "" : " and ") + std::to_string(decode_batches[b]);
      continue;
    }
    const auto bytes = [&](double experts) {
      return has_bytes ? bytes_text(experts * model.num_layers * model.sizes.expert_bytes())
                       : std::string();
    };
    table.add_row({std::to_string(decode_batches[b]), fmt::format("{:.2f}", *full[b]),
                   fmt::format("{:.2f}", *policy[b]), percent(1.0 - *policy[b] / *full[b]),
                   fmt::format("{:.2f}", *fixed[b]), percent(1.0 - *fixed[b] / *full[b]),
                   bytes(*full[b]), bytes(*policy[b])});
  }
  fmt::print("{}", table.text());
  if (!missing.empty()) fmt::print("  (too few windows for a batch of {})\n", missing);
}

void print_times(const benchmark_result& r) {
  const batch_times& t = r.times;
  fmt::print("\nTime of a batch of windows, interleaved, medians\n");
  text_table table({"<", "full K", "policy", "full K / policy"});
  const auto milliseconds = [](double s) { return fmt::format("{:.1f} ms", 1e3 * s); };
  table.add_row({"MoE layers", milliseconds(t.full_moe_seconds), milliseconds(t.moe_seconds),
                 fmt::format("{:.2f}", t.moe_speedup)});
  table.add_row({"whole model", milliseconds(t.full_total_seconds), milliseconds(t.total_seconds),
                 fmt::format("{:.2f}", t.total_speedup)});
  fmt::print("{}", table.text());
  constexpr double small_model = 1e9;
  const double bytes =
      r.model.sizes.expert_bytes() * r.model.num_layers * r.model.gating.num_experts;
  if (bytes < small_model)
    fmt::print(
        "  (experts of {} in all fit in caches, so time is not the point here: `adaptive-k "
        "speed`\n  measures it on the shape of a real model)\n",
        bytes_text(bytes));
}

void print_continuation(const continuation_result& r, int top_k) {
  if (!r.why_not.empty()) fmt::print("\nGreedy continuation: not measured ({})\n", r.why_not);
  if (r.num_prompts == 0) return;
  text_table table({"<", "mean K", "saving", "median tokens", "never differs"});
  const auto add = [&](const std::string& name, const continuation_figures& f) {
    table.add_row({name, fmt::format("{:.2f}", f.mean_k), percent(1.0 - f.mean_k / top_k),
                   fmt::format("{:g}", f.median), percent(f.never_differs)});
  };
  add("policy", r.policy);
  table.add_row({"controls"});
  add("  full K, read at once", r.full);
  for (const continuation_figures& fixed : r.fixed) add("  " + fixed.name, fixed);
  fmt::print(
      "\nGreedy continuation: tokens before the first that differs from full K's, of {} "
      "({} prompts of {})\n{}",
      r.lengths.new_tokens, r.num_prompts, r.lengths.prompt_tokens, table.text());
}

}  // namespace

void print(const benchmark_result& result) {
  fmt::print("adaptive-k {} benchmark\n\n", version());
  print_facts(result.model, result.data, result.policy);
  print_quality(result);
  print_histogram(sum_of(result.policy.metrics), result.model.gating.top_k,
                  expected_outside(result.policy.choice.policy));
  print_layers(result.policy);
  print_distinct(result.full.distinct_experts, result.adaptive.distinct_experts,
                 result.fixed_at_equal_mean_k.distinct_experts, result.model);
  print_times(result);
  print_continuation(result.continuation, result.model.gating.top_k);
  fmt::print("\n{}\n", result.comparison.sentence);
}

void print(const trace_result& result) {
  fmt::print("adaptive-k {} benchmark of a trace: savings only\n\n", version());
  print_facts(result.model, result.data, result.policy);
  text_table table({"<", "mean K", "saving", "<quality"});
  const std::string k = fmt::format("{:.2f}", result.mean_k);
  const std::string saving = percent(result.expert_savings);
  table.add_row({"full K", fmt::format("{:.2f}", static_cast<double>(result.model.gating.top_k)),
                 percent(0.0), "the reference"});
  table.add_row({"policy", k, saving, "unknown"});
  table.add_row({"fixed K at equal mean K", k, saving, "unknown"});
  fmt::print("\n{}", table.text());
  print_histogram(sum_of(result.policy.metrics), result.model.gating.top_k,
                  expected_outside(result.policy.choice.policy));
  print_layers(result.policy);
  print_distinct(result.distinct_full, result.distinct_policy, result.distinct_fixed, result.model);
  fmt::print(
      "\nQuality is unknown: a trace holds router logits, no outputs. At equal mean K fixed K "
      "saves "
      "the\nsame by definition, so this cannot tell whether the policy is better than simply "
      "lowering K;\n`adaptive-k benchmark --model` can.\n");
}

}  // namespace bench
