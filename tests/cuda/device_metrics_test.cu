// The counters of a launch on their own, against the host's: sums that carry from word to word
// whatever the order of the blocks, and what a policy in shadow mode would have saved.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/host/metrics.hpp"
#include "device_buffer.hpp"
#include "report.hpp"
#include "schedules.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

constexpr int top_k = 4;
constexpr int tokens = 500;

/// Every seventh token is padding.
__host__ __device__ bool is_padding(int token) {
  return token % 7 == 3;
}

__global__ void count_tokens(cuda::device_metrics* target, const float* signals, bool shadow) {
  cuda::block_metrics metrics(target, nullptr, 8);
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (token < tokens) {
    const bool padding = is_padding(token);
    metrics.add_token(padding, padding ? 0 : top_k, signals[token], false);
    if (shadow && !padding) metrics.add_chosen(1 + token % top_k);
  }
  metrics.finish(top_k, shadow);
}

TEST(device_metrics, sums_carry_and_shadows_are_counted_in_any_order) {
  const std::uint64_t low_words[] = {
      0, 1000, ~0ull, ~0ull - (1ull << 30), 1ull << 63, (1ull << 63) - 1};
  std::uint64_t seed = 0;
  for (const float sign : {1.0f, -1.0f})
    for (const std::uint64_t low : low_words)
      for (const std::int64_t high : {0, -1, 41})
        for (const bool shadow : {false, true}) {
          schedules::choose(seed++);
          std::vector<float> signals(tokens);
          routing_metrics expected;
          expected.signal_sum_fixed = static_cast<std::int64_t>(low);
          expected.signal_sum_high = high;
          for (int t = 0; t < tokens; ++t) {
            const auto index = static_cast<std::size_t>(t);
            signals[index] = sign * static_cast<float>(t % 64) / 9.0f;
            if (is_padding(t)) continue;
            detail::add_wide(expected.signal_sum_fixed, expected.signal_sum_high,
                             detail::signal_to_fixed(signals[index]));
            ++expected.tokens;
            expected.full_expert_calls += top_k;
            if (!shadow) continue;
            expected.shadow_expert_calls += static_cast<std::uint64_t>(1 + t % top_k);
            expected.shadow_full_expert_calls += top_k;
          }
          std::vector<cuda::device_metrics> before(1);
          before[0].signal_sum_fixed = low;
          before[0].signal_sum_high = static_cast<unsigned long long>(high);
          device::buffer<cuda::device_metrics> counters(before);
          const device::buffer<float> on_device(signals);
          count_tokens<<<16, 32>>>(counters.get(), on_device.get(), shadow);
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
          const auto got = cuda::to_metrics<routing_metrics>(counters.read()[0]);
          EXPECT_EQ(got.signal_sum_fixed, expected.signal_sum_fixed) << low << ' ' << high;
          EXPECT_EQ(got.signal_sum_high, expected.signal_sum_high) << low << ' ' << high;
          EXPECT_EQ(got.tokens, expected.tokens);
          EXPECT_EQ(got.full_expert_calls, expected.full_expert_calls);
          EXPECT_EQ(got.shadow_expert_calls, expected.shadow_expert_calls);
          EXPECT_EQ(got.shadow_full_expert_calls, expected.shadow_full_expert_calls);
          report::comparisons() += 6;
        }
}

}  // namespace
