// Runs of a model under a routing, as calibration needs them: quality by window, K by layer.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/fitting/distortion_fit.hpp"
#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/calibration/search/k_assignment.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/host/router.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Means over one window's predictions, against the same window under full K.
struct window_outcome {
  double kl = 0.0;         ///< KL(full K || this), nats
  double nll = 0.0;        ///< -ln p of the tokens that came, nats
  double agreement = 0.0;  ///< share of predictions whose likeliest token is full K's
};

/// A run of consecutive windows.
struct window_range {
  std::int64_t first = 0;  ///< counted from 0
  std::int64_t count = 0;  ///< 0 or more
};

/// Routes one call of one layer, as `router::route` does; any callable of the four arguments is
/// one.
class layer_route {
 public:
  /// Calls `route`, which it keeps. `heads`, borrowed, where given: a router whose policies'
  /// heads it reads.
  template <class Route,
            std::enable_if_t<!std::is_same_v<std::decay_t<Route>, layer_route>, int> = 0>
  // NOLINTNEXTLINE(google-explicit-constructor): as std::function
  layer_route(Route route, const router* heads = nullptr)
      : route_(std::move(route)), heads_(heads) {}

  /// A gating with a selection bias needs the layer's in `extras`.
  status operator()(int layer, const logits_view<float>& logits, const routing_output<>& output,
                    const routing_extras& extras = {}) const {
    return route_(layer, logits, output, extras);
  }
  /// The router whose heads the model must give as `logits.head`, of each layer that has one
  /// (reads_head, distortion_ref::head); null: there is none.
  const router* heads() const noexcept { return heads_; }

 private:
  std::function<status(int, const logits_view<float>&, const routing_output<>&,
                       const routing_extras&)>
      route_;
  const router* heads_ = nullptr;
};
/// Shown every block of a full-K run.
using block_observer = std::function<void(const expert_output_block& block)>;

/// A model bound to a text. `run` forwards the windows with `route` making every routing decision,
/// shows the observer (if any) every layer's blocks in token order, and returns an outcome for each
/// window. Equal calls must give equal results.
struct calibration_source {
  std::string name;              ///< tells texts apart, for those who keep results
  gating model;                  ///< the model's own routing
  int num_layers = 0;            ///< MoE layers
  std::int64_t num_windows = 0;  ///< of the text
  int window_length = 0;         ///< tokens of each
  std::function<std::vector<window_outcome>(window_range, const layer_route&,
                                            const block_observer&)>
      run;  ///< see above; throws what the model throws
};

/// What came of one routing.
struct routing_outcome {
  std::vector<window_outcome> windows;  ///< one a window, in order
  std::vector<double> layer_mean_k;     ///< [num_layers], over the tokens of all windows

  /// Over the layers; 0 where there are none.
  double mean_k() const {
    double sum = 0.0;
    for (const double k : layer_mean_k) sum += k;
    return layer_mean_k.empty() ? 0.0 : sum / static_cast<double>(layer_mean_k.size());
  }
  /// Over the windows, of one figure of each; 0 where there are none.
  double mean(double window_outcome::*figure) const {
    double sum = 0.0;
    for (const window_outcome& window : windows) sum += window.*figure;
    return windows.empty() ? 0.0 : sum / static_cast<double>(windows.size());
  }
  /// KL(full K || this), nats.
  double mean_kl() const { return mean(&window_outcome::kl); }
  /// exp of the mean loss in nats.
  double perplexity() const { return std::exp(mean(&window_outcome::nll)); }
};

/// Mean of a - b over windows and its standard error (NaN for fewer than two windows).
struct paired_estimate {
  double value = 0.0;                                    ///< in the figure's own unit
  double se = std::numeric_limits<double>::quiet_NaN();  ///< standard error, likewise
};

/// The KL of `a` minus that of `b` on the same windows, in nats; without `b` minus full K's own, 0.
inline paired_estimate kl_difference(const routing_outcome& a, const routing_outcome* b = nullptr) {
  const auto at = [&](std::size_t w) {
    return a.windows[w].kl - (b != nullptr ? b->windows[w].kl : 0.0);
  };
  const auto n = static_cast<double>(a.windows.size());
  paired_estimate result;
  for (std::size_t w = 0; w < a.windows.size(); ++w) result.value += at(w) / n;
  double squares = 0.0;
  for (std::size_t w = 0; w < a.windows.size(); ++w)
    squares += (at(w) - result.value) * (at(w) - result.value);
  if (n > 1.0) result.se = std::sqrt(squares / (n - 1.0) / n);
  return result;
}

