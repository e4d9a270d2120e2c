#include "adaptive_k/cuda/permute_launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status overlap_supported<false>(bool*) noexcept;
template status launch_permute<false>(const permute_params&, bool, cudaStream_t) noexcept;
template status launch_permute<true>(const permute_params&, bool, cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
