// Log lines as a JSON parser that is not ours reads them, and the queue under pressure.
#include "adaptive_k/observability/json_log.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "blocking_sink.hpp"
#include "in_child.hpp"
#include "no_more_threads.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using nlohmann::json;
using std::chrono::milliseconds;
using time_point = std::chrono::system_clock::time_point;

/// For a sink that does take its lines, on a machine that has other things to do.
constexpr std::chrono::minutes long_enough{1};

json_log_options patient_options() {
  json_log_options options;
  options.patience = long_enough;
  return options;
}

time_point at(std::int64_t ms) {
  return time_point(std::chrono::duration_cast<time_point::duration>(milliseconds(ms)));
}

std::string line_of(const log_event& event, log_fields fields = log_fields::ecs) {
  std::string line;
  append_json(line, event, "adaptive_k", fields);
  return line;
}

log_event example() {
  routing_metrics batch;
  batch.tokens = 10;
  batch.expert_calls = 50;
  batch.full_expert_calls = 80;
  log_event event(batch, 0.00125);
  event.time = at(1769903999125);
  event.model = "olmoe";
  event.policy = "top_p";
  event.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  event.layer = 3;
  return event;
}

TEST(JsonLog, HasTheNamesOfTheElasticCommonSchema) {
  const std::string line = line_of(example());
  const json expected = {{"@timestamp", "2026-01-31T23:59:59.125Z"},
                         {"log.level", "info"},
                         {"message", "routed"},
                         {"ecs.version", "8.11.0"},
                         {"log.logger", "adaptive_k"},
                         {"trace.id", "4bf92f3577b34da6a3ce929d0e0e4736"},
                         {"event.duration", 1250000},
                         {"adaptive_k.model", "olmoe"},
                         {"adaptive_k.policy", "top_p"},
                         {"adaptive_k.layer", 3},
                         {"adaptive_k.tokens", 10},
                         {"adaptive_k.avg_k", 5.0},
                         {"adaptive_k.savings", 0.375},
                         {"adaptive_k.latency_ms", 1.25}};
  EXPECT_EQ(json::parse(line), expected) << line;
  // The order that its specification of log lines asks for.
  EXPECT_EQ(line.find("{\"@timestamp\":"), 0U);
  EXPECT_LT(line.find("\"log.level\""), line.find("\"message\""));
  EXPECT_EQ(line.back(), '\n');
}

TEST(JsonLog, HasTheStandardAttributesOfDatadog) {
  const json expected = {{"timestamp", "2026-01-31T23:59:59.125Z"},
                         {"status", "info"},
                         {"message", "routed"},
                         {"logger.name", "adaptive_k"},
                         {"dd.trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"},
                         {"duration", 1250000},
                         {"adaptive_k.model", "olmoe"},
                         {"adaptive_k.policy", "top_p"},
                         {"adaptive_k.layer", 3},
                         {"adaptive_k.tokens", 10},
                         {"adaptive_k.avg_k", 5.0},
                         {"adaptive_k.savings", 0.375},
                         {"adaptive_k.latency_ms", 1.25}};
  EXPECT_EQ(json::parse(line_of(example(), log_fields::datadog)), expected);
}

TEST(JsonLog, SaysWhatAPolicyInShadowModeWouldHaveSaved) {
  routing_metrics batch;
  batch.shadow_expert_calls = 50;
  batch.shadow_full_expert_calls = 80;
  const json line = json::parse(line_of(log_event(batch, 0.001)));
  EXPECT_EQ(line.at("adaptive_k.shadow_savings"), 0.375);
}

TEST(JsonLog, SaysWhichShareIsOutOfDomain) {
  routing_metrics batch;
  batch.tokens = 80;
  EXPECT_FALSE(json::parse(line_of(log_event(batch, 0.001))).contains("adaptive_k.out_of_domain"));
  batch.out_of_domain = 30;
  log_event event(batch, 0.001);
  event.level = log_level::warn;
  const json line = json::parse(line_of(event));
  EXPECT_EQ(line.at("adaptive_k.out_of_domain"), 0.375);
  EXPECT_EQ(line.at("log.level"), "warn");
}

TEST(JsonLog, LeavesOutWhatIsNotKnown) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  for (const double bad : {inf, -inf, std::numeric_limits<double>::quiet_NaN()}) {
    log_event event;
    event.mean_k = event.expert_savings = event.latency_seconds = bad;
    const json line = json::parse(line_of(event));
    for (const char* name : {"adaptive_k.avg_k", "adaptive_k.savings", "adaptive_k.latency_ms",
                             "event.duration", "adaptive_k.layer", "adaptive_k.model", "trace.id"})
      EXPECT_FALSE(line.contains(name)) << name;
    EXPECT_TRUE(line.contains("message"));
  }
  log_event event;
  event.latency_seconds = -1;
  EXPECT_FALSE(json::parse(line_of(event)).contains("event.duration"));
}

