// Runs a program's tests on the first GPU, and names it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "report.hpp"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  cudaDeviceProp device = {};
  if (const cudaError_t error = cudaGetDeviceProperties(&device, 0); error != cudaSuccess) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    return 1;
  }
  const int result = RUN_ALL_TESTS();
  std::printf("%s: %ld comparisons\n", device.name, report::comparisons());
  return result;
}
