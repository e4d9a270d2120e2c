#include "adaptive_k/cuda/launch.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN
namespace cuda {

template status launch_softmax_topk<float16, detail::k_plan>(const route_params&,
                                                             cudaStream_t) noexcept;

}  // namespace cuda
ADAPTIVE_K_NAMESPACE_END
