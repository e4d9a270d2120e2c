// The batch loop by vectors: blocks of tokens in the lanes, else a token's experts in the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/route_rows.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/avx512_row.hpp"
#include "adaptive_k/host/simd/generic.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/usual_blocks.hpp"
#include "adaptive_k/host/simd/usual_row.hpp"
#include "adaptive_k/host/simd/write_rows.hpp"

#if ADAPTIVE_K_SIMD

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template <class Logit>
class vector_rows {
 public:
  using router = row_router<Logit, std::int32_t, float>;
  explicit vector_rows(router& rows) noexcept
      : rows_(rows),
        usual_top_k_(usual_top_k(rows)),
        usual_in_blocks_(usual_top_k_ != 0 &&
                         is_whole_lists(rows.call_.model->num_experts, usual_top_k_)),
        has_limits_(rows.call_.extras.k_min != nullptr || rows.call_.extras.k_max != nullptr),
        usual_(usual_request(rows)) {
    if (usual_top_k_ != 0)
      usual_rule_ = usual_rule(*rows.call_.model, *rows.call_.plan, rows.call_.plan->limits);
  }

  void run(instruction_set set, std::int64_t first, std::int64_t last) noexcept {
#if ADAPTIVE_K_HAS_AVX512
    if (set == instruction_set::avx512) return avx512::run<vector_loop>(this, first, last);
#endif
#if ADAPTIVE_K_HAS_AVX2
    if (set == instruction_set::avx2) return avx2::run<vector_loop>(this, first, last);
#endif
#if ADAPTIVE_K_HAS_GENERIC
    if (set == instruction_set::generic) return generic::run<vector_loop>(this, first, last);
#endif
    // Another file of this program has more sets than this one: see simd/target.hpp.
    for (std::int64_t token = first; token < last; ++token) rows_.route_alone(token);
  }

 private:
  /// K0 of a usual call, else 0.
  static int usual_top_k(const router& rows) noexcept {
    const gating& model = *rows.call_.model;
    const bool usual = has_usual_code(model) && is_usual_plan(*rows.call_.plan) &&
                       rows.request_.dictated == choice_counts;
    return usual ? model.top_k : 0;
  }
  static usual_blocks_request usual_request(const router& rows) noexcept {
    usual_blocks_request request = {};
    request.model = rows.call_.model;
    request.plan = rows.call_.plan;
    request.fill_first = rows.call_.fill == fill_id::first_expert;
    request.fixed_filler = rows.fixed_filler();
    request.output = rows.call_.output;
    return request;
  }

  bool fits_lanes() const noexcept {
    return rows_.call_.model->num_experts <= most_lane_experts &&
           rows_.call_.model->top_k <= most_lane_top_k && !has_limits_;
  }

  template <class Target, gating_kind Kind>
  ADAPTIVE_K_INLINE bool decide_row(const float* row, token_route<max_top_k>& route) noexcept {
    return Target::template run<route_row<Kind>::template body>(
        static_cast<const row_request*>(&rows_.request_), row, &route);
  }

  /// False: it is not a usual call, or usual_row could not decide.
  template <class Target>
  ADAPTIVE_K_INLINE bool decide_usual_row(const float* row,
                                          token_route<max_top_k>& route) noexcept {
    switch (usual_top_k_) {
      case 2:
        return decide_usual_row_as<Target, 2>(row, route);
      case 4:
        return decide_usual_row_as<Target, 4>(row, route);
      case 8:
        return decide_usual_row_as<Target, 8>(row, route);
      default:
        return false;
    }
  }
  template <class Target, int TopK>
  ADAPTIVE_K_INLINE bool decide_usual_row_as(const float* row,
                                             token_route<max_top_k>& route) noexcept {
    if constexpr (TopK <= Target::row_reals::lanes)
      return Target::template run<usual_row_alone<TopK>::template body>(
          static_cast<const usual_rule*>(&usual_rule_), row, &route);
    return false;
  }

