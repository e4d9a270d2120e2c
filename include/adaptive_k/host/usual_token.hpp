// A usual call (core/usual_call.hpp) of one token, as in decoding: decided, counted and written by
// one function, since all that goes before and after takes as long as the decision.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/usual_row.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Rows of ones and zeros by k, each from a later place of one list than the row before.
template <int TopK>
struct rows_by_k {
  std::uint64_t ones[2 * TopK] = {};    ///< then zeros
  std::uint64_t single[2 * TopK] = {};  ///< one among zeros

  constexpr rows_by_k() noexcept {
    for (int i = 0; i < TopK; ++i) ones[i] = 1;
    single[TopK - 1] = 1;
  }
  /// [TopK]: 1 for each of k experts.
  const std::uint64_t* up_to(int k) const noexcept { return ones + TopK - k; }
  /// [TopK]: 1 at k - 1.
  const std::uint64_t* at(int k) const noexcept { return single + TopK - k; }
};
template <int TopK>
inline constexpr rows_by_k<TopK> rows_of_k;

/// Counts a call of one token, not padding and finite. No branch and no address of a store depends
/// on its k, which is known last: what comes after would wait for it.
template <int TopK, class Reals>
ADAPTIVE_K_INLINE void count_single_token(const row_decision<TopK, Reals>& made,
                                          routing_metrics& metrics) noexcept {
  const auto count = static_cast<std::uint64_t>(made.count);
  metrics.calls += 1;
  // Entropies are not negative: they compare as integers do.
  const bool first = metrics.tokens == 0;
  const std::uint32_t signal = math::to_bits(made.signal);
  if (first || signal < math::to_bits(metrics.signal_lowest)) metrics.signal_lowest = made.signal;
  if (first || signal > math::to_bits(metrics.signal_highest)) metrics.signal_highest = made.signal;
  metrics.tokens += 1;
  metrics.expert_calls += count;
  metrics.full_expert_calls += static_cast<std::uint64_t>(TopK);
  metrics.distinct_experts += count;
  metrics.signal_sum_fixed += signal_to_fixed(made.signal);
  metrics.expert_counts[made.expert[0]] += 1;
  if constexpr (TopK == 2) {
    metrics.k_histogram[1] += 2 - count;
    __asm__("");  // else g++ would make one vector of the two counters, which takes longer
    metrics.k_histogram[2] += count - 1;
    metrics.expert_counts[made.expert[1]] += count - 1;
  } else {
    const std::uint64_t* const of_k = rows_of_k<TopK>.at(made.count);
    for (int j = 0; j < TopK; ++j) metrics.k_histogram[j + 1] += of_k[j];
    const std::uint64_t* const kept = rows_of_k<TopK>.up_to(made.count);
    for (int j = 1; j < TopK; ++j) metrics.expert_counts[made.expert[j]] += kept[j];
  }
}

/// What all calls of a router share.
struct usual_setup {
  gating model;
  int filler;  ///< of ids past k
  bool fills_first;
  instruction_set set;
};

/// Decides, counts and writes one token of a call; false: nothing is done, as usual_row could not
/// decide.
template <int TopK, int Experts, class Logit>
struct usual_token {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    using words = typename reals::words;
    static ADAPTIVE_K_INLINE bool run(const usual_setup* setup, const k_plan* plan,
                                      const Logit* logits, const routing_output<>* output,
                                      std::int64_t token, routing_metrics* metrics) noexcept {
      const float* row = nullptr;
      [[maybe_unused]] alignas(
          64) float floats[std::is_same_v<Logit, float> ? 1 : most_lane_experts];
      if constexpr (std::is_same_v<Logit, float>) {
        row = logits;
      } else {
        widen_row<reals>(logits, setup->model.num_experts, floats);
        row = floats;
      }
      row_decision<TopK, reals> made;
      if (!usual_row<TopK, Experts, Target>::decide(setup->model, *plan, plan->limits, row, made))
        return false;
      if (metrics != nullptr) count_single_token(made, *metrics);
      const std::uint32_t filler =
          setup->fills_first ? made.expert[0] : static_cast<std::uint32_t>(setup->filler);
      const auto kept = words::lane() < words(made.count);
      reals::template store_first<TopK>(output->topk_weights + token * TopK,
                                        reals::select(kept, made.weight, 0.0f));
      std::int32_t* const ids = output->topk_ids + token * TopK;
      if constexpr (TopK == 2) {
        // Bits, as no processor can guess which way a branch would go.
        const auto both = 0u - static_cast<std::uint32_t>(made.count >> 1);
        ids[0] = static_cast<std::int32_t>(made.expert[0]);
        ids[1] = static_cast<std::int32_t>(filler ^ ((made.expert[1] ^ filler) & both));
      } else {
        reals::template store_first<TopK>(
            ids, reals::from_bits(words::select(kept, made.experts, filler)));
      }
      if (output->topk_counts != nullptr) output->topk_counts[token] = made.count;
      if (output->signal != nullptr) output->signal[token] = made.signal;
      return true;
    }
  };
};

template <class Target, int TopK, int Experts, class Logit, class... Arguments>
ADAPTIVE_K_INLINE bool run_usual_token_as(const usual_setup* setup, const k_plan* plan,
                                          const Logit* row, Arguments... others) noexcept {
  if constexpr (TopK <= Target::row_reals::lanes)
    return Target::template run<usual_token<TopK, Experts, Logit>::template body>(setup, plan, row,
                                                                                  others...);
  return false;
}

template <class Target, class... Arguments>
ADAPTIVE_K_INLINE bool run_usual_token(const usual_setup* setup, Arguments... others) noexcept {
  if (setup->model.top_k == 8) return run_usual_token_as<Target, 8, 0>(setup, others...);
  if (setup->model.top_k == 4) return run_usual_token_as<Target, 4, 0>(setup, others...);
  if (setup->model.num_experts == 8) return run_usual_token_as<Target, 2, 8>(setup, others...);
  return run_usual_token_as<Target, 2, 0>(setup, others...);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
