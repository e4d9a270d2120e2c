// Early exit and token merging in the engine: against the naive computation under the same
// decisions, and their counts.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>

#include <algorithm>
#include <memory>
#include <string>

#include "model/naive_forward.hpp"

namespace small_model {
namespace {

using adaptive_k::early_exit_policy;
using adaptive_k::exit_signal;
using moe_engine::stacking_hooks;

constexpr int length = 24;

class stacking : public ::testing::Test {
 protected:
  stacking() : folder("stacking"), weights(weights_of(sizes(), 17)) {
    write_model(folder.path(), sizes(), weights);
    engine = std::make_unique<moe_engine::engine>(moe_engine::engine::load(folder.path()));
    for (int i = 0; i < 2 * length; ++i) tokens.push_back((3 + 7 * i + i * i / 3) % 5);
  }

  static shape sizes() {
    shape s;
    s.layers = 3;
    return s;
  }

  moe_engine::route_function fixed_k(int k) const {
    return moe_engine::route_with(
        adaptive_k::router(engine->config().gating, adaptive_k::k_policy::fixed(k)));
  }

  moe_engine::route_function top_p() const {
    return moe_engine::route_with(
        adaptive_k::router(engine->config().gating, adaptive_k::k_policy::top_p(0.8f, 3)));
  }

  std::vector<float> run(const stacking_hooks& hooks, const moe_engine::route_function& route,
                         const std::vector<std::int32_t>& input,
                         moe_engine::work_count* work = nullptr) {
    std::vector<float> logits(input.size() * vocab, -99.0f);
    const int sequences = static_cast<int>(input.size()) / length;
    engine->forward_stacked(input.data(), sequences, length, route, hooks, logits.data(), work);
    return logits;
  }

  std::vector<float> plain(const moe_engine::route_function& route) {
    std::vector<float> logits(tokens.size() * vocab);
    engine->forward(tokens.data(), 2, length, route, logits.data());
    return logits;
  }

  /// Decisions that any rule might make: some leave after layer 0, some after 1; some odd positions
  /// merge into an earlier one that is still there.
  static decisions some_decisions(bool exit, bool merge, std::size_t sequence) {
    decisions d;
    if (exit)
      for (std::size_t t = 0; t < length; ++t)
        d.last_layer.push_back((t + sequence) % 5 == 0 ? 0 : (t + sequence) % 5 == 3 ? 1 : 2);
    if (merge) {
      for (int l = 0; l < 3; ++l) {
        std::vector<int> own;
        for (int t = 0; t < length; ++t) {
          int from = t;
          const int candidate = t - 3 - 2 * l;
          if (t % 2 == 1 && candidate >= 0 && (t + l) % 3 != 0 &&
              (!exit || d.last_layer[static_cast<std::size_t>(candidate)] >= l))
            from = candidate;
          own.push_back(from);
        }
        d.representative.push_back(own);
      }
    }
    return d;
  }

  static stacking_hooks hooks_of(const std::vector<decisions>& decided) {
    stacking_hooks hooks;
    if (!decided[0].last_layer.empty()) {
      hooks.early_exit.asks = [](int) { return true; };
      hooks.early_exit.exits = [decided](int layer, std::int64_t token, const float*, int) {
        const auto t = static_cast<std::size_t>(token);
        return decided[t / length].last_layer[t % length] == layer;
      };
    }
    if (!decided[0].representative.empty()) {
      hooks.merge = [decided, calls = std::size_t{0}](
                        const moe_engine::merge_input& in, std::int32_t* representative,
                        adaptive_k::token_merging_metrics&) mutable -> adaptive_k::status {
        const auto& own = decided[calls++ % 2].representative[static_cast<std::size_t>(in.layer)];
        std::copy(own.begin(), own.end(), representative);
        return {};
      };
    }
    return hooks;
  }