/// (1 - share) * low + share * high: a random part of the windows under one, the rest under the
/// other.
inline routing_outcome mixed(const routing_outcome& low, const routing_outcome& high,
                             double share) {
  routing_outcome result = low;
  const auto mix = [share](double& x, double y) { x = (1.0 - share) * x + share * y; };
  for (std::size_t w = 0; w < result.windows.size(); ++w) {
    mix(result.windows[w].kl, high.windows[w].kl);
    mix(result.windows[w].nll, high.windows[w].nll);
    mix(result.windows[w].agreement, high.windows[w].agreement);
  }
  for (std::size_t l = 0; l < result.layer_mean_k.size(); ++l)
    mix(result.layer_mean_k[l], high.layer_mean_k[l]);
  return result;
}

/// Of one routing on several texts, one or more: their windows one after the other, all of one
/// length.
inline routing_outcome joined(const std::vector<routing_outcome>& outcomes) {
  if (outcomes.size() == 1) return outcomes.front();
  routing_outcome result;
  result.layer_mean_k.assign(outcomes.front().layer_mean_k.size(), 0.0);
  for (const routing_outcome& each : outcomes)
    result.windows.insert(result.windows.end(), each.windows.begin(), each.windows.end());
  for (const routing_outcome& each : outcomes)
    for (std::size_t l = 0; l < result.layer_mean_k.size(); ++l)
      result.layer_mean_k[l] += each.layer_mean_k[l] * static_cast<double>(each.windows.size()) /
                                static_cast<double>(result.windows.size());
  return result;
}

/// One policy a layer, and what owns their tables.
struct policy_set {
  std::vector<k_policy> layers;        ///< [num_layers]
  std::shared_ptr<const void> tables;  ///< what distortion policies point to, or null
};

/// Stores results of runs, so that interrupted work can resume. `recall` and `remember` may be
/// null. A stored result with another number of windows or layers is not used. `step` is called
/// before every run, and may throw to stop.
struct run_memory {
  /// Fills `outcome` with the result stored under `key`; false if there is none.
  std::function<bool(const std::string& key, routing_outcome& outcome)> recall;
  /// Stores `outcome` under `key`.
  std::function<void(const std::string& key, const routing_outcome& outcome)> remember;
  std::function<void(const std::string& what)> step;  ///< told what runs next
};

/// Runs routings over a source. Throws std::runtime_error where a router refuses.
class calibration_runner {
 public:
  /// Runs over `source`, of which it keeps a copy.
  explicit calibration_runner(calibration_source source, run_memory memory = {})
      : source_(std::move(source)), memory_(std::move(memory)) {}

  /// The model and text that it runs over.
  const calibration_source& source() const noexcept { return source_; }

  /// Runs the windows under full K and records every layer, [num_layers]; with the router's inputs,
  /// where a head is to be fitted, 4 H more bytes a token.
  std::vector<layer_record> record(window_range range, bool with_inputs = false) const {
    if (memory_.step) memory_.step("full K, recorded");
    std::vector<layer_record> records(static_cast<std::size_t>(source_.num_layers),
                                      layer_record(source_.model, with_inputs));
    const router full(source_.model, k_policy::full());
    source_.run(range, route_of(full), [&](const expert_output_block& block) {
      records[static_cast<std::size_t>(block.layer)].add(block);
    });
    return records;
  }

  /// Routes the windows of `range` by `policies`. `seed` is for K's that are not `chosen` but
  /// reassigned.
  routing_outcome run(const policy_set& policies, window_range range,
                      k_assignment assignment = k_assignment::chosen,
                      std::uint64_t seed = 1) const {
    return remembered(key_of(policies, range, static_cast<int>(assignment), seed), range.count,
                      "run", [&] {
                        return assignment == k_assignment::chosen
                                   ? run_chosen(policies, range)
                                   : run_assigned(policies, range, assignment, seed);
                      });
  }

  /// Share of the tokens of `range` that are out of the policies' domains, over all layers.
  double out_of_domain_share(const policy_set& policies, window_range range) const {
    if (memory_.step) memory_.step("out of domain");
    const router with = checked_router(policies);
    routing_metrics metrics;
    source_.run(range,
                [&](int layer, const logits_view<float>& logits, const routing_output<>& output,
                    const routing_extras& extras) {
                  return with.route(layer, logits, output, &metrics, extras);
                },
                {});
    return metrics.out_of_domain_share();
  }