TEST(JsonLog, WritesTimesInUtc) {
  const std::map<std::int64_t, std::string> known = {
      {0, "1970-01-01T00:00:00.000Z"},
      {-1, "1969-12-31T23:59:59.999Z"},
      {951782400123, "2000-02-29T00:00:00.123Z"},
      {4107542400000, "2100-03-01T00:00:00.000Z"},
  };
  for (const auto& [ms, text] : known) {
    log_event event;
    event.time = at(ms);
    EXPECT_EQ(json::parse(line_of(event))["@timestamp"], text);
  }
  std::mt19937_64 random(7);
  for (int i = 0; i < 10000; ++i) {  // against the C library; a clock of ns ends in 2262
    const auto seconds = static_cast<std::time_t>(random() % 18000000000) - 9000000000;
    log_event event;
    event.time = at(std::int64_t{seconds} * 1000 + 7);
    std::tm parts = {};
    gmtime_r(&seconds, &parts);
    char text[64];
    ASSERT_GT(std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S.007Z", &parts), 0U);
    ASSERT_EQ(json::parse(line_of(event))["@timestamp"], text) << seconds;
  }
}

/// Bytes of all kinds: ASCII, what JSON escapes, UTF-8 and its beginnings, and noise.
std::string fuzzed(std::mt19937_64& random) {
  static const std::string parts[] = {"a",
                                      "\"",
                                      "\\",
                                      "\n",
                                      "\r",
                                      "\t",
                                      "\x01",
                                      "\x1F",
                                      "\x7F",
                                      "/",
                                      "\xC3\xA9",
                                      "\xC3",
                                      "\xE2\x82",
                                      "\xE2\x82\xAC",
                                      "\xED\xA0",
                                      "\xC0\xAF",
                                      "\xF0\x9F\x98",
                                      "\xF4\x90\x80",
                                      "\xFF",
                                      "\x80",
                                      "\\u0000",
                                      "\xE2\x80\xA8",
                                      std::string(1, '\0'),
                                      "\xF0\x9F\x98\x80",
                                      "\xE0\x80\x80",
                                      "\xEF\xBF\xBD"};
  std::string text;
  for (std::uint64_t n = random() % 24; n > 0; --n)
    text += random() % 4 == 0 ? std::string(1, static_cast<char>(random() % 256))
                              : parts[random() % std::size(parts)];
  return text;
}

/// What a JSON library that replaces broken UTF-8 makes of it.
std::string repaired(const std::string& text) {
  return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace));
}

TEST(JsonLog, TenThousandFuzzedStringsParseBack) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 10000; ++i) {
    const std::string message = fuzzed(random), model = fuzzed(random), id = fuzzed(random);
    log_event event;
    event.message = message;
    event.model = model;
    event.trace_id = id;
    const std::string line = line_of(event, i % 2 == 0 ? log_fields::ecs : log_fields::datadog);
    ASSERT_EQ(line.find('\n'), line.size() - 1) << line;
    const json parsed = json::parse(line);  // throws for broken UTF-8 too
    ASSERT_EQ(parsed["message"], repaired(message)) << i;
    ASSERT_EQ(parsed.value("adaptive_k.model", ""), repaired(model)) << i;
    ASSERT_EQ(parsed.value(i % 2 == 0 ? "trace.id" : "dd.trace_id", ""), repaired(id)) << i;
  }
}

