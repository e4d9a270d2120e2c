// Structured logs: one JSON object a line, with field names that Elasticsearch and Datadog index
// without mapping, written by a thread of their own.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "adaptive_k/config.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/observability/fork.hpp"
#include "adaptive_k/observability/text.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Severity of a line, ascending.
enum class log_level { debug, info, warn, error };

/// The field names. Fields that the standard does not name are under "adaptive_k.".
enum class log_fields {
  ecs,  ///< Elastic Common Schema: `@timestamp`, log.level, log.logger, trace.id, event.duration
  datadog,  ///< standard attributes: timestamp, status, logger.name, dd.trace_id, duration
};

/// One line. Strings are any bytes; what is not UTF-8 is written as U+FFFD. Empty strings, a
/// negative layer and figures that are not finite are left out.
struct log_event {
  /// Stands for a figure that is left out.
  static constexpr double not_given = std::numeric_limits<double>::quiet_NaN();
  log_level level = log_level::info;    ///< lines below json_log_options::least are not logged
  std::string_view message = "routed";  ///< in words
  std::string_view model;               ///< by name
  std::string_view policy;              ///< by name
  std::string_view trace_id;            ///< of the request, as the tracer spells it
  int layer = -1;                       ///< negative: left out
  std::uint64_t tokens = 0;             ///< routed, padding left out
  double mean_k = not_given;            ///< written as avg_k
  double expert_savings = not_given;    ///< of the model's own expert calls, [0, 1); as savings
  double shadow_savings = not_given;    ///< likewise, what a policy in shadow mode would have saved
  double out_of_domain = not_given;     ///< share of the tokens, [0, 1]
  double latency_seconds = not_given;   ///< at least 0; as latency_ms, and in ns as the duration
  /// Written in UTC.
  std::chrono::system_clock::time_point time = std::chrono::system_clock::now();

  log_event() = default;
  /// Of one batch.
  log_event(const routing_metrics& batch, double latency)
      : tokens(batch.tokens),
        mean_k(batch.mean_k()),
        expert_savings(batch.expert_savings()),
        shadow_savings(batch.shadow_full_expert_calls != 0 ? batch.shadow_expert_savings()
                                                           : not_given),
        out_of_domain(batch.out_of_domain != 0 ? batch.out_of_domain_share() : not_given),
        latency_seconds(latency) {}
};

