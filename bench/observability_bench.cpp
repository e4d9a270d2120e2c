// What it costs to observe a routing call: recording a batch, logging it, and reading all of it.
#include <benchmark/benchmark.h>

#include <adaptive_k/observability/json_log.hpp>
#include <adaptive_k/observability/prometheus.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "routing/inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

routing_metrics one_batch() {
  routing_metrics batch;
  batch.calls = 1;
  batch.tokens = 32;
  batch.full_expert_calls = 256;
  batch.expert_calls = 150;
  batch.distinct_experts = 40;
  for (const int k : {3, 4, 6, 8}) batch.k_histogram[k] = 8;
  return batch;
}

/// All threads record into the same series.
void record(benchmark::State& state, int expert_load) {
  static std::unique_ptr<prometheus_recorder> recorder;
  if (state.thread_index() == 0) {
    prometheus_options options;
    options.expert_load = expert_load;
    recorder = std::make_unique<prometheus_recorder>(options);
  }
  const routing_metrics batch = one_batch();
  const std::vector<std::uint64_t> expert_counts(64, 2);
  prometheus_recorder::series* series = nullptr;
  for (auto _ : state) {
    if (series == nullptr) series = recorder->find({"model", 3, "policy"});
    recorder->record(series, batch, 3e-5);
    recorder->record_expert_counts(series, expert_counts.data(), 64);
  }
}

void record_by_labels(benchmark::State& state) {
  prometheus_recorder recorder;
  const routing_metrics batch = one_batch();
  for (auto _ : state) recorder.record({"model", 3, "policy"}, batch, 3e-5);
}

void record_entropies(benchmark::State& state) {
  prometheus_recorder recorder;
  prometheus_recorder::series* const series = recorder.find({"model", 3, "policy"});
  std::vector<float> entropies =
      routing_bench::random_logits(static_cast<std::size_t>(state.range(0)), 1);
  for (float& entropy : entropies) entropy = entropy < 0 ? -entropy : entropy;
  for (auto _ : state) recorder.record_entropies(series, entropies.data(), state.range(0));
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void render(benchmark::State& state) {
  prometheus_recorder recorder;
  const routing_metrics batch = one_batch();
  for (int layer = 0; layer < state.range(0); ++layer)
    recorder.record({"model", layer, "policy"}, batch, 3e-5);
  for (auto _ : state) benchmark::DoNotOptimize(recorder.render());
}

log_event one_event(const routing_metrics& batch) {
  log_event event(batch, 3e-5);
  event.model = "model";
  event.policy = "policy";
  event.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  event.layer = 3;
  return event;
}

/// Paced, so that the queue is what is measured and not its being full.
void log_batch(benchmark::State& state) {
  json_log_options options;
  options.capacity = std::size_t{1} << 20;
  json_logger logger([](std::string_view) {}, options);
  const routing_metrics batch = one_batch();
  std::uint64_t lines = 0;
  for (auto _ : state) {
    logger.log(one_event(batch));
    if (++lines % (1 << 19) == 0) {
      state.PauseTiming();
      if (!logger.flush().ok()) state.SkipWithError("the logger fell behind");
      state.ResumeTiming();
    }
  }
  state.counters["dropped"] = static_cast<double>(logger.dropped());
}

void log_line_text(benchmark::State& state) {
  const log_event event = one_event(one_batch());
  std::string line;
  for (auto _ : state) {
    line.clear();
    append_json(line, event, "adaptive_k", log_fields::ecs);
    benchmark::DoNotOptimize(line.data());
  }
}

BENCHMARK_CAPTURE(record, no_expert_load, 0)->ThreadRange(1, 8)->UseRealTime();
BENCHMARK_CAPTURE(record, expert_load_64, 64)->ThreadRange(1, 8)->UseRealTime();
BENCHMARK(record_by_labels);
BENCHMARK(record_entropies)->Arg(1)->Arg(32)->Arg(4096);
BENCHMARK(render)->Arg(1)->Arg(64)->Unit(benchmark::kMicrosecond);
BENCHMARK(log_batch);
BENCHMARK(log_line_text);

}  // namespace

BENCHMARK_MAIN();
