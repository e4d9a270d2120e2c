// A usual call (core/usual_call.hpp) of one token, as in decoding: decided, counted and written by
// one function, since all that goes before and after takes as long as the decision.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/core/usual_call.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/usual_row.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// What is added to counters of K0 ranks for each k, at [k - 1].
template <int TopK>
struct rows_by_k {
  struct {
    std::uint64_t of_k[TopK] = {};  ///< 1 at k - 1
    std::uint64_t kept[TopK] = {};  ///< 1 for each of k experts
  } at[TopK];

  constexpr rows_by_k() noexcept {
    for (int rank = 0; rank < TopK; ++rank) {
      at[rank].of_k[rank] = 1;
      for (int j = 0; j <= rank; ++j) at[rank].kept[j] = 1;
    }
  }
};
template <int TopK>
inline constexpr rows_by_k<TopK> rows_of_k;

/// Counts a call of one token, not padding and finite, but for its experts. No branch and no
/// address of a store depends on its k, which is known last: what comes after would wait for it.
ADAPTIVE_K_INLINE void count_single_token(std::uint64_t k, int top_k, float signal,
                                          routing_metrics& metrics) noexcept {
  metrics.calls += 1;
  // As integers: the signal is an entropy, so not negative; those of other calls may be.
  const auto order = [](float f) { return static_cast<std::int32_t>(math::to_bits(f)); };
  const bool first = metrics.tokens == 0;
  if (first || order(signal) < order(metrics.signal_lowest)) metrics.signal_lowest = signal;
  if (first || order(signal) > order(metrics.signal_highest)) metrics.signal_highest = signal;
  metrics.tokens += 1;
  metrics.expert_calls += k;
  metrics.full_expert_calls += static_cast<std::uint64_t>(top_k);
  metrics.distinct_experts += k;
  const auto before = static_cast<std::uint64_t>(metrics.signal_sum_fixed);
  const auto sum = before + static_cast<std::uint64_t>(signal_to_fixed(signal));
  metrics.signal_sum_fixed = static_cast<std::int64_t>(sum);
  if (sum < before) ++metrics.signal_sum_high;  // a branch: that word lies far behind the others
}
template <class Reals>
ADAPTIVE_K_INLINE void count_single_token(const decided_pair<Reals>& made,
                                          routing_metrics& metrics) noexcept {
  count_single_token(1 + made.extra, 2, made.signal, metrics);
  metrics.k_histogram[1] += 1 - made.extra;
  metrics.k_histogram[2] += made.extra;
  metrics.expert_counts[made.expert[0]] += 1;
  metrics.expert_counts[made.expert[1]] += made.extra;
}
template <int TopK, class Reals>
ADAPTIVE_K_INLINE void count_single_token(const row_decision<TopK, Reals>& made,
                                          routing_metrics& metrics) noexcept {
  count_single_token(made.rank + 1, TopK, made.signal, metrics);
  metrics.expert_counts[made.expert[0]] += 1;
  const auto& row = rows_of_k<TopK>.at[made.rank];
  for (int j = 0; j < TopK; ++j) metrics.k_histogram[j + 1] += row.of_k[j];
  for (int j = 1; j < TopK; ++j) metrics.expert_counts[made.expert[j]] += row.kept[j];
}

/// What stands in id slots past k_t, unless that is the first expert.
constexpr int fixed_filler(fill_id fill, int num_experts) noexcept {
  return fill == fill_id::num_experts ? num_experts : -1;
}

/// Which code there is for a call: of one K0, or also of one E.
enum class usual_code : std::uint8_t { none, two_of_8, two, four, eight };

inline usual_code usual_code_for(const gating& model) noexcept {
  if (!has_usual_code(model)) return usual_code::none;
  if (model.top_k == 2) return model.num_experts == 8 ? usual_code::two_of_8 : usual_code::two;
  return model.top_k == 4 ? usual_code::four : usual_code::eight;
}

/// What all calls of one layer share. Plain data.
struct usual_setup {
  usual_code code = usual_code::none;
  bool whole_mass = false;  ///< the rule restores all of it
  instruction_set set = instruction_set::scalar;
  /// An id past k_t is `filler` with the bits that `first_filler` has of the first expert: no
  /// branch.
  std::uint32_t filler = 0;
  std::uint32_t first_filler = 0;
  usual_rule rule;

