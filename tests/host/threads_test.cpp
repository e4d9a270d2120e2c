// One router, many threads: no locks, no shared scratch, the same bits.
#include <thread>

#include "checked_batch.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

TEST(Threads, ShareARouterAndGetTheSameBits) {
  inputs::sequence from(401);
  const gating g = make_gating(gating_kind::sigmoid, 128, 6);
  const auto input = grid_batch(from, 400, 128);
  const router shared(g, {k_policy::top_p(0.5f, 6), k_policy::fixed(2), k_policy::full()});
  std::vector<routed_batch> alone;
  std::vector<routing_metrics> alone_metrics(3);
  for (int layer = 0; layer < 3; ++layer)
    alone.push_back(shared.route(layer, input.view(), &alone_metrics[at(layer)]));

  constexpr int num_threads = 6;
  std::vector<int> differing(num_threads, 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 6; ++round) {
        const int layer = (i + round) % 3;
        const router copy = shared;  // copies share state; this must not race
        routing_metrics metrics;
        const routed_batch own = copy.route(layer, input.view(), &metrics);
        const routed_batch& same = alone[at(layer)];
        const bool equal = own.topk_ids == same.topk_ids && own.signal == same.signal &&
                           own.topk_weights == same.topk_weights &&
                           own.topk_counts == same.topk_counts &&
                           std::memcmp(&metrics, &alone_metrics[at(layer)], sizeof metrics) == 0;
        differing[at(i)] += equal ? 0 : 1;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(differing, std::vector<int>(num_threads, 0));
}

// Rows split over threads into one output: each call touches its own rows alone.
TEST(Threads, MaySplitABatch) {
  inputs::sequence from(402);
  const int num_tokens = 300, num_experts = 60, top_k = 4;
  const gating g = make_gating(gating_kind::softmax, num_experts, top_k, false);
  const auto input = grid_batch(from, num_tokens, num_experts);
  const router shared(g, k_policy::top_p(0.7f, top_k));
  routing_metrics whole_metrics;
  const routed_batch whole = shared.route(0, input.view(), &whole_metrics);

  for (int num_threads : {2, 3, 7}) {
    std::vector<std::int32_t> ids(num_tokens * top_k), counts(num_tokens);
    std::vector<float> weights(num_tokens * top_k), signal(num_tokens);
    std::vector<routing_metrics> metrics(at(num_threads));
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i)
      threads.emplace_back([&, i] {
        const int first = num_tokens * i / num_threads;
        const int count = num_tokens * (i + 1) / num_threads - first;
        const logits_view<float> rows = {input.logits.data() + first * num_experts, count,
                                         num_experts};
        const routing_output<> output = {ids.data() + first * top_k, weights.data() + first * top_k,
                                         counts.data() + first, signal.data() + first};
        EXPECT_TRUE(shared.route(0, rows, output, &metrics[at(i)]).ok());
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(ids, whole.topk_ids);
    EXPECT_EQ(weights, whole.topk_weights);
    EXPECT_EQ(counts, whole.topk_counts);
    EXPECT_EQ(signal, whole.signal);
    routing_metrics sum;
    for (const routing_metrics& part : metrics) sum += part;
    EXPECT_EQ(sum.calls, static_cast<std::uint64_t>(num_threads));
    sum.calls = whole_metrics.calls;
    sum.distinct_experts = whole_metrics.distinct_experts;
    EXPECT_EQ(std::memcmp(&sum, &whole_metrics, sizeof sum), 0);
  }
}

}  // namespace
