// Metrics accumulated on the device: integers only, so that no order of threads shows in them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Counters in device memory, at an address of the caller's. All zero is empty; launches add to it,
/// one at a time: streams that may run together need one each.
struct device_metrics {
  unsigned long long calls;                ///< as routing_metrics, and so on below
  unsigned long long tokens;               ///< routed, padding left out
  unsigned long long padding_tokens;       ///< skipped by the padding mask
  unsigned long long expert_calls;         ///< sum of k_t
  unsigned long long full_expert_calls;    ///< sum of K0
  unsigned long long nonfinite_rows;       ///< routed tokens with a NaN or infinite logit
  unsigned long long distinct_experts;     ///< sum over calls of experts that any token touched
  unsigned long long signal_sum_fixed;     ///< two's complement, with signal_sum_high above it
  unsigned int lowest_inverted;            ///< ~order key of the lowest signal
  unsigned int highest;                    ///< order key of the highest signal
  unsigned int touched[max_experts / 32];  ///< this launch's experts; zero between launches
  unsigned int blocks_done;                ///< likewise
  unsigned int tokens_in_launch;           ///< likewise
  unsigned long long k_histogram[max_top_k + 1];         ///< tokens by k_t
  unsigned long long touched_experts[max_experts / 64];  ///< of all launches, a bit each
  unsigned long long signal_sum_high;                    ///< high word
  unsigned long long shadow_expert_calls;       ///< in shadow mode: sum of the k the policy chose
  unsigned long long shadow_full_expert_calls;  ///< and of K0
  unsigned long long super_expert_tokens;       ///< whose k super experts raised
  unsigned long long out_of_domain;             ///< tokens outside of the policy's domain
};

/// As the host's routing_metrics (host/metrics.hpp); `counters` was copied back from the device.
template <class Metrics>
Metrics to_metrics(const device_metrics& counters) noexcept {
  Metrics metrics;
  metrics.calls = counters.calls;
  metrics.tokens = counters.tokens;
  metrics.padding_tokens = counters.padding_tokens;
  metrics.expert_calls = counters.expert_calls;
  metrics.full_expert_calls = counters.full_expert_calls;
  metrics.nonfinite_rows = counters.nonfinite_rows;
  metrics.distinct_experts = counters.distinct_experts;
  metrics.signal_sum_fixed = static_cast<std::int64_t>(counters.signal_sum_fixed);
  metrics.signal_sum_high = static_cast<std::int64_t>(counters.signal_sum_high);
  metrics.shadow_expert_calls = counters.shadow_expert_calls;
  metrics.shadow_full_expert_calls = counters.shadow_full_expert_calls;
  metrics.super_expert_tokens = counters.super_expert_tokens;
  metrics.out_of_domain = counters.out_of_domain;
  if (counters.tokens != 0) {
    metrics.signal_lowest = detail::key_value(~counters.lowest_inverted);
    metrics.signal_highest = detail::key_value(counters.highest);
  }
  for (int k = 0; k <= max_top_k; ++k) metrics.k_histogram[k] = counters.k_histogram[k];
  for (int i = 0; i < max_experts / 64; ++i)
    metrics.touched_experts.words[i] = counters.touched_experts[i];
  return metrics;
}

/// One block's share, in shared memory until `finish`. Every thread of the block makes one.
class block_metrics {
  struct shared_state {
    unsigned int tokens;
    unsigned int padding_tokens;
    unsigned int expert_calls;
    unsigned int shadow_expert_calls;
    unsigned int super_expert_tokens;
    unsigned int out_of_domain;
    unsigned int nonfinite_rows;
    unsigned int lowest_inverted;
    unsigned int highest;
    unsigned int is_last;
    unsigned long long signal_sum_fixed;  ///< a block has too few tokens for more than a word
    unsigned int k_histogram[max_top_k + 1];
    unsigned int expert_counts[max_experts];  ///< last: a block clears and uses the first E alone
  };

 public:
  /// `target` and `expert_counts` [num_experts] may be null.
  __device__ block_metrics(device_metrics* target, unsigned long long* expert_counts,
                           int num_experts) noexcept
      : target_(target), expert_counts_(expert_counts), num_experts_(num_experts) {
    if (!counts()) return;
    unsigned int* words = reinterpret_cast<unsigned int*>(&state());
    constexpr int totals = static_cast<int>(offsetof(shared_state, expert_counts) / 4);
    for (int i = static_cast<int>(threadIdx.x); i < totals + num_experts;
         i += static_cast<int>(blockDim.x))
      words[i] = 0;
    __syncthreads();
  }

  /// Whether anything is counted.
  __device__ bool counts() const noexcept {
    return target_ != nullptr || expert_counts_ != nullptr;
  }

  /// Counts one of a token's experts.
  __device__ void add_expert(int expert) noexcept {
    if (counts()) atomicAdd(&state().expert_counts[expert], 1u);
  }

  /// A token's first `count` experts.
  template <int MaxTopK>
  __device__ void add_experts(const int (&experts)[MaxTopK], int count) noexcept {
    if (!counts()) return;
    ADAPTIVE_K_UNROLL
    for (int j = 0; j < MaxTopK; ++j)
      if (j < count) atomicAdd(&state().expert_counts[experts[j]], 1u);
  }

