// Collects the least time of every benchmark of a run and prints what it is to the library's.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <string>
#include <vector>

namespace routing_bench {

/// Shows runs as --benchmark_format asks, and remembers the least times of a call, by name.
class ratio_reporter : public benchmark::BenchmarkReporter {
 public:
  /// After benchmark::Initialize, which reads the format.
  ratio_reporter() : shown_(benchmark::CreateDefaultDisplayReporter()) {}
  bool ReportContext(const Context& context) override { return shown_->ReportContext(context); }
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override { shown_->Finalize(); }
  /// On stdout, or on stderr where stdout is JSON or CSV: ns per token, and each baseline's time
  /// over that of `route/adaptive_k` at the same shape: processor time, which other programs
  /// disturb less, and real time where two threads are measured.
  void print_ratios() const;

 private:
  struct seconds {
    double processor;
    double real;
  };
  benchmark::BenchmarkReporter* shown_;  // the library's own
  std::map<std::string, seconds> best_;
};

}  // namespace routing_bench
