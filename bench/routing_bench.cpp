// Time of a routing call: the library, with entropy, adaptive K and metrics, against what engines
// do without it. All in one process, so that ratios mean something; README.md says how to read it.
#include <benchmark/benchmark.h>
#include <adaptive_k/adaptive_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "routing/baselines.hpp"
#include "routing/inputs.hpp"
#include "routing/ratios.hpp"
#include "routing/two_threads.hpp"

namespace {

using namespace routing_bench;  // NOLINT(google-build-using-namespace)

adaptive_k::gating gating_of(shape s) {
  adaptive_k::gating gating;
  gating.num_experts = s.num_experts;
  gating.top_k = s.top_k;
  return gating;
}

/// K0 / 2 below the median entropy of the first input, else K0: no branch can guess it.
adaptive_k::k_policy policy_of(shape s, const std::vector<float>& logits, std::int64_t tokens) {
  const adaptive_k::router full(gating_of(s),
                                adaptive_k::k_policy::entropy({s.top_k / 2, s.top_k}, {0.0f}));
  const auto rows = random_logits(256 * static_cast<std::size_t>(s.num_experts), 1);
  const bool enough = tokens >= 256;
  const adaptive_k::logits_view<float> view = {enough ? logits.data() : rows.data(), 256,
                                               s.num_experts, 0};
  auto entropies = full.route(0, view).signal;
  std::nth_element(entropies.begin(), entropies.begin() + 128, entropies.end());
  return adaptive_k::k_policy::entropy({s.top_k / 2, s.top_k}, {entropies[128]});
}

void count_tokens(benchmark::State& state, std::int64_t tokens) {
  state.counters["time/token"] = benchmark::Counter(
      static_cast<double>(tokens),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// What predicts a distortion: tables by expert, or a router head; numbers at random, which cost
/// what fitted ones do.
struct prediction {
  shape s;
  bool has_head;
  std::vector<float> coefficients, first_expert, next_expert;
  std::vector<float> columns;  ///< [tokens, top_k - 1]

  prediction(shape of, std::int64_t tokens, bool with_head) : s(of), has_head(with_head) {
    const auto rows = static_cast<std::size_t>(s.top_k - 1);
    for (std::size_t k = 0; k < rows; ++k)
      for (const float c :
           {-1.0f, has_head ? 1.0f : 0.3f, has_head ? 0.0f : 0.7f, 0.0f, has_head ? 0.0f : 0.1f})
        coefficients.push_back(c);
    const auto table = [](std::size_t size, std::uint64_t seed) {
      std::vector<float> made = random_logits(size, seed);
      for (float& value : made) value *= 0.125f;
      return made;
    };
    first_expert = table(rows * static_cast<std::size_t>(s.num_experts), 1);
    next_expert = table(rows * static_cast<std::size_t>(s.num_experts), 2);
    columns = table(rows * static_cast<std::size_t>(tokens), 3);
  }

  adaptive_k::k_policy policy() const {
    adaptive_k::distortion_ref model;
    model.coefficients = coefficients.data();
    model.lambda = 0.02f;
    if (has_head) {
      model.head = columns.data();  // the engine's, not read here
      model.hidden_size = 1;
    } else {
      model.first_expert = first_expert.data();
      model.next_expert = next_expert.data();
    }
    adaptive_k::k_policy made = adaptive_k::k_policy::min_distortion(model);
    made.mass_exponent = 0.5f;
    return made;
  }
};

/// The distortion rule in place of the entropy thresholds: float logits, the best instructions.
void route_by_distortion(benchmark::State& state, bool has_head, std::int64_t tokens, shape s) {
  batch b(tokens, s);
  const prediction predicted(s, tokens, has_head);
  const adaptive_k::router router(gating_of(s), predicted.policy());
  const adaptive_k::routing_output<> output = {b.ids.data(), b.weights.data(), b.counts.data(),
                                               b.signal.data()};
  adaptive_k::routing_metrics metrics;
  std::size_t turn = 0;
  for (auto _ : state) {
    const float* logits = b.logits[turn++ % b.logits.size()].data();
    const adaptive_k::logits_view<float> view = {logits, tokens, s.num_experts, 0,
                                                 has_head ? predicted.columns.data() : nullptr};
    const adaptive_k::status result = router.route(0, view, output, &metrics);
    if (!result.ok()) state.SkipWithError(result.message());
    benchmark::DoNotOptimize(b.ids.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
  state.counters["mean_k"] = metrics.mean_k();
}

template <class Logit>
std::vector<std::vector<Logit>> converted(const std::vector<std::vector<float>>& inputs) {
  std::vector<std::vector<Logit>> made;
  for (const std::vector<float>& input : inputs) {
    made.emplace_back();
    for (const float logit : input) made.back().push_back(adaptive_k::from_float<Logit>(logit));
  }
  return made;
}

template <class Logit>
void route_adaptive_k(benchmark::State& state, adaptive_k::instruction_set instructions,
                      std::int64_t tokens, shape s) {
  batch b(tokens, s);
  adaptive_k::router_options options;
  options.instructions = instructions;
  const adaptive_k::router router(gating_of(s), policy_of(s, b.logits[0], tokens), options);
  const auto inputs = converted<Logit>(b.logits);
  const adaptive_k::routing_output<> output = {b.ids.data(), b.weights.data(), b.counts.data(),
                                               b.signal.data()};
  adaptive_k::routing_metrics metrics;
  std::size_t turn = 0;
  for (auto _ : state) {
    const Logit* logits = inputs[turn++ % inputs.size()].data();
    const adaptive_k::logits_view<Logit> view = {logits, tokens, s.num_experts, 0};
    const adaptive_k::status result = router.route(0, view, output, &metrics);
    if (!result.ok()) state.SkipWithError(result.message());
    benchmark::DoNotOptimize(b.ids.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
  state.counters["mean_k"] = metrics.mean_k();
}

/// Half of the call each, by `route_range`; the metrics put together as those of one call.
void route_by_two_threads(benchmark::State& state, std::int64_t tokens, shape s) {
  batch b(tokens, s);
  const adaptive_k::router router(gating_of(s), policy_of(s, b.logits[0], tokens));
  const adaptive_k::routing_output<> output = {b.ids.data(), b.weights.data(), b.counts.data(),
                                               b.signal.data()};
  second_thread second;
  adaptive_k::routing_metrics metrics, parts[2];
  adaptive_k::status results[2];
  std::size_t turn = 0;
  for (auto _ : state) {
    const adaptive_k::logits_view<float> view = {b.logits[turn++ % b.logits.size()].data(), tokens,
                                                 s.num_experts, 0};
    const auto half = [&](int part) {
      parts[part] = {};
      results[part] = router.route_range(0, view, output, tokens / 2 * part,
                                         tokens / 2 * (part + 1), &parts[part]);
    };
    second.run([&] { half(0); }, [&] { half(1); });
    for (const adaptive_k::status& result : results)
      if (!result.ok()) state.SkipWithError(result.message());
    adaptive_k::add_parts_of_call(parts, 2, &metrics);
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
}

template <class Baseline>
void route_baseline(benchmark::State& state, Baseline baseline, std::int64_t tokens, shape s) {
  batch b(tokens, s);
  std::size_t turn = 0;
  for (auto _ : state) {
    baseline.route(b.logits[turn++ % b.logits.size()].data(), tokens, b);
    benchmark::DoNotOptimize(b.ids.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
}

template <class Logit>
void add_adaptive_k(const std::string& name, adaptive_k::instruction_set set, std::int64_t tokens,
                    shape s) {
  if (!adaptive_k::is_available(set)) return;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    route_adaptive_k<Logit>(state, set, tokens, s);
  })->UseRealTime();
}

void add_all(std::int64_t tokens, shape s) {
  using adaptive_k::instruction_set;
  const std::string at = "/T:" + std::to_string(tokens) + "/E:" + std::to_string(s.num_experts) +
                         "/K:" + std::to_string(s.top_k);
  add_adaptive_k<float>("route/adaptive_k/f32" + at, instruction_set::best, tokens, s);
  add_adaptive_k<adaptive_k::bfloat16>("route/adaptive_k/bf16" + at, instruction_set::best, tokens,
                                       s);
  for (const bool has_head : {false, true})
    benchmark::RegisterBenchmark(
        ((has_head ? "route/adaptive_k_head/f32" : "route/adaptive_k_tables/f32") + at).c_str(),
        [=](benchmark::State& state) { route_by_distortion(state, has_head, tokens, s); })
        ->UseRealTime();
  add_adaptive_k<float>("route/adaptive_k_avx2/f32" + at, instruction_set::avx2, tokens, s);
  add_adaptive_k<float>("route/adaptive_k_scalar/f32" + at, instruction_set::scalar, tokens, s);
  if (tokens == 4096)
    benchmark::RegisterBenchmark(
        ("route/adaptive_k_2_threads/f32" + at).c_str(),
        [=](benchmark::State& state) { route_by_two_threads(state, tokens, s); })
        ->UseRealTime();
  benchmark::RegisterBenchmark(("route/scalar/f32" + at).c_str(), [=](benchmark::State& state) {
    route_baseline(state, scalar_baseline(s), tokens, s);
  })->UseRealTime();
  benchmark::RegisterBenchmark(("route/ggml_chain/f32" + at).c_str(), [=](benchmark::State& state) {
    route_baseline(state, pass_chain_baseline(s, tokens), tokens, s);
  })->UseRealTime();
}

}  // namespace

int main(int argc, char** argv) {
  for (const std::int64_t tokens : token_counts)
    for (const shape s : shapes) add_all(tokens, s);
  // Before the caller's own options, which so prevail.
  std::string repetitions = "--benchmark_repetitions=5";
  std::string interleaving = "--benchmark_enable_random_interleaving=true";
  std::string time = "--benchmark_min_time=0.02";
  std::string tabular = "--benchmark_counters_tabular=true";
  std::vector<char*> arguments = {argv[0], repetitions.data(), interleaving.data(), time.data(),
                                  tabular.data()};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
  benchmark::AddCustomContext("instructions",
                              adaptive_k::name_of(adaptive_k::best_instruction_set()));
  routing_bench::ratio_reporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  reporter.print_ratios();
  return 0;
}
