// The inner loop of the combine step: a row, scaled, added to sums.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/generic.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// sum[i] += weight * values[i] for i in `first` to `size` - 1, each rounded once.
template <class Value>
void add_scaled_scalar(const Value* values, float weight, int first, int size,
                       float* sum) noexcept {
  for (int i = first; i < size; ++i) sum[i] = math::fma(weight, to_float(values[i]), sum[i]);
}

#if ADAPTIVE_K_SIMD

template <class Value>
struct add_scaled_vectors {
  template <class Set>
  struct body {
    using f32 = typename Set::f32;
    static ADAPTIVE_K_INLINE void run(const Value* values, float weight, int size,
                                      float* sum) noexcept {
      int i = 0;
      for (; i + f32::lanes <= size; i += f32::lanes)
        f32::store(sum + i, f32::fma(weight, f32::load(values + i), f32::load(sum + i)));
      add_scaled_scalar(values, weight, i, size, sum);
    }
  };
};

/// The same by a set that is available. Here, or compiled once in kernels/route_vectors.cpp.
template <class Value>
void add_scaled(instruction_set set, const Value* values, float weight, int size,
                float* sum) noexcept {
#if ADAPTIVE_K_HAS_AVX512
  if (set == instruction_set::avx512)
    return avx512::run<add_scaled_vectors<Value>::template body>(values, weight, size, sum);
#endif
#if ADAPTIVE_K_HAS_AVX2
  if (set == instruction_set::avx2)
    return avx2::run<add_scaled_vectors<Value>::template body>(values, weight, size, sum);
#endif
#if ADAPTIVE_K_HAS_GENERIC
  if (set == instruction_set::generic)
    return generic::run<add_scaled_vectors<Value>::template body>(values, weight, size, sum);
#endif
  add_scaled_scalar(values, weight, 0, size, sum);
}

#elif ADAPTIVE_K_LINKS_EVERY_SET

template <class Value>
void add_scaled(instruction_set set, const Value* values, float weight, int size,
                float* sum) noexcept;

#else

template <class Value>
void add_scaled(instruction_set, const Value* values, float weight, int size, float* sum) noexcept {
  add_scaled_scalar(values, weight, 0, size, sum);
}

#endif

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
