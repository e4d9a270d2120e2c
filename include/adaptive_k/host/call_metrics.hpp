// The counts of one routing call, or of one thread's part of it.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/expert_lanes.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/token_lanes.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Gathers one call's counts, and adds them to the caller's at the end. A single token, as in
/// decoding, is counted there at once: walking over all experts would take longer than routing it.
class call_metrics {
 public:
  /// `target` and `expert_counts` [num_experts] may be null. `shadow`: the policy's choices are
  /// counted too.
  call_metrics(routing_metrics* target, std::uint64_t* expert_counts, int num_experts,
               std::int64_t num_tokens, bool shadow) noexcept
      : target_(target),
        target_counts_(expert_counts),
        num_experts_(num_experts),
        single_(num_tokens == 1),
        counts_(target != nullptr || expert_counts != nullptr),
        shadow_(shadow) {
    if (!counts_ || single_) return;
    for (int e = 0; e < num_experts; ++e) expert_counts_[e] = 0;
    for (std::uint32_t& tokens : k_histogram_) tokens = 0;
  }

  void add_padding() noexcept { ++padding_tokens_; }

  /// No branch depends on k, which no processor can guess.
  void add_token(const token_route<max_top_k>& route, int top_k) noexcept {
    if (!counts_) return;
    if (single_) {
      if (target_counts_ != nullptr)
        for (int j = 0; j < top_k; ++j)
          target_counts_[route.expert[j]] += j < route.count ? 1u : 0u;
      if (target_ == nullptr) return;
      for (int j = 0; j < top_k; ++j)
        target_->touched_experts.add(route.expert[j], j < route.count);
      ++target_->k_histogram[route.count];
      target_->expert_calls += static_cast<std::uint64_t>(route.count);
      target_->distinct_experts += static_cast<std::uint64_t>(route.count);
    } else {
      for (int j = 0; j < top_k; ++j) expert_counts_[route.expert[j]] += j < route.count ? 1u : 0u;
      ++k_histogram_[route.count];
    }
    if (route.has_nonfinite) ++nonfinite_rows_;
    if (shadow_) chosen_ += static_cast<std::uint64_t>(route.chosen);
    add_signals(signal_to_fixed(route.signal), route.signal, route.signal);
    ++tokens_;
  }
  /// Of a token that add_block counts.
  void add_nonfinite_row() noexcept { ++nonfinite_rows_; }

#if ADAPTIVE_K_SIMD
  template <class F32>
  ADAPTIVE_K_INLINE void add_block(const token_block<F32::lanes>& block, int top_k) noexcept {
    if (!counts_) return;
    using u32 = typename F32::u32;
    const u32 count = u32::load(block.count);
    // Experts that are not kept count where none is, in another place for each lane.
    const u32 nowhere = u32::lane() + u32(max_experts);
    std::uint32_t kept[F32::lanes];
    for (int j = 0; j < top_k; ++j) {
      u32::store(kept, u32::select(count > u32(j), u32::load(block.expert[j]), nowhere));
      // Read back from memory: g++ would take the vector apart, lane by lane, which is far slower.
      __asm__("" : "+m"(kept));
      for (int lane = 0; lane < F32::lanes; ++lane) ++expert_counts_[kept[lane]];
      const auto of_k = F32::mask::to_bits(count == u32(j + 1));
      k_histogram_[j + 1] += static_cast<std::uint32_t>(__builtin_popcount(of_k));
    }
    if (shadow_)
      for (const std::uint32_t k : block.chosen) chosen_ += k;
    const F32 signal = F32::load(block.signal);
    add_signals(F32::sum_truncated(signal * F32(static_cast<float>(signal_scale))),
                -F32::first(largest_of_lanes(-signal)), F32::first(largest_of_lanes(signal)));
    tokens_ += F32::lanes;
  }
#endif

  /// Adds all to the targets.
  void finish(int top_k) noexcept {
    if (!single_ && target_counts_ != nullptr && tokens_ != 0)
      for (int e = 0; e < num_experts_; ++e) target_counts_[e] += expert_counts_[e];
    if (target_ == nullptr) return;
    target_->padding_tokens += padding_tokens_;
    if (tokens_ == 0) return;
    const bool first = target_->tokens == 0;
    if (first || lowest_ < target_->signal_lowest) target_->signal_lowest = lowest_;
    if (first || highest_ > target_->signal_highest) target_->signal_highest = highest_;
    target_->calls += 1;
    target_->tokens += tokens_;
    target_->full_expert_calls += tokens_ * static_cast<std::uint64_t>(top_k);
    target_->nonfinite_rows += nonfinite_rows_;
    add_wide(target_->signal_sum_fixed, target_->signal_sum_high, signal_sum_, signal_sum_high_);
    if (shadow_) {
      target_->shadow_expert_calls += chosen_;
      target_->shadow_full_expert_calls += tokens_ * static_cast<std::uint64_t>(top_k);
    }
    if (single_) return;
    for (int k = 0; k <= top_k; ++k) {
      target_->k_histogram[k] += k_histogram_[k];
      target_->expert_calls += static_cast<std::uint64_t>(k) * k_histogram_[k];
    }
    expert_set touched;
    for (int e = 0; e < num_experts_; ++e) touched.add(e, expert_counts_[e] != 0);
    target_->distinct_experts += static_cast<std::uint64_t>(touched.size());
    target_->touched_experts |= touched;
  }

 private:
  ADAPTIVE_K_INLINE void add_signals(std::int64_t sum, float lowest, float highest) noexcept {
    add_wide(signal_sum_, signal_sum_high_, sum);
    lowest_ = tokens_ == 0 || lowest < lowest_ ? lowest : lowest_;
    highest_ = tokens_ == 0 || highest > highest_ ? highest : highest_;
  }

  routing_metrics* target_;
  std::uint64_t* target_counts_;
  int num_experts_;
  bool single_;
  bool counts_;
  bool shadow_;
  std::uint64_t tokens_ = 0;
  std::uint64_t chosen_ = 0;
  std::uint64_t padding_tokens_ = 0;
  std::uint64_t nonfinite_rows_ = 0;
  std::int64_t signal_sum_ = 0;
  std::int64_t signal_sum_high_ = 0;
  float lowest_ = 0.0f;
  float highest_ = 0.0f;
  // A call has max_tokens tokens at most: none of these can wrap.
  std::uint32_t k_histogram_[max_top_k + 1];
  std::uint32_t expert_counts_[max_experts + 16];  ///< the last: see add_block
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
