// The checks of a routing call that host and device share.
#pragma once

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Refuses a router head that is missing, or whose rows would overlap. `reads_head`: the layer's
/// policy has one.
template <class Logit>
status check_head(const gating& model, bool reads_head, int layer,
                  const logits_view<Logit>& logits) noexcept {
  const int columns = model.top_k - 1;
  if (reads_head && columns > 0 && logits.head == nullptr)
    return status::error(status_code::invalid_argument,
                         "`logits.head` is null, but the policy of layer %d has a router head, "
                         "expected [num_tokens, %d]",
                         layer, columns);
  if (logits.head_stride != 0 && logits.head_stride < columns)
    return status::error(status_code::shape_mismatch,
                         "logits have `head_stride` = %lld, expected 0 or at least top_k - 1 = %d",
                         static_cast<long long>(logits.head_stride), columns);
  return {};
}

/// Refuses a call that neither host nor device takes. `num_layers` is 0 where one policy serves
/// all.
template <class Logit>
status check_call(const status& validity, const gating& model, int num_layers, int layer,
                  const logits_view<Logit>& logits, bool has_ids, bool has_weights,
                  const routing_extras& extras) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (!validity.ok()) return validity;
  if (layer < 0) return status::error(invalid, "`layer` is %d, expected 0 or more", layer);
  if (num_layers != 0 && layer >= num_layers)
    return status::error(invalid, "`layer` is %d, expected 0..%d", layer, num_layers - 1);
  if (logits.num_experts != model.num_experts)
    return status::error(status_code::shape_mismatch,
                         "logits have `num_experts` = %d, expected the gating's %d",
                         logits.num_experts, model.num_experts);
  if (logits.num_tokens < 0 || logits.num_tokens > max_tokens)
    return status::error(invalid, "logits have `num_tokens` = %lld, expected 0..%d",
                         static_cast<long long>(logits.num_tokens), max_tokens);
  if (logits.row_stride != 0 && logits.row_stride < logits.num_experts)
    return status::error(status_code::shape_mismatch,
                         "logits have `row_stride` = %lld, expected 0 or at least num_experts = %d",
                         static_cast<long long>(logits.row_stride), logits.num_experts);
  if (logits.num_tokens == 0) return {};
  if (logits.data == nullptr) return status::error(invalid, "`logits.data` is null");
  if (!has_ids) return status::error(invalid, "`output.topk_ids` is null");
  if (!has_weights) return status::error(invalid, "`output.topk_weights` is null");
  if (model.selection_bias && extras.routing_bias == nullptr)
    return status::error(invalid,
                         "`extras.routing_bias` is null, but the gating has a selection_bias");
  if (!model.selection_bias && extras.routing_bias != nullptr)
    return status::error(invalid,
                         "`extras.routing_bias` is given, but the gating has no selection_bias");
  return {};
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END
