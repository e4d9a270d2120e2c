// Which instructions a router runs on. The bits it writes are the same on all of them.
#pragma once

#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/generic.hpp"
#include "adaptive_k/host/simd/target.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What a host path is compiled for.
enum class instruction_set : std::uint8_t {
  best,     ///< the widest that this build and this machine have
  scalar,   ///< one token, one expert at a time
  generic,  ///< vectors of 4, as the compiler makes them: NEON and others; not on x86-64
  avx2,     ///< 8 lanes; needs AVX2, FMA, F16C, BMI1 and BMI2
  avx512,   ///< 16 lanes; needs AVX-512 F, BW, DQ and VL, and what avx2 does
};

/// Whether this build and this machine have a set.
inline bool is_available(instruction_set set) noexcept {
  switch (set) {
    case instruction_set::best:
    case instruction_set::scalar:
      return true;
    case instruction_set::generic:
      return ADAPTIVE_K_HAS_GENERIC || (ADAPTIVE_K_LINKS_EVERY_SET && !ADAPTIVE_K_X86_SETS);
    case instruction_set::avx2:  // NOLINT(bugprone-branch-clone): a build may lack both
#if ADAPTIVE_K_X86_SETS && (ADAPTIVE_K_HAS_AVX2 || ADAPTIVE_K_LINKS_EVERY_SET)
      return ADAPTIVE_K_BUILT_FOR_AVX2 != 0 ||
             (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") &&
              __builtin_cpu_supports("bmi2"));  // all of these have F16C
#else
      return false;
#endif
    case instruction_set::avx512:
#if ADAPTIVE_K_X86_SETS && (ADAPTIVE_K_HAS_AVX512 || ADAPTIVE_K_LINKS_EVERY_SET)
      return ADAPTIVE_K_BUILT_FOR_AVX512 != 0 ||
             (is_available(instruction_set::avx2) && __builtin_cpu_supports("avx512f") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl"));
#else
      return false;
#endif
  }
  return false;
}

/// What `best` means here.
inline instruction_set best_instruction_set() noexcept {
  if (is_available(instruction_set::avx512)) return instruction_set::avx512;
  if (is_available(instruction_set::avx2)) return instruction_set::avx2;
  // Without fused multiply-add, vectors of 4 have to emulate it lane by lane.
  const bool generic = math::has_fma_instruction && is_available(instruction_set::generic);
  return generic ? instruction_set::generic : instruction_set::scalar;
}

/// Its name as above, in lower case. Static text.
inline const char* name_of(instruction_set set) noexcept {
  switch (set) {
    case instruction_set::best:
      return "best";
    case instruction_set::scalar:
      return "scalar";
    case instruction_set::generic:
      return "generic";
    case instruction_set::avx2:
      return "avx2";
    case instruction_set::avx512:
      return "avx512";
  }
  return "unknown";
}

namespace detail {

/// work(vectors) by a set that is available, such as avx2(). False: this file does not compile it;
/// another of this program does (see simd/target.hpp), or it is the scalar one.
template <class Work>
bool with_vectors([[maybe_unused]] instruction_set set, [[maybe_unused]] const Work& work) {
#if ADAPTIVE_K_HAS_AVX512
  if (set == instruction_set::avx512) return work(avx512()), true;
#endif
#if ADAPTIVE_K_HAS_AVX2
  if (set == instruction_set::avx2) return work(avx2()), true;
#endif
#if ADAPTIVE_K_HAS_GENERIC
  if (set == instruction_set::generic) return work(generic()), true;
#endif
  return false;
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
