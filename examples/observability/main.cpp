// Routes made-up batches in two threads, as a service would, and shows it: metrics on a port of
// this machine, a JSON line a batch on stderr, and a timeline for Perfetto.
//   observability [port [seconds [timeline.json]]]      port 0: any free one
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/observability/http_server.hpp"
#include "adaptive_k/observability/json_log.hpp"
#include "adaptive_k/observability/trace_view.hpp"

namespace {

constexpr int num_layers = 4, num_experts = 64, num_tokens = 32;
using clock_type = std::chrono::steady_clock;

double seconds_since(clock_type::time_point start) {
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

/// Some rows sure, some not; other ones for each batch.
std::vector<float> make_logits(unsigned seed) {
  std::vector<float> logits(std::size_t{num_tokens} * num_experts);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    seed = seed * 1664525u + 1013904223u;
    logits[i] = static_cast<float>(seed >> 20) / 4096.0f * static_cast<float>(i / num_experts % 16);
  }
  return logits;
}

struct observers {
  adaptive_k::prometheus_recorder& recorder;
  adaptive_k::json_logger& logger;
  std::mutex mutex;  // of what follows
  adaptive_k::perfetto_trace timeline{"example"};
  adaptive_k::routing_metrics total;
};

void serve(unsigned thread, double seconds, clock_type::time_point start, observers& to) {
  adaptive_k::gating gating;
  gating.num_experts = num_experts;
  gating.top_k = 8;
  const adaptive_k::router router(gating, adaptive_k::k_policy::entropy({4, 8}, {3.0f}));
  adaptive_k::prometheus_recorder::series* series[num_layers];  // found once: recording is fast
  for (int layer = 0; layer < num_layers; ++layer)
    series[layer] = to.recorder.find({"example", layer, "entropy"});

  for (unsigned batch = 0; seconds_since(start) < seconds; ++batch)
    for (int layer = 0; layer < num_layers; ++layer) {
      const std::vector<float> logits =
          make_logits(batch * 8 + thread * 4 + static_cast<unsigned>(layer));
      const adaptive_k::logits_view<float> view = {logits.data(), num_tokens, num_experts};
      adaptive_k::routing_metrics metrics;
      const double begin = seconds_since(start);
      const auto routed = router.route(layer, view, &metrics);
      const double took = seconds_since(start) - begin;
      if (!routed.result.ok()) {
        std::fprintf(stderr, "%s\n", routed.result.message());
        std::exit(1);
      }

      to.recorder.record(series[layer], metrics, took);
      to.recorder.record_entropies(series[layer], routed.signal.data(), num_tokens);
      to.recorder.record_expert_counts(series[layer], routed.expert_counts.data(), num_experts);

      adaptive_k::log_event event(metrics, took);
      event.model = "example";
      event.policy = "entropy";
      event.layer = layer;
      to.logger.log(event);

      std::unique_lock<std::mutex> lock(to.mutex);
      to.total += metrics;
      if (batch < 10)  // a timeline is for a moment, not for a day
        to.timeline.add({layer, num_tokens, routed.signal.data(), routed.topk_counts.data(),
                         begin * 1e6, took * 1e6});
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the experts' work
    }
}

/// The whole of `text` as a number in least..most; false otherwise.
bool read_number(const char* text, double least, double most, double& number) {
  char* end = nullptr;
  number = std::strtod(text, &end);
  return end != text && *end == '\0' && number >= least && number <= most;
}

}  // namespace

int main(int argc, char** argv) {
  double port = 0, seconds = 1.0;
  if (argc > 4 ||
      (argc > 1 && (!read_number(argv[1], 0, 65535, port) || port != std::floor(port))) ||
      (argc > 2 && !read_number(argv[2], 0, 1e9, seconds))) {
    std::fputs("usage: observability [port [seconds [timeline.json]]]     port 0: any free one\n",
               stderr);
    return argc == 2 && std::strcmp(argv[1], "--help") == 0 ? 0 : 2;
  }

  adaptive_k::prometheus_options options;
  options.expert_load = num_experts;
  adaptive_k::prometheus_recorder recorder(options);
  adaptive_k::http_server server;
  adaptive_k::http_server_options listen;
  listen.port = static_cast<int>(port);
  const adaptive_k::status started = server.start(recorder, listen);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.message());
    return 1;
  }
  std::printf("metrics at http://127.0.0.1:%d/metrics for %g s\n", server.port(), seconds);
  std::fflush(stdout);

  adaptive_k::json_logger logger(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr); });
  observers all{recorder, logger, {}, adaptive_k::perfetto_trace("example"), {}};
  const auto start = clock_type::now();
  std::thread other;
  try {
    other = std::thread([&] { serve(1, seconds, start, all); });
  } catch (const std::system_error& refused) {
    std::fprintf(stderr, "no second thread: %s\n", refused.what());
    return 1;
  }
  serve(0, seconds, start, all);
  other.join();
  const adaptive_k::status flushed = logger.flush();
  if (!flushed.ok()) std::fprintf(stderr, "%s\n", flushed.message());

  if (argc > 3) {
    std::FILE* const file = std::fopen(argv[3], "w");
    if (file == nullptr || std::fputs(all.timeline.json().c_str(), file) < 0 ||
        std::fclose(file) != 0) {
      std::fprintf(stderr, "%s: cannot be written\n", argv[3]);
      return 1;
    }
  }
  std::printf("saved %.1f%% of %llu expert calls, by %s; %llu log lines, %llu dropped\n",
              100 * all.total.expert_savings(),
              static_cast<unsigned long long>(all.total.full_expert_calls),
              adaptive_k::name_of(adaptive_k::best_instruction_set()),
              static_cast<unsigned long long>(logger.written()),
              static_cast<unsigned long long>(logger.dropped()));
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "stdout: cannot be written\n");
    return 1;
  }
  return 0;
}
