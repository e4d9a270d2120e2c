// The host's permutation against a stable sort of the slots.
#include "adaptive_k/host/permutation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "permutation_cases.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

using permutations::arrays;
using permutations::test_case;

/// The definition, written as a sort: what the library must give, element by element.
template <class Id>
arrays by_sorting(const test_case<Id>& input) {
  const permutation_shape& shape = input.shape;
  const int num_local = shape.num_local_experts != 0 ? shape.num_local_experts : shape.num_experts;
  struct entry {
    int expert;
    std::int32_t slot;
  };
  std::vector<entry> taken;
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    std::vector<int> seen;
    for (int j = 0; j < shape.top_k; ++j) {
      const std::int64_t slot = t * shape.top_k + j;
      if (!input.counts.empty() && j >= input.counts[static_cast<std::size_t>(t)]) continue;
      const auto id = static_cast<std::int64_t>(input.ids[static_cast<std::size_t>(slot)]);
      if (id < 0 || id >= shape.num_experts) continue;
      const int expert =
          input.map.empty() ? static_cast<int>(id) : input.map[static_cast<std::size_t>(id)];
      if (expert < 0 || expert >= num_local) continue;
      if (std::find(seen.begin(), seen.end(), expert) != seen.end()) continue;
      seen.push_back(expert);
      taken.push_back({expert, static_cast<std::int32_t>(slot)});
    }
  }
  std::stable_sort(taken.begin(), taken.end(),
                   [](const entry& a, const entry& b) { return a.expert < b.expert; });
  arrays expected = permutations::sized_arrays(shape);
  std::fill(expected.sorted_slots.begin(), expected.sorted_slots.end(),
            static_cast<std::int32_t>(shape.num_tokens * shape.top_k));
  std::fill(expected.sorted_tokens.begin(), expected.sorted_tokens.end(),
            static_cast<std::int32_t>(shape.num_tokens));
  std::fill(expected.row_of_slot.begin(), expected.row_of_slot.end(), -1);
  std::fill(expected.block_experts.begin(), expected.block_experts.end(), -1);
  std::size_t row = 0;
  std::size_t next = 0;
  for (int e = 0; e < num_local; ++e) {
    expected.expert_offsets[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(row);
    std::int32_t count = 0;
    for (; next < taken.size() && taken[next].expert == e; ++next, ++count) {
      const std::int32_t slot = taken[next].slot;
      const std::size_t at = row + static_cast<std::size_t>(count);
      expected.sorted_slots.at(at) = slot;
      expected.sorted_tokens.at(at) = slot / shape.top_k;
      expected.row_of_slot[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(at);
    }
    expected.expert_counts[static_cast<std::size_t>(e)] = count;
    for (std::int32_t filled = 0; filled < count; filled += shape.block_size) {
      expected.block_experts.at(row / static_cast<std::size_t>(shape.block_size)) = e;
      row += static_cast<std::size_t>(shape.block_size);
    }
  }
  expected.expert_offsets[static_cast<std::size_t>(num_local)] = static_cast<std::int32_t>(row);
  return expected;
}

template <class Id>
void expect_sorted(const test_case<Id>& input) {
  SCOPED_TRACE(permutations::describe(input));
  arrays made = permutations::sized_arrays(input.shape);
  const status result = permute(input.shape, permutations::view_of(input), made.view());
  ASSERT_TRUE(result.ok()) << result.message();
  const arrays expected = by_sorting(input);
  EXPECT_EQ(made.expert_counts, expected.expert_counts);
  EXPECT_EQ(made.expert_offsets, expected.expert_offsets);
  EXPECT_EQ(made.sorted_slots, expected.sorted_slots);
  EXPECT_EQ(made.sorted_tokens, expected.sorted_tokens);
  EXPECT_EQ(made.row_of_slot, expected.row_of_slot);
  EXPECT_EQ(made.block_experts, expected.block_experts);
}

TEST(permutation, is_a_stable_sort_of_the_slots) {
  inputs::sequence from(1);
  for (int i = 0; i < 400; ++i) {
    const std::int64_t tokens = i % 8 == 0 ? from.below(3) : from.below(300);
    expect_sorted(permutations::random_case<std::int32_t>(from, tokens));
    expect_sorted(permutations::random_case<std::int64_t>(from, tokens));
    expect_sorted(permutations::random_case<std::int16_t>(from, tokens));
    expect_sorted(permutations::random_case<std::uint16_t>(from, tokens));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(permutation, every_member_may_be_left_out) {
  inputs::sequence from(2);
  const auto input = permutations::random_case<std::int32_t>(from, 50);
  arrays whole = permutations::sized_arrays(input.shape);
  ASSERT_TRUE(permute(input.shape, permutations::view_of(input), whole.view()).ok());
  for (int left_out = 0; left_out < 6; ++left_out) {
    arrays made = permutations::sized_arrays(input.shape);
    permutation_output view = made.view();
    std::int32_t** members[] = {&view.expert_counts, &view.expert_offsets, &view.sorted_slots,
                                &view.sorted_tokens, &view.row_of_slot,    &view.block_experts};
    *members[left_out] = nullptr;
    ASSERT_TRUE(permute(input.shape, permutations::view_of(input), view).ok());
    if (left_out != 2) {
      EXPECT_EQ(made.sorted_slots, whole.sorted_slots);
    }
    if (left_out != 4) {
      EXPECT_EQ(made.row_of_slot, whole.row_of_slot);
    }
    if (left_out != 1) {
      EXPECT_EQ(made.expert_offsets, whole.expert_offsets);
    }
  }
}

TEST(permutation, capacity_holds_the_worst_case_and_no_more_than_a_block_each) {
  EXPECT_EQ(permuted_capacity({100, 8, 64, 0, 1}), 800);
  EXPECT_EQ(permuted_capacity({1, 2, 8, 0, 16}), 32);     // two experts, a block each
  EXPECT_EQ(permuted_capacity({100, 8, 4, 0, 16}), 848);  // 800 + 4 * 15 = 860, in whole blocks
  EXPECT_EQ(permuted_capacity({0, 8, 64, 0, 16}), 0);
  EXPECT_EQ(permuted_capacity({-1, 8, 64}), -1) << "what a vector of that size refuses";
  EXPECT_EQ(permuted_capacity({1, 8, 64, 0, 0}), -1);
  // One token for every expert: nothing but padding beside it.
  const permutation_shape shape = {2, 4, 8, 0, 32};
  const std::vector<std::int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7};
  std::vector<std::int32_t> offsets(9);
  permutation_output output;
  output.expert_offsets = offsets.data();
  ASSERT_TRUE(permute<std::int32_t>(shape, {ids.data()}, output).ok());
  EXPECT_EQ(offsets[8], permuted_capacity(shape));
}

TEST(permutation, refuses_what_does_not_fit) {
  const std::int32_t id = 0;
  const permutation_output none;
  const auto message = [&](const permutation_shape& shape, const std::int32_t* ids = nullptr) {
    return std::string(permute<std::int32_t>(shape, {ids}, none).message());
  };
  EXPECT_EQ(message({1, 1, 0}, &id), "num_experts is 0, expected 1..1024");
  EXPECT_EQ(message({1, 33, 64}, &id), "top_k is 33, expected 1..32");
  EXPECT_EQ(message({1, 1, 8, 0, 0}, &id), "block_size is 0, expected 1..1024");
  EXPECT_EQ(message({1, 1, 8, 4}, &id),
            "num_local_experts is 4 without an expert_map, expected num_experts = 8");
  EXPECT_EQ(message({1, 1, 8}), "topk_ids is null");
  EXPECT_EQ(message({-1, 1, 8}, &id), "num_tokens is -1, expected 0 or more");
  EXPECT_EQ(message({1 << 28, 8, 8}, &id),
            "num_tokens is 268435456: its rows, padding included, do not fit int32");
  EXPECT_EQ(message({0, 1, 8}), "");
}

}  // namespace
