// Refuses what nvcc has no macro for.
#pragma once

#if !defined(__CUDACC__)
#error \
    "adaptive_k/cuda is CUDA C++: compile the file with nvcc, or use adaptive_k/c/adaptive_k.h, which any compiler takes"
#endif

#include "adaptive_k/config.hpp"

/// What nvcc replaces by a compile-time value of the flags it was called with.
extern "C" __device__ int __nvvm_reflect(const char*);  // known to nvcc and clang

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Subnormal numbers are told apart, on the host and so here: compiling a kernel that calls this
/// with --use_fast_math or --ftz=true fails in ptxas, which names the instruction below.
__device__ ADAPTIVE_K_INLINE void refuse_flush_to_zero() noexcept {
  if (__nvvm_reflect("__CUDA_FTZ") != 0)
    asm volatile("adaptive_k_needs_no_use_fast_math_and_no_ftz;");
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
