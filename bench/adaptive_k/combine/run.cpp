#include "bench/adaptive_k/combine/run.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/policy_spec.hpp>
#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <adaptive_k/host/router.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <moe_engine/engine.hpp>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/controls.hpp"
#include "bench/adaptive_k/measure/evaluation.hpp"
#include "bench/adaptive_k/output/progress.hpp"

namespace bench {
namespace {

using adaptive_k::token_merging_metrics;
using moe_engine::exit_hook;
using moe_engine::merge_function;

constexpr std::size_t full_model = 0;
constexpr std::size_t adapt = 1, leave = 2, merge = 4;  // bits of a combination
constexpr std::size_t num_combinations = 8;

/// One combination or control, its hooks and its counters.
struct combined_run {
  combined_figures figures;
  adaptive_k::router router;
  moe_engine::stacking_hooks hooks;
  quality result;
};

/// Runs each batch of windows under every run before the next; runs[0] is the full model, what all
/// quality is compared with. Hooks point into `runs`, which must not move.
void evaluate(moe_engine::engine& model, const dataset& data, const window_plan& plan,
              std::vector<combined_run>& runs) {
  const int at_once = windows_at_once(model.config(), plan.length);
  const int vocab = model.config().vocab_size;
  const std::ptrdiff_t of_window = static_cast<std::ptrdiff_t>(plan.length) * vocab;
  std::vector<float> logits(static_cast<std::size_t>(of_window) *
                            static_cast<std::size_t>(at_once));
  std::vector<double> full(logits.size());
  progress line("combine", plan.count);
  for (std::int64_t first = 0; first < plan.count; first += at_once) {
    const auto windows = static_cast<int>(std::min<std::int64_t>(at_once, plan.count - first));
    const std::int32_t* tokens = data.tokens.data() + first * plan.length;
    for (combined_run& run : runs) {
      model.forward_stacked(tokens, windows, plan.length, moe_engine::route_with(run.router),
                            run.hooks, logits.data(), &run.figures.work);
      if (&run == &runs.front())
        for (std::ptrdiff_t row = 0; row < std::ptrdiff_t{windows} * plan.length; ++row)
          log_softmax(logits.data() + row * vocab, vocab, full.data() + row * vocab);
      for (std::ptrdiff_t w = 0; w < windows; ++w)
        add_window(full.data() + w * of_window, logits.data() + w * of_window,
                   tokens + w * plan.length, plan.length, vocab, run.result);
    }
    line.update(first + windows);
  }
}

/// 0..1, from integers alone.
double uniform(adaptive_k::integer_rng& rng) {
  return static_cast<double>(rng.below(std::uint64_t{1} << 32)) / 4294967296.0;
}

/// Exits after each layer at the rate of `like`, whatever the prediction.
exit_hook random_exit(const adaptive_k::early_exit_policy& policy,
                      const adaptive_k::early_exit_metrics& like, std::uint64_t seed,
                      adaptive_k::early_exit_metrics* metrics) {
  std::vector<double> rates;
  for (int i = 0; i < policy.num_layers; ++i) rates.push_back(like.exit_rate(i));
  return {[policy](int layer) { return policy.asks(layer); },
          [rates, metrics, rng = adaptive_k::integer_rng(seed)](int layer, std::int64_t,
                                                                const float*, int) mutable {
            const bool leaves = uniform(rng) < rates[static_cast<std::size_t>(layer)];
            metrics->count(layer, 0.0f, leaves);
            return leaves;
          }};
}

/// Merges sources with any earlier destination in the window, whatever their similarity, in each
/// layer at the rate of `like` (as far as there are destinations).
merge_function random_merge(const adaptive_k::token_merging_policy& policy,
                            const std::vector<token_merging_metrics>& like, std::uint64_t seed) {
  std::vector<double> shares;
  for (const token_merging_metrics& layer : like) shares.push_back(layer.merged_share());
  return [policy, shares, rng = adaptive_k::integer_rng(seed)](
             const moe_engine::merge_input& in, std::int32_t* representative,
             token_merging_metrics& counted) mutable -> adaptive_k::status {
    const double share = shares[static_cast<std::size_t>(in.layer)];
    for (std::int64_t t = 0; t < in.length; ++t) {
      representative[t] = static_cast<std::int32_t>(t);
      if (in.live[t] == 0) continue;
      ++counted.tokens;
      // Half of the tokens are sources.
      if (t % 2 == 0 || uniform(rng) >= 2.0 * share) continue;
      const std::int64_t reach = (std::min<std::int64_t>(policy.window, t) + 1) / 2;
      const std::int64_t back =
          1 + 2 * static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(reach)));
      if (in.live[t - back] == 0) continue;
      representative[t] = static_cast<std::int32_t>(t - back);
      ++counted.merged;
    }
    return {};
  };
}

