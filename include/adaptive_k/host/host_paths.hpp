// Which path serves which call on the host.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/host/simd/requests.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

enum class host_path : std::uint8_t {
  token_lanes,   ///< a block of tokens, one in each lane of a vector
  expert_lanes,  ///< one token, its experts in the lanes
  scalar,        ///< one token, one expert at a time: any call, and what the others cannot decide
};

/// What a path takes: E and K0 up to these, and the rest where it says so.
struct host_path_limits {
  host_path path;
  int max_experts;
  int max_top_k;
  bool token_limits;       ///< routing_extras::k_min and k_max
  bool groups_and_replay;  ///< experts that are ruled out, or given
  bool sparsemixer;
};

/// The first that takes a call serves it, token_lanes where as many tokens are left as it has
/// lanes.
inline constexpr host_path_limits host_paths[] = {
    {host_path::token_lanes, lane_experts, lane_top_k, false, false, false},
    {host_path::expert_lanes, max_experts, max_top_k, true, true, false},
    {host_path::scalar, max_experts, max_top_k, true, true, true},
};

inline host_path path_for(const gating& model, bool has_token_limits = false,
                          bool replays = false) noexcept {
  for (const host_path_limits& limits : host_paths)
    if (model.num_experts <= limits.max_experts && model.top_k <= limits.max_top_k &&
        (limits.token_limits || !has_token_limits) &&
        (limits.groups_and_replay || (model.n_group == 1 && !replays)) &&
        (limits.sparsemixer || model.kind != gating_kind::sparsemixer))
      return limits.path;
  return host_path::scalar;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
