// The batch loop by vectors: blocks of tokens in the lanes, else a token's experts in the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/host/call_metrics.hpp"
#include "adaptive_k/host/host_paths.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/route_scalar.hpp"
#include "adaptive_k/host/routing_call.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/expert_lanes.hpp"
#include "adaptive_k/host/simd/generic.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/token_lanes.hpp"
#include "adaptive_k/host/simd/write_block.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A call that vectors write: other ids and weights are converted from these.
template <class Logit, class Plan, class Gating>
using vector_call = routing_call<Logit, std::int32_t, float, Plan, Gating>;

/// Tokens first to last - 1 of a call that `path` takes, not host_path::scalar, by a set that is
/// available. Here, or compiled once for the library's own types in kernels/route_vectors.cpp.
template <class Logit, class Plan, class Gating>
void route_vectors(const vector_call<Logit, Plan, Gating>& call, host_path path,
                   instruction_set set, std::int64_t first, std::int64_t last,
                   call_metrics& counts) noexcept;

#if ADAPTIVE_K_SIMD

template <auto Value>
using constant = std::integral_constant<decltype(Value), Value>;

/// Built-in plans that compare thresholds are decided as what they are: code for a predicted
/// distortion would be most of a decision's.
template <class Plan>
bool predicts_distortion(const Plan&) noexcept {
  return false;
}
inline bool predicts_distortion(const k_plan& plan) noexcept {
  return plan.choice != k_choice::thresholds;
}
template <class Plan>
const Plan& without_distortion(const Plan& plan) noexcept {
  return plan;
}
inline const threshold_plan& without_distortion(const k_plan& plan) noexcept {
  return plan;
}

template <class Logit, class Plan, class Gating>
class vector_loop {
 public:
  vector_loop(const vector_call<Logit, Plan, Gating>& call, host_path path,
              call_metrics& counts) noexcept
      : call_(call), counts_(counts), in_blocks_(path == host_path::token_lanes) {}

  template <class Set>
  struct body {
    static ADAPTIVE_K_INLINE void run(vector_loop* self, std::int64_t first,
                                      std::int64_t last) noexcept {
      constexpr int lanes = Set::f32::lanes;
      for (std::int64_t token = first; token < last;) {
        if (self->in_blocks_ && last - token >= lanes && !self->any_padding(token, lanes)) {
          if (last - token >= 2 * lanes) self->prefetch(token + lanes, lanes);
          self->template route_block<Set>(token);
          token += lanes;
        } else {
          self->template route_one<Set>(token++);
        }
      }
    }
  };

 private:
  /// decide(score, top_k, plan) with the constants of a model that there is code for. K0 is 0 where
  /// only the run knows it. Where it is not, as in most models, experts are ranked by their logits
  /// alone, and no distortion is predicted.
  template <class Decide>
  auto decide_by_shape(Decide decide) const noexcept {
    return with_score<Gating>(call_.model->kind, [&](auto score) {
      const Plan& plan = *call_.plan;
      if constexpr (std::is_same_v<decltype(score), softmax_score>) {
        const gating& model = *call_.model;
        const bool by_logit = !model.selection_bias && model.n_group == 1 && !call_.replays();
        if (by_logit && !predicts_distortion(plan)) {
          const auto& narrow = without_distortion(plan);
          if (model.top_k == 2) return decide(score, constant<2>(), narrow);
          if (model.top_k == 4) return decide(score, constant<4>(), narrow);
          if (model.top_k == 8) return decide(score, constant<8>(), narrow);
        }
      }
      if constexpr (is_masked<decltype(score)>)  // by the scalar path alone
        return decide(softmax_score(), constant<0>(), plan);
      else
        return decide(score, constant<0>(), plan);
    });
  }

  template <class Set, class Score, int TopK, class AnyPlan>
  static bool decide_row_as(const token_request<AnyPlan>& request, const float* row,
                            token_route<max_top_k>& route) noexcept {
    using narrow = typename Set::narrow;
    if constexpr (TopK <= narrow::f32::lanes)
      if (request.model->num_experts <= narrow::f32::lanes)
        return narrow::template run<decide_row<Score, TopK, true>::template body>(&request, row,
                                                                                  &route);
    return Set::template run<decide_row<Score, TopK, false>::template body>(&request, row, &route);
  }

  /// False: it could not.
  template <class Set>
  ADAPTIVE_K_INLINE bool decide_row_of(const float* row, const token_request<Plan>& request,
                                       token_route<max_top_k>& route) noexcept {
    return decide_by_shape([&](auto score, auto top_k, auto& plan) {
      const token_request<std::decay_t<decltype(plan)>> own = {
          request.model,    &plan,         request.routing_bias, request.limits,
          request.forced_k, request.given, request.num_given};
      return decide_row_as<Set, decltype(score), top_k()>(own, row, route);
    });
  }

