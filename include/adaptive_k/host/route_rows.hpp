// The batch loop: rows of logits to outputs and counts, by the widest means that fit a call.
#pragma once

#include <cstdint>
#include <type_traits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/host/call_metrics.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/route_scalar.hpp"
#include "adaptive_k/host/simd/row.hpp"
#include "adaptive_k/host/usual_token.hpp"
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

template <class Logit, class Id, class Weight>
class row_router;

/// A range of a call's tokens by vectors of a set that is available. In route_vectors.hpp, or
/// compiled once for all logits in kernels/route_vectors.cpp.
template <class Logit>
void route_vectors(row_router<Logit, std::int32_t, float>& rows, instruction_set set,
                   std::int64_t first, std::int64_t last) noexcept;

/// A usual call of one token by vectors of a set that is available; false: not done. Where
/// route_vectors is.
template <class Logit>
bool route_usual_token(const usual_setup& setup, const Logit* row, const routing_output<>& output,
                       std::int64_t token, routing_metrics* metrics) noexcept;

/// Routes a range of a call's tokens.
template <class Logit, class Id, class Weight>
class row_router {
 public:
  /// `call` and `counts` must outlive it.
  row_router(const routing_call<Logit, Id, Weight>& call, call_metrics& counts) noexcept
      : call_(call),
        counts_(counts),
        request_{call.model, call.plan, call.extras.routing_bias, call.plan->limits,
                 call.output.chosen_counts != nullptr ? call.model->top_k : choice_counts} {}

  /// Tokens first to last - 1.
  void run(instruction_set set, std::int64_t first, std::int64_t last) noexcept {
#if ADAPTIVE_K_VECTORS
    if (set != instruction_set::scalar && vectorizes()) {
      if constexpr (is_plain)
        route_vectors<Logit>(*this, set, first, last);
      else
        route_by_way_of_plain(set, first, last);
      return;
    }
#endif
    static_cast<void>(set);
    for (std::int64_t token = first; token < last; ++token) route_alone(token);
  }

 private:
  template <class>
  friend class vector_rows;
  template <class, class, class>
  friend class row_router;
  static constexpr bool is_plain =
      std::is_same_v<Id, std::int32_t> && std::is_same_v<Weight, float>;

  /// Whether a call is of the common kinds that have a vectorised path.
  bool vectorizes() const noexcept {
    return call_.model->kind != gating_kind::sparsemixer && call_.model->n_group == 1 &&
           call_.given.topk_ids == nullptr;
  }

#if ADAPTIVE_K_VECTORS
  /// Other ids and weights than the vectorised path writes: routed in pieces, then converted.
  void route_by_way_of_plain(instruction_set set, std::int64_t first, std::int64_t last) noexcept {
    constexpr int piece = 32;
    std::int32_t ids[piece * max_top_k];
    float weights[piece * max_top_k];
    const int top_k = call_.model->top_k;
    for (; first < last; first += piece) {
      const std::int64_t left = last - first;
      const std::int64_t number = left < piece ? left : piece;
      routing_call<Logit, std::int32_t, float> part = {
          call_.model, call_.plan, call_.fill, call_.logits, {}, {}, call_.extras};
      part.logits.data = row_of(first);
      part.output = {ids, weights, at(call_.output.topk_counts, first),
                     at(call_.output.signal, first), at(call_.output.chosen_counts, first)};
      part.extras.padding_mask = at(call_.extras.padding_mask, first);
      part.extras.k_min = at(call_.extras.k_min, first);
      part.extras.k_max = at(call_.extras.k_max, first);
      row_router<Logit, std::int32_t, float> rows(part, counts_);
      route_vectors<Logit>(rows, set, 0, number);
      for (std::int64_t i = 0; i < number * top_k; ++i) {
        call_.output.topk_ids[first * top_k + i] = static_cast<Id>(ids[i]);
        call_.output.topk_weights[first * top_k + i] = from_float<Weight>(weights[i]);
      }
    }
  }
#endif

  template <class T>
  static T* at(T* array, std::int64_t token) noexcept {
    return array != nullptr ? array + token : nullptr;
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
    if (counts_.shadow()) counts_.add_chosen(static_cast<std::uint32_t>(route.chosen));
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
    return detail::fixed_filler(call_.fill, call_.model->num_experts);
  }

  /// One token by the scalar path.
  ADAPTIVE_K_NOINLINE void decide_alone(std::int64_t token, const host_replay& replay,
                                        token_route<max_top_k>& route) noexcept {
    limits_of(token);
    route_scalar(request_, row_of(token), replay, route);
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

  const routing_call<Logit, Id, Weight>& call_;
  call_metrics& counts_;
  row_request request_;
};

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
