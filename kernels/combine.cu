#include "adaptive_k/cuda/combine_launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status launch_combine<float>(combine_params, bool, cudaStream_t) noexcept;
template status launch_combine<float16>(combine_params, bool, cudaStream_t) noexcept;
template status launch_combine<bfloat16>(combine_params, bool, cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
