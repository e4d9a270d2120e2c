// What an engine asks when tokens may leave early or share one expert output, and what it counts.
#pragma once

#include <adaptive_k/combine/early_exit.hpp>
#include <adaptive_k/combine/token_merging.hpp>
#include <adaptive_k/status.hpp>
#include <cstdint>
#include <functional>

namespace moe_engine {

/// Which tokens leave. Behind every layer but the last that it asks for, the engine makes the
/// prediction of each token still there (final norm and head) and asks.
struct exit_hook {
  std::function<bool(int layer)> asks;
  /// logits [vocab_size] of `token`, an index into all tokens of the call; in their order.
  std::function<bool(int layer, std::int64_t token, const float* logits, int vocab_size)> exits;
};

/// One sequence in front of a layer's experts.
struct merge_input {
  int layer = 0;             ///< among the MoE layers
  const float* x = nullptr;  ///< [length, hidden_size], what router and experts read
  std::int64_t length = 0;
  int hidden_size = 0;
  const std::uint8_t* live = nullptr;  ///< [length], 0 for tokens that have left
};

/// Fills `representative` [length]: the position whose expert output each token takes, its own or
/// an earlier, live one that has its own. Adds to `metrics`.
using merge_function =
    std::function<adaptive_k::status(const merge_input& input, std::int32_t* representative,
                                     adaptive_k::token_merging_metrics& metrics)>;

/// Empty functions are methods that are off.
struct stacking_hooks {
  exit_hook early_exit;
  merge_function merge;
};

/// The usual choices. `metrics`, where given, must outlive the result. Throws std::runtime_error
/// for a policy that `validate` refuses.
exit_hook exit_with(const adaptive_k::early_exit_policy& policy,
                    adaptive_k::early_exit_metrics* metrics = nullptr);
merge_function merge_with(const adaptive_k::token_merging_policy& policy,
                          adaptive_k::token_merging_metrics* metrics = nullptr);

/// Multiply-adds of everything that multiplies vectors and matrices, as executed; attention counts
/// visible keys alone. Norms, softmax and the routing decision are left out.
struct work_count {
  std::uint64_t projections = 0;  ///< attention's q, k, v and output
  std::uint64_t attention = 0;    ///< scores and weighted values
  std::uint64_t router = 0;
  std::uint64_t experts = 0;        ///< that were routed to
  std::uint64_t unrouted_mlps = 0;  ///< dense layers and shared experts: what no K saves
  std::uint64_t head = 0;           ///< final predictions
  std::uint64_t exit_heads = 0;     ///< intermediate predictions: what early exit itself costs
  std::uint64_t matching = 0;       ///< lengths and comparisons: what token merging itself costs
  std::uint64_t expert_calls = 0;

  std::uint64_t multiply_adds() const noexcept {
    return projections + attention + router + experts + unrouted_mlps + head + exit_heads +
           matching;
  }

  work_count& operator+=(const work_count& other) noexcept {
    projections += other.projections;
    attention += other.attention;
    router += other.router;
    experts += other.experts;
    unrouted_mlps += other.unrouted_mlps;
    head += other.head;
    exit_heads += other.exit_heads;
    matching += other.matching;
    expert_calls += other.expert_calls;
    return *this;
  }
};

}  // namespace moe_engine
