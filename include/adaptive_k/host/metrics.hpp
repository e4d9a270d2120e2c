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

  /// Bytes of one expert's weights.
  double expert_bytes() const noexcept {
    return static_cast<double>(hidden * intermediate * matrices) * bytes_per_weight;
  }
  /// Floating-point operations of one expert for one token.
  double flops_per_expert_call() const noexcept {
    return 2.0 * static_cast<double>(hidden * intermediate * matrices);
  }
};

namespace detail {
/// Adds to an integer of 128 bits in two words, two's complement.
inline void add_wide(std::int64_t& low, std::int64_t& high, std::int64_t added,
                     std::int64_t added_high) noexcept {
  const std::uint64_t sum = static_cast<std::uint64_t>(low) + static_cast<std::uint64_t>(added);
  const std::uint64_t carry = sum < static_cast<std::uint64_t>(added) ? 1 : 0;
  low = static_cast<std::int64_t>(sum);
  high = static_cast<std::int64_t>(static_cast<std::uint64_t>(high) +
                                   static_cast<std::uint64_t>(added_high) + carry);
}
inline void add_wide(std::int64_t& low, std::int64_t& high, std::int64_t added) noexcept {
  add_wide(low, high, added, added < 0 ? -1 : 0);
}
}  // namespace detail

/// A set of experts, a bit each.
struct expert_set {
  std::uint64_t words[max_experts / 64] = {};  ///< bit e % 64 of word e / 64

  /// Adds `expert`, 0..1023, where `condition` holds.
  void add(int expert, bool condition = true) noexcept {
    words[expert / 64] |= static_cast<std::uint64_t>(condition) << (expert % 64);
  }
  /// Whether it has `expert`, 0..1023.
  bool contains(int expert) const noexcept {
    return (words[expert / 64] >> (expert % 64) & 1) != 0;
  }
  /// Adds the experts of another.
  expert_set& operator|=(const expert_set& other) noexcept {
    for (int i = 0; i < max_experts / 64; ++i) words[i] |= other.words[i];
    return *this;
  }
  /// Experts in it, 0..1024.
  int size() const noexcept {
    int number = 0;
    for (std::uint64_t word : words)
      for (; word != 0; word &= word - 1) ++number;
    return number;
  }
};

struct routing_metrics;
void add_parts_of_call(const routing_metrics* parts, int num_parts,
                       routing_metrics* total) noexcept;

/// Counters of routing calls. Plain data: zero it, pass it, add it up with += over batches,
/// layers, threads and ranks; no result depends on the order, and nothing wraps: at a million
/// token-layers a second the first counter would be full after 18,000 years. How often each expert
/// ran is counted apart, where it is asked for: routing_output::expert_counts.
struct routing_metrics {
  std::uint64_t calls = 0;              ///< routing calls with at least one token
  std::uint64_t tokens = 0;             ///< routed tokens, padding left out
  std::uint64_t padding_tokens = 0;     ///< tokens skipped by the padding mask
  std::uint64_t expert_calls = 0;       ///< sum of k_t
  std::uint64_t full_expert_calls = 0;  ///< sum of K0: what the model's own routing would run
  std::uint64_t nonfinite_rows = 0;     ///< routed tokens with a NaN or infinite logit
  std::uint64_t distinct_experts = 0;   ///< sum over calls of experts that any token touched
  std::int64_t signal_sum_fixed = 0;    ///< low word of the sum of signals: see signal_sum()
  float signal_lowest = 0.0f;           ///< over `tokens`; 0 when there are none
  float signal_highest = 0.0f;          ///< likewise; both in the signal's unit
  std::uint64_t k_histogram[max_top_k + 1] = {};  ///< tokens by k_t
  std::int64_t signal_sum_high = 0;               ///< high word
  std::uint64_t shadow_expert_calls = 0;          ///< in shadow mode: sum of the k the policy chose
  std::uint64_t shadow_full_expert_calls = 0;     ///< and of K0, over the same tokens
  expert_set touched_experts;                     ///< that any token touched in any call
  /// Tokens for which the policy chose more experts than its rule says, as it drops no super
  /// expert; in shadow mode and replay too, where k is not the policy's.
  std::uint64_t super_expert_tokens = 0;
  /// Tokens that do not look like those that the policy was calibrated on: outside of its
  /// domain_bounds. 0 where it has none.
  std::uint64_t out_of_domain = 0;

