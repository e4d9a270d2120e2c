// The endpoint against any bytes: it answers in HTTP or not at all, and the next client is served.
#include <adaptive_k/observability/http_server.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "fuzz.hpp"
#include "observability/exposition.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it

struct endpoint {
  prometheus_recorder recorder;
  http_server server;

  endpoint() {
    routing_metrics batch;
    batch.calls = batch.tokens = 1;
    recorder.record({"m", 0, "p"}, batch, 1e-3);
    http_server_options options;
    options.port = 0;
    options.patience = std::chrono::seconds(10);  // an end of the stream ends the wait
    const status started = server.start(recorder, options);
    fuzz::require(started.ok(), started.message());
  }
};

/// Sends `parts`, says that no more will come unless `waits`, and returns all that comes back.
std::string exchange(int port, const std::vector<std::string>& parts, bool waits = false) {
  const int to = ::socket(AF_INET, SOCK_STREAM, 0);
  fuzz::require(to >= 0, "a socket");
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // Closing at once, or 30,000 connections later no port would be free.
  const linger at_once = {1, 0};
  setsockopt(to, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  std::string answer;
  if (::connect(to, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    for (const std::string& part : parts)
      if (::send(to, part.data(), part.size(), MSG_NOSIGNAL) < 0) break;
    if (!waits) ::shutdown(to, SHUT_WR);
    char buffer[4096];
    for (;;) {
      pollfd ready = {to, POLLIN, 0};
      int polled = 0;
      do {
        polled = ::poll(&ready, 1, 20000);
      } while (polled < 0 && errno == EINTR);  // libFuzzer's clock is a signal
      fuzz::require(polled > 0, "an end of the connection within 20 s");
      const ssize_t length = ::recv(to, buffer, sizeof buffer, 0);
      if (length <= 0) break;
      answer.append(buffer, static_cast<std::size_t>(length));
    }
  }
  ::close(to);
  return answer;
}

void require_served(int port) {
  const std::string answer = exchange(
      port, {"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"}, true);
  fuzz::require(answer.compare(0, 12, "HTTP/1.1 200") == 0, "a scrape is served: " + answer);
  const std::size_t body = answer.find("\r\n\r\n");
  fuzz::require(body != std::string::npos, "headers end");
  exposition_text::parse(answer.substr(body + 4));  // throws: a crash
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static auto* const running = new endpoint;  // its threads serve until the process ends
  static unsigned count = 0;
  fuzz::bytes from(data, size);
  // Zero bytes part what is sent in pieces; HTTP has none of its own.
  std::vector<std::string> parts;
  while (!from.empty() && parts.size() < 8) parts.push_back(from.up_to_zero());
  const std::string answer = exchange(running->server.port(), parts);
  fuzz::require(answer.empty() || answer.compare(0, 7, "HTTP/1.") == 0,
                "an answer in HTTP: " + answer.substr(0, 60));
  fuzz::require(answer.size() < 65536, "an answer of a scrape's size");
  if (++count % 16 == 1) require_served(running->server.port());
  return 0;
}
