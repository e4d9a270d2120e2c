#include "bench/adaptive_k/benchmark/analysis.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/measure/statistics.hpp"

namespace bench {
namespace {

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

double median_ratio(const std::vector<double>& full, const std::vector<double>& other) {
  std::vector<double> ratios(full.size());
  std::transform(full.begin(), full.end(), other.begin(), ratios.begin(),
                 [](double a, double b) { return b > 0.0 ? a / b : 1.0; });
  return median(ratios);
}

}  // namespace

routing_figures figures_of(const evaluated& full, const evaluated& routing) {
  const adaptive_k::routing_metrics total = routing.routing.total();
  routing_figures figures;
  figures.quality = summarize(full.result, routing.result);
  figures.mean_k = total.mean_k();
  figures.expert_savings = total.expert_savings();
  figures.distinct_experts = distinct_of(routing.routing);
  figures.moe_seconds = sum(routing.moe_seconds);
  figures.total_seconds = sum(routing.total_seconds);
  return figures;
}

mean_k_bracket bracket_mean_k(const std::vector<const variant*>& by_k, double mean_k) {
  const auto k_of = [&](std::size_t i) { return by_k[i]->total().mean_k(); };
  mean_k_bracket bracket;
  while (bracket.high + 1 < by_k.size() && k_of(bracket.high) < mean_k) ++bracket.high;
  bracket.low = bracket.high > 0 ? bracket.high - 1 : 0;
  const double width = k_of(bracket.high) - k_of(bracket.low);
  if (width > 0.0)
    bracket.share_of_high = std::clamp((mean_k - k_of(bracket.low)) / width, 0.0, 1.0);
  return bracket;
}

distinct_means distinct_of(const variant& routing) {
  distinct_means result;
  for (const distinct_experts& steps : routing.distinct()) result.push_back(steps.mean_per_layer());
  return result;
}

distinct_means distinct_at(const std::vector<const variant*>& by_k, const mean_k_bracket& bracket) {
  const distinct_means low = distinct_of(*by_k[bracket.low]);
  const distinct_means high = distinct_of(*by_k[bracket.high]);
  distinct_means result(low.size());
  for (std::size_t b = 0; b < low.size(); ++b)
    if (low[b] && high[b])
      result[b] = (1.0 - bracket.share_of_high) * *low[b] + bracket.share_of_high * *high[b];
  return result;
}

fixed_at_mean_k interpolate_fixed(const std::vector<const evaluated*>& by_k, double mean_k) {
  std::vector<const variant*> routings;
  for (const evaluated* each : by_k) routings.push_back(&each->routing);
  const mean_k_bracket bracket = bracket_mean_k(routings, mean_k);
  const auto k_of = [&](std::size_t i) { return routings[i]->total().mean_k(); };

  fixed_at_mean_k fixed;
  fixed.low_k = static_cast<int>(bracket.low) + 1;
  fixed.high_k = static_cast<int>(bracket.high) + 1;
  fixed.share_of_high = bracket.share_of_high;
  fixed.mean_k =
      (1.0 - fixed.share_of_high) * k_of(bracket.low) + fixed.share_of_high * k_of(bracket.high);
  const quality mixed =
      mix(by_k[bracket.low]->result, by_k[bracket.high]->result, fixed.share_of_high);
  fixed.quality = summarize(by_k.back()->result, mixed);
  fixed.kl_of_windows = window_kl(mixed);
  fixed.nll_of_windows = window_nll(mixed);
  fixed.distinct_experts = distinct_at(routings, bracket);
  return fixed;
}

const char* to_string(verdict v) {
  switch (v) {
    case verdict::beats:
      return "beats";
    case verdict::does_not_beat:
      return "does not beat";
    case verdict::cannot_tell:
      return "cannot tell";
    case verdict::nothing_to_compare:
      return "nothing to compare";
  }
  return "?";
}

comparison_with_fixed compare_with_fixed(const evaluated& policy, const fixed_at_mean_k& fixed,
                                         int top_k, bool is_adaptive) {
  const double mean_k = policy.routing.total().mean_k();
  comparison_with_fixed result;
  result.delta_mean_kl = paired_difference(window_kl(policy.result), fixed.kl_of_windows);
  result.delta_perplexity = perplexity_difference(window_nll(policy.result), fixed.nll_of_windows);
  const double delta = result.delta_mean_kl.value;
  const double se = result.delta_mean_kl.se;
  if (mean_k == static_cast<double>(top_k)) {
    result.outcome = verdict::nothing_to_compare;
    result.sentence = "The policy is full K: it saves nothing, and there is nothing to compare.";
    return result;
  }
  if (!is_adaptive) {
    result.outcome = verdict::nothing_to_compare;
    result.sentence = "The policy is fixed K itself: there is nothing to compare.";
    return result;
  }
  const std::string figures = fmt::format(
      "mean KL {:.5f} against {:.5f} nats at mean K {:.2f}, difference {}; perplexity {}",
      mean(window_kl(policy.result)), mean(fixed.kl_of_windows), mean_k,
      with_se({delta, se}, 5, "+"), with_se(result.delta_perplexity, 4, "+"));
  if (std::isnan(se)) {
    result.outcome = verdict::cannot_tell;
    result.sentence =
        "Cannot tell whether the policy beats fixed K from one window: " + figures + ".";
  } else if (std::abs(delta) <= 2.0 * se) {
    result.outcome = verdict::cannot_tell;
    result.sentence =
        "Cannot tell whether the policy beats fixed K at equal mean K (within 2 standard "
        "errors): " +
        figures + ".";
  } else if (delta < 0.0) {
    result.outcome = verdict::beats;
    result.sentence = "The policy beats fixed K at equal mean K: " + figures + ".";
  } else {
    result.outcome = verdict::does_not_beat;
    result.sentence = "The policy does not beat fixed K at equal mean K: " + figures + ".";
  }
  return result;
}

batch_times compare_times(const evaluated& full, const evaluated& routing) {
  return {median(full.moe_seconds),
          median(full.total_seconds),
          median(routing.moe_seconds),
          median(routing.total_seconds),
          median_ratio(full.moe_seconds, routing.moe_seconds),
          median_ratio(full.total_seconds, routing.total_seconds)};
}

}  // namespace bench