  /// Adds the counters of other calls, layers, threads or ranks.
  routing_metrics& operator+=(const routing_metrics& other) noexcept;

  /// 1 - sum k_t / sum K0, in [0, 1): against the model's own top-k, never against all E. 0 when
  /// nothing was routed.
  double expert_savings() const noexcept {
    return full_expert_calls == 0 ? 0.0 : 1.0 - ratio(expert_calls, full_expert_calls);
  }
  /// What the policy would have saved of the calls in shadow mode (those that gave
  /// routing_output::chosen_counts), counted likewise; 0 when there was none. `expert_savings` of
  /// the same calls is 0: they ran full K.
  double shadow_expert_savings() const noexcept {
    return shadow_full_expert_calls == 0
               ? 0.0
               : 1.0 - ratio(shadow_expert_calls, shadow_full_expert_calls);
  }
  /// Mean k_t; 0 when nothing was routed.
  double mean_k() const noexcept { return ratio(expert_calls, tokens); }
  /// Sum of signals, in their own unit: signal_sum_high * 2^64 + signal_sum_fixed (its bits) is the
  /// sum in units of 2^-24, exact and so the same in any order.
  double signal_sum() const noexcept {
    constexpr double word = 18446744073709551616.0;
    const bool one_word = signal_sum_high == (signal_sum_fixed < 0 ? -1 : 0);
    const double fixed =
        one_word ? static_cast<double>(signal_sum_fixed)
                 : static_cast<double>(signal_sum_high) * word +
                       static_cast<double>(static_cast<std::uint64_t>(signal_sum_fixed));
    return fixed / detail::signal_scale;
  }
  /// Mean signal, in its own unit; 0 when nothing was routed.
  double mean_signal() const noexcept {
    return tokens == 0 ? 0.0 : signal_sum() / static_cast<double>(tokens);
  }
  /// Share of the tokens that are out of domain; 0 when nothing was routed.
  double out_of_domain_share() const noexcept { return ratio(out_of_domain, tokens); }
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
  static double ratio(std::uint64_t part, std::uint64_t whole) noexcept {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

static_assert(sizeof(routing_metrics) <= 512, "metrics travel with every call");

inline routing_metrics& routing_metrics::operator+=(const routing_metrics& other) noexcept {
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
  detail::add_wide(signal_sum_fixed, signal_sum_high, other.signal_sum_fixed,
                   other.signal_sum_high);
  shadow_expert_calls += other.shadow_expert_calls;
  shadow_full_expert_calls += other.shadow_full_expert_calls;
  for (int k = 0; k <= max_top_k; ++k) k_histogram[k] += other.k_histogram[k];
  touched_experts |= other.touched_experts;
  super_expert_tokens += other.super_expert_tokens;
  out_of_domain += other.out_of_domain;
  return *this;
}

/// Adds to `total` what the ranges of one call counted, each in a struct of its own: the same as if
/// the call had not been split.
inline void add_parts_of_call(const routing_metrics* parts, int num_parts,
                              routing_metrics* total) noexcept {
  routing_metrics call;
  for (int i = 0; i < num_parts; ++i) call += parts[i];
  call.calls = call.tokens != 0 ? 1 : 0;
  call.distinct_experts = static_cast<std::uint64_t>(call.touched_experts.size());
  *total += call;
}

ADAPTIVE_K_NAMESPACE_END
