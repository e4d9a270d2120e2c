// Collects the least time of every benchmark of a run and prints what it is to the library's.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <string>
#include <vector>

namespace routing_bench {

/// As the console reporter, and remembers the least times of a call, by name.
class ratio_reporter : public benchmark::ConsoleReporter {
 public:
  ratio_reporter() : ConsoleReporter(OO_Tabular) {}
  void ReportRuns(const std::vector<Run>& runs) override;
  /// ns per token, and each rival's time over that of `route/adaptive_k` at the same shape:
  /// processor time, which other programs disturb less, and real time where two threads are
  /// measured.
  void print_ratios() const;

 private:
  struct seconds {
    double processor;
    double real;
  };
  std::map<std::string, seconds> best_;
};

}  // namespace routing_bench
