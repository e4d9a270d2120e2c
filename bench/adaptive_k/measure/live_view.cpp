#include "bench/adaptive_k/measure/live_view.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <adaptive_k/control/domain_watch.hpp>
#include <adaptive_k/observability/json_log.hpp>
#include <adaptive_k/observability/prometheus.hpp>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/files.hpp"

#if defined(ADAPTIVE_K_BENCH_HTTP)
#include <adaptive_k/observability/http_server.hpp>
#endif

namespace bench {

/// The log's output. A reader that stops reading is dropped after a while and holds nothing up.
class log_output {
 public:
  explicit log_output(const std::string& file)
      : is_stdout_(file == "-"),
        descriptor_(is_stdout_ ? STDOUT_FILENO : open_to_append("--log", file)) {}
  log_output(const log_output&) = delete;
  log_output& operator=(const log_output&) = delete;
  ~log_output() {
    if (!is_stdout_ && descriptor_ >= 0) ::close(descriptor_);
  }

  /// Throws std::runtime_error where the line could not be written.
  void write(std::string_view line) {
    while (!line.empty()) {
      // A pipe with room takes this many bytes without waiting, whoever else shares it.
      const std::string_view part = line.substr(0, PIPE_BUF);
      pollfd room{descriptor_, POLLOUT, 0};
      const int ready = poll(&room, 1, is_stuck_ ? 0 : patience_ms);
      if (ready < 0 && errno == EINTR) continue;
      is_stuck_ = ready == 0;
      if (ready <= 0) throw std::runtime_error("nobody reads");
      const std::ptrdiff_t written = is_stdout_ ? ::write(descriptor_, part.data(), part.size())
                                                : write_some(descriptor_, part);
      if (written >= 0)
        line.remove_prefix(static_cast<std::size_t>(written));
      else if (errno != EINTR && errno != EAGAIN)
        throw std::runtime_error("not written");
    }
  }

  bool is_stuck() const noexcept { return is_stuck_; }

  bool close() { return is_stdout_ || ::close(std::exchange(descriptor_, -1)) == 0; }

 private:
  static constexpr int patience_ms = 2000;

  bool is_stdout_;
  int descriptor_;
  std::atomic<bool> is_stuck_{false};
};

namespace {

/// For the lines left at the end: longer than `log_output` waits for a reader, so that it drops the
/// reader first.
constexpr std::chrono::seconds logger_patience{30};

/// One for all lines of a run, in the form of W3C's trace context.
std::string make_trace_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

}  // namespace

struct live_view::parts {
  live_options asked;
  std::unique_ptr<log_output> log;
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
    if (!started.ok()) throw failure(fmt::format("--metrics-port: {}", started.message()));
    fmt::print(stderr, "Metrics at http://{}:{}{}\n", options.host, server.port(), options.path);
#else
    throw failure(
        fmt::format("--metrics-port: {}: this program was built without Boost's headers (Debian: "
                    "libboost-dev); install them, and configure and build anew",
                    port));
#endif
  }

  void start_log() {
    if (logger || asked.log.empty()) return;
    log = std::make_unique<log_output>(asked.log);
    adaptive_k::json_log_options lines;
    if (asked.log_fields == "datadog") lines.fields = adaptive_k::log_fields::datadog;
    lines.patience = logger_patience;
    logger = std::make_unique<adaptive_k::json_logger>(
        [this](std::string_view line) { log->write(line); }, lines);
  }
};

live_view::live_view(const live_options& options) {
  if (options.metrics_port < 0 && options.log.empty()) return;
  if (options.log_fields != "ecs" && options.log_fields != "datadog")
    throw failure(fmt::format("--log-fields: {}, expected ecs or datadog", options.log_fields));
  parts_ = std::make_unique<parts>();
  parts_->asked = options;
  if (options.metrics_port >= 0) parts_->listen(options.metrics_port);
}

live_view::~live_view() = default;

void live_view::watch(variant& routing, const std::string& model, const std::string& policy,
                      double outside) {
  if (!parts_) return;
  parts_->start_log();
  adaptive_k::domain_expectation expected;
  if (outside > 0.0) expected.share = outside;
  const auto domain = std::make_shared<adaptive_k::domain_watch>(expected);
  routing.observe([to = parts_.get(), &routing, model, policy, domain](const observed_call& call) {
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
    if (domain->observe(call.metrics) != adaptive_k::domain_change::left) return;
    event.level = adaptive_k::log_level::warn;
    event.message = "tokens out of the domain that the policy was calibrated on";
    event.layer = -1;
    event.out_of_domain = domain->share();
    to->logger->log(event);
  });
}

void live_view::finish() {
  if (!parts_ || !parts_->logger) return;
  adaptive_k::json_logger& logger = *parts_->logger;
  const bool flushed = logger.flush().ok();
  const std::string& name = parts_->asked.log;
  const bool is_stuck = parts_->log->is_stuck();
  const bool closed = parts_->log->close();
  if (!flushed || logger.failed() > 0 || !closed)
    throw failure(fmt::format("--log: {}: not all lines could be written{}", name,
                              is_stuck ? ": nobody reads them" : ""));
  if (logger.dropped() > 0)
    fmt::print(stderr, "--log: {} lines dropped: {} was too slow for them\n", logger.dropped(),
               name);
}

}  // namespace bench
