// The endpoint against well-behaved, malformed, slow and many clients, by bare sockets.
#include "adaptive_k/observability/http_server.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "exposition.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

class connection {
 public:
  explicit connection(int port, const char* address = "127.0.0.1")
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(port));
    inet_pton(AF_INET, address, &to.sin_addr);
    connected_ = connect(socket_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
  }
  connection(connection&& other) noexcept : socket_(other.socket_), connected_(other.connected_) {
    other.socket_ = -1;
  }
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;
  ~connection() {
    if (socket_ >= 0) close(socket_);
  }
  bool connected() const { return connected_; }
  void send(const std::string& text) const {
    static_cast<void>(!::send(socket_, text.data(), text.size(), MSG_NOSIGNAL));
  }
  /// All up to the end of the connection, at most `seconds` after the last byte.
  std::string receive(int seconds = 60) const {
    std::string all;
    char part[4096];
    for (;;) {
      pollfd ready = {socket_, POLLIN, 0};
      if (poll(&ready, 1, seconds * 1000) <= 0) return all + "<nothing more came>";
      const ssize_t length = recv(socket_, part, sizeof part, 0);
      if (length <= 0) return all;
      all.append(part, static_cast<std::size_t>(length));
    }
  }

 private:
  int socket_;
  bool connected_ = false;
};

std::string get(int port, const std::string& path = "/metrics", const std::string& headers = "") {
  const connection to(port);
  if (!to.connected()) return "not connected";
  to.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n");
  return to.receive();
}

int code(const std::string& response) {
  return response.compare(0, 9, "HTTP/1.1 ") == 0 ? std::atoi(response.c_str() + 9) : -1;
}

std::string body(const std::string& response) {
  const std::size_t at = response.find("\r\n\r\n");
  return at == std::string::npos ? "" : response.substr(at + 4);
}

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
    options.patience = std::chrono::milliseconds(500);
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

TEST_F(HttpServer, TakesPathsAsTheyAre) {
  for (const std::string path : {"/metrics(", "/m+x", "/metrics.v1", "/[a]{2}^$|*"}) {
    http_server server;
    http_server_options options;
    options.port = 0;
    options.path = path;
    ASSERT_TRUE(server.start(recorder_, options)) << path;
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

// More clients that send half a request than the server has threads.
TEST_F(HttpServer, SlowClientsAreGivenUp) {
  std::vector<connection> slow;
  for (int i = 0; i < 40; ++i) {
    slow.emplace_back(server_.port());
    ASSERT_TRUE(slow.back().connected());
    slow.back().send(i % 2 == 0 ? "GET /metr" : "GET /metrics HTTP/1.1\r\nHost:");
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(tokens(), 1);
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
    http_server wide;  // so that giving up 1000 silent clients takes seconds, not a minute
    http_server_options options;
    options.port = 0;
    options.threads = 128;
    options.patience = std::chrono::milliseconds(100);
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
  options.threads = 0;
  EXPECT_FALSE(second.start(recorder_, options).ok());
  options = {};
  options.path = "metrics";
  EXPECT_FALSE(second.start(recorder_, options).ok());
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
