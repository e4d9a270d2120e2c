// An HTTP endpoint for Prometheus to scrape, by Boost.Asio and Boost.Beast's parser. Link
// adaptive_k::observability.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <fcntl.h>
#include <unistd.h>
#endif

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/fork.hpp"
#include "adaptive_k/observability/http_request.hpp"
#include "adaptive_k/observability/prometheus.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Where the endpoint listens, and its limits.
struct http_server_options {
  int port = 9464;  ///< 0: any free one, see http_server::port; 9090 is Prometheus' own
  std::string host = "127.0.0.1";  ///< loopback; "0.0.0.0" lets every machine read the metrics
  /// Compared byte by byte; "/" redirects to it. Visible ASCII without ? and #.
  std::string path = "/metrics";
  int max_connections = 512;  ///< at a time, 9 kB each; the rest wait to be accepted. 1 to 65536
  /// How long a client may take to send its request, and to close at the end; it may take ten times
  /// as long to receive the answer. 1 ms to an hour.
  std::chrono::milliseconds patience{1000};
};

namespace detail {

/// A server's state. After the constructor its one thread alone touches it, but for `end`.
class http_service {
 public:
  using error_code = boost::system::error_code;
  using tcp = boost::asio::ip::tcp;

  /// Listens; throws boost::system::system_error if it cannot.
  http_service(const prometheus_recorder& recorder, const http_server_options& options)
      : recorder_(recorder), options_(options), acceptor_(io_), retry_(io_), next_(io_), end_(io_) {
    const auto found = tcp::resolver(io_).resolve(options.host, std::to_string(options.port),
                                                  tcp::resolver::passive);
    const tcp::endpoint at = found.begin()->endpoint();
    acceptor_.open(at.protocol());
    keep_from_children(acceptor_.native_handle());
#if !defined(_WIN32)
    acceptor_.set_option(tcp::acceptor::reuse_address(true));
#endif
    acceptor_.bind(at);
    acceptor_.listen(1024);
    port_ = acceptor_.local_endpoint().port();
  }
  http_service(const http_service&) = delete;
  http_service& operator=(const http_service&) = delete;
  ~http_service() {
    ending_ = true;
    ++connections_;  // those that are left end here or with the io_context: none is the last
    waiting_.clear();
  }

  int port() const noexcept {
    return port_;
  }

  void run() noexcept {
    for (;;) {
      try {
        accept();
        io_.run();
      } catch (...) {  // no memory: the connection that needed it is gone, and waiting ones go
        waiting_.clear();
      }
      if (ending_) return;
      std::this_thread::sleep_for(pause);
      io_.restart();
    }
  }

  /// From any thread. `run` returns when the answers in progress are sent, or after `patience`.
  void end() noexcept {
    try {
      boost::asio::post(io_, [this] {
        ending_ = true;
        error_code ignored;
        acceptor_.close(ignored);
        retry_.cancel();
        if (connections_ == 0) return io_.stop();
        end_.expires_after(options_.patience);
        end_.async_wait([this](error_code) { io_.stop(); });
      });
    } catch (...) {  // no memory: without waiting
      ending_ = true;
      io_.stop();
    }
  }

  /// In a child of fork(): gives up its copy of the port. All else belongs to the parent.
  void leave_to_parent() noexcept {
#if !defined(_WIN32)
    ::close(
        acceptor_.native_handle());  // not the acceptor's close(): its epoll set is the parent's
#endif
  }

 private:
  static constexpr std::chrono::milliseconds pause{50};
  /// Bytes of all bodies together that clients have yet to receive.
  static constexpr std::size_t max_bodies = std::size_t{24} << 20;

  /// Metrics as text, shared by the connections that send it.
  struct rendering {
    explicit rendering(http_service& of, std::string rendered)
        : text(std::move(rendered)), service(of) {
      service.body_bytes_ += text.capacity();
    }
    rendering(const rendering&) = delete;
    rendering& operator=(const rendering&) = delete;
    ~rendering() { service.body_bytes_ -= text.capacity(); }
    const std::string text;
    http_service& service;
  };

