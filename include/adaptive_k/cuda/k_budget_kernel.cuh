// The kernels of a batch's budget of expert calls: costs by mass, and the k_t that the budget pays
// for. The rule is core/k_budget.hpp.
#pragma once

#include <cstdint>

#include "adaptive_k/core/k_budget.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

inline constexpr int k_budget_threads = 512;  ///< of the one block

/// Everything a launch needs; device pointers. Passed by value.
struct k_budget_params {
  const float* costs;                ///< [T, K0]
  std::int64_t num_tokens;           ///< T >= 0
  int top_k;                         ///< K0
  const std::int64_t* budget;        ///< one number, which may be rewritten between launches
  const std::uint8_t* padding_mask;  ///< [T] or null
  std::uint32_t* gains;              ///< [T, K0 - 1], room to work in
  std::uint8_t* assigned_k;          ///< [T]
  std::int64_t* sum;                 ///< one number, or null
};

/// Sums over the threads of a block so far, and of those before this one.
template <int Threads>
class block_scan {
 public:
  /// Sum of `value` over the threads before this one; `total` over all. Every thread calls it.
  __device__ ADAPTIVE_K_INLINE long long before(long long value, long long& total) noexcept {
    __shared__ long long warp_sums[Threads / 32];
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int own = static_cast<int>(threadIdx.x / 32);
    long long sum = value;
    ADAPTIVE_K_UNROLL
    for (int offset = 1; offset < 32; offset *= 2) {
      const long long other = __shfl_up_sync(0xFFFFFFFFu, sum, static_cast<unsigned>(offset));
      if (lane >= offset) sum += other;
    }
    __syncthreads();  // the sums of a call before have been read
    if (lane == 31) warp_sums[own] = sum;
    __syncthreads();
    long long base = 0;
    total = 0;
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Threads / 32; ++i) {
      if (i < own) base += warp_sums[i];
      total += warp_sums[i];
    }
    return base + sum - value;
  }
};

/// One block, whose threads take tokens in turn.
template <int Threads>
__global__ void __launch_bounds__(Threads) k_budget_kernel(k_budget_params params) {
  static_assert(Threads >= detail::key_digits, "a thread a digit");
  wait_for_previous_kernel();
  allow_next_kernel();
  __shared__ unsigned long long counts[detail::key_digits];
  __shared__ detail::budget_cut found;
  const int thread = static_cast<int>(threadIdx.x);
  const int top_k = params.top_k;
  const int per_token = top_k - 1;
  const auto is_padding = [&](std::int64_t t) {
    return params.padding_mask != nullptr && params.padding_mask[t] != 0;
  };

  long long least_sum = 0, own_wanted = 0;
  for (std::int64_t t = thread; t < params.num_tokens; t += Threads) {
    std::uint32_t* const keys = params.gains + t * per_token;
    int least = 1;
    if (is_padding(t)) {
      for (int j = 0; j < per_token; ++j) keys[j] = 0;
    } else {
      least = detail::write_gain_keys(params.costs + t * top_k, top_k, keys);
      least_sum += least;
    }
    for (int j = 0; j < per_token; ++j) own_wanted += keys[j] != 0 ? 1 : 0;
    params.assigned_k[t] = static_cast<std::uint8_t>(least);
  }
  block_scan<Threads> scan;
  long long sum, wanted;
  scan.before(least_sum, sum);
  scan.before(own_wanted, wanted);

  const long long left = static_cast<long long>(*params.budget) - sum;
  detail::budget_cut cut = {0, 0};  // all of them
  if (left <= 0) {
    cut.key = 0xFFFFFFFFu;  // none: no key is as large
  } else if (wanted > left) {
    cut.equal = left;
    for (int shift = 32 - detail::key_digit_bits; shift >= 0; shift -= detail::key_digit_bits) {
      __syncthreads();
      if (thread < detail::key_digits) counts[thread] = 0;
      __syncthreads();
      for (std::int64_t t = thread; t < params.num_tokens; t += Threads)
        for (int j = 0; j < per_token; ++j) {
          const std::uint32_t key = params.gains[t * per_token + j];
          if (key != 0 && detail::has_prefix(key, cut.key, shift))
            atomicAdd(&counts[detail::digit_of(key, shift)], 1ull);
        }
      __syncthreads();
      // As narrow_cut, a thread a digit, from the largest.
      const int digit = detail::key_digits - 1 - thread;
      const long long own = digit >= 0 ? static_cast<long long>(counts[digit]) : 0;
      long long all;
      const long long larger = scan.before(own, all);
      if (own != 0 && larger < cut.equal && larger + own >= cut.equal)
        found = {cut.key | static_cast<std::uint32_t>(digit) << shift, cut.equal - larger};
      __syncthreads();
      cut = found;
    }
  }

  long long base = 0;  // equal keys of the tokens before
  long long assigned = 0;
  for (std::int64_t first = 0; first < params.num_tokens; first += Threads) {
    const std::int64_t t = first + thread;
    const bool exists = t < params.num_tokens;
    const std::uint32_t* const keys = params.gains + t * per_token;
    long long larger = 0, equal = 0;
    for (int j = 0; exists && j < per_token; ++j) {
      larger += keys[j] != 0 && keys[j] > cut.key ? 1 : 0;
      equal += keys[j] != 0 && keys[j] == cut.key ? 1 : 0;
    }
    long long all;
    long long free = cut.equal - base - scan.before(equal, all);
    base += all;
    if (!exists || is_padding(t)) continue;
    if (free < 0) free = 0;
    const int k = static_cast<int>(params.assigned_k[t] + larger + (equal < free ? equal : free));
    const int corner = detail::corner_before(params.costs + t * top_k, top_k, k);
    params.assigned_k[t] = static_cast<std::uint8_t>(corner);
    assigned += corner;
  }
  scan.before(assigned, sum);
  if (thread == 0 && params.sum != nullptr) *params.sum = sum;
}

/// Everything a launch needs; device pointers. Passed by value.
struct mass_costs_params {
  const float* weights;     ///< [T, K0] of a call at full K
  std::int64_t num_tokens;  ///< T >= 1
  int top_k;                ///< K0
  float* costs;             ///< [T, K0]; may be `weights`
};

/// A thread a token.
template <int Threads>
__global__ void __launch_bounds__(Threads) mass_costs_kernel(mass_costs_params params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * Threads + threadIdx.x;
  if (t < params.num_tokens)
    detail::write_mass_costs(params.weights + t * params.top_k, params.top_k,
                             params.costs + t * params.top_k);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
