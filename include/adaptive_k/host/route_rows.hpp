// The batch loop: rows of logits to outputs and counts, by the widest means that fit a call.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/host/call_metrics.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/simd/avx2.hpp"
#include "adaptive_k/host/simd/avx512.hpp"
#include "adaptive_k/host/simd/lanes.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/simd/write_rows.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// A checked call. Plain data.
template <class Logit, class Id, class Weight>
struct routing_call {
  const gating* model;
  const k_plan* plan;
  fill_id fill;
  logits_view<Logit> logits;  ///< with its row_stride set
  routing_replay<Id> given;
  routing_output<Id, Weight> output;
  routing_extras extras;
};

/// One token's dictated experts; none where `ids` is null.
struct host_replay {
  static constexpr bool possible = true;
  const int* ids;
  int number;
  ADAPTIVE_K_HD bool active() const noexcept { return ids != nullptr; }
  ADAPTIVE_K_HD int count() const noexcept { return number; }
  ADAPTIVE_K_HD int expert(int rank) const noexcept { return ids[rank]; }
};

template <gating_kind Kind>
void route_by_scalar(const row_request& request, const float* row, const host_replay& replay,
                     token_route<max_top_k>& route) noexcept {
  constexpr int max_rows = max_experts / reduction_slots;
  const bool shadow = request.dictated != choice_counts;
  route = route_token<Kind, max_rows, max_top_k>(host_warp<1>{}, *request.model, *request.plan,
                                                 request.routing_bias, request.limits, shadow,
                                                 logit_row<float>{row}, replay);
}

/// The reference path: any call, one expert at a time.
inline void route_by_scalar(const row_request& request, const float* row, const host_replay& replay,
                            token_route<max_top_k>& route) noexcept {
  switch (request.model->kind) {
    case gating_kind::softmax:
      return route_by_scalar<gating_kind::softmax>(request, row, replay, route);
    case gating_kind::sigmoid:
      return route_by_scalar<gating_kind::sigmoid>(request, row, replay, route);
    case gating_kind::top_k_softmax:
      return route_by_scalar<gating_kind::top_k_softmax>(request, row, replay, route);
    case gating_kind::sqrt_softplus:
      return route_by_scalar<gating_kind::sqrt_softplus>(request, row, replay, route);
    case gating_kind::sparsemixer:
      return route_by_scalar<gating_kind::sparsemixer>(request, row, replay, route);
  }
}

/// Routes a range of a call's tokens.
template <class Logit, class Id, class Weight>
class row_router {
 public:
  row_router(const routing_call<Logit, Id, Weight>& call, routing_metrics* metrics) noexcept
      : call_(call),
        counts_(metrics, call.model->num_experts),
        request_{call.model, call.plan, call.extras.routing_bias, call.plan->limits,
                 call.output.chosen_counts != nullptr ? call.model->top_k : choice_counts} {}

  void run(instruction_set set, std::int64_t first, std::int64_t last) noexcept {
    if (!vectorizes()) set = instruction_set::scalar;
    switch (set) {
#if ADAPTIVE_K_SIMD_X86
      case instruction_set::avx512:
        avx512::run<vector_loop>(this, first, last);
        break;
      case instruction_set::avx2:
        avx2::run<vector_loop>(this, first, last);
        break;
#endif
      default:
        for (std::int64_t token = first; token < last; ++token) route_alone(token);
        break;
    }
    counts_.finish(call_.model->top_k);
  }

 private:
  /// Whether a call is of the common kinds that have a vectorised path.
  bool vectorizes() const noexcept {
    return call_.model->kind != gating_kind::sparsemixer && call_.model->n_group == 1 &&
           call_.given.topk_ids == nullptr;
  }
  bool fits_lanes() const noexcept {
    return call_.model->num_experts <= most_lane_experts && call_.model->top_k <= most_lane_top_k &&
           call_.extras.k_min == nullptr && call_.extras.k_max == nullptr;
  }

