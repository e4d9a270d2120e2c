// The router: a model's gating and a K policy, checked once, then applied to batches of logits.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/check_call.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/plan.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/host/instruction_set.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/host/route_batch.hpp"
#include "adaptive_k/host/routing_call.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How a router writes and runs; the policy is apart.
struct router_options {
  fill_id fill = fill_id::minus_one;  ///< what stands in the id slots past k_t
  /// For tests and measurements: the bits do not depend on it. One that is not there is refused.
  instruction_set instructions = instruction_set::best;
};

/// The result of the convenience call: buffers of its own, laid out as in `routing_output`.
struct [[nodiscard]] routed_batch {
  status result;  ///< why nothing was routed, or ok; the arrays are empty after a refusal
  std::int64_t num_tokens = 0;               ///< T
  int top_k = 0;                             ///< K0
  std::vector<std::int32_t> topk_ids;        ///< [num_tokens, top_k]
  std::vector<float> topk_weights;           ///< [num_tokens, top_k]
  std::vector<std::int32_t> topk_counts;     ///< [num_tokens]
  std::vector<float> signal;                 ///< [num_tokens]
  std::vector<std::uint64_t> expert_counts;  ///< [num_experts], tokens that each expert got
};

/// Routes on the host, by policies as core/plan.hpp describes them and a gating, whose score may be
/// one's own (core/score.hpp). Immutable, cheap to copy, safe to share between threads. A router
/// built from values that do not fit refuses every call with the reason. Types of one's own are
/// compiled where they are used: by vectors where that file has them (-march, or
/// ADAPTIVE_K_VECTORISE=1 and optimisation), else one expert at a time.
template <class Policy, class Gating = gating>
class basic_router {
  static_assert(std::is_base_of_v<gating, Gating>, "a gating of one's own derives from gating");
  static_assert(detail::has_validate<Policy>::value,
                "a K policy needs status validate(const Policy&, const gating&) in its namespace");
  static_assert(detail::has_plan<Policy>::value,
                "a K policy needs Plan make_plan(const gating&, const Policy&) in its namespace, "
                "with a trivially copyable Plan derived from plan_base");

 public:
  using policy_type = Policy;                 ///< of the layers
  using plan_type = detail::plan_of<Policy>;  ///< what its make_plan returns
  using gating_type = Gating;                 ///< of the model

  /// One policy for every layer.
  basic_router(const Gating& model, const Policy& policy, router_options options = {})
      : basic_router(model, std::vector<Policy>{policy}, options, true) {}

  /// `policies[layer]` for each layer. `tables` keeps alive what distortion policies point to.
  basic_router(const Gating& model, std::vector<Policy> policies, router_options options = {},
               std::shared_ptr<const void> tables = nullptr)
      : basic_router(model, std::move(policies), options, false) {
    tables_ = std::move(tables);
  }

  /// Why this router refuses to route; ok when it does not.
  [[nodiscard]] const status& validity() const noexcept { return validity_; }
  /// The model's own routing, as it was given.
  const Gating& model() const noexcept { return model_; }
  /// The options, as they were given.
  const router_options& options() const noexcept { return options_; }
  /// What it runs on, never `best`: what the options say, or else the widest set that this build
  /// and this machine have. `name_of` names it.
  instruction_set instructions() const noexcept { return instructions_; }
  /// The policy of a layer in 0..num_layers()-1; `layer` is ignored where one policy serves all.
  const Policy& policy(int layer) const noexcept { return (*policies_)[index(layer)]; }
  /// The prepared policies, [num_layers] or one for all: what cuda::device_plans uploads.
  const std::vector<plan_type>& plans() const noexcept { return *plans_; }
  /// Whether the policy of a layer has a router head, so that calls must give its columns
  /// (logits_view::head); `layer` as for `policy`.
  bool reads_head(int layer) const noexcept {
    return validity_.ok() && (*plans_)[index(layer)].reads_head();
  }
  /// Layers with a policy of their own; 0 where one policy serves all.
  int num_layers() const noexcept { return one_policy_ ? 0 : static_cast<int>(policies_->size()); }

