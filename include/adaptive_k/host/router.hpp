// The router: a model's gating and a K policy, checked once, then applied to batches of logits.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/check_call.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/host_warp.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/route_token.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

struct router_options {
  fill_id fill = fill_id::minus_one;  ///< what stands in the id slots past k_t
};

/// The result of the convenience call: buffers of its own, laid out as in `routing_output`.
struct routed_batch {
  status result;
  std::int64_t num_tokens = 0;
  int top_k = 0;
  std::vector<std::int32_t> topk_ids;     ///< [num_tokens, top_k]
  std::vector<float> topk_weights;        ///< [num_tokens, top_k]
  std::vector<std::int32_t> topk_counts;  ///< [num_tokens]
  std::vector<float> signal;              ///< [num_tokens]
};

/// Routes on the host. Immutable, cheap to copy, safe to share between threads. A router built
/// from values that do not fit refuses every call with the reason.
class router {
 public:
  /// One policy for every layer.
  router(const gating& model, const k_policy& policy, router_options options = {})
      : router(model, std::vector<k_policy>{policy}, options, true) {}

  /// `policies[layer]` for each layer. `tables` keeps alive what distortion policies point to.
  router(const gating& model, std::vector<k_policy> policies, router_options options = {},
         std::shared_ptr<const void> tables = nullptr)
      : router(model, std::move(policies), options, false) {
    tables_ = std::move(tables);
  }

  /// Why this router refuses to route; ok when it does not.
  const status& validity() const noexcept { return validity_; }
  const gating& model() const noexcept { return model_; }
  const router_options& options() const noexcept { return options_; }
  /// The policy of a layer in 0..num_layers()-1; `layer` is ignored where one policy serves all.
  const k_policy& policy(int layer) const noexcept { return (*policies_)[index(layer)]; }
  /// The prepared policies, [num_layers] or one for all: what a device_router reads.
  const std::vector<detail::k_plan>& plans() const noexcept { return *plans_; }
  /// Layers with a policy of their own; 0 where one policy serves all.
  int num_layers() const noexcept { return one_policy_ ? 0 : static_cast<int>(policies_->size()); }

  /// Routes `logits` of `layer` into `output`. No allocation, no lock; time O(T * K0 * E). With a
  /// refusal nothing is written. `metrics`, where given, is added to.
  template <class Logit = float, class Id = std::int32_t, class Weight = float>
  status route(int layer, const logits_view<Logit>& logits,
               const routing_output<Id, Weight>& output, routing_metrics* metrics = nullptr,
               const routing_extras& extras = {}) const noexcept {
    const status refusal =
        check(layer, logits, output.topk_ids != nullptr, output.topk_weights != nullptr, extras);
    if (!refusal) return refusal;
    dispatch(layer, logits, routing_replay<Id>{}, output, metrics, extras);
    return {};
  }

  /// The weights of experts chosen earlier, for these logits: the `given` experts take the first
  /// ranks in their order, and the best of the others those up to K0. Logits that have not changed
  /// give the same weights, bit for bit. Refuses ids that are no expert's or repeated.
  /// `output.topk_ids` may be `given.topk_ids`.
  template <class Logit = float, class Id = std::int32_t, class Weight = float>
  status replay(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                const routing_output<Id, Weight>& output, routing_metrics* metrics = nullptr,
                const routing_extras& extras = {}) const noexcept {
    status refusal =
        check(layer, logits, output.topk_ids != nullptr, output.topk_weights != nullptr, extras);
    if (refusal) refusal = check_replay(logits.num_tokens, given);
    if (refusal) dispatch(layer, logits, given, output, metrics, extras);
    return refusal;
  }

