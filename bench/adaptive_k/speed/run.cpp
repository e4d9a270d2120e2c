#include "bench/adaptive_k/speed/run.hpp"

#include <fmt/format.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <moe_engine/dense.hpp>
#include <moe_engine/moe_layer.hpp>
#include <thread>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/measure/controls.hpp"
#include "bench/adaptive_k/measure/statistics.hpp"
#include "bench/adaptive_k/output/progress.hpp"
#include "bench/adaptive_k/speed/memory.hpp"

namespace bench {
namespace {

/// What the engine's arithmetic may use: the processors that this process has, or fewer by
/// OMP_NUM_THREADS.
unsigned usable_threads() {
  unsigned usable = std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t own;
  if (sched_getaffinity(0, sizeof own, &own) == 0) usable = static_cast<unsigned>(CPU_COUNT(&own));
#endif
  const char* const asked = std::getenv("OMP_NUM_THREADS");
  const unsigned long number = asked != nullptr ? std::strtoul(asked, nullptr, 10) : 0;
  return number > 0 && number < usable ? static_cast<unsigned>(number) : usable;
}

using seconds_clock = std::chrono::steady_clock;

/// Inputs that calls take turns with, so that a call seldom finds its experts still in a cache.
constexpr int num_inputs = 12;

struct contender {
  std::string name;
  adaptive_k::router router;
  adaptive_k::routing_metrics metrics;
  std::vector<double> seconds;
};

class stack_of_layers {
 public:
  stack_of_layers(const adaptive_k::preset& shape, int layers, std::uint64_t seed) {
    progress line("random weights", layers);
    for (int layer = 0; layer < layers; ++layer) {
      layers_.push_back(moe_engine::moe_layer::random(
          static_cast<int>(shape.sizes.hidden), static_cast<int>(shape.sizes.intermediate),
          shape.model, seed + static_cast<std::uint64_t>(layer)));
      line.update(layer + 1);
    }
  }

  double expert_bytes() const { return static_cast<double>(layers_.front().expert_bytes()); }
  int size() const { return static_cast<int>(layers_.size()); }
  int hidden() const { return layers_.front().hidden_size(); }

  /// Every layer once on x [batch, hidden]; seconds of wall time.
  double run(const std::vector<float>& x, int batch, const adaptive_k::router& router,
             adaptive_k::routing_metrics* metrics) {
    output_.resize(x.size());
    const auto route = moe_engine::route_with(router, metrics);
    const auto start = seconds_clock::now();
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      layers_[layer].forward(static_cast<int>(layer), x.data(), batch, route, output_.data(),
                             workspace_);
    return std::chrono::duration<double>(seconds_clock::now() - start).count();
  }

 private:
  std::vector<moe_engine::moe_layer> layers_;
  moe_engine::moe_workspace workspace_;
  std::vector<float> output_;
};

/// About normal, as the sum of four uniform integers, the same on every machine.
std::vector<float> random_input(std::size_t size, adaptive_k::integer_rng& rng) {
  std::vector<float> x(size);
  for (float& value : x) {
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<std::int64_t>(rng.below(65536)) - 32768;
    value = static_cast<float>(sum) / 37837.0f;  // unit variance
  }
  return x;
}

std::vector<contender> make_contenders(const speed_options& options,
                                       const adaptive_k::preset& shape) {
  std::vector<contender> result;
  const auto add = [&](std::string name, adaptive_k::router router) {
    if (!router.validity().ok()) throw failure(name + ": " + router.validity().message());
    result.push_back({std::move(name), std::move(router), {}, {}});
  };
  add("full K", adaptive_k::router(shape.model, adaptive_k::k_policy::full()));
  for (const int k : compared_shares(shape.model.top_k))
    add(fmt::format("fixed K = {}", k),
        adaptive_k::router(shape.model, adaptive_k::k_policy::fixed(k)));
  if (!options.policy.empty()) {
    // Random weights know no layers: those of a layered policy are taken from the first on.
    add(options.policy, shape.make_router(options.policy));
  }
  return result;
}

/// One batch size: rounds in which every contender runs once, each on another input.
batch_figures measure(stack_of_layers& layers, std::vector<contender>& contenders, int batch,
                      const speed_options& options) {
  adaptive_k::integer_rng rng(options.seed + static_cast<std::uint64_t>(batch) * 1000003u);
  std::vector<std::vector<float>> inputs;
  const auto size = static_cast<std::size_t>(batch) * static_cast<std::size_t>(layers.hidden());
  for (int i = 0; i < num_inputs; ++i) inputs.push_back(random_input(size, rng));

  for (contender& each : contenders) {
    each.metrics = {};
    each.seconds.clear();
  }
  double round_seconds = 0.0;
  for (contender& each : contenders)  // warms up, and tells how long a round takes
    round_seconds += layers.run(inputs.back(), batch, each.router, nullptr);
  const int repeats = options.repeats > 0
                          ? options.repeats
                          : static_cast<int>(std::clamp(10.0 / round_seconds, 5.0, 50.0));
  progress line(fmt::format("batch {}", batch), repeats);
  for (int round = 0; round < repeats; ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const std::size_t turn = (i + static_cast<std::size_t>(round)) % contenders.size();
      contender& each = contenders[turn];
      const std::size_t input = (turn + static_cast<std::size_t>(round) * 5) % inputs.size();
      each.seconds.push_back(layers.run(inputs[input], batch, each.router, &each.metrics));
    }
    line.update(round + 1);
  }

