// A process that serves metrics, attacked: it goes on answering, and its memory stays bounded.
#include "endpoint_attacks.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "adaptive_k/observability/http_server.hpp"
#include "process_memory.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool memory_is_its_own = false;  // a sanitizer keeps what was freed
#else
constexpr bool memory_is_its_own = true;
#endif

constexpr double most_megabytes = 64;  // as http_server says

/// A child process with an endpoint, whose one rendering has 7 MB.
class serving_process {
 public:
  serving_process() {
    int to_parent[2];
    if (pipe(to_parent) != 0) return;
    process_ = fork();
    if (process_ == 0) {
      endpoint_attacks::allow_many_connections();
      prometheus_recorder recorder;
      routing_metrics batch;
      batch.calls = batch.tokens = 1;
      for (int layer = 0; layer < 1000; ++layer)
        recorder.record({"a-model-with-a-name", layer, "top_p"}, batch, 1e-3);
      http_server server;
      http_server_options options;
      options.port = 0;
      const int port = server.start(recorder, options).ok() ? server.port() : 0;
      if (write(to_parent[1], &port, sizeof port) != sizeof port) _exit(1);
      for (;;) pause();
    }
    if (read(to_parent[0], &port_, sizeof port_) != sizeof port_) port_ = 0;
    close(to_parent[0]);
    close(to_parent[1]);
  }
  serving_process(const serving_process&) = delete;
  serving_process& operator=(const serving_process&) = delete;
  ~serving_process() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  pid_t id() const { return process_; }
  int port() const { return port_; }
  bool runs() const { return waitpid(process_, nullptr, WNOHANG) == 0; }

 private:
  pid_t process_ = -1;
  int port_ = 0;
};

TEST(EndpointAttacks, MemoryStaysBoundedAndScrapesAreServed) {
  endpoint_attacks::allow_many_connections();
  const serving_process server;
  ASSERT_GT(server.port(), 0);
  ASSERT_GT(http_client::get(server.port()).size(), std::size_t{4} << 20) << "not a small one";
  const double idle = status_megabytes(server.id(), "VmRSS");
  ASSERT_GT(idle, 0);
  double greatest = 0;
  for (const endpoint_attacks::attack& one : endpoint_attacks::all()) {
    forget_peak(server.id());
    one.run(server.port());
    const auto start = std::chrono::steady_clock::now();
    const std::string answer = http_client::get(server.port());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    ASSERT_TRUE(server.runs()) << one.name;
    EXPECT_EQ(http_client::code(answer), 200) << one.name;
    EXPECT_LT(took.count(), 10) << one.name << ": Prometheus would have given up";
    const double grown = status_megabytes(server.id(), "VmHWM") - idle;
    greatest = grown > greatest ? grown : greatest;
    std::printf("%-55s %6.1f MB over the idle process, then a scrape in %.2f s\n", one.name, grown,
                took.count());
    std::fflush(stdout);
    if (memory_is_its_own) {
      EXPECT_LE(grown, most_megabytes) << one.name;
    }
  }
  EXPECT_GT(greatest, 0);
}

}  // namespace