namespace detail {

/// Such as 2026-01-31T23:59:59.125Z. Times outside the years 0 to 9999 become the nearest inside.
inline void append_time(std::string& out, std::chrono::system_clock::time_point time) {
  using std::chrono::milliseconds;
  constexpr std::int64_t first = -62167219200000, last = 253402300799999;  // ms since 1970
  std::int64_t ms = std::chrono::duration_cast<milliseconds>(time.time_since_epoch()).count();
  ms = ms < first ? first : ms > last ? last : ms;
  // Days since 0000-03-01, so that the day that leap years add is a year's last one.
  const std::int64_t since = ms + std::int64_t{719468} * 86400000;
  const std::int64_t days = since / 86400000 - (since % 86400000 < 0 ? 1 : 0);
  const std::int64_t in_day = since - days * 86400000;
  const std::int64_t era = (days >= 0 ? days : days - 146096) / 146097;
  const std::int64_t day_of_era = days - era * 146097;
  const std::int64_t year_of_era =
      (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const std::int64_t day_of_year =
      day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const std::int64_t shifted = (5 * day_of_year + 2) / 153;  // months since March
  const std::int64_t month = shifted < 10 ? shifted + 3 : shifted - 9;
  append_padded(out, year_of_era + era * 400 + (month <= 2 ? 1 : 0), 4);
  out += '-';
  append_padded(out, month, 2);
  out += '-';
  append_padded(out, day_of_year - (153 * shifted + 2) / 5 + 1, 2);
  out += 'T';
  append_padded(out, in_day / 3600000, 2);
  out += ':';
  append_padded(out, in_day / 60000 % 60, 2);
  out += ':';
  append_padded(out, in_day / 1000 % 60, 2);
  out += '.';
  append_padded(out, in_day % 1000, 3);
  out += 'Z';
}

inline std::string_view name_of(log_level level) noexcept {
  return level == log_level::debug  ? "debug"
         : level == log_level::info ? "info"
         : level == log_level::warn ? "warn"
                                    : "error";
}

}  // namespace detail

/// Appends `event` as one JSON object on one line, with its newline.
inline void append_json(std::string& out, const log_event& event, std::string_view logger,
                        log_fields fields) {
  const bool ecs = fields == log_fields::ecs;
  const auto text = [&](std::string_view name, std::string_view value) {
    if (value.empty()) return;
    out.append(",\"").append(name).append("\":");
    detail::append_json_string(out, value);
  };
  const auto number = [&](std::string_view name, auto value) {
    out.append(",\"").append(name).append("\":");
    detail::append_number(out, value);
  };
  out += ecs ? "{\"@timestamp\":\"" : "{\"timestamp\":\"";
  detail::append_time(out, event.time);
  out += '"';
  text(ecs ? "log.level" : "status", detail::name_of(event.level));
  out += ",\"message\":";
  detail::append_json_string(out, event.message);
  if (ecs) out += ",\"ecs.version\":\"8.11.0\"";
  text(ecs ? "log.logger" : "logger.name", logger);
  text(ecs ? "trace.id" : "dd.trace_id", event.trace_id);
  text("adaptive_k.model", event.model);
  text("adaptive_k.policy", event.policy);
  if (event.layer >= 0) number("adaptive_k.layer", std::int64_t{event.layer});
  number("adaptive_k.tokens", event.tokens);
  if (std::isfinite(event.mean_k)) number("adaptive_k.avg_k", event.mean_k);
  if (std::isfinite(event.expert_savings)) number("adaptive_k.savings", event.expert_savings);
  if (std::isfinite(event.shadow_savings))
    number("adaptive_k.shadow_savings", event.shadow_savings);
  if (std::isfinite(event.out_of_domain)) number("adaptive_k.out_of_domain", event.out_of_domain);
  // Past 1e9 s, 31 years, the nanoseconds would leave their 64 bits: no latency of a call.
  if (event.latency_seconds >= 0 && event.latency_seconds < 1e9) {
    const auto ns = std::int64_t{std::llround(event.latency_seconds * 1e9)};
    number("adaptive_k.latency_ms", static_cast<double>(ns) / 1e6);
    number(ecs ? "event.duration" : "duration", ns);
  }
  out += "}\n";
}

/// What is logged, and what it may cost.
struct json_log_options {
  log_fields fields = log_fields::ecs;  ///< which names the fields have
  log_level least = log_level::info;    ///< what is below is not logged, and not counted as dropped
  std::string logger = "adaptive_k";    ///< name of the logger, in every line
  std::size_t capacity = 4096;  ///< lines that may wait, 0.6 kB each; a power of two, 2 to 2^20
  /// Most bytes of the strings of waiting lines, up to 2^30; lines whose strings have at most 256
  /// bytes do not count. The line being written takes up to six times its size besides.
  std::size_t max_bytes = std::size_t{4} << 20;
  std::chrono::milliseconds pause{10};  ///< between two looks at an empty queue; >= 1
  /// How long the destructor, and `flush` without a timeout, wait for the sink. 0 ms to an hour.
  std::chrono::milliseconds patience{2000};
};

namespace detail {

/// The queue of a json_logger and the thread that empties it, which may outlive the logger.
class json_log_queue {
 public:
  using sink = std::function<void(std::string_view line)>;

