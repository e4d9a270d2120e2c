// What the paths are given of a call, and what they give back.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/plan.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline constexpr int lane_experts = 256;  ///< columns of a block, which stay in the L1 cache
inline constexpr int lane_top_k = 16;     ///< lists of a block, which stay in registers

/// A decision about one token, or about each of a block.
struct token_request {
  const gating* model;
  const float* routing_bias;  ///< [E] or null
  k_limits limits;
  int forced_k;                 ///< as finish_route takes it
  int num_given = 0;            ///< of `given`
  const int* given = nullptr;   ///< experts that take the first ranks, in order, or null
  const float* head = nullptr;  ///< of one token, [K0 - 1], where its plan reads one

  // What route_token takes as given.
  static constexpr bool possible = true;
  ADAPTIVE_K_HD bool active() const noexcept { return given != nullptr; }
  ADAPTIVE_K_HD int count() const noexcept { return num_given; }
  ADAPTIVE_K_HD int expert(int rank) const noexcept { return given[rank]; }
};

/// Rows of a block: of logits [lanes, E rounded up to 4], past E any of the row's; or of a head
/// [lanes, K0 - 1, at least 4], null where the plan reads none.
struct block_rows {
  const float* data;
  std::int64_t stride;
};

/// A block of as many tokens as there are lanes, decided, one a column.
template <int Lanes>
struct token_block {
  alignas(64) std::uint32_t expert[lane_top_k][Lanes];
  alignas(64) float weight[lane_top_k][Lanes];
  alignas(64) std::uint32_t count[Lanes];
  alignas(64) std::uint32_t chosen[Lanes];
  alignas(64) float signal[Lanes];
  alignas(64) float kept_mass[Lanes];
  alignas(64) float total_mass[Lanes];
  std::uint32_t raised_lanes;   ///< a bit where super experts raised `chosen`
  std::uint32_t outside_lanes;  ///< a bit where the token is outside of the plan's domain
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
