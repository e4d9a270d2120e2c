// The engine's parallel loop without OpenMP, where no thread starts or memory is lacking.
#include "refused_threads.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "parallel.hpp"

namespace {

TEST(refused_parallel_for, runs_every_task_once) {
  for (const int granted : {0, 1, 1 << 30})
    for (const long allocations : {0L, 2L, 1L << 60}) {
      std::vector<std::atomic<int>> runs(1000);
      refused::threads_left = granted;
      refused::allocations_left = allocations;
      moe_engine::parallel_for(1000, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
      refused::allocations_left = 1L << 60;
      for (const std::atomic<int>& times : runs) ASSERT_EQ(times, 1) << granted;
    }
  refused::threads_left = 1 << 30;
}

TEST(refused_parallel_for, rethrows_what_a_task_threw) {
  refused::threads_left = 0;
  EXPECT_THROW(moe_engine::parallel_for(50,
                                        [](std::int64_t i) {
                                          if (i == 33) throw std::runtime_error("33");
                                        }),
               std::runtime_error);
  refused::threads_left = 1 << 30;
}

}  // namespace