TEST(JsonLogger, WritesAllInOrder) {
  std::vector<std::string> lines;
  {
    json_logger logger([&](std::string_view line) { lines.emplace_back(line); }, patient_options());
    for (int i = 0; i < 100; ++i) {
      std::string model = "model " + std::to_string(i) + std::string(i == 50 ? 5000 : 0, 'x');
      log_event event = example();
      event.model = model;
      EXPECT_TRUE(logger.log(event));
      model.assign(model.size(), '?');  // the logger has its own copy
    }
    log_event quiet;
    quiet.level = log_level::debug;
    EXPECT_TRUE(logger.log(quiet)) << "below the level: not logged, not dropped";
    EXPECT_TRUE(logger.flush(long_enough).ok());
    EXPECT_EQ(logger.written(), 100U);
    EXPECT_EQ(lines.size(), 100U) << "flush waits for the sink";
    EXPECT_EQ(logger.dropped(), 0U);
    EXPECT_TRUE(logger.log(example()));
  }
  ASSERT_EQ(lines.size(), 101U) << "the end writes what is queued";
  for (int i = 0; i < 100; ++i) {
    const json line = json::parse(lines[static_cast<std::size_t>(i)]);
    EXPECT_EQ(line["adaptive_k.model"].get<std::string>().find("model " + std::to_string(i)), 0U);
    EXPECT_EQ(line["trace.id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  }
}

// The sink hangs; logging goes on, and what is lost is counted and told of.
TEST(JsonLogger, NeverWaitsForTheSink) {
  std::mutex mutex;
  std::condition_variable changed;
  bool entered = false, open = false;
  std::vector<std::string> lines;
  json_log_options options;
  options.capacity = 8;
  json_logger logger(
      [&](std::string_view line) {
        std::unique_lock<std::mutex> lock(mutex);
        entered = true;
        changed.notify_all();
        changed.wait(lock, [&] { return open; });
        lines.emplace_back(line);
      },
      options);
  EXPECT_TRUE(logger.log(example()));
  {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return entered; });
  }
  int taken = 0;
  for (int i = 0; i < 1000; ++i) taken += logger.log(example()) ? 1 : 0;  // would hang if it waited
  EXPECT_EQ(taken, 8);
  EXPECT_EQ(logger.dropped(), 992U);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    open = true;
  }
  changed.notify_all();
  EXPECT_TRUE(logger.flush(long_enough).ok());
  ASSERT_EQ(logger.written(), 10U);
  const std::lock_guard<std::mutex> lock(mutex);
  // Told of once the queue's first round is written.
  std::string told;
  for (const std::string& line : lines)
    if (json::parse(line)["log.level"] == "warn") told += line;
  EXPECT_NE(told.find("992 log lines dropped: the queue of 8 lines and 4194304 bytes was full"),
            std::string::npos)
      << told;
}

TEST(JsonLogger, FlushAndTheEndWaitForABlockedSinkOnlySoLong) {
  const blocking_sink blocked;
  const auto start = std::chrono::steady_clock::now();
  {
    json_log_options options;
    options.patience = milliseconds(50);
    json_logger logger(blocked.sink(), options);
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(logger.log(example()));
    blocked.wait_until_called();
    const status late = logger.flush(milliseconds(20));
    EXPECT_FALSE(late.ok());
    EXPECT_STREQ(late.message(), "the sink has not taken the last 5 log lines within 20 ms");
    EXPECT_FALSE(logger.flush().ok());
    EXPECT_FALSE(logger.flush(milliseconds(-1)).ok());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  blocked.let_go();
  for (int i = 0; i < 3000 && blocked.in_use(); ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_FALSE(blocked.in_use()) << "the thread that was left behind ends";
  EXPECT_EQ(blocked.calls(), 1) << "no line is begun behind the logger's end";
}

TEST(JsonLogger, ASlowSinkGetsAllThatItCanTake) {
  int lines = 0;
  {
    json_logger logger(
        [&](std::string_view) {
          std::this_thread::sleep_for(milliseconds(1));
          ++lines;
        },
        patient_options());
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(logger.log(example()));
  }
  EXPECT_EQ(lines, 50);
}

TEST(JsonLogger, WaitingLinesHaveBoundedBytes) {
  const blocking_sink blocked;
  json_log_options options;
  options.max_bytes = 100000;
  json_logger logger(blocked.sink(), options);
  EXPECT_TRUE(logger.log(example()));
  blocked.wait_until_called();
  const std::string long_text(10000, 'x');
  log_event event;
  event.message = long_text;
  int taken = 0;
  for (int i = 0; i < 1000; ++i) taken += logger.log(event) ? 1 : 0;
  EXPECT_EQ(taken, 10);
  EXPECT_EQ(logger.dropped(), 990U);
  const std::string huge(100001, 'x');
  event.model = huge;
  EXPECT_FALSE(logger.log(event));
  EXPECT_TRUE(logger.log(example())) << "a short one has its place";
  blocked.let_go();
  EXPECT_TRUE(logger.flush(long_enough).ok());
  EXPECT_GT(blocked.bytes(), 100000U);
  event.model = {};
  for (int round = 0; round < 20; ++round) {  // what was written is room again
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(logger.log(event)) << round;
    EXPECT_TRUE(logger.flush(long_enough).ok());
  }
  EXPECT_EQ(logger.dropped(), 991U);
}

TEST(JsonLogger, BelongsToTheProcessThatMadeIt) {
  std::atomic<int> lines{0};
  auto logger = std::make_unique<json_logger>([&](std::string_view) { ++lines; });
  EXPECT_TRUE(logger->log(example()));
  EXPECT_TRUE(logger->flush(long_enough).ok());
  EXPECT_EQ(in_child([&] {
              EXPECT_FALSE(logger->log(example()));
              EXPECT_EQ(logger->dropped(), 1U);
              const status flushed = logger->flush();
              EXPECT_NE(std::string(flushed.message()).find("fork"), std::string::npos);
              logger.reset();  // would wait for a thread that is not here
              int own = 0;
              if (!child_may_start_threads) return;
              {
                json_logger another([&](std::string_view) { ++own; }, patient_options());
                EXPECT_TRUE(another.log(example()));
              }
              EXPECT_EQ(own, 1);
            }),
            0);
  EXPECT_TRUE(logger->log(example()));
  EXPECT_TRUE(logger->flush(long_enough).ok());
  EXPECT_EQ(lines, 2);
  EXPECT_EQ(logger->dropped(), 0U);
}

// Children of a process whose threads log all the while: some fork while the queue's lock is held.
TEST(JsonLogger, EveryChildOfABusyLoggerEnds) {
  auto logger = std::make_unique<json_logger>([](std::string_view) {});
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) {
      logger->log(example());
      (void)logger->flush(milliseconds(1));  // in time or not
    }
  });
  for (int i = 0; i < 50; ++i) EXPECT_EQ(in_child([&] { logger.reset(); }), 0) << i;
  stop = true;
  busy.join();
}

