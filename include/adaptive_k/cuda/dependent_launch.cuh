// Programmatic dependent launch (sm_90 and later): a kernel is set up while the one before it on
// the stream still runs, and waits for its results itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "adaptive_k/config.hpp"
#include "adaptive_k/cuda/strict_arithmetic.cuh"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Returns when every kernel before this one on the stream is done and its writes can be seen.
/// To be called before the first access to memory. Nothing where launches do not overlap.
__device__ ADAPTIVE_K_INLINE void wait_for_previous_kernel() noexcept {
  refuse_flush_to_zero();  // here, because every kernel calls this
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel may be set up from now on; what it reads it waits for.
__device__ ADAPTIVE_K_INLINE void allow_next_kernel() noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// cuda_error with the runtime's own name and words; of a device that the kernels were not compiled
/// for it says so.
inline status to_status(cudaError_t error) noexcept {
  if (error == cudaSuccess) return {};
  if (error == cudaErrorNoKernelImageForDevice)
    return status::error(status_code::cuda_error,
                         "cudaErrorNoKernelImageForDevice: adaptive_k's kernels were not compiled "
                         "for this device; build them with its number in CMAKE_CUDA_ARCHITECTURES");
  return status::error(status_code::cuda_error, "%s: %s", cudaGetErrorName(error),
                       cudaGetErrorString(error));
}

/// Grid, block, dynamic shared memory in bytes, stream, and whether the launch may overlap the
/// kernel before it: only for kernels whose code waits (see `waits_itself`).
struct launch_shape {
  unsigned blocks;           ///< of the grid, in x
  unsigned threads;          ///< of a block, in x
  std::size_t shared_bytes;  ///< dynamic ones, a block
  cudaStream_t stream;       ///< of the launch
  bool overlaps;             ///< may overlap the kernel before it on the stream
};

/// Launches `kernel`, and returns what the runtime says.
template <class Params>
cudaError_t launch(void (*kernel)(Params), const launch_shape& shape, Params params) noexcept {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.overlaps ? 1 : 0;
  void* arguments[] = {&params};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
}

/// Whether the code of `kernel` that runs on this device was compiled for sm_90 or later, so that
/// it waits for its predecessor. A query of the runtime: ask once, not at every launch.
template <class Params>
cudaError_t waits_itself(void (*kernel)(Params), bool* result) noexcept {
  cudaFuncAttributes attributes = {};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  *result = error == cudaSuccess && attributes.ptxVersion >= 90;
  return error;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