  class connection : public std::enable_shared_from_this<connection> {
   public:
    connection(http_service& of, tcp::socket socket)
        : service_(of), socket_(std::move(socket)), deadline_(socket_.get_executor()) {
      ++service_.connections_;
    }
    connection(const connection&) = delete;
    connection& operator=(const connection&) = delete;
    ~connection() { service_.closed_one(); }

    void start() {
      limit(service_.options_.patience);
      read();
    }

   private:
    /// Closes the connection after this time, whatever it is doing.
    void limit(std::chrono::milliseconds time) {
      deadline_.expires_after(time);
      deadline_.async_wait([self = shared_from_this()](error_code error) {
        if (error == boost::asio::error::operation_aborted) return;
        error_code ignored;
        self->socket_.close(ignored);
      });
    }

    void read() {
      socket_.async_read_some(boost::asio::buffer(head_.data() + size_, head_.size() - size_),
                              [self = shared_from_this()](error_code error, std::size_t more) {
                                self->take(error, more);
                              });
    }

    void take(error_code error, std::size_t more) {
      const std::size_t from = size_ < 3 ? 0 : size_ - 3;
      size_ += more;
      const std::string_view text(head_.data(), size_);
      const std::size_t end = text.find("\r\n\r\n", from);
      if (end != std::string_view::npos) {
        answer(answer_to(text.substr(0, end + 4), service_.options_.path));
      } else if (size_ == head_.size()) {
        answer(refusal(431));
      } else if (!error) {
        read();
      } else if (error == boost::asio::error::eof && size_ > 0) {
        answer(refusal(400));
      } else {
        deadline_.cancel();
      }
    }

    static http_answer refusal(unsigned status) {
      http_answer answer;
      answer.status = status;
      return answer;
    }

    void answer(const http_answer& what) {
      limit(10 * service_.options_.patience);
      if (what.status == 200)
        service_.want(what, shared_from_this());
      else
        send(what, nullptr);
    }

   public:
    /// `body`: the metrics; null for any answer but 200, and where there are none.
    void send(http_answer what, std::shared_ptr<const rendering> body) {
      std::string_view text;
      body_ = std::move(body);
      if (body_ != nullptr) {
        text = body_->text;
      } else {
        if (what.status == 200) what.status = 503;
        const auto reason =
            boost::beast::http::obsolete_reason(boost::beast::http::int_to_status(what.status));
        refused_.assign(reason.data(), reason.size()).append("\n");
        text = refused_;
      }
      answer_head_ = answer_head(what, text.size(), service_.options_.path);
      if (!what.with_body) text = {};
      const std::array<boost::asio::const_buffer, 2> parts = {
          boost::asio::buffer(answer_head_), boost::asio::buffer(text.data(), text.size())};
      boost::asio::async_write(socket_, parts,
                               [self = shared_from_this()](error_code error, std::size_t) {
                                 self->body_.reset();
                                 if (error) return self->give_up();
                                 // Closing with bytes unread would take the answer from the client.
                                 self->socket_.shutdown(tcp::socket::shutdown_send, error);
                                 self->limit(self->service_.options_.patience);
                                 self->drain();
                               });
    }

   private:
    void drain() {
      socket_.async_read_some(boost::asio::buffer(head_),
                              [self = shared_from_this()](error_code error, std::size_t more) {
                                self->drained_ += more;
                                if (error || self->drained_ > max_drained) return self->give_up();
                                self->drain();
                              });
    }

    void give_up() { deadline_.cancel(); }  // with the last handler the connection goes

    static constexpr std::size_t max_drained = std::size_t{1} << 20;

    http_service& service_;
    tcp::socket socket_;
    boost::asio::steady_timer deadline_;
    std::array<char, max_request_head> head_;
    std::size_t size_ = 0, drained_ = 0;
    std::string answer_head_, refused_;
    std::shared_ptr<const rendering> body_;
  };