  /// Counts a token: its k, its signal, and whether a logit was NaN or infinite.
  __device__ void add_token(bool padding, int count, float signal, bool has_nonfinite) noexcept {
    if (target_ == nullptr) return;
    shared_state& block = state();
    if (padding) {
      atomicAdd(&block.padding_tokens, 1u);
      return;
    }
    atomicAdd(&block.tokens, 1u);
    atomicAdd(&block.expert_calls, static_cast<unsigned>(count));
    atomicAdd(&block.k_histogram[count], 1u);
    if (has_nonfinite) atomicAdd(&block.nonfinite_rows, 1u);
    atomicAdd(&block.signal_sum_fixed,
              static_cast<unsigned long long>(detail::signal_to_fixed(signal)));
    atomicMax(&block.lowest_inverted, ~detail::order_key(signal));
    atomicMax(&block.highest, detail::order_key(signal));
  }

  /// Of a token that is counted, what few are: `raised` and `outside` of its token_route.
  __device__ void add_watched(int raised, int outside) noexcept {
    if (target_ == nullptr) return;
    if (raised != 0) atomicAdd(&state().super_expert_tokens, 1u);
    if (outside != 0) atomicAdd(&state().out_of_domain, 1u);
  }

  /// The k that the policy chose for a token that is counted, in shadow mode.
  __device__ void add_chosen(int k) noexcept {
    if (target_ != nullptr) atomicAdd(&state().shadow_expert_calls, static_cast<unsigned>(k));
  }

  /// Adds the block's counts to the target; the last block of the launch counts distinct experts.
  __device__ void finish(int top_k, bool shadow) noexcept {
    if (!counts()) return;
    __syncthreads();
    shared_state& block = state();
    for (int e = static_cast<int>(threadIdx.x); e < num_experts_;
         e += static_cast<int>(blockDim.x)) {
      const unsigned int count = block.expert_counts[e];
      if (count == 0) continue;
      if (expert_counts_ != nullptr)
        atomicAdd(&expert_counts_[e], static_cast<unsigned long long>(count));
      if (target_ != nullptr) atomicOr(&target_->touched[e / 32], 1u << (e % 32));
    }
    if (target_ == nullptr) return;
    for (int k = static_cast<int>(threadIdx.x); k <= max_top_k; k += static_cast<int>(blockDim.x))
      if (block.k_histogram[k] != 0)
        atomicAdd(&target_->k_histogram[k], static_cast<unsigned long long>(block.k_histogram[k]));
    if (threadIdx.x == 0) flush_totals(top_k, shadow);
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();  // after the barrier, so that it covers what the whole block added
      block.is_last = atomicAdd(&target_->blocks_done, 1u) == gridDim.x - 1 ? 1u : 0u;
    }
    __syncthreads();
    if (block.is_last != 0 && threadIdx.x < 32) close_launch();
  }

 private:
  __device__ static shared_state& state() noexcept {
    __shared__ shared_state shared;
    return shared;
  }

  __device__ void flush_totals(int top_k, bool shadow) noexcept {
    const shared_state& block = state();
    atomicAdd(&target_->padding_tokens, static_cast<unsigned long long>(block.padding_tokens));
    if (block.tokens == 0) return;
    const auto tokens = static_cast<unsigned long long>(block.tokens);
    atomicAdd(&target_->tokens, tokens);
    atomicAdd(&target_->tokens_in_launch, block.tokens);
    atomicAdd(&target_->expert_calls, static_cast<unsigned long long>(block.expert_calls));
    atomicAdd(&target_->full_expert_calls, tokens * static_cast<unsigned long long>(top_k));
    atomicAdd(&target_->nonfinite_rows, static_cast<unsigned long long>(block.nonfinite_rows));
    if (block.super_expert_tokens != 0)
      atomicAdd(&target_->super_expert_tokens,
                static_cast<unsigned long long>(block.super_expert_tokens));
    if (block.out_of_domain != 0)
      atomicAdd(&target_->out_of_domain, static_cast<unsigned long long>(block.out_of_domain));
    add_signals(block.signal_sum_fixed);
    if (shadow) {
      atomicAdd(&target_->shadow_expert_calls,
                static_cast<unsigned long long>(block.shadow_expert_calls));
      atomicAdd(&target_->shadow_full_expert_calls,
                tokens * static_cast<unsigned long long>(top_k));
    }
    atomicMax(&target_->lowest_inverted, block.lowest_inverted);
    atomicMax(&target_->highest, block.highest);
  }

  /// Each addition hands its own carry on, so that the two words are right in any order.
  __device__ void add_signals(unsigned long long sum) noexcept {
    const unsigned long long before = atomicAdd(&target_->signal_sum_fixed, sum);
    unsigned long long high = static_cast<long long>(sum) < 0 ? ~0ull : 0ull;
    if (before + sum < before) high += 1;
    if (high != 0) atomicAdd(&target_->signal_sum_high, high);
  }

  /// By the last block's first warp: a lane takes a word of the experts touched.
  __device__ void close_launch() noexcept {
    static_assert(max_experts / 32 == 32, "a lane each");
    __threadfence();
    const int lane = static_cast<int>(threadIdx.x);
    const unsigned int bits = atomicExch(&target_->touched[lane], 0u);
    if (bits != 0)
      atomicOr(&target_->touched_experts[lane / 2], static_cast<unsigned long long>(bits)
                                                        << (32 * (lane % 2)));
    auto distinct = static_cast<unsigned int>(__popc(bits));
    ADAPTIVE_K_UNROLL
    for (int offset = 1; offset < 32; offset *= 2)
      distinct += __shfl_xor_sync(0xFFFFFFFFu, distinct, offset);
    if (lane != 0) return;
    atomicAdd(&target_->distinct_experts, static_cast<unsigned long long>(distinct));
    if (atomicExch(&target_->tokens_in_launch, 0u) != 0) atomicAdd(&target_->calls, 1ull);
    atomicExch(&target_->blocks_done, 0u);
  }

  device_metrics* target_;
  unsigned long long* expert_counts_;
  int num_experts_;
};

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
