// Host side of the budget's kernels: checks and launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "adaptive_k/core/k_budget.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/k_budget_kernel.cuh"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Instantiated in kernels/.
template <int Threads>
status launch_k_budget(const k_budget_params& params, bool overlaps, cudaStream_t stream) noexcept {
  return to_status(launch(k_budget_kernel<Threads>, {1, Threads, 0, stream, overlaps}, params));
}
/// Instantiated in kernels/.
template <int Threads>
status launch_mass_costs(const mass_costs_params& params, bool overlaps,
                         cudaStream_t stream) noexcept {
  const auto blocks = static_cast<unsigned>((params.num_tokens + Threads - 1) / Threads);
  return to_status(
      launch(mass_costs_kernel<Threads>, {blocks, Threads, 0, stream, overlaps}, params));
}

#if defined(ADAPTIVE_K_LINKED_KERNELS)
extern template status launch_k_budget<k_budget_threads>(const k_budget_params&, bool,
                                                         cudaStream_t) noexcept;
extern template status launch_mass_costs<128>(const mass_costs_params&, bool,
                                              cudaStream_t) noexcept;
#endif

/// The device twin of control/expert_budget.hpp's function of this name: the same k_t, every
/// pointer in device memory, `budget` too, so that it may change under a captured graph. One launch
/// of one block, which may overlap the kernel before it where `overlaps` says so (see
/// overlap_supported); its time grows with T. No allocation, no synchronisation. A budget below 0
/// counts as 0.
inline status assign_k_by_budget(const float* costs, std::int64_t num_tokens, int top_k,
                                 const std::int64_t* budget, const std::uint8_t* padding_mask,
                                 std::uint32_t* gains, std::uint8_t* assigned_k,
                                 std::int64_t* sum_out, bool overlaps,
                                 cudaStream_t stream) noexcept {
  const status checked = detail::check_k_budget(costs, num_tokens, top_k, gains, assigned_k);
  if (!checked.ok()) return checked;
  if (budget == nullptr) return status::error(status_code::invalid_argument, "`budget` is null");
  return launch_k_budget<k_budget_threads>(
      {costs, num_tokens, top_k, budget, padding_mask, gains, assigned_k, sum_out}, overlaps,
      stream);
}

/// The device twin of the function of this name: the same bits. `weights` and `costs` [T, K0] in
/// device memory may be the same.
inline status mass_costs(const float* weights, std::int64_t num_tokens, int top_k, float* costs,
                         bool overlaps, cudaStream_t stream) noexcept {
  const status checked = detail::check_mass_costs(weights, num_tokens, top_k, costs);
  if (!checked.ok() || num_tokens == 0) return checked;
  return launch_mass_costs<128>({weights, num_tokens, top_k, costs}, overlaps, stream);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