  batch_figures figures;
  figures.batch = batch;
  figures.repeats = repeats;
  const double full_median = median(contenders.front().seconds);
  const adaptive_k::routing_metrics& full = contenders.front().metrics;
  for (const contender& each : contenders) {
    speed_figures f;
    f.name = each.name;
    f.mean_k = each.metrics.mean_k();
    f.distinct_experts = each.metrics.mean_distinct_experts();
    f.expert_rows = f.mean_k * batch;
    f.seconds = quartiles_of(each.seconds);
    f.speedup = full_median / f.seconds.median;
    f.ideal_bytes = full.mean_distinct_experts() / each.metrics.mean_distinct_experts();
    f.ideal_rows = full.mean_k() / each.metrics.mean_k();
    figures.routings.push_back(std::move(f));
  }
  return figures;
}

}  // namespace

bound_by bound_at(int batch) {
  if (batch <= 1) return bound_by::bytes;
  return batch >= 512 ? bound_by::compute : bound_by::either;
}

const char* to_string(bound_by bound) {
  switch (bound) {
    case bound_by::bytes:
      return "bytes";
    case bound_by::either:
      return "between";
    case bound_by::compute:
      return "rows";
  }
  return "?";
}

std::vector<int> compared_shares(int top_k) {
  std::vector<int> shares;
  for (const int quarters : {3, 2, 1}) {
    const int k = (top_k * quarters + 2) / 4;
    if (k >= 1 && k < top_k && (shares.empty() || k < shares.back())) shares.push_back(k);
  }
  return shares;
}

quartiles quartiles_of(const std::vector<double>& values) {
  return {quantile(values, 0.25), median(values), quantile(values, 0.75)};
}

speed_result run_speed(const speed_options& options, const adaptive_k::preset& shape) {
  speed_result result;
  result.shape = shape;
  const adaptive_k::gating& gating = result.shape.model;
  if (result.shape.sizes.matrices != 3)
    throw failure(fmt::format("--shape: {} has experts of {} matrices; the engine has those of 3",
                              result.shape.name, result.shape.sizes.matrices));
  if (options.layers > result.shape.num_moe_layers)
    throw failure(fmt::format("--layers: {}, {} has {} MoE layers", options.layers,
                              result.shape.name, result.shape.num_moe_layers));
  std::vector<contender> contenders = make_contenders(options, result.shape);
  if (contenders.size() == 1)
    throw failure(fmt::format("--shape: {} has K0 = {}: there is no smaller K to compare with",
                              result.shape.name, gating.top_k));

  adaptive_k::expert_sizes stored = result.shape.sizes;
  stored.bytes_per_weight = sizeof(float);  // the engine keeps float32
  const double bytes = stored.expert_bytes() * gating.num_experts * options.layers;
  constexpr double headroom = 1.1;  // buffers, and one expert twice while it is packed
  require_memory(headroom * bytes,
                 fmt::format("{} layers of {}", options.layers, result.shape.name));

  stack_of_layers layers(result.shape, options.layers, options.seed);
  result.layers = options.layers;
  result.expert_bytes = layers.expert_bytes();
  result.all_bytes = layers.expert_bytes() * gating.num_experts * options.layers;
  result.backend = moe_engine::dense::backend();
  result.threads = usable_threads();
  result.seed = options.seed;
  for (const int batch : options.batches)
    result.batches.push_back(measure(layers, contenders, batch, options));
  return result;
}

}  // namespace bench
