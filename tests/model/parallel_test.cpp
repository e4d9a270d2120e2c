// The engine's parallel loop without OpenMP.
#include "parallel.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace {

TEST(parallel_for, runs_every_task_once) {
  std::vector<std::atomic<int>> runs(1000);
  moe_engine::parallel_for(1000, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
  for (const std::atomic<int>& times : runs) ASSERT_EQ(times, 1);
}

TEST(parallel_for, rethrows_what_a_task_threw) {
  EXPECT_THROW(moe_engine::parallel_for(50,
                                        [](std::int64_t i) {
                                          if (i == 33) throw std::runtime_error("33");
                                        }),
               std::runtime_error);
}

}  // namespace
