// Expert-major order, as grouped GEMMs need it: what host and device share of the permutation.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What is grouped, and how. A slot is `token * top_k + j`, as in `topk_ids`.
struct permutation_shape {
  std::int64_t num_tokens = 0;  ///< T >= 0; T * top_k and the padded rows must fit int32
  int top_k = 0;                ///< K0 in 1..32
  int num_experts = 0;          ///< E in 1..1024
  int num_local_experts = 0;    ///< L in 1..1024, with an expert map; 0 means E
  int block_size = 1;           ///< 1..1024: every expert's rows are padded to a multiple of it
};

/// A slot counts when j < topk_counts[token] and its id is in 0..E-1 and mapped to 0..L-1. An
/// expert is taken once per token: of slots with the same (mapped) expert the first one counts, so
/// that the fill `fill_id::first_expert` needs no counts where no token is padding.
template <class Id = std::int32_t>
struct permutation_input {
  static_assert(is_expert_id<Id>, "adaptive_k: ids must be int32, int64, int16 or uint16");
  const Id* topk_ids = nullptr;               ///< [num_tokens, top_k]
  const std::int32_t* topk_counts = nullptr;  ///< [num_tokens], k_t; null: all top_k slots count
  const std::int32_t* expert_map = nullptr;   ///< [num_experts], local expert or -1; null: itself
};

/// Rows are in order of expert, and those of an expert in order of token, on every run. Null
/// members are skipped. `capacity` is permuted_capacity(shape). Laid out as vLLM's
/// moe_align_block_size has it: its sorted_token_ids, expert_ids and num_tokens_post_pad are
/// `sorted_slots`, `block_experts` and `expert_offsets + num_local_experts`. TensorRT-LLM's
/// expanded_idx_to_permuted_idx and permuted_idx_to_token_idx are `row_of_slot` and
/// `sorted_tokens`.
struct permutation_output {
  std::int32_t* expert_counts = nullptr;  ///< [L], rows without padding
  std::int32_t* expert_offsets =
      nullptr;                            ///< [L + 1], first row of each expert; the last: all rows
  std::int32_t* sorted_slots = nullptr;   ///< [capacity], slot of each row; padding: T * top_k
  std::int32_t* sorted_tokens = nullptr;  ///< [capacity], token of each row; padding: T
  std::int32_t* row_of_slot = nullptr;    ///< [T, top_k], row of each slot, -1 where none
  std::int32_t* block_experts = nullptr;  ///< [capacity / block_size]; past the last block -1
};

namespace detail {
constexpr int local_experts(const permutation_shape& shape) noexcept {
  return shape.num_local_experts != 0 ? shape.num_local_experts : shape.num_experts;
}
}  // namespace detail

/// Rows that the largest permutation of this shape takes: a multiple of `block_size`. Past
/// `expert_offsets[L]` rows hold padding. -1 for values that `validate` refuses as negative, or 0
/// as a block size.
[[nodiscard]] constexpr std::int64_t permuted_capacity(const permutation_shape& shape) noexcept {
  if (shape.num_tokens < 0 || shape.top_k < 0 || detail::local_experts(shape) < 0 ||
      shape.block_size < 1)
    return -1;
  const std::int64_t slots = shape.num_tokens * shape.top_k;
  const std::int64_t local = detail::local_experts(shape);
  const std::int64_t used = slots < local ? slots : local;
  return (slots + used * (shape.block_size - 1)) / shape.block_size * shape.block_size;
}

/// Refuses values outside the ranges above; the message names the field, its value and the range.
inline status validate(const permutation_shape& shape) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (shape.num_experts < 1 || shape.num_experts > max_experts)
    return status::error(invalid, "`num_experts` is %d, expected 1..%d", shape.num_experts,
                         max_experts);
  if (shape.top_k < 1 || shape.top_k > max_top_k)
    return status::error(invalid, "`top_k` is %d, expected 1..%d", shape.top_k, max_top_k);
  if (shape.num_local_experts < 0 || shape.num_local_experts > max_experts)
    return status::error(invalid, "`num_local_experts` is %d, expected 1..%d, or 0 for num_experts",
                         shape.num_local_experts, max_experts);
  if (shape.block_size < 1 || shape.block_size > 1024)
    return status::error(invalid, "`block_size` is %d, expected 1..1024", shape.block_size);
  if (shape.num_tokens < 0)
    return status::error(invalid, "`num_tokens` is %lld, expected 0 or more",
                         static_cast<long long>(shape.num_tokens));
  constexpr std::int64_t most_rows = 0x7FFFFFFF - 0xFFFF;  // a kernel's index may step past the end
  if (shape.num_tokens > most_rows || permuted_capacity(shape) > most_rows)
    return status::error(status_code::unsupported,
                         "`num_tokens` is %lld: its rows, padding included, do not fit int32",
                         static_cast<long long>(shape.num_tokens));
  return {};
}

namespace detail {

/// Refuses what neither host nor device takes.
inline status check_permutation(const permutation_shape& shape, bool has_ids,
                                bool has_map) noexcept {
  const status checked = validate(shape);
  if (!checked.ok()) return checked;
  if (!has_map && local_experts(shape) != shape.num_experts)
    return status::error(
        status_code::shape_mismatch,
        "`num_local_experts` is %d without an expert_map, expected num_experts = %d",
        shape.num_local_experts, shape.num_experts);
  if (shape.num_tokens != 0 && !has_ids)
    return status::error(status_code::invalid_argument, "`topk_ids` is null");
  return {};
}

/// The local expert that an id stands for, or -1. `num_local_experts` is L, not 0.
ADAPTIVE_K_HD ADAPTIVE_K_INLINE int local_expert(int id, const permutation_shape& shape,
                                                 const std::int32_t* expert_map) noexcept {
  if (static_cast<unsigned>(id) >= static_cast<unsigned>(shape.num_experts)) return -1;
  const int local = expert_map != nullptr ? expert_map[id] : id;
  return static_cast<unsigned>(local) < static_cast<unsigned>(shape.num_local_experts) ? local : -1;
}

ADAPTIVE_K_HD ADAPTIVE_K_INLINE int padded_rows(int count, int block_size) noexcept {
  return (count + block_size - 1) / block_size * block_size;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