TEST(JsonLogger, EightThreadsLoseNothingUncounted) {
  constexpr int num_threads = 8, each = 5000;
  std::map<std::string, int> next;  // of a thread, by its name
  std::uint64_t lines = 0, told = 0;
  bool in_order = true;
  json_log_options options;
  options.capacity = 1024;
  json_logger logger(
      [&](std::string_view line) {
        const json parsed = json::parse(line);
        if (parsed["log.level"] == "warn") {
          told += std::stoull(parsed["message"].get<std::string>());
          return;
        }
        ++lines;
        int& seen = next[parsed["adaptive_k.model"]];
        in_order = in_order && parsed["adaptive_k.layer"] >= seen;
        seen = parsed["adaptive_k.layer"].get<int>() + 1;
      },
      options);
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> refused{0};
  for (int t = 0; t < num_threads; ++t)
    threads.emplace_back([&, t] {
      const std::string name = "thread " + std::to_string(t);
      for (int i = 0; i < each; ++i) {
        log_event event;
        event.model = name;
        event.layer = i;
        if (!logger.log(event)) ++refused;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(logger.flush(long_enough).ok());
  EXPECT_TRUE(in_order);
  EXPECT_EQ(lines + logger.dropped(), std::uint64_t{num_threads} * each);
  EXPECT_EQ(refused, logger.dropped());
  EXPECT_EQ(told, logger.dropped());
  std::printf("%llu lines written, %llu dropped and told of\n",
              static_cast<unsigned long long>(lines),
              static_cast<unsigned long long>(logger.dropped()));
}

TEST(JsonLogger, OutlivesASinkThatThrows) {
  int calls = 0;
  json_logger logger([&](std::string_view) {
    if (++calls % 2 == 1) throw std::runtime_error("disk full");
  });
  for (int i = 0; i < 10; ++i) logger.log(example());
  EXPECT_TRUE(logger.flush(long_enough).ok());
  EXPECT_EQ(logger.failed(), 5U);
  EXPECT_EQ(logger.written(), 5U);
}

TEST(JsonLogger, SaysThatNoThreadCanBeStarted) {
  const no_more_threads none;
  EXPECT_THROW(json_logger([](std::string_view) {}), std::system_error);
}

TEST(JsonLogger, RefusesBadOptions) {
  const auto ignore = [](std::string_view) {};
  json_log_options options;
  options.capacity = 1000;
  EXPECT_THROW(json_logger(ignore, options), std::invalid_argument);
  options = {};
  options.pause = milliseconds(0);
  EXPECT_THROW(json_logger(ignore, options), std::invalid_argument);
  options = {};
  options.patience = milliseconds(-1);
  EXPECT_THROW(json_logger(ignore, options), std::invalid_argument);
  options.patience = std::chrono::hours(2);
  EXPECT_THROW(json_logger(ignore, options), std::invalid_argument);
  options = {};
  options.max_bytes = (std::size_t{1} << 30) + 1;
  EXPECT_THROW(json_logger(ignore, options), std::invalid_argument);
  EXPECT_THROW(json_logger{json_logger::sink()}, std::invalid_argument);
}

}  // namespace