std::string name_of(std::size_t combination) {
  if (combination == full_model) return "full model";
  std::string name;
  const auto add = [&](std::size_t bit, const char* word) {
    if ((combination & bit) != 0) name += (name.empty() ? "" : " + ") + std::string(word);
  };
  add(adapt, "adaptive K");
  add(leave, "early exit");
  add(merge, "token merging");
  return name;
}

combined_run make_run(std::string name, adaptive_k::router router, std::size_t combination = 0) {
  combined_run run{{}, std::move(router), {}, {}};
  run.figures.name = std::move(name);
  run.figures.adapts_k = (combination & adapt) != 0;
  run.figures.exits_early = (combination & leave) != 0;
  run.figures.merges_tokens = (combination & merge) != 0;
  return run;
}

/// `matching`, counted by layer in the run's figures.
merge_function counted_merge(combined_run& run, merge_function matching, int num_layers) {
  run.figures.merges_by_layer.resize(static_cast<std::size_t>(num_layers));
  return [matching = std::move(matching), layers = &run.figures.merges_by_layer](
             const moe_engine::merge_input& in, std::int32_t* representative,
             token_merging_metrics& counted) {
    token_merging_metrics own;
    const adaptive_k::status result = matching(in, representative, own);
    counted += own;
    (*layers)[static_cast<std::size_t>(in.layer)] += own;
    return result;
  };
}

/// Mean K over all tokens and layers of the text.
double mean_k_of(const combined_run& run, const combined_run& full, int top_k) {
  return top_k * static_cast<double>(run.figures.work.expert_calls) /
         static_cast<double>(full.figures.work.expert_calls);
}

void set_shares(combined_run& run, const combined_run& full, int top_k) {
  combined_figures& f = run.figures;
  f.quality = summarize(full.result, run.result);
  f.mean_k = mean_k_of(run, full, top_k);
  f.calls_left = f.mean_k / top_k;
  f.arithmetic_left = static_cast<double>(f.work.multiply_adds()) /
                      static_cast<double>(full.figures.work.multiply_adds());
}

/// by_k[k - 1] ran with fixed K = k, the last is the full model.
void compare_with_fixed(combined_run& run, const std::vector<const combined_run*>& by_k) {
  combined_figures& f = run.figures;
  if (f.mean_k < 1.0 || by_k.size() < 2) return;
  const auto low = std::min(static_cast<std::size_t>(f.mean_k), by_k.size() - 1) - 1;
  const quality fixed =
      mix(by_k[low]->result, by_k[low + 1]->result, f.mean_k - static_cast<double>(low + 1));
  f.fixed_at_equal_mean_k = summarize(by_k.back()->result, fixed);
  f.kl_above_fixed = paired_difference(window_kl(run.result), window_kl(fixed));
}

void predict(std::vector<combined_figures>& combinations) {
  for (std::size_t c = 0; c < num_combinations; ++c) {
    double calls = 1.0, arithmetic = 1.0;
    int methods = 0;
    for (const std::size_t bit : {adapt, leave, merge}) {
      if ((c & bit) == 0) continue;
      ++methods;
      calls *= combinations[bit].calls_left;
      arithmetic *= combinations[bit].arithmetic_left;
    }
    if (methods < 2) continue;
    combinations[c].predicted_calls_left = calls;
    combinations[c].predicted_arithmetic_left = arithmetic;
  }
}

std::vector<float> parse_thresholds(const std::string& text, const std::string& list) {
  std::vector<float> thresholds;
  for (const std::string& word : adaptive_k::detail::split(list, ',')) {
    const char* end = word.data() + word.size();
    const auto read = std::from_chars(word.data(), end, thresholds.emplace_back());
    if (read.ec != std::errc() || read.ptr != end)
      throw failure(fmt::format("--exit: '{}' in '{}', expected a number", word, text));
  }
  return thresholds;
}

}  // namespace

