// The endpoint against well-behaved, malformed, slow and many clients, by bare sockets.
#include "adaptive_k/observability/http_server.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "exposition.hpp"
#include "http_client.hpp"
#include "in_child.hpp"
#include "no_more_threads.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

using http_client::body;
using http_client::code;
using http_client::connection;
using http_client::get;

class HttpServer : public ::testing::Test {
 protected:
  void SetUp() override {
    rlimit files;  // both ends of 1000 connections are ours
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < 4096 && files.rlim_max >= 4096) {
      files.rlim_cur = 4096;
      setrlimit(RLIMIT_NOFILE, &files);
    }
    count_one();
    http_server_options options;
    options.port = 0;
    options.patience = std::chrono::seconds(2);
    const status started = server_.start(recorder_, options);
    ASSERT_TRUE(started.ok()) << started.message();
    ASSERT_GT(server_.port(), 0);
  }

  void count_one() {
    routing_metrics batch;
    batch.calls = 1;
    batch.tokens = 1;
    recorder_.record({"m", 0, "p"}, batch, 1e-3);
  }

  double tokens() {
    const std::string response = get(server_.port());
    EXPECT_EQ(code(response), 200) << response;
    return exposition_text::parse(body(response))
        .samples.at("adaptive_k_tokens_total{model=\"m\",layer=\"0\",policy=\"p\"}");
  }

  prometheus_recorder recorder_;
  http_server server_;
};

