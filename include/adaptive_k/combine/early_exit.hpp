// Early exit: a token whose intermediate prediction is confident enough skips the remaining layers.
#pragma once

#include <cstdint>
#include <limits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How the confidence of a prediction p = softmax(logits) over V tokens is measured.
enum class exit_signal : std::uint8_t {
  entropy,          ///< -sum p ln p in nats, 0..ln V; exits below the threshold
  max_probability,  ///< largest p, 1/V..1; exits above the threshold
};

/// When a token may leave. Plain data; `validate` checks it. The thresholds are per layer: layer i
/// decides on the prediction made from its output. The default never exits. Confidence thresholds
/// on the softmax are CALM's (arXiv 2207.07061), on the entropy DeeBERT's (arXiv 2004.12993).
struct early_exit_policy {
  static constexpr int max_layers = 256;  ///< that can have a threshold

  exit_signal signal = exit_signal::entropy;  ///< what the thresholds are compared with
  int num_layers = 0;  ///< thresholds that count, 0..256; later layers never exit
  /// [num_layers]. entropy: nats, 0 or more, 0 is never. max_probability: 0..1, 1 is never.
  float thresholds[max_layers] = {};

  /// The same threshold behind each of a model's first `layers` layers.
  static early_exit_policy uniform(exit_signal kind, float threshold, int layers) noexcept {
    early_exit_policy policy;
    policy.signal = kind;
    policy.num_layers = layers;
    for (int i = 0; i < layers && i < max_layers; ++i) policy.thresholds[i] = threshold;
    return policy;
  }

  /// Whether a token can leave after `layer`; if not, no prediction is needed there.
  bool asks(int layer) const noexcept {
    if (layer < 0 || layer >= num_layers || layer >= max_layers) return false;
    return signal == exit_signal::entropy ? thresholds[layer] > 0.0f : thresholds[layer] < 1.0f;
  }
};

/// Refuses values out of range; the message names field, value and range.
inline status validate(const early_exit_policy& policy) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (policy.signal != exit_signal::entropy && policy.signal != exit_signal::max_probability)
    return status::error(invalid, "`signal` is %d, expected an exit_signal",
                         static_cast<int>(policy.signal));
  if (policy.num_layers < 0 || policy.num_layers > early_exit_policy::max_layers)
    return status::error(invalid, "`num_layers` is %d, expected 0..%d", policy.num_layers,
                         early_exit_policy::max_layers);
  const bool is_entropy = policy.signal == exit_signal::entropy;
  for (int i = 0; i < policy.num_layers; ++i) {
    const float t = policy.thresholds[i];
    if (!(t >= 0.0f && t <= (is_entropy ? 1e30f : 1.0f)))
      return status::error(invalid, "`thresholds[%d]` is %g, expected %s", i,
                           static_cast<double>(t),
                           is_entropy ? "0 nats or more and finite" : "0..1");
  }
  return {};
}

/// The signal of one prediction: logits [vocab_size], finite or -inf. NaN, which never exits, when
/// a logit is NaN or +inf or none is finite. O(V), two passes, sums in double in index order.
inline float exit_confidence(exit_signal signal, const float* logits, int vocab_size) noexcept {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  float largest = -math::infinity;
  for (int v = 0; v < vocab_size; ++v) {
    if (!(logits[v] < math::infinity)) return nan;
    if (logits[v] > largest) largest = logits[v];
  }
  if (!(largest > -math::infinity)) return nan;
  double sum = 0.0;
  double weighted = 0.0;
  for (int v = 0; v < vocab_size; ++v) {
    const float below = logits[v] - largest;
    if (below < math::exp_floor) continue;
    const float e = math::exp(below);
    sum += static_cast<double>(e);
    weighted += static_cast<double>(e) * static_cast<double>(below);  // exact: fused or not
  }
  if (signal == exit_signal::max_probability) return static_cast<float>(1.0 / sum);
  const double entropy = static_cast<double>(math::log(static_cast<float>(sum))) - weighted / sum;
  return entropy > 0.0 ? static_cast<float>(entropy) : 0.0f;
}

/// Whether a token of this confidence leaves after `layer`. NaN stays. O(1).
inline bool exits(const early_exit_policy& policy, int layer, float confidence) noexcept {
  if (!policy.asks(layer)) return false;
  return policy.signal == exit_signal::entropy ? confidence < policy.thresholds[layer]
                                               : confidence > policy.thresholds[layer];
}

/// Counters, which += adds up in any order.
struct early_exit_metrics {
  std::uint64_t predictions = 0;      ///< intermediate predictions made: what deciding costs
  std::uint64_t exited = 0;           ///< tokens that left early
  std::uint64_t nan_confidences = 0;  ///< predictions whose confidence was NaN, which never exits
  std::uint64_t asked[early_exit_policy::max_layers] = {};  ///< predictions by layer
  std::uint64_t left[early_exit_policy::max_layers] = {};   ///< tokens that left, by layer

  /// Counts one decision made after `layer` (0..255; others are ignored).
  void count(int layer, float confidence, bool exit) noexcept {
    if (layer < 0 || layer >= early_exit_policy::max_layers) return;
    ++predictions;
    ++asked[layer];
    if (confidence != confidence) ++nan_confidences;
    if (!exit) return;
    ++exited;
    ++left[layer];
  }

  /// Share of the tokens asked after `layer` that left.
  double exit_rate(int layer) const noexcept {
    if (layer < 0 || layer >= early_exit_policy::max_layers || asked[layer] == 0) return 0.0;
    return static_cast<double>(left[layer]) / static_cast<double>(asked[layer]);
  }

  /// Layers that tokens skipped, summed over tokens; of tokens * num_layers.
  std::uint64_t skipped_layers(int num_layers) const noexcept {
    std::uint64_t sum = 0;
    for (int i = 0; i < num_layers && i < early_exit_policy::max_layers; ++i)
      sum += left[i] * static_cast<std::uint64_t>(num_layers - 1 - i);
    return sum;
  }

  /// Adds the counters of other calls, threads or ranks.
  early_exit_metrics& operator+=(const early_exit_metrics& other) noexcept {
    predictions += other.predictions;
    exited += other.exited;
    nan_confidences += other.nan_confidences;
    for (int i = 0; i < early_exit_policy::max_layers; ++i) {
      asked[i] += other.asked[i];
      left[i] += other.left[i];
    }
    return *this;
  }
};

ADAPTIVE_K_NAMESPACE_END