  static void keep_from_children(tcp::socket::native_handle_type socket) noexcept {
#if !defined(_WIN32)
    fcntl(socket, F_SETFD, FD_CLOEXEC);  // programs that this process starts
#else
    static_cast<void>(socket);
#endif
  }

  void accept() {
    if (accepting_ || ending_ || connections_ >= options_.max_connections) return;
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      accepting_ = false;
      if (ending_) return;
      if (error) {  // no descriptor or no memory is left
        retry_.expires_after(pause);
        retry_.async_wait([this](error_code) { accept(); });
        return;
      }
      keep_from_children(socket.native_handle());
      std::make_shared<connection>(*this, std::move(socket))->start();
      accept();
    });
    accepting_ = true;
  }

  void closed_one() noexcept {
    --connections_;
    if (ending_) {
      if (connections_ == 0) io_.stop();
      return;
    }
    try {
      accept();
    } catch (...) {  // the next one tries again
    }
  }

  struct request {
    http_answer answer;
    std::shared_ptr<connection> from;
  };

  /// Answers with metrics no older than this call. Rendering takes at most half of the thread's
  /// time: it pauses as long as the last rendering took, and one rendering then serves all clients
  /// that asked meanwhile.
  void want(const http_answer& answer, std::shared_ptr<connection> from) {
    waiting_.push_back({answer, std::move(from)});
    if (waiting_.size() > 1) return;
    next_.expires_at(rested_);
    next_.async_wait([this](error_code) {
      const std::vector<request> asked = std::move(waiting_);
      waiting_.clear();
      const auto start = std::chrono::steady_clock::now();
      std::array<std::shared_ptr<const rendering>, 2> made;
      for (const exposition format : {exposition::prometheus, exposition::openmetrics})
        for (const request& one : asked)
          if (one.answer.format == format) {
            made[format == exposition::openmetrics ? 1 : 0] = body(format);
            break;
          }
      const auto end = std::chrono::steady_clock::now();
      rested_ = end + (end - start);
      for (const request& one : asked)
        one.from->send(one.answer, made[one.answer.format == exposition::openmetrics ? 1 : 0]);
    });
  }

  /// A new rendering; or, where clients have yet to receive too many bytes, the newest one that is
  /// left, or null.
  std::shared_ptr<const rendering> body(exposition format) {
    std::weak_ptr<const rendering>& newest = newest_[format == exposition::openmetrics ? 1 : 0];
    if (body_bytes_ > 0 && body_bytes_ + last_size_ > max_bodies) return newest.lock();
    auto made = std::make_shared<const rendering>(*this, recorder_.render(format));
    last_size_ = made->text.capacity();
    newest = made;
    return made;
  }

  const prometheus_recorder& recorder_;
  const http_server_options options_;
  int port_ = 0;
  int connections_ = 0;
  bool accepting_ = false;
  std::atomic<bool> ending_{false};
  std::size_t body_bytes_ = 0, last_size_ = 0;
  std::array<std::weak_ptr<const rendering>, 2> newest_;
  std::vector<request> waiting_;
  std::chrono::steady_clock::time_point rested_ = std::chrono::steady_clock::now();
  boost::asio::io_context io_{1};  // ends the connections, which need what is above
  tcp::acceptor acceptor_;
  boost::asio::steady_timer retry_, next_, end_;
};

}  // namespace detail

/// Serves a recorder's metrics from a thread of its own until destroyed. Recording never waits for
/// it. GET and HEAD, one answer a connection; clients that prefer application/openmetrics-text get
/// OpenMetrics (see preferred_exposition).
///
/// Bounds, whatever clients send and however slowly: a request has at most 8 kB and no body, and a
/// connection lasts at most twelve times `patience`. With the default max_connections the process
/// grows by at most 64 MB if a rendering (7 kB a series) has at most 8 MB, and by four times the
/// size of a larger one more. While clients have 24 MB of answers yet to receive, others get the
/// newest of these, or 503 where that has the other format.
///
/// In a child of fork() the server does not run, and ending it, or the child, does not affect the
/// parent's. A child that lives on keeps the port open until it destroys its copy.
class http_server {
 public:
  http_server() = default;
  http_server(const http_server&) = delete;
  http_server& operator=(const http_server&) = delete;
  ~http_server() { stop(); }