  const Logit* row_of(std::int64_t token) const noexcept {
    return call_.logits.data + token * call_.logits.row_stride;
  }
  bool is_padding(std::int64_t token) const noexcept {
    return call_.extras.padding_mask != nullptr && call_.extras.padding_mask[token] != 0;
  }
  const k_limits& limits_of(std::int64_t token) noexcept {
    const routing_extras& extras = call_.extras;
    if (extras.k_min != nullptr || extras.k_max != nullptr)
      request_.limits =
          narrow_limits(call_.plan->limits, extras.k_min != nullptr ? extras.k_min[token] : 1,
                        extras.k_max != nullptr ? extras.k_max[token] : max_top_k);
    return request_.limits;
  }

  void write_padding(std::int64_t token) noexcept {
    counts_.add_padding();
    token_route<max_top_k> route;
    route.count = 0;
    route.chosen = 0;
    route.expert[0] = 0;
    route.signal = 0.0f;
    write(token, route);
  }

  void count_and_write(std::int64_t token, const token_route<max_top_k>& route) noexcept {
    counts_.add_token(route.expert, route.count, route.signal);
    if (route.has_nonfinite) counts_.add_nonfinite_row();
    write(token, route);
  }

  void write(std::int64_t token, const token_route<max_top_k>& route) const noexcept {
    const int top_k = call_.model->top_k;
    const routing_output<Id, Weight>& output = call_.output;
    Id* ids = output.topk_ids + token * top_k;
    Weight* weights = output.topk_weights + token * top_k;
    const Id filler = call_.fill == fill_id::first_expert ? static_cast<Id>(route.expert[0])
                                                          : static_cast<Id>(fixed_filler());
    for (int j = 0; j < top_k; ++j) {
      ids[j] = j < route.count ? static_cast<Id>(route.expert[j]) : filler;
      weights[j] = from_float<Weight>(j < route.count ? route.weight[j] : 0.0f);
    }
    if (output.topk_counts != nullptr) output.topk_counts[token] = route.count;
    if (output.chosen_counts != nullptr) output.chosen_counts[token] = route.chosen;
    if (output.signal != nullptr) output.signal[token] = route.signal;
  }

  int fixed_filler() const noexcept {
    return call_.fill == fill_id::num_experts ? call_.model->num_experts : -1;
  }

  /// One token by the scalar path.
  void decide_alone(std::int64_t token, const host_replay& replay,
                    token_route<max_top_k>& route) noexcept {
    limits_of(token);
    const Logit* row = row_of(token);
    if constexpr (std::is_same_v<Logit, float>) {
      route_by_scalar(request_, row, replay, route);
    } else {
      float floats[max_experts];
      for (int e = 0; e < call_.model->num_experts; ++e) floats[e] = to_float(row[e]);
      route_by_scalar(request_, floats, replay, route);
    }
  }

  void route_alone(std::int64_t token) noexcept {
    int ids[max_top_k];
    host_replay replay = {nullptr, 0};
    if (call_.given.topk_ids != nullptr) {
      const int top_k = call_.model->top_k;
      replay = {ids, call_.given.topk_counts != nullptr ? call_.given.topk_counts[token] : top_k};
      for (int j = 0; j < replay.number; ++j)
        ids[j] = static_cast<int>(call_.given.topk_ids[token * top_k + j]);
    }
    if (is_padding(token) || (replay.active() && replay.number == 0)) return write_padding(token);
    token_route<max_top_k> route;
    decide_alone(token, replay, route);
    count_and_write(token, route);
  }

#if ADAPTIVE_K_SIMD
  template <class Target, gating_kind Kind>
  ADAPTIVE_K_INLINE bool decide_row(const Logit* row, token_route<max_top_k>& route) noexcept {
    return Target::template run<route_row<Kind, Logit>::template body>(
        static_cast<const row_request*>(&request_), row, &route);
  }

