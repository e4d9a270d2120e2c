// Many threads record while one renders: no count is lost, no rendering contradicts itself.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "adaptive_k/observability/prometheus.hpp"
#include "exposition.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// Seconds of recording; ADAPTIVE_K_RECORD_SECONDS changes it.
double duration() {
  const char* const asked = std::getenv("ADAPTIVE_K_RECORD_SECONDS");
  return asked == nullptr ? 10.0 : std::atof(asked);
}

TEST(PrometheusThreads, LoseNoCount) {
  constexpr int num_threads = 8, num_layers = 3;
  prometheus_options options;
  options.expert_load = 8;
  options.shards = 3;  // fewer than threads, so that they meet
  prometheus_recorder recorder(options);
  struct own_counts {
    std::uint64_t batches[num_layers] = {};
    std::uint64_t tokens[num_layers] = {};
  };
  std::vector<own_counts> recorded(num_threads);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i)
    threads.emplace_back([&, i] {
      own_counts own;
      for (std::uint64_t n = 0; !stop.load(std::memory_order_relaxed); ++n) {
        const auto layer = static_cast<int>((n + static_cast<std::uint64_t>(i)) % num_layers);
        routing_metrics batch;
        batch.calls = 1;
        batch.tokens = 1 + n % 5;
        batch.full_expert_calls = 8 * batch.tokens;
        batch.expert_calls = 3 * batch.tokens;
        batch.k_histogram[3] = batch.tokens;
        batch.distinct_experts = 3;
        std::uint64_t expert_counts[8] = {};
        expert_counts[n % 8] = batch.expert_calls;
        recorder.record({"m", layer, "p"}, batch, 1e-5 * static_cast<double>(n % 7));
        recorder.record_expert_counts(recorder.find({"m", layer, "p"}), expert_counts, 8);
        ++own.batches[layer];
        own.tokens[layer] += batch.tokens;
      }
      recorded[static_cast<std::size_t>(i)] = own;
    });

  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(duration());
  double last = 0;
  int renderings = 0;
  while (std::chrono::steady_clock::now() < end) {
    const auto shown = exposition_text::parse(recorder.render(exposition::openmetrics)).samples;
    double tokens = 0;
    for (int layer = 0; layer < num_layers; ++layer) {
      const std::string l = "{model=\"m\",layer=\"" + std::to_string(layer) + "\",policy=\"p\"";
      if (shown.count("adaptive_k_tokens_total" + l + "}") == 0) continue;
      const double saved = shown.at("adaptive_k_compute_saved_ratio" + l + "}");
      EXPECT_TRUE(saved >= 0.625 || saved == 0) << saved;  // never experts without their tokens
      EXPECT_LE(shown.at("adaptive_k_avg_k" + l + "}"), 3.0);
      EXPECT_EQ(shown.at("adaptive_k_latency_seconds_count" + l + "}"),
                shown.at("adaptive_k_latency_seconds_bucket" + l + ",le=\"+Inf\"}"));
      tokens += shown.at("adaptive_k_tokens_total" + l + "}");
    }
    EXPECT_GE(tokens, last);
    last = tokens;
    ++renderings;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();

  const auto shown = exposition_text::parse(recorder.render()).samples;
  std::uint64_t all_batches = 0;
  for (int layer = 0; layer < num_layers; ++layer) {
    std::uint64_t batches = 0, tokens = 0;
    for (const own_counts& own : recorded) {
      batches += own.batches[layer];
      tokens += own.tokens[layer];
    }
    all_batches += batches;
    const std::string l = "{model=\"m\",layer=\"" + std::to_string(layer) + "\",policy=\"p\"";
    const auto value = [&](const std::string& name) {
      return static_cast<std::uint64_t>(shown.at("adaptive_k_" + name));
    };
    EXPECT_EQ(value("routing_calls_total" + l + "}"), batches);
    EXPECT_EQ(value("latency_seconds_count" + l + "}"), batches);
    EXPECT_EQ(value("tokens_total" + l + "}"), tokens);
    EXPECT_EQ(value("expert_calls_total" + l + "}"), 3 * tokens);
    EXPECT_EQ(value("full_expert_calls_total" + l + "}"), 8 * tokens);
    EXPECT_EQ(value("k_total" + l + ",k=\"3\"}"), tokens);
    std::uint64_t load = 0;
    for (int e = 0; e < 8; ++e)
      load += value("expert_load_total" + l + ",expert=\"" + std::to_string(e) + "\"}");
    EXPECT_EQ(load, 3 * tokens);
  }
  EXPECT_EQ(shown.at("adaptive_k_dropped_batches_total"), 0);
  EXPECT_GT(all_batches, 1000U);
  EXPECT_GT(renderings, 5);
  std::printf("%llu batches by 8 threads, %d renderings meanwhile\n",
              static_cast<unsigned long long>(all_batches), renderings);
}

}  // namespace