  /// Starts to listen, or says why it cannot. `recorder` must outlive this. Refused while running.
  status start(const prometheus_recorder& recorder,
               const http_server_options& options = {}) noexcept {
    if (running()) return refuse("this http_server already listens on port %d", port());
    stop();
    if (options.port < 0 || options.port > 65535)
      return refuse("`http_server_options.port` is %d, expected 0 to 65535", options.port);
    if (options.max_connections < 1 || options.max_connections > 65536)
      return refuse("`http_server_options.max_connections` is %d, expected 1 to 65536",
                    options.max_connections);
    if (options.patience.count() < 1 || options.patience > std::chrono::hours(1))
      return refuse("`http_server_options.patience` is %lld ms, expected 1 to 3600000",
                    static_cast<long long>(options.patience.count()));
    if (options.path.size() < 2 || options.path[0] != '/')
      return refuse("`http_server_options.path` is \"%s\", expected / and a name",
                    options.path.c_str());
    for (const char c : options.path)
      if (c <= ' ' || c > '~' || c == '?' || c == '#')
        return refuse(
            "`http_server_options.path` is \"%s\", expected visible ASCII without ? and #",
            options.path.c_str());
    const char* step = "listen on";
    try {
      service_ = std::make_unique<detail::http_service>(recorder, options);
      step = "start a thread to serve";
      thread_ = std::make_unique<std::thread>([service = service_.get()] { service->run(); });
    } catch (const std::exception& error) {
      service_.reset();
      return refuse("cannot %s %s port %d: %s", step, options.host.c_str(), options.port,
                    error.what());
    }
    forks_ = detail::forks_so_far();
    return {};
  }

  /// Stops serving and ends the thread; waits at most `patience` for answers in progress.
  void stop() noexcept {
    if (service_ == nullptr) return;
    if (running()) {
      service_->end();
      thread_->join();
    } else {  // thread and sockets are the parent's; locks that it held at the fork stay held
      service_->leave_to_parent();
      static_cast<void>(service_.release());
      static_cast<void>(thread_.release());
    }
    service_.reset();
    thread_.reset();
  }

  /// Whether it answers: it was started, by this process and not by one that forked it.
  bool running() const noexcept { return service_ != nullptr && forks_ == detail::forks_so_far(); }
  int port() const noexcept { return running() ? service_->port() : 0; }  ///< 0 when not running

 private:
  template <class... Values>
  static status refuse(const char* format, Values... values) noexcept {
    return status::error(status_code::invalid_argument, format, values...);
  }

  std::unique_ptr<detail::http_service> service_;
  std::unique_ptr<std::thread> thread_;
  unsigned forks_ = 0;
};

/// Serves `recorder` on 127.0.0.1 until the process ends; call it once for each port. To stop it,
/// or for another address, use http_server.
inline status start_http_server(int port,
                                const prometheus_recorder& recorder = default_recorder()) noexcept {
  try {
    static std::mutex mutex;
    // Never destroyed: its thread may serve while other statics are destroyed.
    static auto* const servers = new std::vector<std::unique_ptr<http_server>>;
    http_server_options options;
    options.port = port;
    const std::lock_guard<std::mutex> lock(mutex);
    servers->push_back(std::make_unique<http_server>());
    const status started = servers->back()->start(recorder, options);
    if (!started.ok()) servers->pop_back();
    return started;
  } catch (const std::exception& error) {
    return status::error(status_code::invalid_argument, "cannot listen on port %d: %s", port,
                         error.what());
  }
}

ADAPTIVE_K_NAMESPACE_END