  /// Routes `logits` of `layer` into `output`. No allocation, no lock; time O(T * K0 * E). With a
  /// refusal nothing is written. `metrics`, where given, is added to.
  template <class Logit = float, class Id = std::int32_t, class Weight = float>
  status route(int layer, const logits_view<Logit>& logits,
               const routing_output<Id, Weight>& output, routing_metrics* metrics = nullptr,
               const routing_extras& extras = {}) const noexcept {
    return route_range(layer, logits, output, 0, logits.num_tokens, metrics, extras);
  }

  /// Tokens `first` to `last` - 1 of the same call, 0 <= first <= last <= num_tokens: what one
  /// thread of a pool takes. All pointers are those of the whole call; nothing outside the range is
  /// written. The outputs are those of `route`, however a call is split. `metrics` counts the range
  /// as a call of its own; give each range its own struct, zeroed, and `add_parts_of_call` makes
  /// one of them.
  template <class Logit = float, class Id = std::int32_t, class Weight = float>
  status route_range(int layer, const logits_view<Logit>& logits,
                     const routing_output<Id, Weight>& output, std::int64_t first,
                     std::int64_t last, routing_metrics* metrics = nullptr,
                     const routing_extras& extras = {}) const noexcept {
    const status checked = check(layer, logits, output.topk_ids != nullptr,
                                 output.topk_weights != nullptr, first, last, extras);
    if (checked.ok())
      route_checked(layer, logits, routing_replay<Id>{}, output, first, last, metrics, extras);
    return checked;
  }

  /// The weights of experts chosen earlier, for these logits: the `given` experts take the first
  /// ranks in their order, and the best of the others those up to K0. Logits that have not changed
  /// give the same weights, bit for bit. Refuses ids that are no expert's or repeated.
  /// `output.topk_ids` may be `given.topk_ids`.
  template <class Logit = float, class Id = std::int32_t, class Weight = float>
  status replay(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                const routing_output<Id, Weight>& output, routing_metrics* metrics = nullptr,
                const routing_extras& extras = {}) const noexcept {
    status checked = check(layer, logits, output.topk_ids != nullptr,
                           output.topk_weights != nullptr, 0, logits.num_tokens, extras);
    if (checked.ok()) checked = check_replay(logits.num_tokens, given);
    if (checked.ok())
      route_checked(layer, logits, given, output, 0, logits.num_tokens, metrics, extras);
    return checked;
  }

  /// The same into buffers of its own; `result` tells whether they are filled.
  template <class Logit = float>
  routed_batch route(int layer, const logits_view<Logit>& logits,
                     routing_metrics* metrics = nullptr, const routing_extras& extras = {}) const {
    routed_batch batch;
    batch.result = check(layer, logits, true, true, 0, logits.num_tokens, extras);
    if (!batch.result.ok()) return batch;
    batch.num_tokens = logits.num_tokens;
    batch.top_k = model_.top_k;
    const auto tokens = static_cast<std::size_t>(logits.num_tokens);
    const auto slots = tokens * static_cast<std::size_t>(model_.top_k);
    batch.topk_ids.resize(slots);
    batch.topk_weights.resize(slots);
    batch.topk_counts.resize(tokens);
    batch.signal.resize(tokens);
    batch.expert_counts.resize(static_cast<std::size_t>(model_.num_experts));
    routing_output<> output = {batch.topk_ids.data(), batch.topk_weights.data(),
                               batch.topk_counts.data(), batch.signal.data()};
    output.expert_counts = batch.expert_counts.data();
    if (tokens != 0) batch.result = route(layer, logits, output, metrics, extras);
    return batch;
  }

 private:
  basic_router(const Gating& model, std::vector<Policy> policies, router_options options,
               bool one_policy)
      : model_(model), options_(options), path_(detail::path_for(model)), one_policy_(one_policy) {
    validity_ = detail::check_gating(model);
    if (policies.empty())
      validity_ = status::error(status_code::invalid_argument, "`policies` is empty");
    constexpr bool has_vectors = detail::has_vectors_for<plan_type, Gating>;
    const bool asks_for_vectors = options.instructions != instruction_set::best &&
                                  options.instructions != instruction_set::scalar;
    if (!is_available(options.instructions) || (asks_for_vectors && !has_vectors))
      validity_ = status::error(status_code::unsupported,
                                "`instructions` is %s, which this build or machine does not have",
                                name_of(options.instructions));
    instructions_ = options.instructions;
    if (instructions_ == instruction_set::best)
      instructions_ = has_vectors ? best_instruction_set() : instruction_set::scalar;
    auto plans = std::make_shared<std::vector<plan_type>>();
    for (std::size_t i = 0; i < policies.size() && validity_.ok(); ++i) {
      const status fits = validate(policies[i], model);
      if (!fits.ok() && one_policy) validity_ = fits;
      if (!fits.ok() && !one_policy) validity_ = fits.within("layer %d: ", static_cast<int>(i));
      if (fits.ok()) plans->push_back(make_plan(model, policies[i]));
    }
    if (policies.empty()) policies.emplace_back();
    plans_ = std::move(plans);
    policies_ = std::make_shared<const std::vector<Policy>>(std::move(policies));
  }

