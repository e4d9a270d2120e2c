// What a run shows while it runs: metrics on a port, and log lines.
#pragma once

#include <memory>
#include <string>

#include "bench/adaptive_k/measure/variant.hpp"

namespace bench {

struct live_options {
  int metrics_port = -1;           ///< below 0: no endpoint; 0: any free port
  std::string log;                 ///< file of the log lines; "-": stdout; empty: none
  std::string log_fields = "ecs";  ///< or "datadog"
};

class live_view {
 public:
  /// Listens, or throws failure. Says on stderr where the metrics are. The log is opened by the
  /// first `watch`, when all else is known to be right.
  explicit live_view(const live_options& options);
  ~live_view();
  live_view(const live_view&) = delete;
  live_view& operator=(const live_view&) = delete;

  /// Shows each routing call of `routing`, under these names. This must outlive its routing. Where
  /// more than twice `outside` of the tokens, a share, are out of the policy's domain, a line of
  /// the log warns of it, once; 0: 2%.
  void watch(variant& routing, const std::string& model, const std::string& policy,
             double outside = 0.0);

  /// Writes the remaining lines, as long as their reader reads. Throws failure if the log could not
  /// be written, and says on stderr how many lines were dropped, if any.
  void finish();

 private:
  struct parts;
  std::unique_ptr<parts> parts_;  // null: nothing to show
};

}  // namespace bench
