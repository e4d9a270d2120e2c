// The policy of each model that runs in this process, and what is told about it: lines, log,
// metrics.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/router.hpp"
#include "adaptive_k/observability/json_log.hpp"
#include "adaptive_k/observability/prometheus.hpp"
#include "moe_layer.hpp"
#include "settings.hpp"

namespace adaptive_k_ggml {

/// A line on stderr, as llama.cpp's own are.
void say(const char* format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/// What tells models apart whose graphs this process computes.
struct model_shape {
  int num_experts = 0;
  std::int64_t width = 0;
  bool operator<(const model_shape& other) const {
    return num_experts != other.num_experts ? num_experts < other.num_experts : width < other.width;
  }
};

/// One token's decisions of one call.
struct routed_batch_view {
  const std::int32_t* counts = nullptr;  ///< [T]
  const float* factors = nullptr;        ///< [T]
};

/// The policy of one model at one K0.
class model_policy {
 public:
  /// `numbers`: llama.cpp's numbers of the model's MoE layers, ascending. What does not fit is in
  /// `refusal()`, and the model runs at full K.
  model_policy(const settings& set, const moe_layer& layer, std::vector<int> numbers);

  const std::string& refusal() const { return refusal_; }
  const std::string& model_name() const { return model_name_; }
  const std::string& policy_name() const { return policy_name_; }

  /// The layer's place among the MoE layers; -1: it is none of them.
  int index_of(int number) const;
  bool is_last(int number) const { return !numbers_.empty() && numbers_.back() == number; }
  const adaptive_k::router& router() const { return *router_; }

  /// "" or how the graph's gating differs from what the policy was made for.
  std::string mismatch(const moe_layer& layer) const;

  /// "" or how the experts and weights that the graph chose differ from those of the library at
  /// full K: then the gating was misread. Looks at up to 64 tokens.
  std::string check_choice(const moe_layer& layer, const float* logits) const;

 private:
  void choose_policy(const settings& set);

  adaptive_k::gating model_;
  std::vector<int> numbers_;
  std::string model_name_, policy_name_, refusal_;
  std::unique_ptr<adaptive_k::router> router_, full_;
};

/// Everything of this process: settings, models, counters. Its functions may be called by any
/// thread.
class routing_service {
 public:
  explicit routing_service(settings set);

  const settings& own_settings() const { return settings_; }

  /// Remembers that a model has this MoE layer. Called as graphs are planned, before any runs.
  void announce(const model_shape& shape, int number);

  /// The policy of a layer's model, made at its first use; null where that must run at full K.
  std::shared_ptr<const model_policy> policy_of(const moe_layer& layer, const float* logits);

  /// Says `why` a layer runs at full K, once for each reason.
  void say_passed(int number, const std::string& why);

  /// Counts a layer's call.
  void record(const model_policy& policy, int number, const adaptive_k::routing_metrics& metrics,
              double seconds);

  /// Sums since the process began.
  adaptive_k::routing_metrics total() const;

  /// Writes what the log still holds; as the process ends.
  void flush_log();

 private:
  using series = adaptive_k::prometheus_recorder::series;
  struct known_model {
    std::set<int> numbers;
    std::map<int, std::shared_ptr<const model_policy>> by_top_k;
    std::set<int> checked;  ///< layers whose choice was compared
    std::set<int> refused;
  };

  mutable std::mutex mutex_;
  settings settings_;
  std::map<model_shape, known_model> models_;
  std::set<std::string> said_;
  std::map<std::pair<const model_policy*, int>, series*> series_;
  adaptive_k::routing_metrics total_, batch_;
  double batch_seconds_ = 0.0;
  std::unique_ptr<adaptive_k::json_logger> logger_;
};

}  // namespace adaptive_k_ggml
