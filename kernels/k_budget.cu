#include "adaptive_k/cuda/k_budget_launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status launch_k_budget<k_budget_threads>(const k_budget_params&, bool,
                                                  cudaStream_t) noexcept;
template status launch_mass_costs<128>(const mass_costs_params&, bool, cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