  json_log_queue(sink to, json_log_options options)
      : sink_(std::move(to)), options_(std::move(options)) {
    if (!sink_) throw std::invalid_argument("json_logger: the sink is empty");
    const std::size_t capacity = options_.capacity;
    if (capacity < 2 || capacity > (std::size_t{1} << 20) || (capacity & (capacity - 1)) != 0)
      refuse("capacity", std::to_string(capacity), "a power of two, 2 to 1048576");
    if (options_.max_bytes > (std::size_t{1} << 30))
      refuse("max_bytes", std::to_string(options_.max_bytes), "at most 1073741824");
    if (options_.pause.count() < 1)
      refuse("pause", std::to_string(options_.pause.count()) + " ms", "at least 1");
    if (options_.patience.count() < 0 || options_.patience > std::chrono::hours(1))
      refuse("patience", std::to_string(options_.patience.count()) + " ms", "0 to 3600000");
    slots_.reset(new slot[capacity]);
    for (std::size_t i = 0; i < capacity; ++i) {
      slots_[i].turn.store(i, std::memory_order_relaxed);
      slots_[i].text.reserve(reserved_text);
    }
  }

  const json_log_options& options() const noexcept { return options_; }

  bool log(const log_event& event) noexcept {
    const std::size_t length =
        event.message.size() + event.model.size() + event.policy.size() + event.trace_id.size();
    const std::size_t bytes = length > reserved_text ? length : 0;
    if (bytes > 0 &&
        bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes > options_.max_bytes)
      return drop(bytes);
    std::uint64_t ticket = next_.load(std::memory_order_relaxed);
    slot* own = nullptr;
    for (;;) {
      own = &slots_[ticket & (options_.capacity - 1)];
      const std::uint64_t turn = own->turn.load(std::memory_order_acquire);
      if (turn == ticket) {
        if (next_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_relaxed)) break;
      } else if (turn < ticket) {  // still holds the line of the round before: full
        return drop(bytes);
      } else {
        ticket = next_.load(std::memory_order_relaxed);
      }
    }
    const bool filled = fill(*own, event);
    own->bytes = filled ? bytes : 0;
    own->filled = filled;
    own->turn.store(ticket + 1, std::memory_order_release);  // from here on it is the writer's
    return filled || drop(bytes);
  }

  bool drop(std::size_t bytes) noexcept {
    if (bytes > 0) bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }

  status flush(std::chrono::milliseconds timeout) {
    const std::uint64_t until = next_.load(std::memory_order_acquire);
    std::unique_lock<std::mutex> lock(mutex_);
    // The current round may have looked at the drops already; the next one has not.
    const std::uint64_t round = rounds_ + 2;
    if (wanted_ < round) wanted_ = round;
    wake_.notify_all();
    if (progress_.wait_for(lock, timeout, [&] { return done_ >= until && rounds_ >= round; }))
      return {};
    const std::uint64_t left = until > done_ ? until - done_ : 0;
    return status::error(status_code::invalid_argument,
                         "the sink has not taken the last %llu log lines within %lld ms",
                         static_cast<unsigned long long>(left),
                         static_cast<long long>(timeout.count()));
  }

  /// Whether `run` ended within `patience`. If not, it will not call the sink again.
  bool end() {
    std::unique_lock<std::mutex> lock(mutex_);
    stop_ = true;
    wake_.notify_all();
    const bool ended = progress_.wait_for(lock, options_.patience, [this] { return ended_; });
    abandoned_ = !ended;
    return ended;
  }

  void run() {
    std::string line;
    std::uint64_t ticket = 0, told = 0;
    for (;;) {
      ticket = write_queued(ticket, line);
      tell_dropped(told, line);
      std::unique_lock<std::mutex> lock(mutex_);
      done_ = ticket;
      ++rounds_;
      progress_.notify_all();
      if (abandoned_) return;
      if (queued(ticket)) continue;
      if (stop_) break;
      wake_.wait_for(lock, options_.pause, [this] { return stop_ || rounds_ < wanted_; });
    }
    tell_dropped(told, line);
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    progress_.notify_all();
  }