  /// The lanes that it could not decide, a bit each.
  template <class Set>
  ADAPTIVE_K_INLINE std::uint32_t decide_rows(const block_rows& rows,
                                              token_block<Set::f32::lanes>& block) noexcept {
    return decide_by_shape([&](auto score, auto top_k, auto& plan) {
      const block_request<std::decay_t<decltype(plan)>> request = {
          call_.model, &plan, call_.extras.routing_bias, call_.forced_k(), rows.data, rows.stride};
      return Set::template run<decide_block<decltype(score), top_k()>::template body>(&request,
                                                                                      &block);
    });
  }

  template <class Set>
  ADAPTIVE_K_INLINE void decide_one(std::int64_t token, token_route<max_top_k>& route) noexcept {
    int given[max_top_k];
    bool decided;
    if constexpr (std::is_same_v<Logit, float>) {
      decided = decide_row_of<Set>(call_.row(token), call_.request(token, given), route);
    } else {
      alignas(64) float floats[max_experts];
      widen_row<typename Set::f32>(call_.row(token), call_.model->num_experts,
                                   static_cast<float*>(floats));
      decided = decide_row_of<Set>(floats, call_.request(token, given), route);
    }
    if (!decided) decide_scalar(call_, token, route);
  }

  template <class Set>
  ADAPTIVE_K_INLINE void route_one(std::int64_t token) noexcept {
    if (call_.is_padding(token)) {
      counts_.add_padding();
      return call_.write_padding(token);
    }
    token_route<max_top_k> route;
    decide_one<Set>(token, route);
    counts_.add_token(route, call_.model->top_k);
    call_.write(token, route);
  }

  template <class Set>
  ADAPTIVE_K_INLINE void route_block(std::int64_t token) noexcept {
    using f32 = typename Set::f32;
    constexpr int lanes = f32::lanes;
    const int top_k = call_.model->top_k;
    alignas(64) float copies[lanes * lane_experts];
    const block_rows rows = float_rows<f32>(call_.row(token), call_.logits.row_stride,
                                            call_.model->num_experts, copies);
    token_block<lanes> block;
    std::uint32_t undecided = decide_rows<Set>(rows, block);
    for (; undecided != 0; undecided &= undecided - 1) {
      const int lane = __builtin_ctz(undecided);
      token_route<max_top_k> route = {};  // g++ 12 does not see that it is filled
      decide_scalar(call_, token + lane, route);
      if (route.has_nonfinite) counts_.add_nonfinite_row();
      put_lane(route, top_k, lane, block);
    }
    counts_.template add_block<f32>(block, top_k);
    write_block<f32>(block, top_k, call_.fill == fill_id::first_expert, call_.pad_id(),
                     call_.plan->mass_exponent, token, call_.output);
  }

  bool any_padding(std::int64_t token, int number) const noexcept {
    if (call_.extras.padding_mask == nullptr) return false;
    for (int i = 0; i < number; ++i)
      if (call_.is_padding(token + i)) return true;
    return false;
  }

  /// Rows that come next, into the second-level cache: a block takes longer than memory does, but
  /// reads its rows side by side, which hardware prefetchers follow badly.
  ADAPTIVE_K_INLINE void prefetch(std::int64_t token, int number) const noexcept {
    const auto bytes = call_.model->num_experts * static_cast<int>(sizeof(Logit));
    if (bytes < 256) return;
    for (int i = 0; i < number; ++i) {
      const char* row = reinterpret_cast<const char*>(call_.row(token + i));
      for (int at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }

  const vector_call<Logit, Plan, Gating>& call_;
  call_metrics& counts_;
  bool in_blocks_;
};

template <class Logit, class Plan, class Gating>
void route_vectors(const vector_call<Logit, Plan, Gating>& call, host_path path,
                   instruction_set set, std::int64_t first, std::int64_t last,
                   call_metrics& counts) noexcept {
  using loop = vector_loop<Logit, Plan, Gating>;
  loop routes(call, path, counts);
#if ADAPTIVE_K_HAS_AVX512 && ADAPTIVE_K_HAS_AVX2
  // Rows that fit the narrower vectors, too few for a block of the wider.
  if (set == instruction_set::avx512 && call.model->num_experts <= avx2::f32::lanes &&
      last - first < avx512::f32::lanes)
    set = instruction_set::avx2;
#endif
#if ADAPTIVE_K_HAS_AVX512
  if (set == instruction_set::avx512) return avx512::run<loop::template body>(&routes, first, last);
#endif
#if ADAPTIVE_K_HAS_AVX2
  if (set == instruction_set::avx2) return avx2::run<loop::template body>(&routes, first, last);
#endif
#if ADAPTIVE_K_HAS_GENERIC
  if (set == instruction_set::generic)
    return generic::run<loop::template body>(&routes, first, last);
#endif
  // Another file of this program has more sets than this one: see simd/target.hpp.
  route_range_scalar(call, first, last, counts);
}

#endif

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