  /// One token in the lanes of one vector.
  template <class Target>
  ADAPTIVE_K_INLINE void decide_by_row(std::int64_t token, token_route<max_top_k>& route) noexcept {
    limits_of(token);
    const Logit* row = row_of(token);
    bool decided = false;
    switch (call_.model->kind) {
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
    if (!decided) decide_alone(token, {nullptr, 0}, route);
  }

  template <class Target, gating_kind Kind>
  ADAPTIVE_K_INLINE std::uint32_t decide_lanes(
      const block_request& request, block_routes<Target::reals::lanes>& routes) noexcept {
    return Target::template run<route_lanes<Kind>::template body>(&request, &routes);
  }

  /// A block of tokens, one a lane.
  template <class Target>
  ADAPTIVE_K_INLINE void route_block(std::int64_t token) noexcept {
    using reals = typename Target::reals;
    constexpr int lanes = reals::lanes;
    const int num_experts = call_.model->num_experts;
    const int top_k = call_.model->top_k;
    alignas(64) float copies[lanes * most_lane_experts];
    const block_rows rows =
        float_rows<reals>(row_of(token), call_.logits.row_stride, num_experts, copies);
    const block_request request = {call_.model,       call_.plan, request_.routing_bias,
                                   request_.dictated, rows.data,  rows.stride};
    block_routes<lanes> routes;
    std::uint32_t undecided = 0;
    switch (call_.model->kind) {
      case gating_kind::softmax:
      case gating_kind::top_k_softmax:
        undecided = decide_lanes<Target, gating_kind::softmax>(request, routes);
        break;
      case gating_kind::sigmoid:
        undecided = decide_lanes<Target, gating_kind::sigmoid>(request, routes);
        break;
      case gating_kind::sqrt_softplus:
        undecided = decide_lanes<Target, gating_kind::sqrt_softplus>(request, routes);
        break;
      case gating_kind::sparsemixer:
        break;
    }
    for (; undecided != 0; undecided &= undecided - 1) {
      const int lane = __builtin_ctz(undecided);
      token_route<max_top_k> route;
      decide_by_row<Target>(token + lane, route);
      if (route.has_nonfinite) counts_.add_nonfinite_row();
      put_lane(route, top_k, lane, routes);
    }
    counts_.template add_lanes<reals>(routes.expert, top_k, routes.count, routes.signal);
    write_block<reals>(routes, top_k, call_.fill == fill_id::first_expert, fixed_filler(), token,
                       call_.output);
  }

  template <class Target>
  struct vector_loop {
    static ADAPTIVE_K_INLINE void run(row_router* self, std::int64_t first,
                                      std::int64_t last) noexcept {
      constexpr int lanes = Target::reals::lanes;
      const bool fits = self->fits_lanes();
      const bool prefetches =
          self->call_.model->num_experts * static_cast<int>(sizeof(Logit)) >= 256;
      for (std::int64_t token = first; token < last;) {
        if (fits && last - token >= lanes && !self->any_padding(token, lanes)) {
          if (prefetches && last - token >= 2 * lanes) self->prefetch(token + lanes, lanes);
          self->template route_block<Target>(token);
          token += lanes;
          continue;
        }
        if (self->is_padding(token)) {
          self->write_padding(token);
        } else {
          token_route<max_top_k> route;
          self->template decide_by_row<Target>(token, route);
          self->count_and_write(token, route);
        }
        ++token;
      }
    }
  };

  /// Rows that come next, into the second-level cache: a block takes longer than memory does, but
  /// reads its rows side by side, which hardware prefetchers follow badly.
  ADAPTIVE_K_INLINE void prefetch(std::int64_t token, int number) const noexcept {
    const auto row_bytes = call_.model->num_experts * static_cast<int>(sizeof(Logit));
    const std::int64_t gap = call_.logits.row_stride - call_.model->num_experts;
    if (gap == 0) return prefetch_bytes(row_of(token), number * row_bytes);
    for (int i = 0; i < number; ++i) prefetch_bytes(row_of(token + i), row_bytes);
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
    if (call_.extras.padding_mask == nullptr) return false;
    for (int i = 0; i < number; ++i)
      if (is_padding(token + i)) return true;
    return false;
  }
#endif

  const routing_call<Logit, Id, Weight>& call_;
  call_metrics counts_;
  row_request request_;
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
