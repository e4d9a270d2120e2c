// The expert-major permutation on the host: a counting sort, the twin of the device's.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/permutation.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Calls place(slot, local expert or -1) for every slot, in order.
template <class Id, class Place>
void for_each_slot_expert(const permutation_shape& shape, const permutation_input<Id>& input,
                          Place place) noexcept {
  std::int64_t last_token[max_experts];  // that took the expert: tells its later slots of the token
  for (int e = 0; e < local_experts(shape); ++e) last_token[e] = -1;
  permutation_shape checked = shape;
  checked.num_local_experts = local_experts(shape);
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const int count = input.topk_counts != nullptr ? input.topk_counts[token] : shape.top_k;
    for (int j = 0; j < shape.top_k; ++j) {
      const std::int64_t slot = token * shape.top_k + j;
      int expert = -1;
      if (j < count) {
        const auto id = static_cast<std::int64_t>(input.topk_ids[slot]);
        const bool fits = id >= 0 && id < max_experts;
        expert = local_expert(fits ? static_cast<int>(id) : -1, checked, input.expert_map);
      }
      if (expert >= 0 && last_token[expert] == token) expert = -1;
      if (expert >= 0) last_token[expert] = token;
      place(slot, expert);
    }
  }
}

}  // namespace detail

/// Groups slots by expert. Every element of every given output is written. No allocation; time
/// O(T * top_k + L + capacity), 16 KiB of stack. With a refusal nothing is written.
template <class Id = std::int32_t>
status permute(const permutation_shape& shape, const permutation_input<Id>& input,
               const permutation_output& output) noexcept {
  const status checked =
      detail::check_permutation(shape, input.topk_ids != nullptr, input.expert_map != nullptr);
  if (!checked.ok()) return checked;
  const int num_local = detail::local_experts(shape);
  std::int32_t next[max_experts + 1] = {};
  detail::for_each_slot_expert(shape, input, [&](std::int64_t, int expert) {
    if (expert >= 0) ++next[expert];
  });

  const auto all_slots = static_cast<std::int32_t>(shape.num_tokens * shape.top_k);
  const auto pad = [&](std::int32_t from, std::int32_t to) {
    for (std::int32_t row = from; row < to; ++row) {
      if (output.sorted_slots != nullptr) output.sorted_slots[row] = all_slots;
      if (output.sorted_tokens != nullptr)
        output.sorted_tokens[row] = static_cast<std::int32_t>(shape.num_tokens);
    }
  };
  const auto name_blocks = [&](std::int32_t from, std::int32_t to, int expert) {
    if (output.block_experts == nullptr) return;
    for (std::int32_t block = from / shape.block_size; block < to / shape.block_size; ++block)
      output.block_experts[block] = expert;
  };
  std::int32_t row = 0;
  for (int e = 0; e < num_local; ++e) {
    const std::int32_t count = next[e];
    const std::int32_t end = row + detail::padded_rows(count, shape.block_size);
    if (output.expert_counts != nullptr) output.expert_counts[e] = count;
    if (output.expert_offsets != nullptr) output.expert_offsets[e] = row;
    pad(row + count, end);
    name_blocks(row, end, e);
    next[e] = row;
    row = end;
  }
  if (output.expert_offsets != nullptr) output.expert_offsets[num_local] = row;
  const auto capacity = static_cast<std::int32_t>(permuted_capacity(shape));
  pad(row, capacity);
  name_blocks(row, capacity, -1);

  detail::for_each_slot_expert(shape, input, [&](std::int64_t slot, int expert) {
    const std::int32_t at = expert >= 0 ? next[expert]++ : -1;
    if (output.row_of_slot != nullptr) output.row_of_slot[slot] = at;
    if (at < 0) return;
    if (output.sorted_slots != nullptr) output.sorted_slots[at] = static_cast<std::int32_t>(slot);
    if (output.sorted_tokens != nullptr)
      output.sorted_tokens[at] = static_cast<std::int32_t>(slot / shape.top_k);
  });
  return {};
}

ADAPTIVE_K_NAMESPACE_END