  /// The oracle: K's from the true distortion of each token, argmin g_l d + lambda k, layer by
  /// layer under the K's chosen in the layers before. Costs num_layers + 1 passes.
  routing_outcome run_oracle(const std::vector<double>& sensitivities, double lambda,
                             double mass_exponent, window_range range) const {
    std::string key = "oracle " + bits(lambda) + bits(mass_exponent) + range_key(range);
    for (const double g : sensitivities) key += bits(g);
    return remembered(key, range.count, "oracle",
                      [&] { return oracle_outcome(sensitivities, lambda, mass_exponent, range); });
  }

 private:
  static layer_route route_of(const router& with) {
    return {[&with](int layer, const logits_view<float>& logits, const routing_output<>& output,
                    const routing_extras& extras) {
              return with.route(layer, logits, output, nullptr, extras);
            },
            &with};
  }

  router checked_router(const policy_set& policies) const {
    router result(source_.model, policies.layers, {}, policies.tables);
    if (!result.validity().ok()) throw std::runtime_error(result.validity().message());
    return result;
  }

  routing_outcome run_chosen(const policy_set& policies, window_range range) const {
    const router with = checked_router(policies);
    std::vector<std::int64_t> sums(policies.layers.size(), 0);
    routing_outcome outcome;
    const auto route = [&](int layer, const logits_view<float>& logits,
                           const routing_output<>& output, const routing_extras& extras) {
      const status result = with.route(layer, logits, output, nullptr, extras);
      for (std::int64_t t = 0; result.ok() && t < logits.num_tokens; ++t)
        sums[static_cast<std::size_t>(layer)] += output.topk_counts[t];
      return result;
    };
    outcome.windows = source_.run(range, {route, &with}, {});
    set_mean_k(sums, range, outcome);
    return outcome;
  }

  routing_outcome run_assigned(const policy_set& policies, window_range range,
                               k_assignment assignment, std::uint64_t seed) const {
    const router with = checked_router(policies);
    const router full(source_.model, full_like(policies.layers));
    integer_rng rng(seed);
    std::vector<std::int64_t> sums(policies.layers.size(), 0);
    std::vector<float> signal;
    std::vector<std::uint8_t> counts;
    routing_outcome outcome;
    const auto route = [&](int layer, const logits_view<float>& logits,
                           const routing_output<>& output, const routing_extras& extras) {
      signal.resize(static_cast<std::size_t>(logits.num_tokens));
      routing_output<> own = output;
      own.signal = signal.data();
      const status result = with.route(layer, logits, own, nullptr, extras);
      if (!result.ok()) return result;
      counts.assign(output.topk_counts, output.topk_counts + logits.num_tokens);
      assign_counts(assignment, counts, signal, with.policy(layer).signal, rng);
      for (const std::uint8_t k : counts) sums[static_cast<std::size_t>(layer)] += k;
      return route_with_counts(full, layer, logits, output, extras, counts.data());
    };
    outcome.windows = source_.run(range, {route, &with}, {});
    set_mean_k(sums, range, outcome);
    return outcome;
  }

  static status route_with_counts(const router& full, int layer, const logits_view<float>& logits,
                                  const routing_output<>& output, routing_extras extras,
                                  const std::uint8_t* counts) {
    extras.k_min = counts;
    extras.k_max = counts;
    return full.route(layer, logits, output, nullptr, extras);
  }

