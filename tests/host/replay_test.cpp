// Replay: the weights of experts that were chosen earlier.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "policies.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using oracle::at;

struct buffers {
  buffers(std::int64_t num_tokens, int top_k)
      : ids(static_cast<std::size_t>(num_tokens * top_k), -7),
        weights(ids.size(), -7.0f),
        counts(static_cast<std::size_t>(num_tokens), -7),
        signal(static_cast<std::size_t>(num_tokens), -7.0f) {}
  routing_output<> view() { return {ids.data(), weights.data(), counts.data(), signal.data()}; }
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<std::int32_t> counts;
  std::vector<float> signal;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TEST(replay, unchanged_logits_give_unchanged_bits) {
  inputs::sequence from(31);
  int compared = 0;
  for (const gating& g : checked::all_gatings()) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    for (const checked::named_policy& named : checked::all_policies(from, g, tables)) {
      SCOPED_TRACE(named.name);
      const checked::batch<float> batch = checked::grid_batch(from, 19, g.num_experts);
      const std::vector<float> bias = checked::grid_bias(from, g.num_experts);
      routing_extras extras;
      if (g.selection_bias) extras.routing_bias = bias.data();
      const router r(g, named.policy);
      buffers routed(batch.num_tokens, g.top_k), replayed(batch.num_tokens, g.top_k);
      routing_metrics first, second;
      ASSERT_TRUE(r.route(0, batch.view(), routed.view(), &first, extras).ok());
      const routing_replay<> given = {routed.ids.data(), routed.counts.data()};
      ASSERT_TRUE(r.replay(0, batch.view(), given, replayed.view(), &second, extras).ok());
      EXPECT_TRUE(same_bits(routed.ids, replayed.ids));
      EXPECT_TRUE(same_bits(routed.counts, replayed.counts));
      EXPECT_TRUE(same_bits(routed.weights, replayed.weights));
      EXPECT_TRUE(same_bits(routed.signal, replayed.signal));
      EXPECT_EQ(first.expert_calls, second.expert_calls);
      // In place.
      ASSERT_TRUE(r.replay(0, batch.view(), given, routed.view(), nullptr, extras).ok());
      EXPECT_TRUE(same_bits(routed.weights, replayed.weights));
      ++compared;
    }
  }
  EXPECT_GT(compared, 100);
}

/// Any experts, in any order: weights by the definition, in double.
TEST(replay, weights_of_any_experts_follow_the_definition) {
  inputs::sequence from(32);
  for (const double exponent : {0.0, 0.5, 1.0}) {
    for (const bool renormalize : {true, false}) {
      gating g;
      g.num_experts = 37;
      g.top_k = 5;
      g.renormalize = renormalize;
      k_policy policy = k_policy::full();
      policy.mass_exponent = static_cast<float>(exponent);
      const checked::batch<float> batch = checked::grid_batch(from, 23, g.num_experts);
      buffers given(batch.num_tokens, g.top_k), out(batch.num_tokens, g.top_k);
      for (std::int64_t t = 0; t < batch.num_tokens; ++t) {
        std::vector<int> experts(static_cast<std::size_t>(g.num_experts));
        std::iota(experts.begin(), experts.end(), 0);
        given.counts[static_cast<std::size_t>(t)] = from.between(0, g.top_k);
        for (int j = 0; j < g.top_k; ++j) {
          const auto pick = at(from.between(j, g.num_experts - 1));
          std::swap(experts[at(j)], experts[pick]);
          given.ids[static_cast<std::size_t>(t * g.top_k + j)] = experts[at(j)];
        }
      }
      const router r(g, policy);
      ASSERT_TRUE(r.replay(0, batch.view(), routing_replay<>{given.ids.data(), given.counts.data()},
                           out.view())
                      .ok());
      for (std::int64_t t = 0; t < batch.num_tokens; ++t) {
        const int k = given.counts[static_cast<std::size_t>(t)];
        ASSERT_EQ(out.counts[static_cast<std::size_t>(t)], k);
        const std::vector<double> p = oracle::softmax(batch.row(t));
        std::vector<double> others = p;
        double kept = 0.0;
        for (int j = 0; j < k; ++j) {
          const auto id = at(given.ids[static_cast<std::size_t>(t * g.top_k + j)]);
          kept += p[id];
          others[id] = 0.0;
        }
        std::sort(others.rbegin(), others.rend());
        const double total = std::accumulate(others.begin(), others.begin() + (g.top_k - k), kept);
        for (int j = 0; j < g.top_k; ++j) {
          const auto slot = static_cast<std::size_t>(t * g.top_k + j);
          if (j >= k) {
            EXPECT_EQ(out.ids[slot], -1);
            EXPECT_EQ(out.weights[slot], 0.0f);
            continue;
          }
          EXPECT_EQ(out.ids[slot], given.ids[slot]);
          const double own = p[at(given.ids[slot])] / (renormalize ? total : 1.0);
          const double expected = own * std::pow(kept / total, -exponent);
          EXPECT_NEAR(out.weights[slot], expected, 1e-5 * expected)
              << "token " << t << ", slot " << j;
        }
      }
    }
  }
}

TEST(replay, refuses_what_no_route_wrote) {
  gating g;
  g.num_experts = 8;
  g.top_k = 2;
  const router r(g, k_policy::full());
  const std::vector<float> logits(16, 0.5f);
  const logits_view<float> view = {logits.data(), 2, 8, 0};
  buffers out(2, 2);
  const auto message_of = [&](std::vector<std::int32_t> ids, std::vector<std::int32_t> counts) {
    const status s = r.replay(0, view, routing_replay<>{ids.data(), counts.data()}, out.view());
    EXPECT_FALSE(s.ok());
    EXPECT_EQ(out.ids[0], -7) << "wrote in spite of the refusal";
    return std::string(s.message());
  };
  EXPECT_EQ(message_of({0, 1, 8, 1}, {2, 2}), "given.topk_ids[1, 0] is 8, expected 0..7");
  EXPECT_EQ(message_of({0, -1, 2, 1}, {2, 2}), "given.topk_ids[0, 1] is -1, expected 0..7");
  EXPECT_EQ(message_of({0, 1, 3, 3}, {2, 2}), "given.topk_ids[1, 1] is 3, as is slot 0");
  EXPECT_EQ(message_of({0, 1, 2, 3}, {2, 3}), "given.topk_counts[1] is 3, expected 0..top_k = 2");
  EXPECT_FALSE(r.replay(0, view, routing_replay<>{}, out.view()).ok());
}

}  // namespace