  std::uint64_t dropped() const noexcept { return dropped_.load(std::memory_order_relaxed); }
  std::uint64_t written() const noexcept { return written_.load(std::memory_order_relaxed); }
  std::uint64_t failed() const noexcept { return failed_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t reserved_text = 256;
  /// Capacity that a line's text keeps for the next line.
  static constexpr std::size_t kept_line = 65536;
  struct slot {
    /// The ticket whose writer may fill it; one more: filled, the reader's.
    std::atomic<std::uint64_t> turn{0};
    bool filled = false;
    log_event event;        // its strings: empty, see `text`
    std::string text;       // the four strings, one behind the other
    std::size_t bytes = 0;  // counted in bytes_
    std::size_t ends[4] = {};
  };

  [[noreturn]] static void refuse(const char* option, const std::string& value,
                                  const char* expected) {
    throw std::invalid_argument(std::string("json_log_options.") + option + " is " + value +
                                ", expected " + expected);
  }

  static bool fill(slot& to, const log_event& event) noexcept {
    try {
      to.text.clear();
      const std::string_view parts[4] = {event.message, event.model, event.policy, event.trace_id};
      for (int i = 0; i < 4; ++i) {
        to.text += parts[i];
        to.ends[i] = to.text.size();
      }
    } catch (...) {  // no memory
      return false;
    }
    to.event = event;
    return true;
  }

  static void shrink(std::string& text) noexcept {
    try {
      std::string fresh;
      fresh.reserve(reserved_text);
      text.swap(fresh);
    } catch (...) {  // no memory
      text = std::string();
    }
  }

  bool queued(std::uint64_t ticket) const noexcept {
    return slots_[ticket & (options_.capacity - 1)].turn.load(std::memory_order_acquire) ==
           ticket + 1;
  }

  /// Writes from `ticket` on, at most a queue's length; returns the ticket behind.
  std::uint64_t write_queued(std::uint64_t ticket, std::string& line) {
    for (std::size_t n = 0; n < options_.capacity && queued(ticket); ++n, ++ticket) {
      slot& from = slots_[ticket & (options_.capacity - 1)];
      const bool filled = from.filled && write_line(from, line);
      if (from.bytes > 0) {
        shrink(from.text);
        bytes_.fetch_sub(from.bytes, std::memory_order_relaxed);
      }
      from.turn.store(ticket + options_.capacity, std::memory_order_release);
      if (filled && !give(line)) break;
    }
    return ticket;
  }

  bool write_line(const slot& from, std::string& line) noexcept {
    log_event event = from.event;
    const std::string_view text = from.text;
    event.message = text.substr(0, from.ends[0]);
    event.model = text.substr(from.ends[0], from.ends[1] - from.ends[0]);
    event.policy = text.substr(from.ends[1], from.ends[2] - from.ends[1]);
    event.trace_id = text.substr(from.ends[2]);
    return write_line(event, line);
  }

  bool write_line(const log_event& event, std::string& line) noexcept {
    try {
      if (line.capacity() > kept_line) line = std::string();
      line.clear();
      append_json(line, event, options_.logger, options_.fields);
      return true;
    } catch (...) {  // no memory
      failed_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
  }

  void tell_dropped(std::uint64_t& told, std::string& line) {
    const std::uint64_t now = dropped();
    if (now == told) return;
    char message[128];
    std::snprintf(message, sizeof message,
                  "%llu log lines dropped: the queue of %zu lines and %zu bytes was full",
                  static_cast<unsigned long long>(now - told), options_.capacity,
                  options_.max_bytes);
    told = now;
    log_event event;
    event.level = log_level::warn;
    event.message = message;
    if (write_line(event, line)) give(line);
  }

  /// False where the logger has stopped waiting, so that nothing more may be written.
  bool give(const std::string& line) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (abandoned_) return false;
    }
    try {
      sink_(line);
      written_.fetch_add(1, std::memory_order_relaxed);
    } catch (...) {  // a log that fails must not end the program
      failed_.fetch_add(1, std::memory_order_relaxed);
    }
    return true;
  }

