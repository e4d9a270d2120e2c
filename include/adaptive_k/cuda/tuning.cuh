// Which kernel serves which shape: the tiers, as data. Dispatch, instantiation, `supported()` and
// the tests all read this one list.
#pragma once

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// One compiled shape. A call with E experts and top-K0 takes the first tier that holds it, and
/// costs least where it fills it. `BlocksPerSm`: blocks that must fit a multiprocessor; bounds a
/// thread's registers.
template <int MaxExperts, int MaxTopK, int Lanes, int BlocksPerSm = 4>
struct tier {
  static constexpr int max_experts = MaxExperts;  ///< E that it holds
  static constexpr int max_top_k = MaxTopK;       ///< K0 that it holds
  static constexpr int lanes = Lanes;             ///< lanes of a warp that share a token
  /// Experts in a row of the tile.
  static constexpr int row_width = MaxExperts < 32 ? MaxExperts : 32;
  static constexpr int rows = (MaxExperts + row_width - 1) / row_width;  ///< that hold E
  static constexpr int blocks_per_sm = BlocksPerSm;  ///< that its registers must leave room for
};

/// Tiers, smallest first.
template <class... Tiers>
struct tier_list {
  static constexpr int size = sizeof...(Tiers);  ///< of the list
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

/// One compiled shape of the warp_per_token kernels. They are chosen up to `Tokens16` tokens for
/// each multiprocessor, `Tokens32` where logits are fp32.
template <int MaxExperts, int MaxTopK, int Tokens16, int Tokens32>
struct warp_tier {
  static constexpr int max_experts = MaxExperts;       ///< E that it holds
  static constexpr int max_top_k = MaxTopK;            ///< K0 that it holds
  static constexpr int rows = (MaxExperts + 31) / 32;  ///< experts of a lane
  /// Tokens for each multiprocessor up to which it is chosen, by the bytes of a logit.
  static constexpr int tokens_per_multiprocessor(int logit_bytes) noexcept {
    return logit_bytes == 4 ? Tokens32 : Tokens16;
  }
};

/// Tokens for each multiprocessor up to which a warp decides one, by shape and the bytes of a
/// logit; 0 where none does.
template <class... Tiers>
constexpr int tokens_for_warps(tier_list<Tiers...> tiers, int num_experts, int top_k,
                               int logit_bytes) noexcept {
  constexpr int none = 0;
  const int limits[] = {Tiers::tokens_per_multiprocessor(logit_bytes)..., none};
  const int tier = tier_for(tiers, num_experts, top_k);
  return tier >= 0 ? limits[tier] : none;
}

// A warp a token takes more instructions than few lanes a token, but each warp's chain of dependent
// steps is a fraction as long, and until the GPU is full that chain is the time of a launch. The
// limits come from bench/kernel_cost/modelled_sweep.jsonl (kernel_sweep; sm_90, 132
// multiprocessors; modelled, never timed on a GPU): a warp decides one token as long as what the
// busiest scheduler then issues takes no longer than a warp's way through the kernel for many
// tokens, by the lower bounds of both. By the upper ones, a third of that kernel's, it could go on
// to several times as many. fp32 stops at 120, as long launches have a budget of instructions. For
// 8/2 the bounds disagree at every length: 1.3 times the lower, 0.7 times the upper one.
// A captured graph keeps the kernel that its number of tokens chose.

/// Softmax ranked by logit alone, where a warp decides one token.
using warp_softmax_tiers =
    tier_list<warp_tier<32, 4, 8, 8>, warp_tier<64, 8, 28, 60>, warp_tier<128, 8, 40, 120>,
              warp_tier<256, 8, 64, 120>, warp_tier<384, 8, 72, 120>, warp_tier<512, 16, 40, 40>>;

/// Any other gating but sparsemixer, where a warp decides one token: not from the sweep.
using warp_gating_tiers =
    tier_list<warp_tier<128, 8, 20, 20>, warp_tier<256, 8, 20, 20>, warp_tier<384, 8, 20, 20>>;

// Warp instructions per token by lanes a token, bf16 / fp32 logits, as kernel_sweep
// (bench/kernel_cost) counted them for entropy thresholds at T = 4096, before the kernels for few
// tokens; s: registers spill.
//
//   E/K0         1            2            4            8           16
//   8/2    13.2/16.6     21.4/21.1    33.0/31.5
//   60/4   60.0s/71.6s   71.0/88.6    84.8/107.6  119.6/145.1
//   64/8   72.8s/85.0s   80.3/97.6    95.3/117.8  134.2/165.4
//   128/8                134.4/167.5  150.2/188.4  190.0/235.9
//   256/8                241.3/308.5  257.9/328.1  301.0/376.9  404.0/506.7
//   384/8                             363.9/469.1  411.8/515.6  520.8/653.5
//
// Fewer lanes cost less, until the registers do not suffice; at 256/8 two lanes would leave a warp
// twice as long for 6%. Twice as many lanes from 128/8 on would take 128 registers instead of up to
// 255, for 11 to 23% more instructions: at 16,384 tokens an H200 has a scheduler for each warp of
// either, and they would take longer by every bound of the model.

/// Softmax ranked by logit alone: what most models do. Larger shapes go to the generic_gating
/// kernels.
using softmax_topk_tiers =
    tier_list<tier<8, 2, 1>, tier<16, 4, 1>, tier<60, 4, 2>, tier<64, 8, 2>, tier<128, 8, 2, 2>,
              tier<256, 8, 4, 2>, tier<384, 8, 4, 2>, tier<512, 16, 16, 3>>;

/// Any gating, selection bias and groups.
using generic_gating_tiers =
    tier_list<tier<64, 8, 8>, tier<256, 8, 8>, tier<512, 16, 16>, tier<1024, 32, 32>>;

/// Sparsemixer takes two experts at most.
using sparsemixer_tiers = tier_list<tier<64, 2, 8>, tier<256, 2, 8>, tier<1024, 2, 32>>;

inline constexpr int threads_per_block = 128;           ///< of every routing kernel
inline constexpr int generic_gating_blocks_per_sm = 2;  ///< of the generic_gating kernels

/// Rounds of a softmax_topk kernel's warp. More of them cost fewer instructions a token, but make
/// each warp longer: as many as leave a warp for each of four schedulers a multiprocessor.
constexpr int rounds_for(int lanes, long long num_tokens, int multiprocessors) noexcept {
  int rounds = 1;
  while (rounds < lanes && num_tokens > 4ll * multiprocessors * (32 / lanes) * rounds) rounds *= 2;
  return rounds;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
