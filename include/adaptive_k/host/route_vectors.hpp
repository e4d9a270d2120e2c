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
#include "adaptive_k/host/simd/expert_lanes.hpp"
#include "adaptive_k/host/simd/target.hpp"
#include "adaptive_k/host/simd/token_lanes.hpp"
#include "adaptive_k/host/simd/write_block.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A call that vectors write: other ids and weights are converted from these.
template <class Logit, class Plan, class Gating>
using vector_call = routing_call<Logit, std::int32_t, float, Plan, Gating>;
template <class Plan, class Gating>
using vector_context = call_context<std::int32_t, float, Plan, Gating>;

/// Tokens first to last - 1 of a call that `path` takes, not host_path::scalar, by a set that is
/// available. Here, or compiled once for the library's own types in kernels/route_vectors.cpp.
template <class Logit, class Plan, class Gating>
void route_vectors(const vector_call<Logit, Plan, Gating>& call, host_path path,
                   instruction_set set, std::int64_t first, std::int64_t last,
                   call_metrics& counts) noexcept;

#if ADAPTIVE_K_SIMD

/// Built-in plans that compare thresholds and nothing else are decided as what they are: code for a
/// predicted distortion would be most of a decision's. Null: the plan needs more.
template <class Plan>
const Plan* thresholds_alone(const Plan& plan) noexcept {
  return &plan;
}
inline const threshold_plan* thresholds_alone(const k_plan& plan) noexcept {
  const bool alone =
      plan.choice == k_choice::thresholds && !plan.has_super_experts && !plan.has_domain;
  return alone ? &plan : nullptr;
}

/// Where a decided token goes.
template <class Plan, class Gating>
struct token_sink {
  const vector_context<Plan, Gating>& call;
  call_metrics& counts;
  std::int64_t token;

  template <int MaxTopK, class Ranks>
  ADAPTIVE_K_INLINE void operator()(const token_route<MaxTopK>& route, Ranks ranks) const noexcept {
    counts.add_token(route, ranks);
    call.write(token, route, ranks);
  }
};

/// Counts and writes a decided block.
struct finish_block {
  template <class Set>
  struct body {
    using f32_vec = typename Set::f32_vec;
    template <class Context>
    static ADAPTIVE_K_INLINE void run(const Context* call, const token_block<f32_vec::lanes>* block,
                                      std::int64_t token, call_metrics* counts) noexcept {
      counts->template add_block<f32_vec>(*block, call->model->top_k);
      write_block<f32_vec>(*call, *block, token);
    }
  };
};

/// Tokens of a call by the vectors of one set. What is itself vector code is behind Set::run.
template <class Set, class Logit, class Plan, class Gating>
class vector_loop {
  static constexpr int lanes = Set::lanes;

 public:
  vector_loop(const vector_call<Logit, Plan, Gating>& call, call_metrics& counts) noexcept
      : call_(call), counts_(counts) {}

  void run(bool in_blocks, std::int64_t first, std::int64_t last) const noexcept {
    for (std::int64_t token = first; token < last;) {
      if (in_blocks && last - token >= lanes && !any_padding(token)) {
        if (last - token >= 2 * lanes) prefetch(token + lanes);
        route_block(token);
        token += lanes;
      } else {
        if (!skip_padding(call_, token, counts_)) route_one(token);
        ++token;
      }
    }
  }

 private:
  /// decide(score, top_k, plan) with the constants of a model that there is code for. K0 is 0 where
  /// only the run knows it. Where it is not, as in most models, experts are ranked by their logits
  /// alone, and no distortion is predicted.
  template <class Decide>
  ADAPTIVE_K_INLINE auto decide_by_shape(Decide decide) const noexcept {
    return with_score<Gating>(call_.model->kind, [&](auto score) {
      const Plan& plan = *call_.plan;
      if constexpr (std::is_same_v<decltype(score), softmax_score>) {
        const gating& model = *call_.model;
        const bool by_logit = !model.selection_bias && model.n_group == 1 && !call_.replays();
        const auto* narrow = thresholds_alone(plan);
        if (by_logit && narrow != nullptr) {
          if (model.top_k == 2) return decide(score, constant<2>(), *narrow);
          if (model.top_k == 4) return decide(score, constant<4>(), *narrow);
          if (model.top_k == 8) return decide(score, constant<8>(), *narrow);
        }
      }
      if constexpr (is_masked<decltype(score)>)  // by the scalar path alone
        return decide(softmax_score(), constant<0>(), plan);
      else
        return decide(score, constant<0>(), plan);
    });
  }