  static constexpr std::size_t vocab = 19;
  temporary_folder folder;
  tensors weights;
  std::unique_ptr<moe_engine::engine> engine;
  std::vector<std::int32_t> tokens;
};

TEST_F(stacking, without_hooks_the_bits_are_those_of_forward) {
  for (int k = 1; k <= 3; ++k) EXPECT_EQ(run({}, fixed_k(k), tokens), plain(fixed_k(k)));
}

TEST_F(stacking, equals_naive_computation_under_the_same_decisions) {
  for (const bool exit : {false, true}) {
    for (const bool merge : {false, true}) {
      const std::vector<decisions> decided = {some_decisions(exit, merge, 0),
                                              some_decisions(exit, merge, 1)};
      for (int k = 1; k <= 3; ++k) {
        const auto logits = run(hooks_of(decided), fixed_k(k), tokens);
        for (std::size_t s = 0; s < 2; ++s) {
          const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(s) * length;
          const auto expected = naive_forward(
              sizes(), weights, std::vector<int>(begin, begin + length), k, decided[s]);
          for (std::size_t t = 0; t < length; ++t)
            for (std::size_t v = 0; v < vocab; ++v)
              ASSERT_NEAR(logits[(s * length + t) * vocab + v], expected[t][v], 2e-5)
                  << "exit " << exit << ", merge " << merge << ", k " << k << ", token " << t;
        }
      }
    }
  }
}

TEST_F(stacking, counts_what_was_computed) {
  const shape s = sizes();
  moe_engine::work_count full;
  run({}, fixed_k(2), tokens, &full);
  const std::uint64_t t = 2 * length;
  const std::uint64_t q_width = 24, kv_width = 24, hidden = 24;
  EXPECT_EQ(full.expert_calls, 3 * t * 2);
  EXPECT_EQ(full.experts, full.expert_calls * 3 * 24 * 20);
  EXPECT_EQ(full.router, 3 * t * hidden * 6);
  EXPECT_EQ(full.projections, 3 * t * hidden * (2 * q_width + kv_width));
  EXPECT_EQ(full.attention, 3u * 2 * (length * (length + 1) / 2) * 2 * q_width);
  EXPECT_EQ(full.head, t * hidden * vocab);
  EXPECT_EQ(full.exit_heads + full.matching, 0u);
  EXPECT_EQ(full.multiply_adds(),
            full.experts + full.router + full.projections + full.attention + full.head);

  const std::vector<decisions> decided = {some_decisions(true, true, 0),
                                          some_decisions(true, true, 1)};
  std::uint64_t live[3] = {};
  std::uint64_t routed[3] = {};
  for (const decisions& d : decided)
    for (std::size_t l = 0; l < 3; ++l)
      for (std::size_t i = 0; i < length; ++i) {
        if (d.last_layer[i] < static_cast<int>(l)) continue;
        ++live[l];
        if (d.representative[l][i] == static_cast<int>(i)) ++routed[l];
      }
  ASSERT_LT(routed[0], live[0]);
  ASSERT_LT(live[1], live[0]);
  moe_engine::work_count less;
  run(hooks_of(decided), fixed_k(2), tokens, &less);
  EXPECT_EQ(less.expert_calls, 2 * (routed[0] + routed[1] + routed[2]));
  EXPECT_EQ(less.router, (routed[0] + routed[1] + routed[2]) * hidden * 6);
  EXPECT_EQ(less.projections,
            hidden * (3 * t * kv_width + (live[0] + live[1] + live[2]) * 2 * q_width));
  EXPECT_EQ(less.exit_heads, (live[0] + live[1]) * hidden * vocab);
  EXPECT_EQ(less.head, live[2] * hidden * vocab);
  EXPECT_EQ(s.heads * s.head_dim, 24);
}

TEST_F(stacking, sequences_are_apart) {
  stacking_hooks hooks;
  hooks.early_exit =
      moe_engine::exit_with(early_exit_policy::uniform(exit_signal::entropy, 2.9f, 3));
  hooks.merge = moe_engine::merge_with({0.7f, 8});
  const auto both = run(hooks, fixed_k(3), tokens);
  for (const std::ptrdiff_t s : {0, 1}) {
    const std::vector<std::int32_t> own(tokens.begin() + s * length,
                                        tokens.begin() + (s + 1) * length);
    const auto alone = run(hooks, fixed_k(3), own);
    for (std::size_t i = 0; i < alone.size(); ++i)
      ASSERT_NEAR(alone[i], both[static_cast<std::size_t>(s) * alone.size() + i], 1e-5);
  }
}

TEST_F(stacking, all_may_leave_at_once) {
  stacking_hooks hooks;
  hooks.early_exit =
      moe_engine::exit_with(early_exit_policy::uniform(exit_signal::max_probability, 0.0f, 1));
  int calls = 0;
  const auto once = [&, inner = fixed_k(3)](int layer, const adaptive_k::logits_view<float>& logits,
                                            const adaptive_k::routing_output<>& out,
                                            const adaptive_k::routing_extras& extras) {
    ++calls;
    return inner(layer, logits, out, extras);
  };
  moe_engine::work_count work;
  const auto logits = run(hooks, once, tokens, &work);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(work.head, 0u);
  EXPECT_EQ(work.expert_calls, 2u * length * 3);
  EXPECT_EQ(std::count(logits.begin(), logits.end(), -99.0f), 0);
}

TEST_F(stacking, refuses_policies_and_matchings_it_cannot_take) {
  EXPECT_THROW(moe_engine::exit_with(early_exit_policy::uniform(exit_signal::entropy, -1.0f, 1)),
               std::runtime_error);
  EXPECT_THROW(moe_engine::merge_with({2.0f, 4}), std::runtime_error);
  for (const std::int32_t wrong : {-1, 4, 5}) {  // none, later, not its own
    stacking_hooks hooks;
    hooks.merge = [wrong](const moe_engine::merge_input&, std::int32_t* representative,
                          adaptive_k::token_merging_metrics&) -> adaptive_k::status {
      representative[5] = 0;
      representative[wrong == 5 ? 6 : 3] = wrong;
      return {};
    };
    try {
      run(hooks, fixed_k(1), tokens);
      ADD_FAILURE() << wrong;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("merging of layer 0"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace small_model