  routing_outcome oracle_outcome(const std::vector<double>& sensitivities, double lambda,
                                 double mass_exponent, window_range range) const {
    k_policy policy = k_policy::full();
    policy.mass_exponent = static_cast<float>(mass_exponent);
    const router full(source_.model, policy);
    const int top_k = source_.model.top_k;
    const auto tokens = static_cast<std::size_t>(range.count * source_.window_length);
    std::vector<std::vector<std::uint8_t>> counts(
        sensitivities.size(), std::vector<std::uint8_t>(tokens, static_cast<std::uint8_t>(top_k)));
    std::vector<std::size_t> begun(sensitivities.size());
    const layer_route route = [&](int layer, const logits_view<float>& logits,
                                  const routing_output<>& output, const routing_extras& extras) {
      const auto l = static_cast<std::size_t>(layer);
      const status result =
          route_with_counts(full, layer, logits, output, extras, counts[l].data() + begun[l]);
      begun[l] += static_cast<std::size_t>(logits.num_tokens);
      return result;
    };
    routing_outcome outcome;
    for (std::size_t layer = 0; layer <= sensitivities.size(); ++layer) {
      std::fill(begun.begin(), begun.end(), std::size_t{0});
      block_observer observe;
      layer_record record(source_.model);
      if (layer < sensitivities.size())
        observe = [&](const expert_output_block& block) {
          if (static_cast<std::size_t>(block.layer) == layer) record.add(block);
        };
      outcome.windows = source_.run(range, route, observe);
      for (std::int64_t t = 0; t < record.num_tokens(); ++t) {
        double least = lambda * top_k;
        for (int k = top_k - 1; k >= 1; --k) {
          const double cost =
              sensitivities[layer] * record.distortion(t, k, mass_exponent) + lambda * k;
          if (cost >= least) continue;
          least = cost;
          counts[layer][static_cast<std::size_t>(t)] = static_cast<std::uint8_t>(k);
        }
      }
    }
    std::vector<std::int64_t> sums(sensitivities.size(), 0);
    for (std::size_t l = 0; l < counts.size(); ++l)
      for (const std::uint8_t k : counts[l]) sums[l] += k;
    set_mean_k(sums, range, outcome);
    return outcome;
  }

  void set_mean_k(const std::vector<std::int64_t>& sums, window_range range,
                  routing_outcome& outcome) const {
    const auto tokens = static_cast<double>(range.count * source_.window_length);
    for (const std::int64_t sum : sums)
      outcome.layer_mean_k.push_back(static_cast<double>(sum) / tokens);
  }

  template <class Run>
  routing_outcome remembered(const std::string& key, std::int64_t num_windows, const char* what,
                             const Run& run) const {
    routing_outcome outcome;
    if (memory_.recall && memory_.recall(key, outcome) &&
        outcome.windows.size() == static_cast<std::size_t>(num_windows) &&
        outcome.layer_mean_k.size() == static_cast<std::size_t>(source_.num_layers))
      return outcome;
    if (memory_.step) memory_.step(what);
    outcome = run();
    if (memory_.remember) memory_.remember(key, outcome);
    return outcome;
  }

  // A key covers all that a result depends on; numbers are added as their bits.
  template <class Number>
  static std::string bits(Number value) {
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += digits[word >> shift & 15u];
    return text;
  }

  std::string range_key(window_range range) const {
    return " " + source_.name + " " + std::to_string(range.first) + "+" +
           std::to_string(range.count);
  }

  std::string key_of(const policy_set& policies, window_range range, int assignment,
                     std::uint64_t seed) const {
    std::uint64_t hash = 1469598103934665603u;  // FNV-1a over the policies' numbers
    const auto add = [&hash](std::uint64_t word) { hash = (hash ^ word) * 1099511628211u; };
    const auto add_float = [&add](float value) {
      std::uint32_t word = 0;
      std::memcpy(&word, &value, sizeof value);
      add(word);
    };
    const auto add_tables = [&](const distortion_ref& d) {
      add_float(d.lambda);
      add_float(d.sensitivity);
      const int rows = source_.model.top_k - 1;
      for (int i = 0; i < rows * distortion_ref::num_features; ++i) add_float(d.coefficients[i]);
      for (int i = 0; i < rows * source_.model.num_experts; ++i) {
        if (d.first_expert != nullptr) add_float(d.first_expert[i]);
        if (d.next_expert != nullptr) add_float(d.next_expert[i]);
      }
      for (int i = 0; d.head != nullptr && i < rows * d.hidden_size; ++i) add_float(d.head[i]);
    };
    for (const k_policy& layer : policies.layers) {
      add(static_cast<std::uint64_t>(layer.rule));
      add(static_cast<std::uint64_t>(layer.signal));
      for (int i = 0; i < layer.num_k_values; ++i) add(layer.k_values[i]);
      for (int i = 0; i + 1 < layer.num_k_values; ++i) add_float(layer.thresholds[i]);
      add_float(layer.mass_exponent);
      for (int i = 0; i < layer.num_super_experts; ++i) add(layer.super_experts[i]);
      if (layer.distortion.coefficients != nullptr) add_tables(layer.distortion);
    }
    return bits(hash) + " " + std::to_string(assignment) + " " +
           std::to_string(assignment == 0 ? 0 : seed) + range_key(range);
  }

  calibration_source source_;
  run_memory memory_;
};

ADAPTIVE_K_NAMESPACE_END
