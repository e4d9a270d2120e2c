// What an expert-parallel call sends: counted from the routing alone.
#pragma once

#include <cstdint>

#include "placement.hpp"

namespace expert_parallel {

/// How tokens travel to their experts.
enum class dispatch_form : std::uint8_t {
  /// A row for each live (token, expert) pair, and one back: what moe_layer does.
  each_pair,
  /// A row for each token and rank that has an expert of it, with the ids and weights of its
  /// experts, and one back, which holds their weighted sum: DeepEP's dispatch and combine.
  once_a_rank,
};

/// Sizes of a row.
struct row_sizes {
  int hidden_size = 0;      ///< H
  int top_k = 0;            ///< K0
  int bytes_per_value = 4;  ///< of an activation
};

/// Between one rank and all others, in one call or added up over many.
struct traffic {
  std::uint64_t rows = 0;        ///< sent to other ranks, and as many come back
  std::uint64_t bytes_out = 0;   ///< sent with them: rows, and what says whose they are
  std::uint64_t bytes_back = 0;  ///< of the rows that come back

  traffic& operator+=(const traffic& other) noexcept {
    rows += other.rows;
    bytes_out += other.bytes_out;
    bytes_back += other.bytes_back;
    return *this;
  }
  std::uint64_t bytes() const noexcept { return bytes_out + bytes_back; }
};

/// Experts of tokens, as a routing call writes them.
struct routed_tokens {
  const std::int32_t* topk_ids = nullptr;     ///< [num_tokens, top_k]
  const std::int32_t* topk_counts = nullptr;  ///< [num_tokens]
  std::int64_t num_tokens = 0;                ///< T, of one rank
};

/// What follows, in numbers of rows n, H values of b bytes:
///   each_pair:    out n (H b), back n H b; n counts (token, expert) pairs
///   once_a_rank:  out n (H b + 12 K0), back n H b; n counts (token, rank) pairs; 12 bytes are an
///   id
///                 of 8 and a weight of 4
/// Both send 4 bytes for each slot of another rank before: how many rows come. `slot_rows` [S],
/// where given, is added to: the rows that each slot runs, those of the sender's own rank included.
/// `rank_rows` [R] likewise: the rows for each rank, those that stay included.
traffic count_traffic(const placement& where, int rank, dispatch_form form,
                      const routed_tokens& routed, const row_sizes& sizes,
                      std::uint64_t* slot_rows = nullptr, std::uint64_t* rank_rows = nullptr);

}  // namespace expert_parallel
