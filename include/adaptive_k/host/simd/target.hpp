// Which instructions the build assumes and which the machine has.
#pragma once

#include "adaptive_k/config.hpp"

// Asked for by the caller, as it makes a file that routes take four times as long to compile; the
// bits are the same. Not under nvcc: cudafe knows few of the intrinsics.
#if defined(ADAPTIVE_K_VECTORISE) && defined(__GNUC__) && !defined(__CUDACC__)
#define ADAPTIVE_K_SIMD 1
#else
#define ADAPTIVE_K_SIMD 0
#endif

#if ADAPTIVE_K_SIMD && defined(__x86_64__)
#define ADAPTIVE_K_SIMD_X86 1
#else
#define ADAPTIVE_K_SIMD_X86 0
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ADAPTIVE_K_BUILT_FOR_AVX512 1
#else
#define ADAPTIVE_K_BUILT_FOR_AVX512 0
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ADAPTIVE_K_BUILT_FOR_AVX2 1
#else
#define ADAPTIVE_K_BUILT_FOR_AVX2 0
#endif
