// An HTTP endpoint for Prometheus to scrape, by cpp-httplib. Link adaptive_k::observability.
#pragma once

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/prometheus.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

struct http_server_options {
  int port = 9090;                 ///< 0: any free one, see http_server::port
  std::string host = "127.0.0.1";  ///< loopback; "0.0.0.0" lets every machine read the metrics
  std::string path = "/metrics";   ///< "/" redirects to it
  /// Connections served at a time; the rest wait. Where the system cannot start them all, the
  /// library's pool ends the process.
  int threads = 16;
  std::chrono::milliseconds patience{1000};  ///< for a client's next bytes, either way
};

namespace detail {

/// The greatest q, times 1000, that an Accept header gives a media type; 1000 where it gives none,
/// 0 where it does not name the type.
inline int accepted_thousandths(std::string_view accept, std::string_view type) noexcept {
  int most = 0;
  while (!accept.empty()) {
    std::string_view range = accept.substr(0, accept.find(','));
    accept.remove_prefix(range.size() + (range.size() < accept.size() ? 1 : 0));
    while (!range.empty() && range.front() == ' ') range.remove_prefix(1);
    const std::string_view after = range.substr(range.size() < type.size() ? 0 : type.size());
    if (range.substr(0, type.size()) != type) continue;
    if (!after.empty() && after.front() != ';' && after.front() != ' ') continue;
    int q = 1000;
    const std::size_t at = after.find("q=");
    if (at != std::string_view::npos && (after[at - 1] == ';' || after[at - 1] == ' ')) {
      q = 0;
      int unit = 1000;
      for (const char c : after.substr(at + 2, 5)) {
        if (c == '.') continue;
        if (c < '0' || c > '9') break;
        q += unit * (c - '0');
        unit /= 10;
      }
    }
    most = q > most ? q : most;
  }
  return most;
}

}  // namespace detail

/// Serves a recorder's metrics from threads of its own until destroyed. Recording never waits for
/// it. Clients that ask for application/openmetrics-text get OpenMetrics. One response a
/// connection. A client that keeps sending a little holds one of the threads; against hostile
/// clients put a proxy before it.
class http_server {
 public:
  http_server() = default;
  http_server(const http_server&) = delete;
  http_server& operator=(const http_server&) = delete;
  ~http_server() { stop(); }

  /// Listens, or says why it cannot. `recorder` must outlive this. Refused while running.
  status start(const prometheus_recorder& recorder, const http_server_options& options = {}) {
    if (running()) return refuse("this http_server already listens on port %d", port_);
    if (options.port < 0 || options.port > 65535)
      return refuse("http_server_options.port is %d, expected 0 to 65535", options.port);
    if (options.threads < 1 || options.threads > 1024)
      return refuse("http_server_options.threads is %d, expected 1 to 1024", options.threads);
    if (options.patience.count() < 1)
      return refuse("http_server_options.patience is %d ms, expected at least 1",
                    static_cast<int>(options.patience.count()));
    if (options.path.size() < 2 || options.path[0] != '/')
      return refuse("http_server_options.path is \"%s\", expected / and a name",
                    options.path.c_str());

    make_server();
    configure(recorder, options);
    port_ = options.port == 0 ? server_->bind_to_any_port(options.host)
            : server_->bind_to_port(options.host, options.port) ? options.port
                                                                : -1;
    if (port_ <= 0) {
      server_.reset();
      port_ = 0;
      return refuse(
          "cannot listen on %s port %d: the address is not of this machine, or the port "
          "is taken or reserved",
          options.host.c_str(), options.port);
    }
    // The library lets 5 connections wait to be accepted; a further one's client would wait 1 s.
    ::listen(listening_, 1024);
    ended_ = false;
    thread_ = std::thread([this] {
      ignore_broken_pipes();
      try {
        server_->listen_after_bind();
      } catch (const std::exception&) {  // the library starts its threads in there
      }
      ended_ = true;
    });
    // The library's stop() does nothing before its loop runs, and then nobody would end the thread.
    while (!server_->is_running() && !ended_)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (ended_) {
      stop();
      return refuse("cannot serve by %d threads: the system gives no more", options.threads);
    }
    return {};
  }

