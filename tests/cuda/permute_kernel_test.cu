// The permute kernel against the host's permutation, bit for bit, in many orders of execution.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "adaptive_k/cuda/permute_launch.cuh"
#include "adaptive_k/host/permutation.hpp"
#include "device_buffer.hpp"
#include "permutation_cases.hpp"
#include "report.hpp"
#include "schedules.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

using permutations::arrays;
using permutations::test_case;

void expect_same(const char* what, const std::vector<std::int32_t>& device,
                 const std::vector<std::int32_t>& host) {
  EXPECT_EQ(device, host) << what;
  report::comparisons() += static_cast<long>(host.size());
}

/// Device memory of a permutation, every element set to a value that none writes.
struct device_arrays {
  explicit device_arrays(const permutation_shape& shape)
      : blank(permutations::sized_arrays(shape)) {}

  permutation_output view() const {
    return {counts.get(), offsets.get(), slots.get(), tokens.get(), rows.get(), blocks.get()};
  }
  void expect_equal(const arrays& host) const {
    expect_same("expert_counts", counts.read(), host.expert_counts);
    expect_same("expert_offsets", offsets.read(), host.expert_offsets);
    expect_same("sorted_slots", slots.read(), host.sorted_slots);
    expect_same("sorted_tokens", tokens.read(), host.sorted_tokens);
    expect_same("row_of_slot", rows.read(), host.row_of_slot);
    expect_same("block_experts", blocks.read(), host.block_experts);
  }

  arrays blank;
  device::buffer<std::int32_t> counts{blank.expert_counts}, offsets{blank.expert_offsets},
      slots{blank.sorted_slots}, tokens{blank.sorted_tokens}, rows{blank.row_of_slot},
      blocks{blank.block_experts};
};

/// Permutes on the device, in each of the orders, and on the host.
template <class Id>
void expect_equal(const test_case<Id>& input, std::uint64_t first_seed = 0, int num_seeds = 1) {
  SCOPED_TRACE(permutations::describe(input));
  arrays host = permutations::sized_arrays(input.shape);
  const status host_result = permute(input.shape, permutations::view_of(input), host.view());
  ASSERT_TRUE(host_result.ok()) << host_result.message();

  const device::buffer<Id> ids(input.ids);
  const device::optional_copy<std::int32_t> counts(input.counts), map(input.map);
  std::size_t bytes = 0;
  ASSERT_TRUE(cuda::permute<Id>(input.shape, {}, {}, nullptr, &bytes, false, nullptr).ok());
  device::buffer<unsigned char> workspace(bytes);
  for (int i = 0; i < num_seeds; ++i) {
    const std::uint64_t seed = first_seed + static_cast<std::uint64_t>(i);
    SCOPED_TRACE("seed " + std::to_string(seed));
    schedules::choose(seed);
    const device_arrays made(input.shape);
    workspace.write(std::vector<unsigned char>(bytes, 0xA5));  // needs no initialisation
    const status result = cuda::permute<Id>(input.shape, {ids.get(), counts.get(), map.get()},
                                            made.view(), workspace.get(), &bytes, false, nullptr);
    ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
    made.expect_equal(host);
  }
}