TEST_F(HttpServer, ServesBothFormats) {
  EXPECT_EQ(tokens(), 1);
  count_one();
  EXPECT_EQ(tokens(), 2);
  const std::string old_text = get(server_.port());
  EXPECT_NE(old_text.find("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            std::string::npos);
  const std::string open = get(server_.port(), "/metrics",
                               "Accept: application/openmetrics-text;version=1.0.0,text/plain\r\n");
  EXPECT_NE(open.find("Content-Type: application/openmetrics-text; version=1.0.0"),
            std::string::npos);
  EXPECT_TRUE(exposition_text::parse(body(open)).ended);
  const auto opens = [&](const std::string& accept) {
    return get(server_.port(), "/metrics", "Accept: " + accept + "\r\n")
               .find("Content-Type: application/openmetrics-text") != std::string::npos;
  };
  // As Prometheus asks.
  EXPECT_TRUE(
      opens("application/openmetrics-text;version=1.0.0;q=0.5,application/"
            "openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"));
  EXPECT_FALSE(opens("text/plain;version=0.0.4;q=1, application/openmetrics-text;q=0"));
  EXPECT_FALSE(opens("text/plain;q=0.75, application/openmetrics-text; q=0.7"));
  EXPECT_FALSE(opens("application/openmetrics-text-old"));
  EXPECT_FALSE(opens(",;q=,application/openmetrics-text;q=x,"));
  EXPECT_EQ(code(get(server_.port(), "/")), 302);
  EXPECT_EQ(code(get(server_.port(), "/other")), 404);
}

TEST_F(HttpServer, AnswersByTheRulesOfHttp) {
  struct expectation {
    const char* request;
    int code;
  };
  const expectation table[] = {
      {"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"GET http://x:1/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"GET HTTP://x/metrics?a HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"GET /metrics HTTP/1.0\r\n\r\n", 200},
      {"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n", 200},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 200},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n\r\n", 200},
      {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 302},
      {"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 302},
      {"GET http://x?a=/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 302},
      {"GET /metrics HTTP/1.1\r\n\r\n", 400},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 400},
      {"GET\r\n\r\n", 400},
      {"GET /metrics\r\n\r\n", 400},
      {"\r\n\r\n", 400},
      {"GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", 404},
      {"GET /metric HTTP/1.1\r\nHost: x\r\n\r\n", 404},
      {"GET /METRICS HTTP/1.1\r\nHost: x\r\n\r\n", 404},
      {"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 404},
      {"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", 405},
      {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 405},
      {"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", 413},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 413},
      {"GET /metrics HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417},
      {"BREW /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 501},
      {"get /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 501},
      {"GET /metrics HTTP/2.0\r\nHost: x\r\n\r\n", 505},
  };
  for (const expectation& e : table) {
    const connection to(server_.port());
    to.send(e.request);
    const std::string answer = to.receive();
    EXPECT_EQ(code(answer), e.code) << e.request << answer;
    EXPECT_EQ(answer.find("HTTP/1.1 "), 0U) << answer;
    EXPECT_NE(answer.find("Connection: close\r\n"), std::string::npos) << answer;
    if (std::string(e.request).compare(0, 5, "HEAD ") == 0)
      EXPECT_EQ(body(answer), "");
    else
      EXPECT_NE(answer.find("Content-Length: " + std::to_string(body(answer).size()) + "\r\n"),
                std::string::npos)
          << answer;
  }
  EXPECT_NE(get(server_.port(), "/").find("Location: /metrics\r\n"), std::string::npos);
  EXPECT_NE(get(server_.port()).find("Vary: Accept\r\n"), std::string::npos);
  const connection in_pieces(server_.port());
  for (const char c : std::string("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")) {
    in_pieces.send(std::string(1, c));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(code(in_pieces.receive()), 200);
  const std::string long_head =
      get(server_.port(), "/metrics", "X: " + std::string(9000, 'a') + "\r\n");
  EXPECT_EQ(code(long_head), 431) << long_head;
  EXPECT_EQ(code(get(server_.port(), "/metrics", "X: " + std::string(8000, 'a') + "\r\n")), 200);
  EXPECT_TRUE(exposition_text::parse(body(get(server_.port(), "/metrics",
                                              "Accept: text/plain;q=0.5\r\naccept: "
                                              "application/openmetrics-text;q=0.6\r\n")))
                  .ended)
      << "Accept in two lines";
}

// A client that keeps sending, or keeps not reading, is cut off all the same.
TEST_F(HttpServer, ConnectionsEnd) {
  http_server quick;
  http_server_options options;
  options.port = 0;
  options.patience = std::chrono::milliseconds(300);
  ASSERT_TRUE(quick.start(recorder_, options).ok());
  const auto start = std::chrono::steady_clock::now();
  const connection dripping(quick.port());
  int sent = 0;
  while (dripping.send("a") &&
         std::chrono::steady_clock::now() - start < std::chrono::seconds(30)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ++sent;
  }
  EXPECT_GT(sent, 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(HttpServer, ServesAtMostSoManyAtATime) {
  http_server narrow;
  http_server_options options;
  options.port = 0;
  options.max_connections = 2;
  options.patience = std::chrono::milliseconds(300);
  ASSERT_TRUE(narrow.start(recorder_, options).ok());
  const connection first(narrow.port()), second(narrow.port());
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(code(get(narrow.port())), 200);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(200))
      << "once one of the two is given up";
}

// Under pressure a rendering serves all that wait, but never one that is older than their request.
TEST_F(HttpServer, AnswersAreNeverOlderThanTheirRequests) {
  std::atomic<bool> stop{false};
  std::thread others([&] {
    while (!stop) get(server_.port());
  });
  double last = tokens();
  for (int i = 0; i < 100; ++i) {
    count_one();
    const double now = tokens();
    EXPECT_EQ(now, last + 1);
    last = now;
  }
  stop = true;
  others.join();
}

TEST_F(HttpServer, SaysThatNoThreadCanBeStarted) {
  http_server second;
  http_server_options options;
  options.port = 0;
  {
    const no_more_threads none;
    const status result = second.start(recorder_, options);
    EXPECT_FALSE(result.ok());
    EXPECT_NE(std::string(result.message()).find("start a thread"), std::string::npos)
        << result.message();
    EXPECT_FALSE(second.running());
    EXPECT_EQ(second.port(), 0);
    EXPECT_FALSE(start_http_server(0).ok());
  }
  EXPECT_TRUE(second.start(recorder_, options).ok());
  EXPECT_EQ(code(get(second.port())), 200);
}

TEST_F(HttpServer, BelongsToTheProcessThatStartedIt) {
  auto shared = std::make_unique<http_server>();
  http_server_options options;
  options.port = 0;
  options.patience = std::chrono::minutes(1);
  ASSERT_TRUE(shared->start(recorder_, options).ok());
  const int port = shared->port();
  const connection asked(port);  // a connection that is open while children come and go
  asked.send("GET /metrics HTTP/1.1\r\n");
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(in_child([&] {
                EXPECT_FALSE(shared->running());
                EXPECT_EQ(shared->port(), 0);
                if (i == 0) shared.reset();
                if (i == 1) shared->stop();
                if (i == 2 && child_may_start_threads) {
                  const status started = shared->start(recorder_, options);
                  EXPECT_TRUE(started.ok()) << started.message();
                  EXPECT_NE(shared->port(), port);
                  EXPECT_EQ(code(get(shared->port())), 200);
                  shared.reset();
                }
              }),
              0);
  EXPECT_TRUE(shared->running());
  EXPECT_EQ(code(get(port)), 200);
  asked.send("Host: x\r\n\r\n");
  EXPECT_EQ(code(asked.receive()), 200);
  // A child that gave up its copy does not keep the port.
  int ready[2], done[2];
  ASSERT_EQ(pipe(ready) + pipe(done), 0);
  const pid_t child = fork();
  if (child == 0) {
    shared->stop();
    char byte = 0;
    static_cast<void>(!write(ready[1], &byte, 1));
    static_cast<void>(!read(done[0], &byte, 1));
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  shared->stop();
  EXPECT_FALSE(connection(port).connected());
  ASSERT_EQ(write(done[1], &byte, 1), 1);
  waitpid(child, nullptr, 0);
}

TEST_F(HttpServer, TakesPathsAsTheyAre) {
  for (const std::string path : {"/metrics(", "/m+x", "/metrics.v1", "/[a]{2}^$|*"}) {
    http_server server;
    http_server_options options;
    options.port = 0;
    options.path = path;
    ASSERT_TRUE(server.start(recorder_, options).ok()) << path;
    EXPECT_EQ(code(get(server.port(), path)), 200) << path;
    EXPECT_EQ(code(get(server.port(), "/metricsXv1")), 404) << path;
  }
}

TEST_F(HttpServer, BindsToLoopbackOnly) {
  ASSERT_TRUE(connection(server_.port()).connected());
  // Every address 127.x.y.z is this machine: one that is not 127.0.0.1 stands for the others.
  EXPECT_FALSE(connection(server_.port(), "127.0.0.2").connected());
  http_server open;
  http_server_options options;
  options.port = 0;
  options.host = "0.0.0.0";
  ASSERT_TRUE(open.start(recorder_, options).ok());
  EXPECT_TRUE(connection(open.port(), "127.0.0.2").connected()) << "the check above can fail";
}

TEST_F(HttpServer, SurvivesMalformedRequests) {
  const std::string bad[] = {
      "\r\n\r\n",
      "nonsense\r\n\r\n",
      "GET\r\n\r\n",
      "GET /metrics\r\n\r\n",
      "GET /metrics HTTP/9.9\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nno colon here\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
      "POST /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + std::string(100000, 'x'),
      "POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "GET /" + std::string(100000, 'a') + " HTTP/1.1\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nX: " + std::string(100000, 'a') + "\r\n\r\n",
      "GET /%zz%00%ff HTTP/1.1\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nRange: bytes=9-1,-,a-b\r\n\r\n",
      std::string("\0\xFF\xFE\x80", 4) + std::string(5000, '\x01') + "\r\n\r\n",
  };
  for (const std::string& request : bad) {
    const connection to(server_.port());
    ASSERT_TRUE(to.connected());
    to.send(request);
    const std::string answer = to.receive();
    EXPECT_EQ(answer.find("<nothing more came>"), std::string::npos) << request.substr(0, 60);
    EXPECT_EQ(tokens(), 1) << "after " << request.substr(0, 60);
  }
}

// More clients that send half a request than the server takes at a time.
TEST_F(HttpServer, SlowClientsAreGivenUp) {
  http_server narrow;
  http_server_options options;
  options.port = 0;
  options.max_connections = 16;
  options.patience = std::chrono::milliseconds(300);
  ASSERT_TRUE(narrow.start(recorder_, options).ok());
  std::vector<connection> slow;
  for (int i = 0; i < 40; ++i) {
    slow.emplace_back(narrow.port());
    ASSERT_TRUE(slow.back().connected());
    slow.back().send(i % 2 == 0 ? "GET /metr" : "GET /metrics HTTP/1.1\r\nHost:");
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(code(get(narrow.port())), 200);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 30.0);
  // A client that asks and goes away before it reads.
  for (int i = 0; i < 50; ++i)
    connection(server_.port()).send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(tokens(), 1);
}

TEST_F(HttpServer, AnswersAThousandConnections) {
  std::atomic<bool> stop{false};
  std::uint64_t recorded = 1;
  std::thread router([&] {  // stands for the router: records all the while
    for (; !stop; ++recorded) {
      count_one();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  {
    std::vector<connection> many;  // all open at once: none reads before the last has asked
    for (int i = 0; i < 1000; ++i) {
      many.emplace_back(server_.port());
      ASSERT_TRUE(many.back().connected()) << i;
      many.back().send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    int answered = 0;
    for (const connection& one : many) {
      const std::string response = one.receive();
      answered += code(response) == 200 && !exposition_text::parse(body(response)).samples.empty();
    }
    EXPECT_EQ(answered, 1000);
  }
  {
    http_server wide;  // so that giving up 1000 silent clients takes no seconds
    http_server_options options;
    options.port = 0;
    options.patience = std::chrono::milliseconds(500);
    ASSERT_TRUE(wide.start(recorder_, options).ok());
    std::vector<connection> silent;
    for (int i = 0; i < 1000; ++i) silent.emplace_back(wide.port());
    EXPECT_EQ(code(get(wide.port())), 200) << "while all of them are open";
    silent.clear();  // those not given up yet hang up
    EXPECT_EQ(code(get(wide.port())), 200);
  }
  stop = true;
  router.join();
  EXPECT_EQ(tokens(), static_cast<double>(recorded)) << "no batch was lost meanwhile";
}

TEST_F(HttpServer, RefusesATakenPortAndBadOptions) {
  http_server second;
  http_server_options options;
  options.port = server_.port();
  const status taken = second.start(recorder_, options);
  EXPECT_FALSE(taken.ok());
  EXPECT_NE(std::string(taken.message()).find("127.0.0.1 port " + std::to_string(options.port)),
            std::string::npos)
      << taken.message();
  EXPECT_FALSE(second.running());
  EXPECT_FALSE(server_.start(recorder_, options).ok()) << "already runs";
  options.port = 65536;
  EXPECT_NE(std::string(second.start(recorder_, options).message()).find("65536"),
            std::string::npos);
  options = {};
  options.max_connections = 0;
  EXPECT_FALSE(second.start(recorder_, options).ok());
  options = {};
  options.patience = std::chrono::hours(2);
  EXPECT_NE(std::string(second.start(recorder_, options).message()).find("7200000"),
            std::string::npos);
  options = {};
  for (const char* path : {"metrics", "/", "", "/a b", "/a?b", "/a#b", "/\xC3\xA9", "/a\r\nX: y"}) {
    options.path = path;
    const status result = second.start(recorder_, options);
    EXPECT_NE(std::string(result.message()).find("http_server_options.path"), std::string::npos)
        << path;
  }
  options = {};
  options.host = "203.0.113.1";  // kept for documentation, so nobody's
  EXPECT_FALSE(second.start(recorder_, options).ok());
}

TEST_F(HttpServer, StopsAndStartsAgain) {
  const int port = server_.port();
  for (int round = 0; round < 20; ++round) {
    server_.stop();
    EXPECT_FALSE(server_.running());
    EXPECT_FALSE(connection(port).connected());
    http_server_options options;
    options.port = port;
    const status started = server_.start(recorder_, options);
    ASSERT_TRUE(started.ok()) << started.message();
  }
  EXPECT_EQ(tokens(), 1);
}

TEST_F(HttpServer, LeavesTheProcessSignalsAlone) {
  struct sigaction action;
  ASSERT_EQ(sigaction(SIGPIPE, nullptr, &action), 0);
  EXPECT_EQ(action.sa_handler, SIG_DFL);
}

TEST(StartHttpServer, ServesTheDefaultRecorder) {
  routing_metrics batch;
  batch.calls = 1;
  batch.tokens = 21;
  default_recorder().record({"default", 0, "p"}, batch, 1e-3);
  http_server probe;  // finds a free port
  http_server_options options;
  options.port = 0;
  ASSERT_TRUE(probe.start(default_recorder(), options).ok());
  const int port = probe.port();
  probe.stop();
  const status started = start_http_server(port);
  ASSERT_TRUE(started.ok()) << started.message();
  EXPECT_NE(
      get(port).find("adaptive_k_tokens_total{model=\"default\",layer=\"0\",policy=\"p\"} 21"),
      std::string::npos);
  EXPECT_FALSE(start_http_server(port).ok());
}

}  // namespace