  /// Ends serving and its threads; waits for requests that are under way: `patience` for a silent
  /// client, as long as it goes on for one that keeps sending.
  void stop() {
    if (!running()) return;
    server_->stop();
    thread_.join();
    server_.reset();
    port_ = 0;
  }

  bool running() const noexcept { return thread_.joinable(); }
  int port() const noexcept { return port_; }  ///< 0 when not running

 private:
  template <class... Values>
  static status refuse(const char* format, Values... values) noexcept {
    return status::error(status_code::invalid_argument, format, values...);
  }

  /// The library's server changes what a broken pipe does to the whole process; that is put back,
  /// and the server's own threads block the signal instead.
  void make_server() {
#if defined(_WIN32)
    server_ = std::make_unique<httplib::Server>();
#else
    struct sigaction before;
    const bool known = sigaction(SIGPIPE, nullptr, &before) == 0;
    server_ = std::make_unique<httplib::Server>();
    if (known) sigaction(SIGPIPE, &before, nullptr);
#endif
  }

  /// The library takes paths for regular expressions.
  static std::string literal(const std::string& path) {
    std::string pattern;
    for (const char c : path) {
      if (std::string_view(".^$|()[]{}*+?\\").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
    return pattern;
  }

  static void ignore_broken_pipes() noexcept {
#if !defined(_WIN32)
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
#endif
  }

  void configure(const prometheus_recorder& recorder, const http_server_options& options) {
    const int threads = options.threads;
    server_->new_task_queue = [threads] {
      return new httplib::ThreadPool(static_cast<std::size_t>(threads));
    };
    // Not SO_REUSEPORT, the library's choice: two programs would share a port and half the scrapes.
    server_->set_socket_options([this](socket_t socket) {
      listening_ = socket;
#if !defined(_WIN32)
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
#endif
    });
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(options.patience);
    server_->set_read_timeout(options.patience);
    server_->set_write_timeout(options.patience);
    server_->set_keep_alive_timeout(seconds.count() < 1 ? 1 : seconds.count());
    server_->set_keep_alive_max_count(1);
    server_->set_payload_max_length(1024);
    server_->Get(literal(options.path), [&recorder](const httplib::Request& request,
                                                    httplib::Response& response) {
      const std::string accept = request.get_header_value("Accept");
      const int open = detail::accepted_thousandths(accept, "application/openmetrics-text");
      const bool wanted = open > 0 && open >= detail::accepted_thousandths(accept, "text/plain");
      const exposition format = wanted ? exposition::openmetrics : exposition::prometheus;
      response.set_content(recorder.render(format), content_type(format));
    });
    const std::string path = options.path;
    server_->Get("/", [path](const httplib::Request&, httplib::Response& response) {
      response.set_redirect(path);
    });
  }

  std::unique_ptr<httplib::Server> server_;
  socket_t listening_ = INVALID_SOCKET;
  std::thread thread_;
  std::atomic<bool> ended_{false};
  int port_ = 0;
};

/// Serves `recorder` on 127.0.0.1 until the process ends; call it once for each port. For an end of
/// your choice, or another address, use http_server.
inline status start_http_server(int port,
                                const prometheus_recorder& recorder = default_recorder()) {
  static std::mutex mutex;
  // Kept, never destroyed: its threads may serve while other statics go.
  static auto* const servers = new std::vector<std::unique_ptr<http_server>>;
  http_server_options options;
  options.port = port;
  auto server = std::make_unique<http_server>();
  const status started = server->start(recorder, options);
  if (started) {
    const std::lock_guard<std::mutex> lock(mutex);
    servers->push_back(std::move(server));
  }
  return started;
}

ADAPTIVE_K_NAMESPACE_END
