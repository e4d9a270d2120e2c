// A call split over threads: the outputs and metrics of the call in one piece.
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "adaptive_k/host/route_in_threads.hpp"
#include "checked_batch.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

TEST(RouteInThreads, AnyNumberGivesTheSameOutputsAndMetrics) {
  for (const std::int64_t num_tokens : {0, 1, 63, 64, 65, 1000}) {
    inputs::sequence from(static_cast<std::uint64_t>(900 + num_tokens));
    const gating g = make_gating(gating_kind::softmax, 60, 4);
    const auto input = grid_batch(from, num_tokens, 60);
    const router shared(g, k_policy::top_p(0.7f, 4));
    routing_metrics expected_metrics;
    const routed_batch expected = shared.route(0, input.view(), &expected_metrics);
    ASSERT_TRUE(expected.result.ok());
    for (const int num_threads : {-1, 1, 2, 3, 8}) {
      std::vector<std::int32_t> ids(expected.topk_ids.size() + 1);
      std::vector<std::int32_t> counts(expected.topk_counts.size() + 1);
      std::vector<float> weights(ids.size()), signal(counts.size());
      routing_output<> output = {ids.data(), weights.data(), counts.data(), signal.data()};
      std::vector<std::uint64_t> expert_counts(60);
      output.expert_counts = expert_counts.data();
      routing_metrics metrics;
      ASSERT_TRUE(route_in_threads(shared, num_threads, 0, input.view(), output, &metrics).ok());
      ids.pop_back();
      weights.pop_back();
      counts.pop_back();
      signal.pop_back();
      EXPECT_EQ(ids, expected.topk_ids);
      EXPECT_EQ(weights, expected.topk_weights);
      EXPECT_EQ(counts, expected.topk_counts);
      EXPECT_EQ(signal, expected.signal);
      EXPECT_EQ(expert_counts, expected.expert_counts);
      EXPECT_EQ(std::memcmp(&metrics, &expected_metrics, sizeof metrics), 0);
    }
  }
}

TEST(RouteInThreads, RangeWritesNothingElse) {
  inputs::sequence from(31);
  const gating g = make_gating(gating_kind::softmax, 17, 3);
  const auto input = grid_batch(from, 50, 17);
  const router shared(g, k_policy::full());
  const routed_batch whole = shared.route(0, input.view());
  std::vector<std::int32_t> ids(150, -7);
  std::vector<float> weights(150, -7.0f);
  const routing_output<> output = {ids.data(), weights.data()};
  ASSERT_TRUE(shared.route_range(0, input.view(), output, 9, 41).ok());
  for (int slot = 0; slot < 150; ++slot) {
    const bool inside = slot >= 27 && slot < 123;
    EXPECT_EQ(ids[at(slot)], inside ? whole.topk_ids[at(slot)] : -7);
    EXPECT_EQ(weights[at(slot)], inside ? whole.topk_weights[at(slot)] : -7.0f);
  }
}

TEST(RouteInThreads, RefusesWhatIsNoRange) {
  inputs::sequence from(32);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const auto input = grid_batch(from, 5, 8);
  const router shared(g, k_policy::full());
  std::vector<std::int32_t> ids(10, -7);
  std::vector<float> weights(10, -7.0f);
  const routing_output<> output = {ids.data(), weights.data()};
  using token = std::int64_t;
  const token least = std::numeric_limits<token>::min(), most = std::numeric_limits<token>::max();
  for (const auto& range : {std::pair<token, token>(-1, 3),
                            {3, 2},
                            {0, 6},
                            {5, 6},
                            {-1, 0},
                            {least, most},
                            {most, least},
                            {least, least + 1},
                            {most - 1, most}})
    EXPECT_FALSE(shared.route_range(0, input.view(), output, range.first, range.second).ok());
  EXPECT_TRUE(shared.route_range(0, input.view(), output, 5, 5).ok());
  EXPECT_EQ(ids, std::vector<std::int32_t>(10, -7));
}

}  // namespace
