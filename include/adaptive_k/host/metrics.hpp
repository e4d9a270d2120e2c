// What adaptive K saved: integer counters that add up, and the ratios derived from them.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Sizes of a model's experts, for savings in FLOPs and bytes.
struct expert_sizes {
  std::int64_t hidden = 0;        ///< model width
  std::int64_t intermediate = 0;  ///< expert width
  int matrices = 3;               ///< [hidden, intermediate] matrices per expert; 3 for SwiGLU
  double bytes_per_weight = 2.0;  ///< as the engine stores experts

  double expert_bytes() const noexcept {
    return static_cast<double>(hidden * intermediate * matrices) * bytes_per_weight;
  }
  double flops_per_expert_call() const noexcept {
    return 2.0 * static_cast<double>(hidden * intermediate * matrices);
  }
};

struct routing_metrics;
void add_parts_of_call(const routing_metrics* parts, int num_parts,
                       routing_metrics* total) noexcept;

/// Counters of routing calls. Plain data: zero it, pass it, add it up with += over batches,
/// layers, threads and ranks; no result depends on the order. Expert counts of different layers
/// fall on the same index, so keep one struct per layer where that matters.
struct routing_metrics {
  std::uint64_t calls = 0;              ///< routing calls with at least one token
  std::uint64_t tokens = 0;             ///< routed tokens, padding left out
  std::uint64_t padding_tokens = 0;     ///< tokens skipped by the padding mask
  std::uint64_t expert_calls = 0;       ///< sum of k_t
  std::uint64_t full_expert_calls = 0;  ///< sum of K0: what the model's own routing would run
  std::uint64_t nonfinite_rows = 0;     ///< routed tokens with a NaN or infinite logit
  std::uint64_t distinct_experts = 0;   ///< sum over calls of experts that any token touched
  std::int64_t signal_sum_fixed = 0;    ///< sum of signals in 2^-24 units, exact in any order
  float signal_lowest = 0.0f;           ///< over `tokens`; 0 when there are none
  float signal_highest = 0.0f;
  std::uint64_t k_histogram[max_top_k + 1] = {};  ///< tokens by k_t
  std::uint64_t expert_counts[max_experts] = {};  ///< tokens by expert

  routing_metrics& operator+=(const routing_metrics& other) noexcept {
    add_all_but_experts(other);
    for (int e = 0; e < max_experts; ++e) expert_counts[e] += other.expert_counts[e];
    return *this;
  }

  /// 1 - sum k_t / sum K0, in [0, 1): against the model's own top-k, never against all E. 0 when
  /// nothing was routed.
  double expert_savings() const noexcept {
    return full_expert_calls == 0 ? 0.0 : 1.0 - ratio(expert_calls, full_expert_calls);
  }
  /// Mean k_t; 0 when nothing was routed.
  double mean_k() const noexcept { return ratio(expert_calls, tokens); }
  /// Mean signal, in its own unit; 0 when nothing was routed.
  double mean_signal() const noexcept {
    return tokens == 0 ? 0.0
                       : static_cast<double>(signal_sum_fixed) / detail::signal_scale /
                             static_cast<double>(tokens);
  }
  /// Mean distinct experts of a call; 0 when nothing was routed.
  double mean_distinct_experts() const noexcept { return ratio(distinct_experts, calls); }
  /// FLOPs that the skipped experts would have taken.
  double flops_saved(const expert_sizes& sizes) const noexcept {
    return static_cast<double>(full_expert_calls - expert_calls) * sizes.flops_per_expert_call();
  }
  /// Expert weight bytes that the calls had to read, each distinct expert once a call.
  double expert_bytes_read(const expert_sizes& sizes) const noexcept {
    return static_cast<double>(distinct_experts) * sizes.expert_bytes();
  }

 private:
  friend void add_parts_of_call(const routing_metrics* parts, int num_parts,
                                routing_metrics* total) noexcept;

  void add_all_but_experts(const routing_metrics& other) noexcept {
    if (other.tokens != 0) {
      const bool first = tokens == 0;
      if (first || other.signal_lowest < signal_lowest) signal_lowest = other.signal_lowest;
      if (first || other.signal_highest > signal_highest) signal_highest = other.signal_highest;
    }
    calls += other.calls;
    tokens += other.tokens;
    padding_tokens += other.padding_tokens;
    expert_calls += other.expert_calls;
    full_expert_calls += other.full_expert_calls;
    nonfinite_rows += other.nonfinite_rows;
    distinct_experts += other.distinct_experts;
    signal_sum_fixed += other.signal_sum_fixed;
    for (int k = 0; k <= max_top_k; ++k) k_histogram[k] += other.k_histogram[k];
  }

  static double ratio(std::uint64_t part, std::uint64_t whole) noexcept {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

/// Adds to `total` what the ranges of one call counted, each in a struct of its own: the same as if
/// the call had not been split.
inline void add_parts_of_call(const routing_metrics* parts, int num_parts,
                              routing_metrics* total) noexcept {
  const std::uint64_t calls = total->calls;
  const std::uint64_t tokens = total->tokens;
  std::uint64_t distinct = total->distinct_experts;
  for (int i = 0; i < num_parts; ++i) total->add_all_but_experts(parts[i]);
  // One pass for all: this stands beside the routing of few tokens by each thread.
  for (int e = 0; e < max_experts; ++e) {
    std::uint64_t sum = 0;
    for (int i = 0; i < num_parts; ++i) sum += parts[i].expert_counts[e];
    total->expert_counts[e] += sum;
    distinct += sum != 0 ? 1u : 0u;
  }
  total->calls = calls + (total->tokens != tokens ? 1u : 0u);
  total->distinct_experts = distinct;
}

ADAPTIVE_K_NAMESPACE_END
