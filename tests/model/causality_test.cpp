// Proof that no later token reaches an earlier one, bit for bit, whatever is combined. The engine
// is built here with dense algebra that computes every row in the same order; fast libraries
// choose it by the number of rows, which later tokens do change.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>

#include <algorithm>
#include <vector>

#include "model/small_model.hpp"

namespace small_model {
namespace {

using adaptive_k::early_exit_policy;
using adaptive_k::exit_signal;
using moe_engine::stacking_hooks;

constexpr int length = 24;
constexpr std::size_t vocab = 19;

// Whatever comes behind it, a token's logits are the same bits.
TEST(causality, no_later_token_changes_an_earlier_bit) {
  shape sizes;
  sizes.layers = 3;
  const temporary_folder folder("causality");
  write_model(folder.path(), sizes, weights_of(sizes, 17));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  const adaptive_k::gating gating = engine.config().gating;
  const auto run = [&](const stacking_hooks& hooks, const adaptive_k::k_policy& policy,
                       const std::vector<std::int32_t>& input) {
    std::vector<float> logits(length * vocab);
    engine.forward_stacked(input.data(), 1, length,
                           moe_engine::route_with(adaptive_k::router(gating, policy)), hooks,
                           logits.data());
    return logits;
  };

  std::vector<std::int32_t> sequence;
  for (int i = 0; i < length; ++i) sequence.push_back((3 + 7 * i + i * i / 3) % 5);
  for (const bool exit : {false, true}) {
    for (const bool merge : {false, true}) {
      for (const bool adaptive : {false, true}) {
        adaptive_k::early_exit_metrics exits;
        adaptive_k::token_merging_metrics merges;
        stacking_hooks hooks;
        if (exit)
          hooks.early_exit = moe_engine::exit_with(
              early_exit_policy::uniform(exit_signal::entropy, 2.9f, 3), &exits);
        if (merge) hooks.merge = moe_engine::merge_with({0.7f, 8}, &merges);
        const auto route =
            adaptive ? adaptive_k::k_policy::top_p(0.8f, 3) : adaptive_k::k_policy::full();
        const auto whole = run(hooks, route, sequence);
        if (exit) {
          ASSERT_GT(exits.exited, 3u);
          ASSERT_LT(exits.exited, std::uint64_t{length});
        }
        if (merge) {
          ASSERT_GT(merges.merged, 5u);
          ASSERT_LT(merges.merged, std::uint64_t{3 * length / 2});
        }
        for (std::size_t changed = 1; changed < length; ++changed) {
          auto other = sequence;
          for (std::size_t t = changed; t < length; ++t)
            other[t] = (other[t] + 1 + static_cast<int>(t % 4)) % 19;
          const auto after = run(hooks, route, other);
          const auto end = static_cast<std::ptrdiff_t>(changed * vocab);
          ASSERT_TRUE(std::equal(whole.begin(), whole.begin() + end, after.begin()))
              << "exit " << exit << ", merge " << merge << ", adaptive " << adaptive << ", from "
              << changed;
        }
      }
    }
  }
}

}  // namespace
}  // namespace small_model
