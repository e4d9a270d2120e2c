// Which vector code this file compiles, and which the program has.
#pragma once

#include "adaptive_k/config.hpp"

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

// The sets of x86-64. g++ for Windows keeps vectors wider than 16 bytes at stack addresses where
// they trap (GCC bug 54412). ADAPTIVE_K_GENERIC_VECTORS: those of other machines in their place,
// for tests.
#if defined(__x86_64__) && (!defined(__MINGW32__) || defined(__clang__)) && \
    !defined(ADAPTIVE_K_GENERIC_VECTORS)
#define ADAPTIVE_K_X86_SETS 1
#else
#define ADAPTIVE_K_X86_SETS 0
#endif

// Vectors of 4 serve where fma is an instruction: else they would emulate it lane by lane.
#if ADAPTIVE_K_X86_SETS || (defined(__x86_64__) && !defined(__FMA__))
#define ADAPTIVE_K_GENERIC_SERVES 0
#else
#define ADAPTIVE_K_GENERIC_SERVES 1
#endif

// Under g++ and clang++, and not under nvcc: cudafe knows few of the intrinsics.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define ADAPTIVE_K_VECTOR_COMPILER 1
#else
#define ADAPTIVE_K_VECTOR_COMPILER 0
#endif

// Whether the program is linked with adaptive_k::host, and that has every set that serves on such a
// machine. It is built for a baseline one.
#if defined(ADAPTIVE_K_HOST_LIBRARY) && defined(__GNUC__) && \
    (ADAPTIVE_K_X86_SETS || !defined(__x86_64__))
#define ADAPTIVE_K_LINKS_EVERY_SET 1
#else
#define ADAPTIVE_K_LINKS_EVERY_SET 0
#endif

// Code that is compiled here. Without a word from the caller: for the widest vectors that the
// build's own flags allow, if any, and none where the library has it. ADAPTIVE_K_VECTORISE=1: for
// every set, chosen at run time, which makes a file that routes take several times as long to
// compile; =0: none.
#if !ADAPTIVE_K_VECTOR_COMPILER
#define ADAPTIVE_K_EVERY_SET 0
#define ADAPTIVE_K_BUILT_SET 0
#elif defined(ADAPTIVE_K_VECTORISE)
#define ADAPTIVE_K_EVERY_SET (ADAPTIVE_K_VECTORISE + 0)
#define ADAPTIVE_K_BUILT_SET 0
#else
#define ADAPTIVE_K_EVERY_SET 0
#define ADAPTIVE_K_BUILT_SET (!ADAPTIVE_K_LINKS_EVERY_SET)
#endif

#if ADAPTIVE_K_X86_SETS
#define ADAPTIVE_K_HAS_AVX512 \
  (ADAPTIVE_K_EVERY_SET || (ADAPTIVE_K_BUILT_SET && ADAPTIVE_K_BUILT_FOR_AVX512))
#define ADAPTIVE_K_HAS_AVX2 \
  (ADAPTIVE_K_EVERY_SET ||  \
   (ADAPTIVE_K_BUILT_SET && ADAPTIVE_K_BUILT_FOR_AVX2 && !ADAPTIVE_K_BUILT_FOR_AVX512))
#else
#define ADAPTIVE_K_HAS_AVX512 0
#define ADAPTIVE_K_HAS_AVX2 0
#endif
#define ADAPTIVE_K_HAS_GENERIC \
  (ADAPTIVE_K_GENERIC_SERVES && (ADAPTIVE_K_EVERY_SET || ADAPTIVE_K_BUILT_SET))
#define ADAPTIVE_K_SIMD (ADAPTIVE_K_HAS_AVX512 || ADAPTIVE_K_HAS_AVX2 || ADAPTIVE_K_HAS_GENERIC)
#define ADAPTIVE_K_VECTORS (ADAPTIVE_K_SIMD || ADAPTIVE_K_LINKS_EVERY_SET)

// Between them functions are compiled for more instructions than the build assumes. They are not
// forced inline: core/'s templates are compiled for the build's own target, and become part of a
// function between these together with what they call.
#define ADAPTIVE_K_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ADAPTIVE_K_TARGET_BEGIN(instructions) \
  ADAPTIVE_K_PRAGMA(                          \
      clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define ADAPTIVE_K_TARGET_END ADAPTIVE_K_PRAGMA(clang attribute pop)
#else
#define ADAPTIVE_K_TARGET_BEGIN(instructions) \
  ADAPTIVE_K_PRAGMA(GCC push_options) ADAPTIVE_K_PRAGMA(GCC target(instructions))
#define ADAPTIVE_K_TARGET_END ADAPTIVE_K_PRAGMA(GCC pop_options)
#endif

// The library's scalar path is for any machine, so a build that may use more of its own compiles
// it.
#if !defined(ADAPTIVE_K_LINKS_SCALAR)
#if ADAPTIVE_K_LINKS_EVERY_SET && !defined(__FMA__)
#define ADAPTIVE_K_LINKS_SCALAR 1
#else
#define ADAPTIVE_K_LINKS_SCALAR 0
#endif
#endif

// Whoever compiles the slow path unasked learns it. A message, so that no -Werror stumbles over it.
#if !ADAPTIVE_K_VECTORS && !defined(ADAPTIVE_K_VECTORISE) && !defined(__CUDA_ARCH__) && \
    !defined(ADAPTIVE_K_NO_SCALAR_NOTE)
#if defined(ADAPTIVE_K_HOST_LIBRARY)
#pragma message( \
    "adaptive_k::host has no vectors for this compiler: compile for AVX2 (-march=x86-64-v3). ADAPTIVE_K_NO_SCALAR_NOTE silences this.")
#elif defined(__CUDACC__)
#pragma message( \
    "adaptive_k routes on the host without vectors in a CUDA file, 25 to 130 times slower: link adaptive_k::host. ADAPTIVE_K_NO_SCALAR_NOTE silences this.")
#elif defined(__GNUC__)
#pragma message( \
    "adaptive_k routes without vectors here, 25 to 130 times slower: link adaptive_k::host, or compile for AVX2 (-march=x86-64-v3). ADAPTIVE_K_NO_SCALAR_NOTE silences this.")
#else
#pragma message( \
    "adaptive_k routes without vectors under this compiler. ADAPTIVE_K_NO_SCALAR_NOTE silences this.")
#endif
#endif
