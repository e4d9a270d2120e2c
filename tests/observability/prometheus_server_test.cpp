// A Prometheus server scrapes the endpoint, and answers for what it read by its own API.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>

#include "adaptive_k/observability/http_server.hpp"
#include "cli/scratch.hpp"
#include "http_client.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

int free_port(const prometheus_recorder& recorder) {
  http_server probe;
  http_server_options options;
  options.port = 0;
  EXPECT_TRUE(probe.start(recorder, options).ok());
  return probe.port();
}

/// The server, in a folder of its own, until the end of the scope.
class prometheus_process {
 public:
  prometheus_process(int port, int scraped_port) : port_(port) {
    const std::string config = (folder_.path() / "prometheus.yml").string();
    const std::string listen = "--web.listen-address=127.0.0.1:" + std::to_string(port);
    const std::string file = "--config.file=" + config;
    const std::string storage = "--storage.tsdb.path=" + (folder_.path() / "data").string();
    const std::string log = (folder_.path() / "log").string();
    std::ofstream(config) << "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\n"
                             "scrape_configs:\n  - job_name: adaptive_k\n    static_configs:\n"
                             "      - targets: ['127.0.0.1:"
                          << scraped_port << "']\n";
    process_ = fork();
    if (process_ != 0) return;
    if (std::freopen(log.c_str(), "w", stderr) == nullptr) _exit(126);
    execl(ADAPTIVE_K_PROMETHEUS, "prometheus", file.c_str(), storage.c_str(), listen.c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  prometheus_process(const prometheus_process&) = delete;
  prometheus_process& operator=(const prometheus_process&) = delete;
  ~prometheus_process() {
    kill(process_, SIGTERM);
    waitpid(process_, nullptr, 0);
  }

  /// data of the answer; null while there is none.
  nlohmann::json ask(const std::string& path, const std::string& name,
                     const std::string& value) const {
    std::string target = path + "?" + name + "=";
    for (const char c : value) {
      char encoded[4];
      std::snprintf(encoded, sizeof encoded, "%%%02X", static_cast<unsigned char>(c));
      target += encoded;
    }
    const std::string answer = http_client::get(port_, target, "", "1.0");  // never in chunks
    if (http_client::code(answer) != 200) return nullptr;
    const nlohmann::json all = nlohmann::json::parse(http_client::body(answer), nullptr, false);
    return all.is_object() ? all.value("data", nlohmann::json()) : nlohmann::json();
  }

  /// The first result's value of a query; -1 for none.
  double value(const std::string& query) const {
    const nlohmann::json data = ask("/api/v1/query", "query", query);
    if (!data.is_object() || data["result"].empty()) return -1.0;
    return std::stod(data["result"][0]["value"][1].get<std::string>());
  }

  /// Waits, at most a minute, until a query has this value; returns the last one.
  double wait_for(const std::string& query, double expected) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    double last = value(query);
    while (last != expected && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      last = value(query);
    }
    return last;
  }

 private:
  scratch_folder folder_;
  int port_;
  pid_t process_ = -1;
};

TEST(PrometheusServer, KnowsWhatWasRecorded) {
  if (std::string(ADAPTIVE_K_PROMETHEUS).empty())
    GTEST_SKIP() << "prometheus is not installed (Debian package prometheus): not checked";
  prometheus_options recording;
  recording.expert_load = 2;
  prometheus_recorder recorder(recording);
  routing_metrics batch;
  batch.calls = 1;
  batch.tokens = 10;
  batch.full_expert_calls = 80;
  batch.expert_calls = 50;
  batch.distinct_experts = 4;
  batch.k_histogram[5] = 10;
  const metric_labels labels = {"a \"b\" \\ c", 3, "top_p"};
  const float entropy = 1.3f;
  recorder.record(labels, batch, 3e-5);
  recorder.record_entropies(recorder.find(labels), &entropy, 1);
  const std::uint64_t expert_counts[2] = {0, 50};
  recorder.record_expert_counts(recorder.find(labels), expert_counts, 2);
  for (const std::string& model :
       {std::string("x\0", 2), std::string("x\xFF"), std::string("x\xFE")})
    recorder.record({model, 0, "odd"}, batch, 3e-5);  // one bad line, and it takes none

  http_server endpoint;
  http_server_options options;
  options.port = 0;
  ASSERT_TRUE(endpoint.start(recorder, options).ok());
  const prometheus_process server(free_port(recorder), endpoint.port());

  EXPECT_EQ(server.wait_for("up{job=\"adaptive_k\"}", 1), 1);
  const std::string of = "{model=\"a \\\"b\\\" \\\\ c\",layer=\"3\",policy=\"top_p\"}";
  EXPECT_EQ(server.wait_for("adaptive_k_tokens_total" + of, 10), 10);
  EXPECT_EQ(server.value("adaptive_k_expert_calls_total" + of), 50);
  EXPECT_EQ(server.value("adaptive_k_avg_k" + of), 5);
  EXPECT_EQ(server.value("adaptive_k_compute_saved_ratio" + of), 0.375);
  EXPECT_EQ(server.value("adaptive_k_distinct_experts" + of), 4);
  EXPECT_EQ(server.value("adaptive_k_k_total{k=\"5\",policy=\"top_p\"}"), 10);
  EXPECT_EQ(server.value("adaptive_k_expert_load_total{expert=\"1\",policy=\"top_p\"}"), 50);
  EXPECT_EQ(server.value("count(adaptive_k_tokens_total{policy=\"odd\"})"), 3);
  EXPECT_EQ(server.value("adaptive_k_latency_seconds_count" + of), 1);
  EXPECT_EQ(server.value("adaptive_k_entropy_nats_bucket{le=\"1.5\",policy=\"top_p\"}"), 1);
  const double median =
      server.value("histogram_quantile(0.5, adaptive_k_latency_seconds_bucket{policy=\"top_p\"})");
  EXPECT_GT(median, 2.5e-5);
  EXPECT_LE(median, 5e-5);

  // The formats' own words, as it understood them. Prometheus asks for OpenMetrics.
  nlohmann::json metadata = server.ask("/api/v1/targets/metadata", "match_target", "{}");
  std::set<std::string> kinds;
  for (const nlohmann::json& one : metadata)
    kinds.insert(one["metric"].get<std::string>() + " " + one["type"].get<std::string>() + " " +
                 one["unit"].get<std::string>());
  EXPECT_EQ(kinds.count("adaptive_k_latency_seconds histogram seconds"), 1U) << metadata;
  EXPECT_EQ(kinds.count("adaptive_k_tokens counter "), 1U) << metadata;
  EXPECT_EQ(kinds.count("adaptive_k_compute_saved_ratio gauge ratio"), 1U) << metadata;

  for (int i = 0; i < 4; ++i) recorder.record(labels, batch, 3e-5);
  EXPECT_EQ(server.wait_for("adaptive_k_tokens_total" + of, 50), 50) << "scrapes go on";
}

}  // namespace