  sink sink_;
  json_log_options options_;
  std::unique_ptr<slot[]> slots_;
  alignas(64) std::atomic<std::uint64_t> next_{0};
  alignas(64) std::atomic<std::uint64_t> dropped_{0};
  std::atomic<std::uint64_t> written_{0}, failed_{0};
  std::atomic<std::size_t> bytes_{0};
  std::mutex mutex_;  // of what follows; `log` does not take it
  std::condition_variable wake_, progress_;
  std::uint64_t done_ = 0, rounds_ = 0, wanted_ = 0;  // tickets written; rounds ended, asked for
  bool stop_ = false, ended_ = false, abandoned_ = false;
};

}  // namespace detail

/// Logs from any number of threads to a sink that may be slow. `log` copies the event into a queue
/// of bounded length and bytes and returns: it waits neither for the sink nor for other threads.
/// When the queue is full the line is dropped and counted; once there is room, a line of level warn
/// reports the number dropped.
///
/// In a child of fork() every line is dropped and counted, nothing waits, and destroying the logger
/// does not affect the parent's. A child that logs needs a logger of its own.
class json_logger {
 public:
  /// Called with each line, newline included, on the logger's own thread, one at a time. Lines of
  /// one thread keep their order. If it throws, the line counts as failed.
  using sink = detail::json_log_queue::sink;

  /// Throws std::invalid_argument for options out of their ranges or an empty sink,
  /// std::system_error where no thread can be started.
  explicit json_logger(sink to, json_log_options options = {})
      : owner_(std::make_unique<owner>(
            std::make_shared<detail::json_log_queue>(std::move(to), std::move(options)))),
        queue_(owner_->get()),
        thread_(std::make_unique<std::thread>([queue = *owner_] { queue->run(); })),
        forks_(detail::forks_so_far()) {}

  json_logger(const json_logger&) = delete;
  json_logger& operator=(const json_logger&) = delete;

  /// Writes what is queued, for at most `options.patience`; call `flush` before to know whether
  /// that suffices. No thread may log any more. The sink is not called afterwards, but a call that
  /// still blocks then continues on a detached thread: what the sink refers to must outlive it.
  ~json_logger() {
    if (!own_process()) {  // the thread, and whatever it held when it forked, are the parent's
      static_cast<void>(owner_.release());
      static_cast<void>(thread_.release());
    } else if (queue_->end()) {
      thread_->join();
    } else {
      thread_->detach();
    }
  }

  /// False where the line was dropped. Lock-free; allocates only for events whose strings have more
  /// than 256 bytes together.
  bool log(const log_event& event) noexcept {
    if (event.level < queue_->options().least) return true;
    return own_process() ? queue_->log(event) : queue_->drop(0);
  }

  /// Waits until every line logged before went to the sink or was reported as dropped; at most
  /// `timeout`, with an error where that did not suffice. Not for the hot path.
  status flush(std::chrono::milliseconds timeout) {
    if (!own_process())
      return status::error(status_code::unsupported,
                           "this json_logger writes in the process that fork() made this one of");
    constexpr std::chrono::milliseconds longest = std::chrono::hours(24 * 365);  // clocks end
    return queue_->flush(timeout < longest ? timeout : longest);
  }
  /// The same, waiting for json_log_options::patience at most.
  status flush() { return flush(queue_->options().patience); }

  /// Lines lost since the start because the queue, or memory, was full.
  std::uint64_t dropped() const noexcept { return queue_->dropped(); }
  /// Lines that the sink took, including those that report dropped ones.
  std::uint64_t written() const noexcept { return queue_->written(); }
  /// Lines that the sink threw at.
  std::uint64_t failed() const noexcept { return queue_->failed(); }

 private:
  bool own_process() const noexcept { return forks_ == detail::forks_so_far(); }

  using owner = std::shared_ptr<detail::json_log_queue>;
  std::unique_ptr<owner> owner_;  // the thread, which may outlive the logger, is another
  detail::json_log_queue* queue_;
  std::unique_ptr<std::thread> thread_;
  unsigned forks_ = 0;
};

ADAPTIVE_K_NAMESPACE_END
