// Rows of few experts, each whole in one lane: no keys, no word from another lane. A lane takes
// several rows at once, so that what they share (the plan, addresses, constants) costs each of them
// little, and a processor always has another row to work on.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/finish_route.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/math.hpp"
#include "adaptive_k/cuda/device_load.cuh"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// The two largest of a lane's logits and the least; `least` is NaN where one of them is.
struct row_extremes {
  float largest;  ///< of the row, NaN left out
  float second;   ///< the one after it
  float least;    ///< of the row; NaN where a logit is
};
/// The extremes of one lane's row.
template <class Logit, int Experts>
__device__ ADAPTIVE_K_INLINE row_extremes extremes_of(const float (&logit)[Experts]) noexcept {
  static_assert(Experts >= 4 && (Experts & (Experts - 1)) == 0, "halves of halves");
  using range = logit_range<Logit, false>;
  float high[Experts / 2];
  float low[Experts / 2];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < Experts / 2; ++i) {
    high[i] = fmaxf(logit[2 * i], logit[2 * i + 1]);
    low[i] = range::minimum(logit[2 * i], logit[2 * i + 1]);
  }
  float least = low[0];
  ADAPTIVE_K_UNROLL
  for (int i = 1; i < Experts / 2; ++i) least = range::minimum(low[i], least);
  ADAPTIVE_K_UNROLL
  for (int count = Experts / 4; count > 0; count /= 2) {
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < count; ++i) {
      const float beaten = fminf(high[2 * i], high[2 * i + 1]);
      low[i] = fmaxf(beaten, fmaxf(low[2 * i], low[2 * i + 1]));
      high[i] = fmaxf(high[2 * i], high[2 * i + 1]);
    }
  }
  return {high[0], low[0], least};
}

/// Adds the sign of a float to the bits of `signs`, at the low end.
__device__ ADAPTIVE_K_INLINE std::uint32_t append_sign(std::uint32_t signs, float value) noexcept {
  std::uint32_t longer;  // taken as a float: no move between registers
  asm("shf.l.wrap.b32 %0, %1, %2, 1;" : "=r"(longer) : "f"(value), "r"(signs));
  return longer;
}

/// The last Count of `signs`, inverted, at the high end: a bit is set where a float was not
/// negative.
template <int Count>
__device__ ADAPTIVE_K_INLINE std::uint32_t positive_signs(std::uint32_t signs) noexcept {
  constexpr std::uint32_t minus_power = ~0u << (32 - Count);
  std::uint32_t set;  // ~signs << (32 - Count)
  asm("mad.lo.u32 %0, %1, %2, %2;" : "=r"(set) : "r"(signs), "n"(minus_power));
  return set;
}

/// Sums and the best two of a row of finite logits that lie close together.
template <int Experts>
__device__ ADAPTIVE_K_INLINE detail::score_sums<> rank_two(
    const float (&logit)[Experts], const row_extremes& extremes,
    detail::ranked_experts<2>& ranked) noexcept {
  constexpr auto close = detail::logits_are::close;
  // Added, not subtracted: a distance of -0 would look like one below 0.
  const float to_first = 0.0f - extremes.largest;
  const float to_second = 0.0f - extremes.second;
  float score[Experts];
  float log[Experts];
  std::uint32_t below_first = 0;
  std::uint32_t below_second = 0;
  ADAPTIVE_K_UNROLL
  for (int e = 0; e < Experts; ++e) {
    const detail::score_pair<> s = detail::score_of_distance<close>(logit[e] + to_first);
    score[e] = s.score;
    log[e] = math::fma(s.score, s.log_score, 0.0f);
    below_first = append_sign(below_first, s.log_score);
    below_second = append_sign(below_second, logit[e] + to_second);
  }
  const int first = __clz(static_cast<int>(positive_signs<Experts>(below_first)));
  const std::uint32_t taken = 0x80000000u >> first;  // the largest is none below the second
  const int second = __clz(static_cast<int>(positive_signs<Experts>(below_second) ^ taken));
  const auto next = detail::score_of_distance<close>(extremes.second + to_first);
  ranked.expert[0] = first;
  ranked.expert[1] = second;
  ranked.score[0] = 1.0f;
  ranked.log_score[0] = 0.0f;
  ranked.score[1] = next.score;
  ranked.log_score[1] = next.log_score;
  return {detail::fold_neighbours(score), detail::fold_neighbours(log)};
}

/// A warp's rows, Rows of them a lane, on their way in: in loads that lie side by side, through
/// shared memory where a row takes two. By halves, so that its size bounds no multiprocessor's
/// blocks.
template <class Logit, int Experts, int Rows>
class token_loader {
  using word = logit_word<Logit>;
  static constexpr int loads = Experts * static_cast<int>(sizeof(Logit)) / 16;  ///< of a row
  static_assert(loads == 1 || loads == 2, "rows of 16 or 32 bytes");
  static_assert(Rows % 2 == 0, "two halves");
  static constexpr bool stages = loads == 2;
  using quad = std::conditional_t<word::size == 1, float4, uint4>;
  quad staged_[stages ? 32 * Rows : 1];

 public:
  /// From `data` on, which is 16-byte aligned: row 32 r + lane to logit[r]. Every lane takes part.
  __device__ ADAPTIVE_K_INLINE void load(const Logit* data,
                                         float (&logit)[Rows][Experts]) noexcept {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const quad* const from = reinterpret_cast<const quad*>(data) + lane;
    quad loaded[Rows * loads];
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < Rows * loads; ++i) loaded[i] = from[32 * i];
    if constexpr (!stages) {
      ADAPTIVE_K_UNROLL
      for (int r = 0; r < Rows; ++r) unpack(loaded[r], 0, logit[r]);
    } else {
      // Every second group of eight is turned by one, so that halves of rows lie in all banks.
      quad* const to = staged_ + (lane ^ (lane >> 3 & 1));
      const int first = 2 * lane + (lane >> 2 & 1);
      ADAPTIVE_K_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (half > 0) __syncwarp();
        ADAPTIVE_K_UNROLL
        for (int i = 0; i < Rows; ++i) to[32 * i] = loaded[Rows * half + i];
        __syncwarp();
        ADAPTIVE_K_UNROLL
        for (int r = 0; r < Rows / 2; ++r) {
          float(&row)[Experts] = logit[Rows / 2 * half + r];
          unpack(staged_[first + 64 * r], 0, row);
          unpack(staged_[(first ^ 1) + 64 * r], Experts / loads, row);
        }
      }
    }
  }

 private:
  __device__ static ADAPTIVE_K_INLINE void unpack(float4 loaded, int start,
                                                  float (&logit)[Experts]) noexcept {
    logit[start] = loaded.x;
    logit[start + 1] = loaded.y;
    logit[start + 2] = loaded.z;
    logit[start + 3] = loaded.w;
  }
  __device__ static ADAPTIVE_K_INLINE void unpack(uint4 loaded, int start,
                                                  float (&logit)[Experts]) noexcept {
    const std::uint32_t bits[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    ADAPTIVE_K_UNROLL
    for (int i = 0; i < 8; ++i) logit[start + i] = word::at(bits[i / 2], i % 2);
  }
};

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