  std::size_t index(int layer) const noexcept {
    return one_policy_ ? 0 : static_cast<std::size_t>(layer);
  }

  template <class Logit>
  status check(int layer, const logits_view<Logit>& logits, bool has_ids, bool has_weights,
               std::int64_t first, std::int64_t last, const routing_extras& extras) const noexcept {
    status checked = detail::check_call(validity_, model_, num_layers(), layer, logits, has_ids,
                                        has_weights, extras);
    if (checked.ok() && logits.num_tokens > 0)
      checked = detail::check_head(model_, (*plans_)[index(layer)].reads_head(), layer, logits);
    if (!checked.ok()) return checked;
    if (first < 0 || first > last || last > logits.num_tokens)
      return status::error(status_code::invalid_argument,
                           "tokens %lld to %lld, expected 0 <= first <= last <= num_tokens = %lld",
                           static_cast<long long>(first), static_cast<long long>(last),
                           static_cast<long long>(logits.num_tokens));
    if (extras.k_min == nullptr && extras.k_max == nullptr) return {};
    for (std::int64_t t = first; t < last; ++t) {
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
      return status::error(invalid, "`given.topk_ids` is null");
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const int count = given.topk_counts != nullptr ? given.topk_counts[t] : model_.top_k;
      if (count < 0 || count > model_.top_k)
        return status::error(invalid, "`given.topk_counts[%lld]` is %d, expected 0..top_k = %d",
                             static_cast<long long>(t), count, model_.top_k);
      const Id* ids = given.topk_ids + t * model_.top_k;
      for (int j = 0; j < count; ++j) {
        const auto id = static_cast<long long>(ids[j]);
        if (id < 0 || id >= model_.num_experts)
          return status::error(invalid, "`given.topk_ids[%lld, %d]` is %lld, expected 0..%d",
                               static_cast<long long>(t), j, id, model_.num_experts - 1);
        for (int i = 0; i < j; ++i)
          if (ids[i] == ids[j])
            return status::error(invalid, "`given.topk_ids[%lld, %d]` is %lld, as is slot %d",
                                 static_cast<long long>(t), j, id, i);
      }
    }
    return {};
  }

  template <class Logit, class Id, class Weight>
  void route_checked(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                     const routing_output<Id, Weight>& output, std::int64_t first,
                     std::int64_t last, routing_metrics* metrics,
                     const routing_extras& extras) const noexcept {
    const plan_type& plan = (*plans_)[index(layer)];
    const detail::routing_call<Logit, Id, Weight, plan_type, Gating> call = {
        {&model_, &plan, options_.fill, &given, &output, &extras},
        logits.data,
        logits.row_stride != 0 ? logits.row_stride : model_.num_experts,
        plan.reads_head() ? logits.head : nullptr,
        logits.head_stride != 0 ? logits.head_stride : model_.top_k - 1};
    detail::call_metrics counts(metrics, output.expert_counts, model_.num_experts,
                                last - first == 1, call.in_shadow());
    detail::route_batch(call, path_, instructions_, first, last, counts);
    counts.finish();
  }

  Gating model_;
  router_options options_;
  instruction_set instructions_;
  detail::host_path path_;
  bool one_policy_;
  status validity_;
  std::shared_ptr<const std::vector<Policy>> policies_;
  std::shared_ptr<const std::vector<plan_type>> plans_;
  std::shared_ptr<const void> tables_;
};

/// The router of the built-in policies: what presets make, and what C programs use.
using router = basic_router<k_policy>;

ADAPTIVE_K_NAMESPACE_END
