// Which kernel serves which shape: the tiers, as data. Dispatch, instantiation, `supported()` and
// the tests all read this one list.
#pragma once

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// One compiled shape. A call with E experts and top-K0 takes the first tier that holds it.
template <int MaxExperts, int MaxTopK, int Lanes>
struct tier {
  static constexpr int max_experts = MaxExperts;
  static constexpr int max_top_k = MaxTopK;
  static constexpr int lanes = Lanes;  ///< lanes of a warp that share a token
  static constexpr int row_width = MaxExperts < 32 ? MaxExperts : 32;
  static constexpr int rows = MaxExperts / row_width;
};

template <class... Tiers>
struct tier_list {
  static constexpr int size = sizeof...(Tiers);
};

/// Index of the tier that serves a shape; -1 where none does.
template <class... Tiers>
constexpr int tier_for(tier_list<Tiers...>, int num_experts, int top_k) noexcept {
  int index = 0;
  const bool found =
      ((num_experts <= Tiers::max_experts && top_k <= Tiers::max_top_k ? true : (++index, false)) ||
       ...);
  return found ? index : -1;
}

/// Softmax ranked by logit alone: what most models do.
using plain_tiers =
    tier_list<tier<8, 2, 1>, tier<16, 4, 2>, tier<32, 8, 4>, tier<64, 8, 4>, tier<128, 8, 4>,
              tier<256, 8, 8>, tier<512, 16, 16>, tier<1024, 32, 32>>;

/// Any gating, selection bias and groups.
using general_tiers =
    tier_list<tier<64, 8, 8>, tier<256, 8, 8>, tier<512, 16, 16>, tier<1024, 32, 32>>;

inline constexpr int threads_per_block = 128;

/// Blocks that must fit a multiprocessor: bounds a thread's registers, found by compiling.
template <class Tier>
constexpr int blocks_per_sm(bool plain) {
  return Tier::max_top_k > 8 || !plain ? 2 : 4;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
