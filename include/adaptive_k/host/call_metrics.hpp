// The counts of one routing call, or of one thread's part of it.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/block_counts.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/target.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Gathers one call's counts, and adds them to the caller's struct at the end. A single token, as
/// in decoding, is counted there at once: walking over all experts would take longer than routing
/// it.
class call_metrics {
 public:
  /// `shadow`: the policy's choices are counted too, by `add_chosen`.
  call_metrics(routing_metrics* target, int num_experts, std::int64_t num_tokens,
               bool shadow) noexcept
      : target_(target), num_experts_(num_experts), single_(num_tokens == 1), shadow_(shadow) {
    blocks_.blocks = 0;
    if (target == nullptr || single_) return;
    for (int e = 0; e < num_experts; ++e) expert_counts_[e] = 0;
    for (std::uint32_t& tokens : k_histogram_) tokens = 0;
  }

  void add_padding() noexcept { ++padding_tokens_; }
  void add_nonfinite_row() noexcept { ++nonfinite_rows_; }
  /// The k that the policy chose for a token that is counted, whatever was routed.
  void add_chosen(std::uint32_t k) noexcept { chosen_ += k; }
  bool shadow() const noexcept { return shadow_; }

  void add_token(const int* experts, int count, float signal) noexcept {
    if (target_ == nullptr) return;
    if (single_) {
      for (int j = 0; j < count; ++j) ++target_->expert_counts[experts[j]];
      ++target_->k_histogram[count];
      target_->expert_calls += static_cast<std::uint64_t>(count);
      target_->distinct_experts += static_cast<std::uint64_t>(count);
    } else {
      for (int j = 0; j < count; ++j) ++expert_counts_[experts[j]];
      ++k_histogram_[count];
    }
    add_signals(signal_to_fixed(signal));
    note_signals(signal, signal);
    ++tokens_;
  }

#if ADAPTIVE_K_SIMD
  /// A token a lane; lane i of `experts` is at [rank][i].
  template <class Reals>
  ADAPTIVE_K_INLINE void add_lanes(const std::uint32_t (*experts)[Reals::lanes], int top_k,
                                   const std::uint32_t* counts, const float* signals) noexcept {
    if (target_ == nullptr) return;
    using words = typename Reals::words;
    const words count = words::load(counts);
    // Experts that are not kept count where none is, in another place for each lane.
    const words nowhere = words::lane() + words(max_experts);
    std::uint32_t kept[Reals::lanes];
    for (int j = 0; j < top_k; ++j) {
      const auto is_kept = count > words(j);
      words::store(kept, words::select(is_kept, words::load(experts[j]), nowhere));
      // Read back from memory: g++ would take the vector apart, lane by lane, which is far slower.
      __asm__("" : "+m"(kept));
      for (int lane = 0; lane < Reals::lanes; ++lane) ++expert_counts_[kept[lane]];
      const auto of_k = Reals::mask::to_bits(count == words(j + 1));
      k_histogram_[j + 1] += static_cast<std::uint32_t>(__builtin_popcount(of_k));
    }
    const Reals signal = Reals::load(signals);
    add_signals(Reals::sum_truncated(signal * Reals(static_cast<float>(signal_scale))));
    note_signals(-Reals::first(largest_of_lanes(-signal)), Reals::first(largest_of_lanes(signal)));
    tokens_ += Reals::lanes;
  }
#endif

#if ADAPTIVE_K_SIMD
  /// Where up to `number` blocks of `lanes` tokens count, null where nothing is counted; the result
  /// is how many of them there is room for, one or more.
  ADAPTIVE_K_INLINE std::int64_t lend_to_blocks(int lanes, std::int64_t number,
                                                block_counts*& counts,
                                                std::uint32_t*& expert_counts) noexcept {
    if (target_ == nullptr) return number;
    if (blocks_.blocks == most_counted_blocks || blocks_.blocks == 0) start_blocks(lanes);
    counts = &blocks_;
    expert_counts = expert_counts_;
    const int room = most_counted_blocks - blocks_.blocks;
    return number < room ? number : room;
  }
#endif

  /// Adds all to the target.
  void finish(int top_k) noexcept {
    if (target_ == nullptr) return;
    add_blocks();
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
    std::uint64_t distinct = 0;
    for (int e = 0; e < num_experts_; ++e) {
      target_->expert_counts[e] += expert_counts_[e];
      distinct += expert_counts_[e] != 0 ? 1u : 0u;
    }
    target_->distinct_experts += distinct;
  }

 private:
  ADAPTIVE_K_INLINE void add_signals(std::int64_t sum) noexcept {
    add_wide(signal_sum_, signal_sum_high_, sum);
  }

  ADAPTIVE_K_INLINE void note_signals(float lowest, float highest) noexcept {
    lowest_ = tokens_ == 0 || lowest < lowest_ ? lowest : lowest_;
    highest_ = tokens_ == 0 || highest > highest_ ? highest : highest_;
  }

  void start_blocks(int lanes) noexcept {
    add_blocks();
    blocks_ = {};
    for (float& lowest : blocks_.lowest) lowest = math::infinity;
    block_lanes_ = lanes;
  }

  void add_blocks() noexcept {
    if (blocks_.blocks == 0) return;
    add_fields(blocks_.k, k_histogram_ + 1);
    for (int word = 0; word < 2; ++word)
      add_fields(blocks_.experts[word], expert_counts_ + word * fields_of_word);
    float lowest = math::infinity;
    float highest = 0.0f;
    for (int lane = 0; lane < block_lanes_; ++lane) {
      add_signals(blocks_.signal[lane]);
      lowest = math::smaller(lowest, blocks_.lowest[lane]);
      highest = math::larger(highest, blocks_.highest[lane]);
    }
    note_signals(lowest, highest);
    tokens_ +=
        static_cast<std::uint64_t>(blocks_.blocks) * static_cast<std::uint64_t>(block_lanes_);
    blocks_.blocks = 0;
  }

  routing_metrics* target_;
  int num_experts_;
  bool single_;
  bool shadow_;
  std::uint64_t tokens_ = 0;
  std::uint64_t chosen_ = 0;
  std::uint64_t padding_tokens_ = 0;
  std::uint64_t nonfinite_rows_ = 0;
  std::int64_t signal_sum_ = 0;
  std::int64_t signal_sum_high_ = 0;
  float lowest_ = 0.0f;
  float highest_ = 0.0f;
  int block_lanes_ = 0;
  // A call has max_tokens tokens at most: none of these can wrap.
  std::uint32_t k_histogram_[max_top_k + 1];
  std::uint32_t expert_counts_[max_experts + 16];  ///< the last: see add_lanes
  block_counts blocks_;                            ///< counted, but not added yet
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
