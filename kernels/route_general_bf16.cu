#include "adaptive_k/cuda/launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status launch_general<gating_kind::softmax, bfloat16>(const route_params&,
                                                               cudaStream_t) noexcept;
template status launch_general<gating_kind::sigmoid, bfloat16>(const route_params&,
                                                               cudaStream_t) noexcept;
template status launch_general<gating_kind::sqrt_softplus, bfloat16>(const route_params&,
                                                                     cudaStream_t) noexcept;
template status launch_general<gating_kind::sparsemixer, bfloat16>(const route_params&,
                                                                   cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