  void route_one(std::int64_t token) const noexcept {
    const int num_experts = call_.model->num_experts;
    int given[max_top_k];
    float head[max_top_k];
    token_request request = call_.request(token, given);
    request.head = call_.head_of(token, head);
    const token_sink<Plan, Gating> sink = {call_, counts_, token};
    const auto decide = [&](const float* row) {
      return decide_by_shape([&](auto score, auto top_k, const auto& plan) {
        using narrow = typename Set::narrow;
        if constexpr (top_k() <= narrow::lanes)
          if (num_experts <= narrow::lanes)
            return narrow::template run<
                decide_token<decltype(score), top_k(), true>::template body>(&request, &plan, row,
                                                                             &sink);
        return Set::template run<decide_token<decltype(score), top_k(), false>::template body>(
            &request, &plan, row, &sink);
      });
    };
    bool decided;
    if constexpr (std::is_same_v<Logit, float>) {
      decided = decide(call_.row(token));
    } else {
      alignas(64) float floats[max_experts];
      Set::template run<widen_rows::body>(call_.row(token), call_.row_stride, 1, num_experts,
                                          static_cast<float*>(floats));
      decided = decide(floats);
    }
    if (!decided) route_token_scalar(call_, token, counts_);
  }

  void route_block(std::int64_t token) const noexcept {
    const int num_experts = call_.model->num_experts;
    block_rows rows = {};
    alignas(64) float copies[lanes * lane_experts];
    if constexpr (std::is_same_v<Logit, float>) rows = {call_.row(token), call_.row_stride};
    if (rows.data == nullptr || num_experts % 4 != 0) {
      rows = {copies, wide_stride(num_experts)};
      Set::template run<widen_rows::body>(call_.row(token), call_.row_stride, lanes, num_experts,
                                          static_cast<float*>(copies));
    }
    block_rows head = {};
    alignas(64) float head_copies[lanes * lane_top_k];
    if (const int columns = call_.model->top_k - 1; call_.head != nullptr && columns > 0) {
      const Logit* first = call_.head + token * call_.head_stride;
      if constexpr (std::is_same_v<Logit, float>) head = {first, call_.head_stride};
      if (head.data == nullptr || columns < 4) {
        head = {head_copies, wide_stride(columns)};
        Set::template run<widen_rows::body>(first, call_.head_stride, lanes, columns,
                                            static_cast<float*>(head_copies));
      }
    }
    const token_request request = call_.request();
    token_block<lanes> block;
    std::uint32_t undecided = decide_by_shape([&](auto score, auto top_k, const auto& plan) {
      return Set::template run<decide_block<decltype(score), top_k()>::template body>(
          &request, &plan, rows, head, &block);
    });
    for (; undecided != 0; undecided &= undecided - 1) {
      const int lane = __builtin_ctz(undecided);
      token_route<max_top_k> route = {};  // g++ 12 does not see that it is filled
      decide_scalar(call_, token + lane, route);
      if (route.has_nonfinite) counts_.add_nonfinite_row();
      put_lane(route, call_.model->top_k, lane, block);
    }
    const vector_context<Plan, Gating>* context = &call_;
    Set::template run<finish_block::body>(context, &block, token, &counts_);
  }

  bool any_padding(std::int64_t token) const noexcept {
    if (call_.extras->padding_mask == nullptr) return false;
    for (int i = 0; i < lanes; ++i)
      if (call_.is_padding(token + i)) return true;
    return false;
  }

  /// Next rows, into the second-level cache: hardware prefetchers follow rows side by side badly.
  /// Forced inline: g++ takes a function that only prefetches for one that does nothing.
  ADAPTIVE_K_INLINE void prefetch(std::int64_t token) const noexcept {
    const auto bytes = call_.model->num_experts * static_cast<int>(sizeof(Logit));
    if (bytes < 256) return;
    for (int i = 0; i < lanes; ++i) {
      const char* row = reinterpret_cast<const char*>(call_.row(token + i));
      for (int at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }

  const vector_call<Logit, Plan, Gating>& call_;
  call_metrics& counts_;
};

template <class Logit, class Plan, class Gating>
void route_vectors(const vector_call<Logit, Plan, Gating>& call, host_path path,
                   instruction_set set, std::int64_t first, std::int64_t last,
                   call_metrics& counts) noexcept {
#if ADAPTIVE_K_HAS_AVX512 && ADAPTIVE_K_HAS_AVX2
  // Rows that fit the narrower vectors, too few for a block of the wider.
  if (set == instruction_set::avx512 && call.model->num_experts <= avx2::lanes &&
      last - first < avx512::lanes)
    set = instruction_set::avx2;
#endif
  const bool routed = with_vectors(set, [&](auto vectors) {
    vector_loop<decltype(vectors), Logit, Plan, Gating>(call, counts)
        .run(path == host_path::token_lanes, first, last);
  });
  if (!routed) route_range_scalar(call, first, last, counts);
}

#endif

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
