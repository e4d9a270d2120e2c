// One way of routing a model, with what it chose kept for counting.
#pragma once

#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <adaptive_k/host/metrics.hpp>
#include <adaptive_k/host/router.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/adaptive_k/measure/distinct_experts.hpp"

namespace bench {

using adaptive_k::k_assignment;

inline constexpr int decode_batches[] = {1, 16, 64};

/// One layer's routing call, as it ended. Pointers are valid during the observation.
struct observed_call {
  int layer;
  const adaptive_k::routing_metrics& metrics;  ///< of this call alone
  double seconds;
  const float* signal;         ///< [num_tokens]
  const std::int32_t* counts;  ///< [num_tokens]
  std::int64_t num_tokens;
};

class variant {
 public:
  /// `adaptive` chooses the K's; `full` (see adaptive_k::full_like) routes again where they are
  /// reassigned. Throws failure when a router refuses its policies.
  variant(std::string name, adaptive_k::router adaptive, adaptive_k::router full,
          k_assignment assignment = k_assignment::chosen, std::uint64_t seed = 0);

  /// For a model of `num_layers`; sequences of `length` tokens for the decode steps.
  void prepare(int num_layers, int length);

  /// Routes one layer's call; counts metrics, keeps ids, K's and signals. `output.signal` may be
  /// null. A moe_engine::route_function.
  adaptive_k::status route(int layer, const adaptive_k::logits_view<float>& logits,
                           const adaptive_k::routing_output<>& output,
                           const adaptive_k::routing_extras& extras = {});

  /// Calls `observer` after each successful routing call, on its thread.
  void observe(std::function<void(const observed_call&)> observer) {
    observer_ = std::move(observer);
  }

  /// After the layers of `num_windows` windows: counts their distinct experts.
  void count_distinct(std::int64_t num_windows);

  const std::string& name() const noexcept { return name_; }
  const adaptive_k::router& router() const noexcept { return adaptive_; }
  const std::vector<adaptive_k::routing_metrics>& layers() const noexcept { return metrics_; }
  adaptive_k::routing_metrics total() const;
  const std::vector<distinct_experts>& distinct() const noexcept { return distinct_; }

  /// Of the layer's last call: [T, K0], [T], [T]. Signals of the policy, K's as dealt out.
  const std::vector<std::int32_t>& ids(int layer) const { return at(layer).ids; }
  const std::vector<std::int32_t>& counts(int layer) const { return at(layer).counts; }
  const std::vector<float>& signal(int layer) const { return at(layer).signal; }

 private:
  struct last_call {
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> counts;
    std::vector<float> signal;
  };

  const last_call& at(int layer) const { return last_[static_cast<std::size_t>(layer)]; }

  std::string name_;
  adaptive_k::router adaptive_;
  adaptive_k::router full_;
  k_assignment assignment_;
  adaptive_k::integer_rng rng_;
  std::function<void(const observed_call&)> observer_;
  int length_ = 0;
  std::vector<adaptive_k::routing_metrics> metrics_;  // [layers]
  std::vector<distinct_experts> distinct_;            // [decode_batches]
  std::vector<last_call> last_;                       // [layers]
  std::vector<std::uint8_t> dealt_;                   // K's by token
};

}  // namespace bench
