// Runs a program's tests on the interpreter; says what ran, and can insist that every kernel did.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ptx_device.hpp"
#include "report.hpp"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const bool whole = ::testing::GTEST_FLAG(filter) == "*";
  const char* seed = std::getenv("PTX_SEED");
  ptx::set_seed(seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0);
  int result = RUN_ALL_TESTS();

  const std::vector<std::string> kernels = ptx::kernels_registered();
  const std::vector<std::string> executed = ptx::kernels_executed();
  std::printf(
      "interpreter, compute_%d, seed %s: %zu of %zu kernels, %llu launches, %ld comparisons\n",
      ptx::compute_capability(), seed != nullptr ? seed : "0", executed.size(), kernels.size(),
      static_cast<unsigned long long>(ptx::total_counters().launches), report::comparisons());
#if defined(EVERY_KERNEL_OF)
  for (const std::string& kernel : kernels) {
    if (!whole || kernel.find(EVERY_KERNEL_OF) == std::string::npos ||
        std::find(executed.begin(), executed.end(), kernel) != executed.end())
      continue;
    std::printf("never ran: %s\n", kernel.c_str());
    result = 1;
  }
#else
  (void)whole;
#endif
  return result;
}