  /// One token in the lanes of one vector.
  template <class Target>
  ADAPTIVE_K_INLINE void decide_by_row(std::int64_t token, token_route<max_top_k>& route) noexcept {
    const k_limits& limits = rows_.limits_of(token);
    if (has_limits_ && usual_top_k_ != 0) usual_rule_.set_limits(*rows_.call_.plan, limits);
    const float* row = nullptr;
    [[maybe_unused]] float floats[std::is_same_v<Logit, float> ? 1 : max_experts];
    if constexpr (std::is_same_v<Logit, float>) {
      row = rows_.row_of(token);
    } else {
      widen_row<typename Target::reals>(rows_.row_of(token), rows_.call_.model->num_experts,
                                        floats);
      row = floats;
    }
    bool decided = decide_usual_row<Target>(row, route);
    if (decided) return;
    switch (rows_.call_.model->kind) {
      case gating_kind::softmax:
      case gating_kind::top_k_softmax:  // the same, renormalised
        decided = decide_row<Target, gating_kind::softmax>(row, route);
        break;
      case gating_kind::sigmoid:
        decided = decide_row<Target, gating_kind::sigmoid>(row, route);
        break;
      case gating_kind::sqrt_softplus:
        decided = decide_row<Target, gating_kind::sqrt_softplus>(row, route);
        break;
      case gating_kind::sparsemixer:
        break;
    }
    if (!decided) rows_.decide_alone(token, {nullptr, 0}, route);
  }

  template <class Target, gating_kind Kind>
  ADAPTIVE_K_INLINE std::uint32_t decide_lanes(
      const block_request& request, block_routes<Target::reals::lanes>& routes) noexcept {
    return Target::template run<route_lanes<Kind>::template body>(&request, &routes);
  }

  template <class Target>
  ADAPTIVE_K_INLINE std::uint32_t decide_block(
      const block_rows& rows, block_routes<Target::reals::lanes>& routes) noexcept {
    const block_request request = {
        rows_.call_.model,       rows_.call_.plan, rows_.request_.routing_bias,
        rows_.request_.dictated, rows.data,        rows.stride};
    switch (rows_.call_.model->kind) {
      case gating_kind::softmax:
      case gating_kind::top_k_softmax:
        return decide_lanes<Target, gating_kind::softmax>(request, routes);
      case gating_kind::sigmoid:
        return decide_lanes<Target, gating_kind::sigmoid>(request, routes);
      case gating_kind::sqrt_softplus:
        return decide_lanes<Target, gating_kind::sqrt_softplus>(request, routes);
      case gating_kind::sparsemixer:
        break;
    }
    return 0;
  }

  /// As usual_blocks, for `number` blocks or fewer of those that are `ahead`; the first `rows` are
  /// given.
  template <class Target>
  ADAPTIVE_K_INLINE std::uint32_t route_usual(const block_rows& rows, std::int64_t token,
                                              std::int64_t number, std::int64_t ahead,
                                              block_routes<Target::reals::lanes>& routes) noexcept {
    usual_.rows = rows;
    usual_.token = token;
    usual_.blocks_ahead = ahead;
    usual_.blocks = rows_.counts_.lend_to_blocks(Target::reals::lanes, number, usual_.counts,
                                                 usual_.expert_counts);
    const int num_experts = rows_.call_.model->num_experts;
    if (usual_top_k_ == 2)
      return num_experts == 8 ? route_usual_as<Target, 2, 8>(routes)
                              : route_usual_as<Target, 2, 0>(routes);
    if (usual_top_k_ == 4) return route_usual_as<Target, 4, 0>(routes);
    return route_usual_as<Target, 8, 0>(routes);
  }
  template <class Target, int TopK, int Experts>
  ADAPTIVE_K_INLINE std::uint32_t route_usual_as(
      block_routes<Target::reals::lanes>& routes) noexcept {
    return Target::template run<usual_blocks<TopK, Experts>::template body>(&usual_, &routes);
  }

  /// Blocks of tokens, one a lane, at most `number` of those that are `ahead`; the result is the
  /// first token that is left. With one at a time, `copies` may hold what cannot be read in place.
  template <class Target>
  ADAPTIVE_K_INLINE std::int64_t route_blocks(std::int64_t token, std::int64_t number,
                                              std::int64_t ahead) noexcept {
    using reals = typename Target::reals;
    constexpr int lanes = reals::lanes;
    const int num_experts = rows_.call_.model->num_experts;
    const int top_k = rows_.call_.model->top_k;
    alignas(64) float copies[lanes * most_lane_experts];
    const block_rows rows =
        float_rows<reals>(rows_.row_of(token), rows_.call_.logits.row_stride, num_experts, copies);
    block_routes<lanes> routes;
    std::uint32_t undecided = 0;
    const bool contiguous = rows.data != copies && rows.stride == num_experts;
    if (ahead > 1 && !(contiguous && usual_in_blocks_)) prefetch(token + lanes, lanes);
    if (usual_in_blocks_) {
      undecided = contiguous ? route_usual<Target>(rows, token, number, ahead, routes)
                             : route_usual<Target>(rows, token, 1, 1, routes);
      token = usual_.token;
      if (undecided == 0) return token;
      // Where logits are far apart in many rows, a block for any call takes less than those rows.
      if (4 * __builtin_popcount(undecided) > lanes)
        undecided = decide_block<Target>(usual_.rows, routes);
    } else {
      undecided = decide_block<Target>(rows, routes);
    }
    for (; undecided != 0; undecided &= undecided - 1) {
      const int lane = __builtin_ctz(undecided);
      token_route<max_top_k> route;
      decide_by_row<Target>(token + lane, route);
      if (route.has_nonfinite) rows_.counts_.add_nonfinite_row();
      put_lane(route, top_k, lane, routes);
    }
    rows_.counts_.template add_lanes<reals>(routes.expert, top_k, routes.count, routes.signal);
    if (rows_.counts_.shadow())
      for (const std::uint32_t k : routes.chosen) rows_.counts_.add_chosen(k);
    const stored_routes<reals> decided = {routes};
    write_block<reals>(decided, top_k, usual_.fill_first, usual_.fixed_filler, token,
                       rows_.call_.output);
    return token + lanes;
  }

