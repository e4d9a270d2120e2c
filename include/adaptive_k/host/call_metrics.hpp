// The counts of one routing call, or of one thread's part of it.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/requests.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/top_k.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Adds a call's tokens to the caller's counts. Which experts they touched is known at the end,
/// from how many each got; of a single token, as in decoding, at once: walking over all experts
/// would take longer than routing it.
class call_metrics {
 public:
  /// `metrics` and `expert_counts` [num_experts] may be null. `shadow`: the policy's choices are
  /// counted too.
  call_metrics(routing_metrics* metrics, std::uint64_t* expert_counts, int num_experts,
               bool single_token, bool shadow) noexcept
      : metrics_(metrics),
        target_counts_(expert_counts),
        counts_(expert_counts),
        num_experts_(num_experts),
        single_(single_token),
        shadow_(shadow) {
    if (single_ || (metrics == nullptr && expert_counts == nullptr)) return;
    counts_ = own_counts_;
    for (int e = 0; e < num_experts; ++e) own_counts_[e] = 0;
  }
  call_metrics(const call_metrics&) = delete;
  call_metrics& operator=(const call_metrics&) = delete;

  void add_padding() noexcept {
    if (metrics_ != nullptr) ++metrics_->padding_tokens;
  }

  /// `ranks` is a loop_count of K0. No branch depends on k, which no processor can guess.
  template <int MaxTopK, class Ranks>
  ADAPTIVE_K_INLINE void add_token(const token_route<MaxTopK>& route, Ranks ranks) noexcept {
    if (counts_ != nullptr)
      for (int j = 0; j < ranks; ++j) counts_[route.expert[j]] += j < route.count ? 1u : 0u;
    if (metrics_ == nullptr) return;
    const auto k = static_cast<std::uint64_t>(route.count);
    ++metrics_->k_histogram[route.count];
    if (route.has_nonfinite) ++metrics_->nonfinite_rows;
    if (route.raised != 0) ++metrics_->super_expert_tokens;
    if (route.outside != 0) ++metrics_->out_of_domain;
    add(1, ranks, k, static_cast<std::uint64_t>(route.chosen), signal_to_fixed(route.signal),
        route.signal, route.signal);
    if (!single_) return;
    ++metrics_->calls;
    metrics_->distinct_experts += k;
    for (int j = 0; j < ranks; ++j) metrics_->touched_experts.add(route.expert[j], j < route.count);
  }
  /// Of a token that add_block counts.
  void add_nonfinite_row() noexcept {
    if (metrics_ != nullptr) ++metrics_->nonfinite_rows;
  }

#if ADAPTIVE_K_SIMD
  template <class F32>
  ADAPTIVE_K_INLINE void add_block(const token_block<F32::lanes>& block, int top_k) noexcept {
    if (counts_ == nullptr) return;
    using u32_vec = typename F32::u32_vec;
    const u32_vec count = u32_vec::load(block.count);
    // Experts that are not kept count where none is, in another place for each lane.
    const u32_vec nowhere = u32_vec::lane() + u32_vec(max_experts);
    std::uint32_t kept[F32::lanes];
    std::uint64_t expert_calls = 0;
    for (int j = 0; j < top_k; ++j) {
      u32_vec::store(kept,
                     u32_vec::select(count > u32_vec(j), u32_vec::load(block.expert[j]), nowhere));
      // Read back from memory: g++ would take the vector apart, lane by lane, which is far slower.
      __asm__("" : "+m"(kept));
      for (int lane = 0; lane < F32::lanes; ++lane) ++counts_[kept[lane]];
      const auto of_k = F32::mask::to_bits(count == u32_vec(j + 1));
      const auto tokens_of_k = static_cast<std::uint64_t>(__builtin_popcount(of_k));
      if (metrics_ != nullptr) metrics_->k_histogram[j + 1] += tokens_of_k;
      expert_calls += tokens_of_k * static_cast<std::uint64_t>(j + 1);
    }
    if (metrics_ == nullptr) return;
    std::uint64_t chosen = 0;
    if (shadow_)
      for (const std::uint32_t k : block.chosen) chosen += k;
    metrics_->super_expert_tokens +=
        static_cast<std::uint64_t>(__builtin_popcount(block.raised_lanes));
    metrics_->out_of_domain += static_cast<std::uint64_t>(__builtin_popcount(block.outside_lanes));
    const F32 signal = F32::load(block.signal);
    add(F32::lanes, top_k, expert_calls, chosen,
        F32::sum_truncated(signal * F32(static_cast<float>(signal_scale))),
        -F32::first(largest_of_lanes(-signal)), F32::first(largest_of_lanes(signal)));
  }
#endif

  /// After the last token.
  void finish() noexcept {
    if (single_ || counts_ == nullptr) return;
    expert_set touched;
    for (int e = 0; e < num_experts_; ++e) {
      touched.add(e, own_counts_[e] != 0);
      if (target_counts_ != nullptr) target_counts_[e] += own_counts_[e];
    }
    if (metrics_ == nullptr || touched.size() == 0) return;  // padding alone
    ++metrics_->calls;
    metrics_->distinct_experts += static_cast<std::uint64_t>(touched.size());
    metrics_->touched_experts |= touched;
  }

 private:
  /// Tokens that were routed, and the sum and the bounds of their signals.
  ADAPTIVE_K_INLINE void add(std::uint64_t tokens, int top_k, std::uint64_t expert_calls,
                             std::uint64_t chosen, std::int64_t signal_sum, float lowest,
                             float highest) noexcept {
    routing_metrics& to = *metrics_;
    const bool first = to.tokens == 0;
    const std::uint64_t full_calls = tokens * static_cast<std::uint64_t>(top_k);
    to.tokens += tokens;
    to.expert_calls += expert_calls;
    to.full_expert_calls += full_calls;
    if (shadow_) {
      to.shadow_expert_calls += chosen;
      to.shadow_full_expert_calls += full_calls;
    }
    add_wide(to.signal_sum_fixed, to.signal_sum_high, signal_sum);
    to.signal_lowest = first || lowest < to.signal_lowest ? lowest : to.signal_lowest;
    to.signal_highest = first || highest > to.signal_highest ? highest : to.signal_highest;
  }

  routing_metrics* metrics_;
  std::uint64_t* target_counts_;
  std::uint64_t* counts_;  ///< where tokens are counted by expert, or null
  int num_experts_;
  bool single_;
  bool shadow_;
  std::uint64_t own_counts_[max_experts + 16];  ///< the last: see add_block
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
