// What a running benchmark shows: its endpoint, as promtool and a reader see it, and its log lines.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "cli/program.hpp"

#if defined(ADAPTIVE_K_TEST_HTTP)
#include "adaptive_k/observability/http_server.hpp"
#include "observability/exposition.hpp"
#include "observability/http_client.hpp"
#endif

namespace {

using nlohmann::json;

#if defined(ADAPTIVE_K_TEST_HTTP)
/// A benchmark of several minutes with an endpoint on a free port; ended by force.
class running_benchmark {
 public:
  running_benchmark() {
    const std::string errors = (folder_.path() / "err").string();
    process_ = fork();
    if (process_ == 0) {
      if (std::freopen("/dev/null", "w", stdout) == nullptr ||
          std::freopen(errors.c_str(), "w", stderr) == nullptr)
        _exit(126);
      setenv("OMP_WAIT_POLICY", "passive", 1);
      execl(ADAPTIVE_K_PROGRAM, "adaptive-k", "benchmark", "--policy", "entropy:4,8@2.5",
            "--metrics-port", "0", static_cast<char*>(nullptr));
      _exit(127);
    }
    const std::string before = "Metrics at http://127.0.0.1:";
    for (int i = 0; i < 600 && port_ == 0; ++i) {
      const std::string said = content_of(errors);
      const std::size_t at = said.find(before);
      if (at != std::string::npos && said.find("/metrics\n", at) != std::string::npos)
        port_ = std::stoi(said.substr(at + before.size()));
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
  running_benchmark(const running_benchmark&) = delete;
  running_benchmark& operator=(const running_benchmark&) = delete;
  ~running_benchmark() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }

  int port() const { return port_; }  ///< 0: it never said one
  bool runs() const { return waitpid(process_, nullptr, WNOHANG) == 0; }

  std::string metrics() const {
    const std::string answer = http_client::get(port_);
    return http_client::code(answer) == 200 ? http_client::body(answer) : "";
  }

 private:
  scratch_folder folder_;
  pid_t process_ = -1;
  int port_ = 0;
};

TEST(Live, EndpointOfARunningBenchmark) {
  running_benchmark benchmark;
  ASSERT_NE(benchmark.port(), 0);
  // Every routing, layer by layer, while the model still runs.
  std::string text;
  for (int i = 0; i < 600; ++i) {
    text = benchmark.metrics();
    const std::string last =
        "adaptive_k_tokens_total{model=\"reference-32x8\",layer=\"3\",policy=\"fixed K = 7\"} ";
    const std::size_t shown = text.find(last);
    if (shown != std::string::npos && text[shown + last.size()] != '0') break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  ASSERT_TRUE(benchmark.runs());
  const auto shown = exposition_text::parse(text).samples;
  std::map<std::string, double> tokens;
  for (const auto& [name, value] : shown)
    if (contains(name, "adaptive_k_tokens_total{")) tokens[name] = value;
  EXPECT_EQ(tokens.size(), 11U * 4) << text;  // routings, layers
  for (const auto& [name, value] : tokens) EXPECT_GT(value, 0) << name;
  EXPECT_EQ(
      shown.at("adaptive_k_avg_k{model=\"reference-32x8\",layer=\"0\",policy=\"fixed K = 3\"}"), 3);
  EXPECT_EQ(shown.at("adaptive_k_avg_k{model=\"reference-32x8\",layer=\"0\",policy=\"full K\"}"),
            8);
  const double adaptive =
      shown.at("adaptive_k_avg_k{model=\"reference-32x8\",layer=\"0\",policy=\"entropy:4,8@2.5\"}");
  EXPECT_TRUE(adaptive > 4 && adaptive < 8) << adaptive;
  EXPECT_GT(
      shown.at(
          "adaptive_k_entropy_nats_count{model=\"reference-32x8\",layer=\"0\",policy=\"entropy:"
          "4,8@2.5\"}"),
      0);

  if (std::string(ADAPTIVE_K_PROMTOOL).empty())
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus): metrics not checked "
                    "by it";
  std::FILE* const pipe = popen(ADAPTIVE_K_PROMTOOL " check metrics 2>&1", "w");
  ASSERT_NE(pipe, nullptr);
  EXPECT_EQ(std::fwrite(text.data(), 1, text.size(), pipe), text.size());
  EXPECT_EQ(pclose(pipe), 0) << "promtool complained, see above";
  EXPECT_TRUE(benchmark.runs());
}

TEST(Live, RefusesATakenPort) {
  adaptive_k::http_server holder;
  adaptive_k::http_server_options options;
  options.port = 0;
  const adaptive_k::prometheus_recorder recorder;
  ASSERT_TRUE(holder.start(recorder, options).ok());
  const outcome result =
      run_program(small_benchmark({"--metrics-port", std::to_string(holder.port())}));
  EXPECT_EQ(result.status, 2);
  EXPECT_TRUE(contains(result.err, "--metrics-port: cannot listen on 127.0.0.1 port"))
      << result.err;
}
#endif

TEST(Live, LogLinesOfARun) {
  const scratch_folder folder;
  const std::string file = (folder.path() / "log").string();
  const outcome result =
      run_program(small_benchmark({"--log", file, "--policy", "entropy:4,8@2.5"}));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "Policy")) << "the table stays";
  EXPECT_FALSE(contains(result.err, "dropped")) << result.err;
  std::istringstream lines(content_of(file));
  std::map<std::string, int> calls;
  std::set<std::string> runs;
  std::uint64_t tokens = 0;
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const json parsed = json::parse(line);
    ++calls[parsed["adaptive_k.policy"]];
    runs.insert(parsed["trace.id"].get<std::string>());
    EXPECT_EQ(parsed["adaptive_k.model"], "reference-32x8");
    EXPECT_GT(parsed["adaptive_k.latency_ms"], 0.0);
    EXPECT_EQ(parsed["@timestamp"].get<std::string>().size(), 24U);
    if (parsed["adaptive_k.policy"] == "full K") {
      EXPECT_EQ(parsed["adaptive_k.savings"], 0.0);
      tokens += parsed["adaptive_k.tokens"].get<std::uint64_t>();
    }
  }
  EXPECT_EQ(count, 11 * 4) << "routings, layers, of one batch of windows";
  EXPECT_EQ(calls.size(), 11U);
  EXPECT_EQ(runs.size(), 1U);
  EXPECT_EQ(tokens, 4U * 4 * 64) << "layers, windows, tokens of a window";
}

TEST(Live, LogOnStdoutInDatadogsNames) {
  const outcome result = run_program(small_benchmark({"--log", "-", "--log-fields", "datadog"}));
  ASSERT_EQ(result.status, 0) << result.err;
  std::istringstream lines(result.out);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const json parsed = json::parse(line);
    for (const char* name : {"timestamp", "status", "logger.name", "dd.trace_id", "duration"})
      EXPECT_TRUE(parsed.contains(name)) << name;
  }
  EXPECT_GT(count, 0);
}

TEST(Live, LogThatCannotBeWritten) {
  const outcome nowhere = run_program(small_benchmark({"--log", "/no/such/folder/log"}));
  EXPECT_EQ(nowhere.status, 2);
  EXPECT_TRUE(contains(nowhere.err, "--log: /no/such/folder/log: cannot be written"))
      << nowhere.err;
  const outcome full = run_program(small_benchmark({"--log", "/dev/full"}));
  EXPECT_EQ(full.status, 2);
  EXPECT_TRUE(contains(full.err, "not all lines could be written")) << full.err;
}

}  // namespace