TEST(permute_kernel, one_block_equals_host) {
  inputs::sequence from(1);
  for (const std::int64_t tokens : {0, 1, 2, 31, 32, 33, 64, 100, 255, 256}) {
    expect_equal(permutations::random_case<std::int32_t>(from, tokens));
    expect_equal(permutations::random_case<std::int64_t>(from, tokens));
    expect_equal(permutations::random_case<std::int16_t>(from, tokens));
    expect_equal(permutations::random_case<std::uint16_t>(from, tokens));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(permute_kernel, many_blocks_equal_host) {
  inputs::sequence from(2);
  for (const std::int64_t tokens : {257, 511, 512, 1000, 2049}) {
    expect_equal(permutations::random_case<std::int32_t>(from, tokens));
    expect_equal(permutations::random_case<std::int64_t>(from, tokens));
    expect_equal(permutations::random_case<std::int16_t>(from, tokens));
    expect_equal(permutations::random_case<std::uint16_t>(from, tokens));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(permute_kernel, blocks_of_several_chunks_equal_host) {
  inputs::sequence from(3);
  test_case<std::int16_t> input;
  input.shape = {64 * 256 + 300, 2, 8, 0, 16};  // two chunks a block, the last one with less
  permutations::fill_ids(from, input);
  expect_equal(input);
}

TEST(permute_kernel, the_same_bits_in_every_order) {
  inputs::sequence from(4);
  for (const std::int64_t tokens : {1, 77, 256, 700, 1500}) {
    for (const int experts : {8, 60, 128, 1024}) {
      const auto input = permutations::random_case<std::int32_t>(from, tokens, {experts});
      expect_equal(input, 1, tokens > 256 ? 20 : 5);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(permute_kernel, every_member_may_be_left_out) {
  inputs::sequence from(5);
  for (const std::int64_t tokens : {40, 300}) {
    const auto input = permutations::random_case<std::int32_t>(from, tokens, {16});
    arrays host = permutations::sized_arrays(input.shape);
    ASSERT_TRUE(permute(input.shape, permutations::view_of(input), host.view()).ok());
    const device::buffer<std::int32_t> ids(input.ids);
    const device::optional_copy<std::int32_t> counts(input.counts), map(input.map);
    std::size_t bytes = 0;
    ASSERT_TRUE(
        cuda::permute<std::int32_t>(input.shape, {}, {}, nullptr, &bytes, false, nullptr).ok());
    device::buffer<unsigned char> workspace(bytes);
    for (int only = 0; only < 6; ++only) {
      const device_arrays made(input.shape);
      permutation_output view = made.view();
      std::int32_t** members[] = {&view.expert_counts, &view.expert_offsets, &view.sorted_slots,
                                  &view.sorted_tokens, &view.row_of_slot,    &view.block_experts};
      for (int i = 0; i < 6; ++i)
        if (i != only) *members[i] = nullptr;
      ASSERT_TRUE(cuda::permute<std::int32_t>(input.shape, {ids.get(), counts.get(), map.get()},
                                              view, workspace.get(), &bytes, false, nullptr)
                      .ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();
      arrays expected = made.blank;
      if (only == 0) expected.expert_counts = host.expert_counts;
      if (only == 1) expected.expert_offsets = host.expert_offsets;
      if (only == 2) expected.sorted_slots = host.sorted_slots;
      if (only == 3) expected.sorted_tokens = host.sorted_tokens;
      if (only == 4) expected.row_of_slot = host.row_of_slot;
      if (only == 5) expected.block_experts = host.block_experts;
      made.expect_equal(expected);
    }
  }
}

TEST(permute_kernel, a_workspace_for_more_tokens_serves_fewer) {
  std::size_t before = 0;
  for (std::int64_t tokens = 0; tokens < 70000; tokens += 64) {
    std::size_t bytes = 0;
    ASSERT_TRUE(
        cuda::permute<std::int32_t>({tokens, 8, 128, 0, 1}, {}, {}, nullptr, &bytes, false, nullptr)
            .ok());
    ASSERT_GE(bytes, before) << tokens;
    before = bytes;
  }
}

TEST(permute_kernel, refuses_a_workspace_that_does_not_fit) {
  const permutation_shape shape = {1000, 2, 64, 0, 1};
  std::size_t bytes = 0;
  ASSERT_TRUE(cuda::permute<std::int32_t>(shape, {}, {}, nullptr, &bytes, false, nullptr).ok());
  EXPECT_EQ(bytes, 16u + 4u * 64u * sizeof(std::int32_t));
  const device::buffer<unsigned char> workspace(bytes);
  const device::buffer<std::int32_t> ids(2000);
  std::size_t given = bytes - 1;
  EXPECT_STREQ(
      cuda::permute<std::int32_t>(shape, {ids.get()}, {}, workspace.get(), &given, false, nullptr)
          .message(),
      "workspace_bytes is 1039, this shape needs 1040");
  EXPECT_STREQ(cuda::permute<std::int32_t>(shape, {ids.get()}, {}, workspace.get() + 8, &bytes,
                                           false, nullptr)
                   .message(),
               "workspace is not aligned to 16 bytes");
  EXPECT_STREQ(
      cuda::permute<std::int32_t>(shape, {}, {}, workspace.get(), &bytes, false, nullptr).message(),
      "topk_ids is null");
}

}  // namespace