  template <class Target>
  struct vector_loop {
    static ADAPTIVE_K_INLINE void run(vector_rows* self, std::int64_t first,
                                      std::int64_t last) noexcept {
      constexpr int lanes = Target::reals::lanes;
      const bool fits = self->fits_lanes();
      const bool one_by_one = self->rows_.call_.extras.padding_mask != nullptr;
      for (std::int64_t token = first; token < last;) {
        if (fits && last - token >= lanes && !self->any_padding(token, lanes)) {
          const std::int64_t ahead = (last - token) / lanes;
          token = self->template route_blocks<Target>(token, one_by_one ? 1 : ahead, ahead);
          continue;
        }
        if (self->rows_.is_padding(token)) {
          self->rows_.write_padding(token);
        } else {
          token_route<max_top_k> route;
          self->template decide_by_row<Target>(token, route);
          self->rows_.count_and_write(token, route);
        }
        ++token;
      }
    }
  };

  /// Rows that come next, into the second-level cache: a block takes longer than memory does, but
  /// reads its rows side by side, which hardware prefetchers follow badly.
  ADAPTIVE_K_INLINE void prefetch(std::int64_t token, int number) const noexcept {
    const auto row_bytes = rows_.call_.model->num_experts * static_cast<int>(sizeof(Logit));
    if (row_bytes < 256) return;
    const std::int64_t gap = rows_.call_.logits.row_stride - rows_.call_.model->num_experts;
    if (gap == 0) return prefetch_bytes(rows_.row_of(token), number * row_bytes);
    for (int i = 0; i < number; ++i) prefetch_bytes(rows_.row_of(token + i), row_bytes);
  }
  static ADAPTIVE_K_INLINE void prefetch_bytes(const void* from, int bytes) noexcept {
    const char* at = static_cast<const char*>(from);
    const char* const end = at + bytes;
    for (; end - at >= 256; at += 256) {
      __builtin_prefetch(at, 0, 2);
      __builtin_prefetch(at + 64, 0, 2);
      __builtin_prefetch(at + 128, 0, 2);
      __builtin_prefetch(at + 192, 0, 2);
    }
    for (; at < end; at += 64) __builtin_prefetch(at, 0, 2);
  }

  bool any_padding(std::int64_t token, int number) const noexcept {
    if (rows_.call_.extras.padding_mask == nullptr) return false;
    for (int i = 0; i < number; ++i)
      if (rows_.is_padding(token + i)) return true;
    return false;
  }

  router& rows_;
  int usual_top_k_;
  bool usual_in_blocks_;
  bool has_limits_;  ///< of tokens
  usual_blocks_request usual_;
  usual_rule usual_rule_;  ///< of a usual call, for rows that are decided alone
};

template <class Logit>
bool route_usual_token(const usual_setup& setup, const Logit* row, const routing_output<>& output,
                       std::int64_t token, routing_metrics* metrics) noexcept {
#if ADAPTIVE_K_HAS_AVX512
  if (setup.set == instruction_set::avx512)
    return run_usual_token<avx512>(&setup, row, &output, token, metrics);
#endif
#if ADAPTIVE_K_HAS_AVX2
  if (setup.set == instruction_set::avx2)
    return run_usual_token<avx2>(&setup, row, &output, token, metrics);
#endif
#if ADAPTIVE_K_HAS_GENERIC
  if (setup.set == instruction_set::generic)
    return run_usual_token<generic>(&setup, row, &output, token, metrics);
#endif
  return false;
}

template <class Logit>
void route_vectors(row_router<Logit, std::int32_t, float>& rows, instruction_set set,
                   std::int64_t first, std::int64_t last) noexcept {
  vector_rows<Logit>(rows).run(set, first, last);
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif
