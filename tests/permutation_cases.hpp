// Inputs of permutations, for the host's tests and the kernels'.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "adaptive_k/core/permutation.hpp"
#include "inputs.hpp"

namespace permutations {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test helper

template <class Id>
struct test_case {
  permutation_shape shape;
  std::vector<Id> ids;
  std::vector<std::int32_t> counts;  ///< or empty
  std::vector<std::int32_t> map;     ///< or empty
};

struct arrays {
  std::vector<std::int32_t> expert_counts, expert_offsets, sorted_slots, sorted_tokens, row_of_slot,
      block_experts;

  permutation_output view() {
    return {expert_counts.data(), expert_offsets.data(), sorted_slots.data(),
            sorted_tokens.data(), row_of_slot.data(),    block_experts.data()};
  }
};

/// Filled with a value that no permutation writes, so that elements left out show.
inline arrays sized_arrays(const permutation_shape& shape) {
  constexpr std::int32_t untouched = -77;
  const auto local = static_cast<std::size_t>(shape.num_local_experts != 0 ? shape.num_local_experts
                                                                           : shape.num_experts);
  const auto capacity = static_cast<std::size_t>(permuted_capacity(shape));
  const auto slots = static_cast<std::size_t>(shape.num_tokens * shape.top_k);
  arrays made;
  made.expert_counts.assign(local, untouched);
  made.expert_offsets.assign(local + 1, untouched);
  made.sorted_slots.assign(capacity, untouched);
  made.sorted_tokens.assign(capacity, untouched);
  made.row_of_slot.assign(slots, untouched);
  made.block_experts.assign(capacity / static_cast<std::size_t>(shape.block_size), untouched);
  return made;
}

template <class T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class Id>
permutation_input<Id> view_of(const test_case<Id>& input) {
  return {input.ids.data(), data_or_null(input.counts), data_or_null(input.map)};
}

template <class Id>
std::string describe(const test_case<Id>& input) {
  return "T " + std::to_string(input.shape.num_tokens) + ", K0 " +
         std::to_string(input.shape.top_k) + ", E " + std::to_string(input.shape.num_experts) +
         ", L " + std::to_string(input.shape.num_local_experts) + ", block " +
         std::to_string(input.shape.block_size) + (input.counts.empty() ? "" : ", counts") +
         (input.map.empty() ? "" : ", map");
}

/// Ids of `shape`: mostly different within a token, some fills, some repeated, some out of range;
/// a few experts are far more popular than others.
template <class Id>
void fill_ids(inputs::sequence& from, test_case<Id>& input) {
  const permutation_shape& shape = input.shape;
  const bool clean = from.chance(2);
  const int popular = from.below(shape.num_experts);
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    std::vector<bool> used(static_cast<std::size_t>(shape.num_experts));
    for (int j = 0; j < shape.top_k; ++j) {
      int id = from.chance(4) ? popular : from.below(shape.num_experts);
      for (int tries = 0; used[static_cast<std::size_t>(id)] && tries < shape.num_experts; ++tries)
        id = (id + 1) % shape.num_experts;
      used[static_cast<std::size_t>(id)] = true;
      if (!clean && from.chance(9)) id = j > 0 ? static_cast<int>(input.ids.back()) : id;
      if (!clean && from.chance(9)) id = from.chance(2) ? -1 : shape.num_experts;
      input.ids.push_back(static_cast<Id>(id));
    }
  }
}

template <class Id>
test_case<Id> random_case(inputs::sequence& from, std::int64_t num_tokens,
                          const std::vector<int>& expert_numbers = {1, 2, 8, 31, 60, 128, 384, 1000,
                                                                    1024}) {
  test_case<Id> made;
  made.shape.num_tokens = num_tokens;
  made.shape.num_experts = from.pick(expert_numbers);
  const int most = made.shape.num_experts < 32 ? made.shape.num_experts : 32;
  made.shape.top_k = from.chance(4) ? from.between(1, most) : from.between(1, most < 8 ? most : 8);
  made.shape.block_size = from.pick(std::vector<int>{1, 1, 7, 16, 64, 128});
  fill_ids(from, made);
  if (from.chance(2))
    for (std::int64_t t = 0; t < num_tokens; ++t)
      made.counts.push_back(from.below(made.shape.top_k + 1));
  if (from.chance(3)) {  // a rank's experts, in an order of its own
    const int local = from.between(1, made.shape.num_experts);
    made.shape.num_local_experts = local;
    // Of other ranks' experts: -1, or anything else that is no local expert.
    const std::vector<std::int32_t> elsewhere = {-1, -1, -7, local, local + 5, 0x7FFFFFFF};
    for (int e = 0; e < made.shape.num_experts; ++e) made.map.push_back(from.pick(elsewhere));
    const int first = from.below(made.shape.num_experts);
    for (int i = 0; i < local; ++i)
      made.map[static_cast<std::size_t>((first + i) % made.shape.num_experts)] = local - 1 - i;
  }
  return made;
}

}  // namespace permutations