  usual_setup() = default;
  /// Of a valid gating and plan.
  usual_setup(const gating& model, const k_plan& plan, fill_id fill, instruction_set used) noexcept
      : code(is_usual_plan(plan) ? usual_code_for(model) : usual_code::none),
        whole_mass(plan.mass_exponent == 1.0f),
        set(used),
        rule(model, plan, plan.limits) {
    if (fill == fill_id::first_expert)
      first_filler = ~0u;
    else
      filler = static_cast<std::uint32_t>(fixed_filler(fill, model.num_experts));
  }
};

template <class Reals>
ADAPTIVE_K_INLINE void write_ids(const decided_pair<Reals>& made, std::uint32_t filler,
                                 std::int32_t* ids) noexcept {
  ids[0] = static_cast<std::int32_t>(made.expert[0]);
  // No branch, as no processor can guess which way it would go.
  ids[1] = static_cast<std::int32_t>(filler + (made.expert[1] - filler) * made.extra);
}
template <int TopK, class Reals>
ADAPTIVE_K_INLINE void write_ids(const row_decision<TopK, Reals>& made, std::uint32_t filler,
                                 std::int32_t* ids) noexcept {
  using words = typename Reals::words;
  const auto kept = words::lane() < words(made.k());
  Reals::template store_first<TopK>(ids,
                                    Reals::from_bits(words::select(kept, made.experts, filler)));
}

/// Decides, counts and writes one token of a call; false: nothing is done, as usual_row could not
/// decide.
template <int TopK, int Experts, row_kind Kind, class Logit>
struct usual_token {
  template <class Target>
  struct body {
    using reals = typename Target::row_reals;
    static ADAPTIVE_K_INLINE bool run(const usual_setup* setup, const Logit* logits,
                                      const routing_output<>* output, std::int64_t token,
                                      routing_metrics* metrics) noexcept {
      using decider = usual_row<TopK, Experts, Kind, Target>;
      decision_of<TopK, reals> made;
      bool decided = false;
      if constexpr (std::is_same_v<Logit, float>) {
        decided = decider::decide(setup->rule, logits, made);
      } else {
        alignas(64) float row[most_lane_experts];
        widen_row<reals>(logits, setup->rule.num_experts, row);
        decided = decider::decide(setup->rule, row, made);
      }
      if (!decided) {
        if constexpr (Kind == row_kind::common)
          return Target::template run<usual_token<TopK, 0, row_kind::any, Logit>::template body>(
              setup, logits, output, token, metrics);
        return false;
      }
      if (metrics != nullptr) count_single_token(made, *metrics);
      const std::uint32_t filler =
          setup->filler | (static_cast<std::uint32_t>(made.expert[0]) & setup->first_filler);
      write_ids(made, filler, output->topk_ids + token * TopK);
      reals::template store_first<TopK>(output->topk_weights + token * TopK, made.weight);
      if (output->topk_counts != nullptr) output->topk_counts[token] = made.k();
      if (output->signal != nullptr) output->signal[token] = made.signal;
      return true;
    }
  };
};

template <class Target, int TopK, int Experts, class Logit, class... Arguments>
ADAPTIVE_K_INLINE bool run_usual_token_as(const usual_setup* setup, const Logit* row,
                                          Arguments... others) noexcept {
  if constexpr (TopK <= Target::row_reals::lanes) {
    if (setup->whole_mass)
      return Target::template run<
          usual_token<TopK, Experts, row_kind::common, Logit>::template body>(setup, row,
                                                                              others...);
    return Target::template run<usual_token<TopK, 0, row_kind::any, Logit>::template body>(
        setup, row, others...);
  }
  return false;
}

template <class Target, class... Arguments>
ADAPTIVE_K_INLINE bool run_usual_token(const usual_setup* setup, Arguments... others) noexcept {
  // The shortest code first: others take longer anyway.
  if (setup->code == usual_code::two_of_8)
    return run_usual_token_as<Target, 2, 8>(setup, others...);
  if (setup->code == usual_code::two) return run_usual_token_as<Target, 2, 0>(setup, others...);
  if (setup->code == usual_code::four) return run_usual_token_as<Target, 4, 0>(setup, others...);
  return run_usual_token_as<Target, 8, 0>(setup, others...);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