adaptive_k::early_exit_policy parse_exit(const std::string& text, int num_layers) {
  const std::size_t colon = text.find(':');
  const std::string signal = text.substr(0, colon);
  adaptive_k::early_exit_policy policy;
  if (colon == std::string::npos || (signal != "entropy" && signal != "max_probability"))
    throw failure(fmt::format(
        "--exit: '{}', expected entropy:THRESHOLDS or max_probability:THRESHOLDS", text));
  policy.signal = signal == "entropy" ? adaptive_k::exit_signal::entropy
                                      : adaptive_k::exit_signal::max_probability;
  const int can_exit = std::min(num_layers - 1, adaptive_k::early_exit_policy::max_layers);
  std::vector<float> thresholds = parse_thresholds(text, text.substr(colon + 1));
  if (thresholds.size() == 1)
    thresholds.resize(static_cast<std::size_t>(can_exit), thresholds.front());
  if (thresholds.size() != static_cast<std::size_t>(can_exit))
    throw failure(
        fmt::format("--exit: {} thresholds, expected 1, or {}: one for each layer but "
                    "the last",
                    thresholds.size(), can_exit));
  policy.num_layers = can_exit;
  std::copy(thresholds.begin(), thresholds.end(), policy.thresholds);
  const adaptive_k::status valid = validate(policy);
  if (!valid.ok()) throw failure(fmt::format("--exit: {}", valid.message()));
  return policy;
}

combine_result run_combine(const combine_options& options, file_roles& roles) {
  model_inputs inputs = load_inputs(options, roles);
  const moe_engine::model_config& config = inputs.model.engine.config();

  combine_result result;
  result.model = facts_of(inputs.model, options.policy);
  result.data = facts_of(inputs.data, inputs.windows);
  result.random_seed = options.seed;
  result.exit = parse_exit(options.exit, config.num_layers);
  result.merging = {static_cast<float>(options.merge_similarity), options.merge_window};
  const adaptive_k::status valid = validate(result.merging);
  if (!valid.ok())
    throw failure(fmt::format("--merge-similarity, --merge-window: {}", valid.message()));
  policy_facts& policy = result.policy;
  policy.choice = choose_policy(options.policy, inputs.model);
  policy.layers = layer_policies(policy.choice.policy, config.num_moe_layers);
  policy.is_adaptive.assign(policy.layers.size(), true);

  const auto router_of = [&](std::vector<adaptive_k::k_policy> layers) {
    return adaptive_k::router(config.gating, std::move(layers), {}, policy.choice.policy.tables);
  };
  const adaptive_k::router full = router_of(adaptive_k::full_like(policy.layers));
  const adaptive_k::router adaptive = router_of(policy.layers);
  const int top_k = config.gating.top_k;

  std::vector<combined_run> runs;
  for (std::size_t c = 0; c < num_combinations; ++c)
    runs.push_back(make_run(name_of(c), (c & adapt) != 0 ? adaptive : full, c));
  for (int k = 1; k < top_k; ++k)
    runs.push_back(make_run(fmt::format("fixed K = {}", k),
                            router_of(fixed_like(policy.layers, policy.is_adaptive, k))));
  for (combined_run& run : runs) {
    if (run.figures.exits_early)
      run.hooks.early_exit = moe_engine::exit_with(result.exit, &run.figures.exits);
    if (run.figures.merges_tokens)
      run.hooks.merge =
          counted_merge(run, moe_engine::merge_with(result.merging), config.num_moe_layers);
  }
  evaluate(inputs.model.engine, inputs.data, inputs.windows, runs);

  // Their rates are known only now.
  std::vector<combined_run> controls;
  controls.push_back(make_run(name_of(full_model), full));
  controls.push_back(make_run("random exits, the same rates", full, leave));
  controls.push_back(make_run("random merging, the same shares", full, merge));
  controls[1].hooks.early_exit =
      random_exit(result.exit, runs[leave].figures.exits, options.seed, &controls[1].figures.exits);
  controls[2].hooks.merge = counted_merge(
      controls[2], random_merge(result.merging, runs[merge].figures.merges_by_layer, options.seed),
      config.num_moe_layers);
  evaluate(inputs.model.engine, inputs.data, inputs.windows, controls);

  std::vector<const combined_run*> by_k;
  for (std::size_t i = num_combinations; i < runs.size(); ++i) by_k.push_back(&runs[i]);
  by_k.push_back(&runs[full_model]);
  const auto finish = [&](combined_run& run) {
    set_shares(run, runs[full_model], top_k);
    compare_with_fixed(run, by_k);
    return run.figures;
  };
  for (std::size_t c = 0; c < num_combinations; ++c) result.combinations.push_back(finish(runs[c]));
  for (std::size_t c = 1; c < controls.size(); ++c) result.controls.push_back(finish(controls[c]));
  predict(result.combinations);
  return result;
}

}  // namespace bench
