#include "adaptive_k/cuda/launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status launch_generic_gating<float, detail::k_plan, gating>(const route_params&,
                                                                     cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
