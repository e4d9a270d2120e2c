#include "bench/adaptive_k/live_view.hpp"

#include <fmt/format.h>

#include <adaptive_k/observability/json_log.hpp>
#include <adaptive_k/observability/prometheus.hpp>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string_view>

#include "bench/adaptive_k/failure.hpp"

#if defined(ADAPTIVE_K_BENCH_HTTP)
#include <adaptive_k/observability/http_server.hpp>
#endif

namespace bench {
namespace {

using file_handle = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

file_handle open_log(const std::string& file) {
  if (file == "-") return {stdout, [](std::FILE*) { return 0; }};
  file_handle opened(std::fopen(file.c_str(), "w"), &std::fclose);
  if (!opened) throw failure(fmt::format("--log: {}: cannot be written", file));
  return opened;
}

/// One for all lines of a run, in the form of W3C's trace context.
std::string make_trace_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

}  // namespace

struct live_view::parts {
  std::string log_name;
  file_handle log{nullptr, nullptr};
  std::string trace_id = make_trace_id();
  adaptive_k::prometheus_recorder recorder;
  std::unique_ptr<adaptive_k::json_logger> logger;
#if defined(ADAPTIVE_K_BENCH_HTTP)
  adaptive_k::http_server server;  // behind the recorder, which it reads until its end
#endif

  void listen(int port) {
#if defined(ADAPTIVE_K_BENCH_HTTP)
    adaptive_k::http_server_options options;
    options.port = port;
    const adaptive_k::status started = server.start(recorder, options);
    if (!started) throw failure(fmt::format("--metrics-port: {}", started.message()));
    fmt::print(stderr, "Metrics at http://{}:{}{}\n", options.host, server.port(), options.path);
#else
    throw failure(
        fmt::format("--metrics-port {}: this program was built without cpp-httplib", port));
#endif
  }

  void start_log(const live_options& options) {
    log_name = options.log;
    log = open_log(options.log);
    adaptive_k::json_log_options lines;
    if (options.log_fields == "datadog") {
      lines.fields = adaptive_k::log_fields::datadog;
    } else if (options.log_fields != "ecs") {
      throw failure(fmt::format("--log-fields: {}, expected ecs or datadog", options.log_fields));
    }
    logger = std::make_unique<adaptive_k::json_logger>(
        [this](std::string_view line) {
          if (std::fwrite(line.data(), 1, line.size(), log.get()) != line.size())
            throw std::runtime_error("short write");
        },
        lines);
  }
};

live_view::live_view(const live_options& options) {
  if (options.metrics_port < 0 && options.log.empty()) return;
  parts_ = std::make_unique<parts>();
  if (!options.log.empty()) parts_->start_log(options);
  if (options.metrics_port >= 0) parts_->listen(options.metrics_port);
}

live_view::~live_view() = default;

void live_view::watch(variant& routing, const std::string& model, const std::string& policy) {
  if (!parts_) return;
  routing.observe([to = parts_.get(), &routing, model, policy](const observed_call& call) {
    adaptive_k::prometheus_recorder::series* const series =
        to->recorder.find({model, call.layer, policy});
    to->recorder.record(series, call.metrics, call.seconds);
    if (routing.router().policy(call.layer).signal == adaptive_k::signal_kind::softmax_entropy)
      to->recorder.record_entropies(series, call.signal, call.num_tokens, call.counts);
    if (!to->logger) return;
    adaptive_k::log_event event(call.metrics, call.seconds);
    event.model = model;
    event.policy = policy;
    event.layer = call.layer;
    event.trace_id = to->trace_id;
    to->logger->log(event);
  });
}

void live_view::finish() {
  if (!parts_ || !parts_->logger) return;
  parts_->logger->flush();
  if (std::fflush(parts_->log.get()) != 0 || parts_->logger->failed() > 0)
    throw failure(fmt::format("--log: {}: not all lines could be written", parts_->log_name));
  if (parts_->logger->dropped() > 0)
    fmt::print(stderr, "--log: {} lines dropped: {} was too slow for them\n",
               parts_->logger->dropped(), parts_->log_name);
}

}  // namespace bench
