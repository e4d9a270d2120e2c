// A call split over threads that the system does not start, or without memory: nothing ends the
// process, and the outputs and metrics are those of the call in one piece.
#include "refused_threads.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "adaptive_k/host/route_in_threads.hpp"
#include "checked_batch.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

class RefusedThreads : public ::testing::Test {
 protected:
  RefusedThreads() {
    expected = shared.route(0, input.view(), &expected_metrics);
    EXPECT_TRUE(expected.result.ok());
  }
  ~RefusedThreads() override { refused::threads_left = 1 << 30; }

  void expect_the_same(int num_threads, long allocations) {
    std::vector<std::int32_t> ids(expected.topk_ids.size()), counts(expected.topk_counts.size());
    std::vector<float> weights(ids.size()), signal(counts.size());
    const routing_output<> output = {ids.data(), weights.data(), counts.data(), signal.data()};
    routing_metrics metrics;
    refused::allocations_left = allocations;
    const status result = route_in_threads(shared, num_threads, 0, input.view(), output, &metrics);
    refused::allocations_left = 1L << 60;
    EXPECT_TRUE(result.ok()) << result.message();
    EXPECT_EQ(ids, expected.topk_ids);
    EXPECT_EQ(weights, expected.topk_weights);
    EXPECT_EQ(counts, expected.topk_counts);
    EXPECT_EQ(signal, expected.signal);
    EXPECT_EQ(std::memcmp(&metrics, &expected_metrics, sizeof metrics), 0);
  }

  inputs::sequence from{77};
  gating g = make_gating(gating_kind::softmax, 60, 4);
  batch<float> input = grid_batch(from, 1000, 60);
  router shared{g, k_policy::top_p(0.7f, 4)};
  routing_metrics expected_metrics;
  routed_batch expected;
};

TEST_F(RefusedThreads, LeaveTheirPartsToTheOthers) {
  for (const int granted : {0, 1, 2, 5})
    for (const int num_threads : {2, 8}) {
      refused::threads_left = granted;
      expect_the_same(num_threads, 1L << 60);
      EXPECT_EQ(refused::threads_left, granted - std::min(num_threads - 1, granted + 1));
    }
}

TEST_F(RefusedThreads, AndSoDoesEveryAllocation) {
  for (long allocations = 0; allocations < 24; ++allocations) expect_the_same(8, allocations);
}

TEST_F(RefusedThreads, ManyAreNoMoreThanTheCallHasUseFor) {
  refused::threads_left = 1 << 30;
  expect_the_same(std::numeric_limits<int>::max(), 1L << 60);
  EXPECT_GT(refused::threads_left, (1 << 30) - 16);
}

}  // namespace
