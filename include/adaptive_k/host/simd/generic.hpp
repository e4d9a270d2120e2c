// 4 floats in a vector of the compiler's own: the value type of core/math.hpp where there are no
// intrinsics for more, on NEON above all.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/vector_operators.hpp"
#include "adaptive_k/types.hpp"

#if ADAPTIVE_K_HAS_GENERIC

#include <cstdint>

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

typedef float four_floats __attribute__((vector_size(16)));         // NOLINT(modernize-use-using)
typedef std::int32_t four_ints __attribute__((vector_size(16)));    // NOLINT(modernize-use-using)
typedef std::uint32_t four_words __attribute__((vector_size(16)));  // NOLINT(modernize-use-using)

/// Runs Body<generic>::run in a function of its own.
struct generic {
  using f32_vec = struct generic_f32_vec;
  using u32_vec = struct generic_u32_vec;
  using mask = struct generic_mask;
  static constexpr int lanes = 4;
  using narrow = generic;
  template <template <class> class Body, class... Arguments>
  __attribute__((noinline, flatten)) static auto run(Arguments... arguments) noexcept {
    return Body<generic>::run(arguments...);
  }
};

struct generic_mask : mask_operators<generic> {
  four_ints bits;  ///< of a lane: all or none

  generic_mask() = default;
  explicit generic_mask(four_ints b) : bits(b) {}
  static std::uint32_t to_bits(generic_mask m) {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < 4; ++lane) bits |= m.bits[lane] != 0 ? 1u << lane : 0u;
    return bits;
  }
};

struct generic_u32_vec : u32_operators<generic> {
  generic_u32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  generic_u32_vec(four_words v) { value = v; }
  generic_u32_vec(std::uint32_t v) { value = four_words{v, v, v, v}; }
  generic_u32_vec(int v) : u32_vec(static_cast<std::uint32_t>(v)) {}
  // NOLINTEND(google-explicit-constructor)

  static mask equal(u32_vec a, u32_vec b) { return mask(a.value == b.value); }
  static mask greater(u32_vec a, u32_vec b) { return mask(a.value > b.value); }
  static u32_vec maximum(u32_vec a, u32_vec b) { return select(a > b, a, b); }
  static u32_vec minimum(u32_vec a, u32_vec b) { return select(a < b, a, b); }
  static u32_vec select(mask m, u32_vec a, u32_vec b) {
    const auto chosen = reinterpret_cast<four_words>(m.bits);
    return (a.value & chosen) | (b.value & ~chosen);
  }
  /// (a & ~low) | index
  static u32_vec replace_low(u32_vec a, u32_vec low, u32_vec index) {
    return (a.value & ~low.value) | index.value;
  }
  /// The number of each lane.
  static u32_vec lane() { return four_words{0, 1, 2, 3}; }
};

struct generic_f32_vec : f32_operators<generic> {
  generic_f32_vec() = default;
  // NOLINTBEGIN(google-explicit-constructor): arithmetic mixes them with scalars
  generic_f32_vec(four_floats v) { value = v; }
  generic_f32_vec(float v) { value = four_floats{v, v, v, v}; }
  // NOLINTEND(google-explicit-constructor)

  static mask equal(f32_vec a, f32_vec b) { return mask(a.value == b.value); }
  static mask differ(f32_vec a, f32_vec b) { return mask(a.value != b.value); }
  static mask greater(f32_vec a, f32_vec b) { return mask(a.value > b.value); }
  static mask at_least(f32_vec a, f32_vec b) { return mask(a.value >= b.value); }

  static f32_vec fma(f32_vec a, f32_vec b, f32_vec c) {
    for (int i = 0; i < lanes; ++i) a.value[i] = math::fma(a.value[i], b.value[i], c.value[i]);
    return a;
  }
  static f32_vec sqrt(f32_vec a) {
    for (int i = 0; i < lanes; ++i) a.value[i] = __builtin_sqrtf(a.value[i]);
    return a;
  }
  static f32_vec maximum(f32_vec a, f32_vec b) { return select(a > b, a, b); }
  static f32_vec minimum(f32_vec a, f32_vec b) { return select(a < b, a, b); }
  static f32_vec select(mask m, f32_vec a, f32_vec b) {
    return from_bits(u32_vec::select(m, to_bits(a), to_bits(b)));
  }
  static f32_vec gather(const float* table, u32_vec index) {
    const four_words i = index.value;
    return four_floats{table[i[0]], table[i[1]], table[i[2]], table[i[3]]};
  }

  using f32_operators::load;
  template <class Logit>
  static f32_vec load(const Logit* from) {
    return four_floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
  }
  /// The first `count` floats, then zeros; reads nothing past them.
  static f32_vec load_first(const float* from, int count) {
    f32_vec a = 0.0f;
    for (int lane = 0; lane < count; ++lane) a.value[lane] = from[lane];
    return a;
  }
  /// A quarter of four floats, from row 0; wider vectors have one of each fourth row.
  static f32_vec load_quarters(const float* from, std::int64_t) { return load(from); }
  static void store_quarters(float* to, std::int64_t, f32_vec a) { store(to, a); }
  /// Transposes 4 x 4 floats.
  static void transpose_quarters(f32_vec (&v)[4]) {
    const four_floats a = v[0].value, b = v[1].value, c = v[2].value, d = v[3].value;
    for (int i = 0; i < 4; ++i) v[i] = four_floats{a[i], b[i], c[i], d[i]};
  }
  /// Lane i of the result is lane i ^ Distance.
  template <int Distance>
  static f32_vec shuffle_xor(f32_vec a) {
    const four_floats v = a.value;
    if constexpr (Distance == 1) return four_floats{v[1], v[0], v[3], v[2]};
    if constexpr (Distance == 2) return four_floats{v[2], v[3], v[0], v[1]};
    return a;
  }
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
