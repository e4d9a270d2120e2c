// The labels, options and formats of prometheus.hpp.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What identifies a time series. Names may be any bytes: a zero byte, or one that is not UTF-8, is
/// exposed as U+FFFD and its two hexadecimal digits, and U+FFFD itself twice, so that different
/// labels stay different.
struct metric_labels {
  std::string_view model;   ///< by name
  int layer = -1;           ///< negative: all layers together, exposed as layer="all"
  std::string_view policy;  ///< by name
};

/// What is exposed, and limits on its cost. The recorder's constructor throws for values out of
/// range.
struct prometheus_options {
  /// Upper bounds in seconds, finite and ascending, 1 to 64 of them; +Inf is added.
  std::vector<double> latency_buckets = {1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
                                         1e-3, 2.5e-3, 5e-3, 0.01, 0.025,  0.05, 0.1,  0.25,   1.0};
  /// Upper bounds in nats, likewise. ln 1024 is 6.93.
  std::vector<double> entropy_buckets = {0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75,
                                         2.0, 2.5,  3.0, 3.5,  4.0, 5.0,  6.0};
  /// Above 0: expose adaptive_k_expert_load_total of experts 0 to expert_load - 1 (and of later
  /// ones that had load): that many series for each model, layer and policy. At most max_experts.
  int expert_load = 0;
  /// Distinct labels that are followed; batches of further ones are counted as dropped. At most
  /// 2^20. Each takes 0.7 kB a shard, 9 kB with expert_load.
  std::size_t max_series = 4096;
  /// Of a model's and of a policy's name; batches of longer ones are counted as dropped. 1 to
  /// 65536.
  std::size_t max_label_bytes = 256;
  /// Copies of each counter, so that as many threads record without sharing a cache line. 1 to 256.
  int shards = 8;
};

/// How metrics are written.
enum class exposition {
  prometheus,   ///< text format 0.0.4, which every Prometheus reads
  openmetrics,  ///< OpenMetrics 1.0.0
};

/// The value of Content-Type.
inline const char* content_type(exposition format) noexcept {
  return format == exposition::openmetrics
             ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
             : "text/plain; version=0.0.4; charset=utf-8";
}

ADAPTIVE_K_NAMESPACE_END
