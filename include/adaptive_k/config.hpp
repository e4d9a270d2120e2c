// Version, limits and compiler switches. Everything else includes this first.
#pragma once

/// The library's version is major.minor.patch. Before 1.0 a minor one may change the interface.
#define ADAPTIVE_K_VERSION_MAJOR 0
/// See ADAPTIVE_K_VERSION_MAJOR.
#define ADAPTIVE_K_VERSION_MINOR 2
/// See ADAPTIVE_K_VERSION_MAJOR.
#define ADAPTIVE_K_VERSION_PATCH 0

#if defined(_MSVC_LANG)
#define ADAPTIVE_K_CPLUSPLUS _MSVC_LANG
#else
#define ADAPTIVE_K_CPLUSPLUS __cplusplus
#endif

#if ADAPTIVE_K_CPLUSPLUS < 201703L
#error "adaptive_k needs C++17: compile with -std=c++17 or later"
#endif

// Equal bits on every machine need IEEE arithmetic in the order written.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#error "adaptive_k gives the same bits everywhere and handles NaN: compile without -ffast-math"
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && !defined(__CUDACC__)
#error "adaptive_k needs float arithmetic in float: use -mfpmath=sse, not x87"
#endif

// clang says nothing of -funsafe-math-optimizations alone, but can be told to do without it here.
#if defined(__clang__) && !defined(__CUDACC__)
#define ADAPTIVE_K_PRECISE_BEGIN _Pragma("float_control(precise, on, push)")
#define ADAPTIVE_K_PRECISE_END _Pragma("float_control(pop)")
#else
#define ADAPTIVE_K_PRECISE_BEGIN
#define ADAPTIVE_K_PRECISE_END
#endif

// g++ takes the length of every array that depends on a template's int for a conversion to
// unsigned; clang, which looks at the value, keeps the headers honest.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define ADAPTIVE_K_WARNINGS_BEGIN \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wsign-conversion\"")
#define ADAPTIVE_K_WARNINGS_END _Pragma("GCC diagnostic pop")
#else
#define ADAPTIVE_K_WARNINGS_BEGIN
#define ADAPTIVE_K_WARNINGS_END
#endif

// Launcher templates are weak symbols: two versions in one process must not be merged.
#define ADAPTIVE_K_NAMESPACE_BEGIN \
  ADAPTIVE_K_WARNINGS_BEGIN        \
  ADAPTIVE_K_PRECISE_BEGIN         \
  namespace adaptive_k {           \
  inline namespace v0_2 {
#define ADAPTIVE_K_NAMESPACE_END \
  }                              \
  }                              \
  ADAPTIVE_K_PRECISE_END         \
  ADAPTIVE_K_WARNINGS_END

#if defined(__GNUC__)
#define ADAPTIVE_K_PRINTF(text, arguments) __attribute__((format(printf, text, arguments)))
#else
#define ADAPTIVE_K_PRINTF(text, arguments)
#endif

// In builds without exceptions the block after ADAPTIVE_K_TRY runs, and handlers are left out.
#if defined(__cpp_exceptions)
#define ADAPTIVE_K_TRY try
#define ADAPTIVE_K_CATCH_ALL catch (...)
#else
#define ADAPTIVE_K_TRY if constexpr (true)
#define ADAPTIVE_K_CATCH_ALL else
#endif

#if defined(__CUDACC__)
#define ADAPTIVE_K_HD __host__ __device__
#else
#define ADAPTIVE_K_HD
#endif

// Arrays indexed in loops stay in registers on the device only if the loops are unrolled.
#if defined(__CUDA_ARCH__)
#define ADAPTIVE_K_UNROLL _Pragma("unroll")
#else
#define ADAPTIVE_K_UNROLL
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define ADAPTIVE_K_INLINE __forceinline
#define ADAPTIVE_K_INLINE_LAMBDA
#define ADAPTIVE_K_NOINLINE __declspec(noinline)
#else
#define ADAPTIVE_K_INLINE inline __attribute__((always_inline))
// Stands between a lambda's parameters and its body, where it takes or returns vectors: the lambda
// does not inherit the target instructions of the function around it, so it must be inlined there.
#define ADAPTIVE_K_INLINE_LAMBDA __attribute__((always_inline))
#define ADAPTIVE_K_NOINLINE __attribute__((noinline))
#endif

ADAPTIVE_K_NAMESPACE_BEGIN

inline constexpr int max_experts = 1024;       ///< largest E
inline constexpr int max_top_k = 32;           ///< largest K0
inline constexpr int max_super_experts = 8;    ///< of one layer
inline constexpr int max_tokens = 0x7FFFFFFF;  ///< largest T of one call

ADAPTIVE_K_NAMESPACE_END
