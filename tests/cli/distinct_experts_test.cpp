// Distinct experts of decode steps, against sets.
#include "bench/adaptive_k/measure/distinct_experts.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "bench/adaptive_k/measure/controls.hpp"

namespace {

TEST(DistinctExperts, NothingBeforeAWholeBatch) {
  bench::distinct_experts steps(2, 1, 8, 1);
  const std::int32_t ids[] = {3, 5};
  steps.add_window(0, ids, 2);
  EXPECT_FALSE(steps.mean_per_layer().has_value());
  steps.add_window(0, ids, 2);
  EXPECT_EQ(steps.mean_per_layer(), 2.0);
}

TEST(DistinctExperts, EmptySlotsCountForNothing) {
  bench::distinct_experts steps(1, 1, 8, 2);
  const std::int32_t ids[] = {3, -1, 7, 0};
  steps.add_window(0, ids, 2);
  EXPECT_EQ(steps.mean_per_layer(), 1.5);
}

TEST(DistinctExperts, AgreesWithSets) {
  constexpr int layers = 3;
  constexpr int experts = 150;  // more than two words of 64
  constexpr int length = 5;
  constexpr int chosen = 4;
  constexpr int windows = 11;
  for (const int batch : {1, 2, 5, 16}) {
    bench::distinct_experts steps(batch, layers, experts, length);
    adaptive_k::integer_rng rng(1);
    std::vector<std::set<std::int32_t>> sets(layers * length);
    double distinct = 0.0;
    double finished = 0.0;
    for (int w = 0; w < windows; ++w) {
      for (int layer = 0; layer < layers; ++layer) {
        std::vector<std::int32_t> ids;
        for (int t = 0; t < length; ++t)
          for (int j = 0; j < chosen; ++j) {
            ids.push_back(static_cast<std::int32_t>(rng.below(experts + 20)) - 20);
            if (ids.back() >= 0)
              sets[static_cast<std::size_t>(layer * length + t)].insert(ids.back());
          }
        steps.add_window(layer, ids.data(), chosen);
      }
      if ((w + 1) % batch != 0) continue;
      for (auto& set : sets) {
        distinct += static_cast<double>(set.size());
        finished += 1.0;
        set.clear();
      }
    }
    const auto mean = steps.mean_per_layer();
    ASSERT_EQ(mean.has_value(), windows >= batch) << batch;
    if (mean) {
      EXPECT_NEAR(*mean, distinct / finished, 1e-12) << batch;
    }
  }
}

}  // namespace