  /// The same into buffers of its own; `result` tells whether they are filled.
  template <class Logit = float>
  routed_batch route(int layer, const logits_view<Logit>& logits,
                     routing_metrics* metrics = nullptr, const routing_extras& extras = {}) const {
    routed_batch batch;
    batch.result = check(layer, logits, true, true, extras);
    if (!batch.result) return batch;
    batch.num_tokens = logits.num_tokens;
    batch.top_k = model_.top_k;
    const auto tokens = static_cast<std::size_t>(logits.num_tokens);
    const auto slots = tokens * static_cast<std::size_t>(model_.top_k);
    batch.topk_ids.resize(slots);
    batch.topk_weights.resize(slots);
    batch.topk_counts.resize(tokens);
    batch.signal.resize(tokens);
    const routing_output<> output = {batch.topk_ids.data(), batch.topk_weights.data(),
                                     batch.topk_counts.data(), batch.signal.data()};
    if (tokens != 0) batch.result = route(layer, logits, output, metrics, extras);
    return batch;
  }

 private:
  router(const gating& model, std::vector<k_policy> policies, router_options options,
         bool one_policy)
      : model_(model), options_(options), one_policy_(one_policy) {
    validity_ = validate(model);
    if (policies.empty())
      validity_ = status::error(status_code::invalid_argument, "policies is empty");
    auto plans = std::make_shared<std::vector<detail::k_plan>>();
    for (std::size_t i = 0; i < policies.size() && validity_; ++i) {
      const status fits = validate(policies[i], model);
      if (!fits && one_policy) validity_ = fits;
      if (!fits && !one_policy)
        validity_ = status::error(fits.code(), "layer %d: %s", static_cast<int>(i), fits.message());
      if (fits) plans->push_back(detail::make_plan(model, policies[i]));
    }
    if (policies.empty()) policies.emplace_back();
    plans_ = std::move(plans);
    policies_ = std::make_shared<const std::vector<k_policy>>(std::move(policies));
  }

  std::size_t index(int layer) const noexcept {
    return one_policy_ ? 0 : static_cast<std::size_t>(layer);
  }

  template <class Logit>
  status check(int layer, const logits_view<Logit>& logits, bool has_ids, bool has_weights,
               const routing_extras& extras) const noexcept {
    const status refusal = detail::check_call(validity_, model_, num_layers(), layer, logits,
                                              has_ids, has_weights, extras);
    return refusal ? check_limits(logits.num_tokens, extras) : refusal;
  }

  status check_limits(std::int64_t num_tokens, const routing_extras& extras) const noexcept {
    if (extras.k_min == nullptr && extras.k_max == nullptr) return {};
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const int low = extras.k_min != nullptr ? extras.k_min[t] : 1;
      const int high = extras.k_max != nullptr ? extras.k_max[t] : model_.top_k;
      if (low < 1 || low > high || high > model_.top_k)
        return status::error(status_code::invalid_argument,
                             "token %lld: k_min = %d, k_max = %d, expected 1 <= k_min <= k_max <= "
                             "top_k = %d",
                             static_cast<long long>(t), low, high, model_.top_k);
    }
    return {};
  }

  template <class Id>
  status check_replay(std::int64_t num_tokens, const routing_replay<Id>& given) const noexcept {
    const auto invalid = status_code::invalid_argument;
    if (num_tokens > 0 && given.topk_ids == nullptr)
      return status::error(invalid, "given.topk_ids is null");
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const int count = given.topk_counts != nullptr ? given.topk_counts[t] : model_.top_k;
      if (count < 0 || count > model_.top_k)
        return status::error(invalid, "given.topk_counts[%lld] is %d, expected 0..top_k = %d",
                             static_cast<long long>(t), count, model_.top_k);
      const Id* ids = given.topk_ids + t * model_.top_k;
      for (int j = 0; j < count; ++j) {
        const auto id = static_cast<long long>(ids[j]);
        if (id < 0 || id >= model_.num_experts)
          return status::error(invalid, "given.topk_ids[%lld, %d] is %lld, expected 0..%d",
                               static_cast<long long>(t), j, id, model_.num_experts - 1);
        for (int i = 0; i < j; ++i)
          if (ids[i] == ids[j])
            return status::error(invalid, "given.topk_ids[%lld, %d] is %lld, as is slot %d",
                                 static_cast<long long>(t), j, id, i);
      }
    }
    return {};
  }

  template <class Logit, class Id, class Weight>
  void dispatch(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                const routing_output<Id, Weight>& output, routing_metrics* metrics,
                const routing_extras& extras) const noexcept {
    const detail::k_plan& plan = (*plans_)[index(layer)];
    switch (model_.kind) {
      case gating_kind::softmax:
        return route_rows<gating_kind::softmax>(plan, logits, given, output, metrics, extras);
      case gating_kind::sigmoid:
        return route_rows<gating_kind::sigmoid>(plan, logits, given, output, metrics, extras);
      case gating_kind::top_k_softmax:
        return route_rows<gating_kind::top_k_softmax>(plan, logits, given, output, metrics, extras);
      case gating_kind::sqrt_softplus:
        return route_rows<gating_kind::sqrt_softplus>(plan, logits, given, output, metrics, extras);
      case gating_kind::sparsemixer:
        return route_rows<gating_kind::sparsemixer>(plan, logits, given, output, metrics, extras);
    }
  }

  static detail::k_limits limits_of(const detail::k_plan& plan, const routing_extras& extras,
                                    std::int64_t token) noexcept {
    if (extras.k_min == nullptr && extras.k_max == nullptr) return plan.limits;
    return detail::narrow_limits(plan.limits, extras.k_min != nullptr ? extras.k_min[token] : 1,
                                 extras.k_max != nullptr ? extras.k_max[token] : max_top_k);
  }

  template <class Id>
  Id fill(int first_expert) const noexcept {
    switch (options_.fill) {
      case fill_id::num_experts:
        return static_cast<Id>(model_.num_experts);
      case fill_id::first_expert:
        return static_cast<Id>(first_expert);
      case fill_id::minus_one:
        break;
    }
    return static_cast<Id>(-1);
  }

  template <gating_kind Kind, class Logit, class Id, class Weight>
  void route_rows(const detail::k_plan& plan, const logits_view<Logit>& logits,
                  const routing_replay<Id>& given, const routing_output<Id, Weight>& output,
                  routing_metrics* metrics, const routing_extras& extras) const noexcept;

  gating model_;
  router_options options_;
  bool one_policy_;
  status validity_;
  std::shared_ptr<const std::vector<k_policy>> policies_;
  std::shared_ptr<const std::vector<detail::k_plan>> plans_;
  std::shared_ptr<const void> tables_;
};

namespace detail {

/// A row of logits as floats: itself, or a copy in `buffer`. One type keeps compile times down.
template <class Logit>
const float* as_floats(const Logit* row, int num_experts, float* buffer) noexcept {
  if constexpr (std::is_same_v<Logit, float>) {
    return row;
  } else {
    for (int e = 0; e < num_experts; ++e) buffer[e] = to_float(row[e]);
    return buffer;
  }
}

/// One token's dictated experts; `given` was checked.
template <class Id>
class host_replay {
 public:
  static constexpr bool possible = true;
  host_replay(const routing_replay<Id>& given, std::int64_t token, int top_k) noexcept
      : ids_(given.topk_ids == nullptr ? nullptr : given.topk_ids + token * top_k),
        count_(given.topk_counts == nullptr ? top_k : given.topk_counts[token]) {}
  ADAPTIVE_K_HD bool active() const noexcept { return ids_ != nullptr; }
  ADAPTIVE_K_HD int count() const noexcept { return count_; }
  ADAPTIVE_K_HD int expert(int rank) const noexcept { return static_cast<int>(ids_[rank]); }

 private:
  const Id* ids_;
  int count_;
};

/// Gathers one call's counts without touching the caller's struct until the end.
class call_metrics {
 public:
  explicit call_metrics(routing_metrics* target) noexcept : target_(target) {}

  void add_padding() noexcept { ++padding_tokens_; }

  void add_token(const int* experts, int count, float signal, bool has_nonfinite) noexcept {
    if (target_ == nullptr) return;
    for (int j = 0; j < count; ++j) {
      ++target_->expert_counts[experts[j]];
      touched_[experts[j] / 64] |= std::uint64_t{1} << (experts[j] % 64);
    }
    ++target_->k_histogram[count];
    expert_calls_ += static_cast<std::uint64_t>(count);
    nonfinite_rows_ += has_nonfinite ? 1u : 0u;
    signal_sum_ += signal_to_fixed(signal);
    lowest_ = tokens_ == 0 || signal < lowest_ ? signal : lowest_;
    highest_ = tokens_ == 0 || signal > highest_ ? signal : highest_;
    ++tokens_;
  }

  void finish(int top_k) noexcept {
    if (target_ == nullptr) return;
    target_->padding_tokens += padding_tokens_;
    if (tokens_ == 0) return;
    const bool first = target_->tokens == 0;
    if (first || lowest_ < target_->signal_lowest) target_->signal_lowest = lowest_;
    if (first || highest_ > target_->signal_highest) target_->signal_highest = highest_;
    target_->calls += 1;
    target_->tokens += tokens_;
    target_->expert_calls += expert_calls_;
    target_->full_expert_calls += tokens_ * static_cast<std::uint64_t>(top_k);
    target_->nonfinite_rows += nonfinite_rows_;
    target_->signal_sum_fixed += signal_sum_;
    for (std::uint64_t word : touched_)
      for (; word != 0; word &= word - 1) ++target_->distinct_experts;
  }

 private:
  routing_metrics* target_;
  std::uint64_t tokens_ = 0;
  std::uint64_t padding_tokens_ = 0;
  std::uint64_t expert_calls_ = 0;
  std::uint64_t nonfinite_rows_ = 0;
  std::int64_t signal_sum_ = 0;
  float lowest_ = 0.0f;
  float highest_ = 0.0f;
  std::uint64_t touched_[max_experts / 64] = {};
};

}  // namespace detail

template <gating_kind Kind, class Logit, class Id, class Weight>
void router::route_rows(const detail::k_plan& plan, const logits_view<Logit>& logits,
                        const routing_replay<Id>& given, const routing_output<Id, Weight>& output,
                        routing_metrics* metrics, const routing_extras& extras) const noexcept {
  constexpr int max_rows = max_experts / detail::reduction_slots;
  const detail::host_warp<1> tile;
  const int top_k = model_.top_k;
  const std::int64_t stride = logits.row_stride != 0 ? logits.row_stride : logits.num_experts;
  const bool shadow = output.chosen_counts != nullptr;
  float floats[max_experts];
  detail::call_metrics counts(metrics);
  for (std::int64_t token = 0; token < logits.num_tokens; ++token) {
    detail::token_route<max_top_k> route;
    const detail::host_replay<Id> replay(given, token, top_k);
    if ((extras.padding_mask != nullptr && extras.padding_mask[token] != 0) ||
        (replay.active() && replay.count() == 0)) {
      route.count = 0;
      route.chosen = 0;
      route.expert[0] = 0;
      route.signal = 0.0f;
      counts.add_padding();
    } else {
      const float* row =
          detail::as_floats(logits.data + token * stride, model_.num_experts, floats);
      route = detail::route_token<Kind, max_rows, max_top_k>(
          tile, model_, plan, extras.routing_bias, limits_of(plan, extras, token), shadow,
          detail::logit_row<float>{row}, replay);
      counts.add_token(route.expert, route.count, route.signal, route.has_nonfinite);
    }
    Id* ids = output.topk_ids + token * top_k;
    Weight* weights = output.topk_weights + token * top_k;
    const Id filler = fill<Id>(route.expert[0]);
    for (int j = 0; j < top_k; ++j) {
      ids[j] = j < route.count ? static_cast<Id>(route.expert[j]) : filler;
      weights[j] = from_float<Weight>(j < route.count ? route.weight(j) : 0.0f);
    }
    if (output.topk_counts != nullptr) output.topk_counts[token] = route.count;
    if (shadow) output.chosen_counts[token] = route.chosen;
    if (output.signal != nullptr) output.signal[token] = route.signal;
  }
  counts.finish(top_k);
}

ADAPTIVE_K_NAMESPACE_END
