// Batch stages: keep a batch within a budget of expert calls, or, in decode, of distinct experts,
// whose weights are the bytes that a step reads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_budget.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// How experts beyond the core are admitted: by what the tokens want, or a control.
enum class admission : std::uint8_t {
  gate_mass,  ///< greatest sum of the batch's weights first; equal sums by lower index
  index,      ///< control: lowest index first
};

/// Buffers of one call, given by the caller: nothing is allocated.
struct expert_budget_workspace {
  std::uint64_t* mass = nullptr;  ///< [E], sums of weights as integers, so that order is no matter
  std::uint8_t* admitted = nullptr;  ///< [E], afterwards 1 for every expert the batch may run
};

/// Restricts a routed batch: topk_ids [T, K0], topk_weights [T, K0] and topk_counts [T] as
/// `router::route` wrote them. Each token's first k_min experts are always run; of the others as
/// many are admitted as `budget` distinct experts leave room for. Experts that are not admitted
/// leave their token; the slots behind close up, in order, and the weights kept are multiplied by
/// sum before / sum after, so that a token's output keeps its scale. Free slots get id -1 and
/// weight 0. A budget below the core's size admits the core alone.
/// Cost O(T K0 + E * admitted). Returns what `distinct` experts the batch now touches through
/// `distinct_out`, where given. Weights are added in steps of 2^-32, or of as much more as keeps
/// the sums of a batch of large ones within 64 bits. Refuses null buffers, k_min outside 1..top_k,
/// counts and ids out of range, and weights that are negative, NaN or 1e30 and more; a refused
/// batch is left as it was.
inline status restrict_to_budget(std::int32_t* topk_ids, float* topk_weights,
                                 std::int32_t* topk_counts, std::int64_t num_tokens, int top_k,
                                 int num_experts, int k_min, int budget,
                                 const expert_budget_workspace& work,
                                 admission order = admission::gate_mass,
                                 int* distinct_out = nullptr) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (work.mass == nullptr || work.admitted == nullptr)
    return status::error(invalid, "`workspace`: mass or admitted is null");
  if (num_tokens > 0 && (topk_ids == nullptr || topk_weights == nullptr || topk_counts == nullptr))
    return status::error(invalid, "topk_ids, topk_weights or topk_counts is null");
  if (num_tokens < 0 || num_tokens > max_tokens)
    return status::error(invalid, "`num_tokens` is %lld, expected 0..%d",
                         static_cast<long long>(num_tokens), max_tokens);
  if (top_k < 1 || top_k > max_top_k)
    return status::error(invalid, "`top_k` is %d, expected 1..%d", top_k, max_top_k);
  if (k_min < 1 || k_min > top_k)
    return status::error(invalid, "`k_min` is %d, expected 1..top_k = %d", k_min, top_k);
  if (num_experts < 1 || num_experts > max_experts)
    return status::error(invalid, "`num_experts` is %d, expected 1..%d", num_experts, max_experts);
  if (budget < 0) return status::error(invalid, "`budget` is %d, expected 0 or more", budget);
  if (order != admission::gate_mass && order != admission::index)
    return status::error(invalid, "`order` is %d, expected an admission", static_cast<int>(order));
  for (int e = 0; e < num_experts; ++e) {
    work.mass[e] = 0;
    work.admitted[e] = 0;
  }
  float largest = 0.0f;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (topk_counts[t] < 0 || topk_counts[t] > top_k)
      return status::error(invalid, "`topk_counts[%lld]` is %d, expected 0..top_k = %d",
                           static_cast<long long>(t), topk_counts[t], top_k);
    for (int j = 0; j < topk_counts[t]; ++j) {
      const std::int32_t id = topk_ids[t * top_k + j];
      if (id < 0 || id >= num_experts)
        return status::error(invalid, "`topk_ids[%lld, %d]` is %d, expected 0..%d",
                             static_cast<long long>(t), j, id, num_experts - 1);
      const float weight = topk_weights[t * top_k + j];
      if (!(weight >= 0.0f && weight < 1e30f))
        return status::error(invalid,
                             "`topk_weights[%lld, %d]` is %g, expected 0 or more, below 1e30",
                             static_cast<long long>(t), j, static_cast<double>(weight));
      largest = weight > largest ? weight : largest;
    }
  }
  // No sum of all slots, a one for each among them, leaves 64 bits.
  double unit = 4294967296.0;
  const double slots = static_cast<double>(num_tokens) * static_cast<double>(top_k);
  while (static_cast<double>(largest) * unit > 9e18 / (slots + 1.0)) unit *= 0.5;
  int distinct = 0;
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (int j = 0; j < topk_counts[t]; ++j) {
      const auto e = static_cast<std::size_t>(topk_ids[t * top_k + j]);
      const double w = static_cast<double>(topk_weights[t * top_k + j]);
      work.mass[e] += static_cast<std::uint64_t>(w * unit);
      work.mass[e] += 1;  // touched, whatever its weight
      if (j < k_min && work.admitted[e] == 0) {
        work.admitted[e] = 1;
        ++distinct;
      }
    }
  while (distinct < budget) {
    int best = -1;
    for (int e = 0; e < num_experts; ++e) {
      if (work.admitted[e] != 0 || work.mass[e] == 0) continue;
      if (best < 0 || (order == admission::gate_mass && work.mass[e] > work.mass[best])) best = e;
    }
    if (best < 0) break;
    work.admitted[best] = 1;
    ++distinct;
  }
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    std::int32_t* ids = topk_ids + t * top_k;
    float* weights = topk_weights + t * top_k;
    double before = 0.0, after = 0.0;
    int kept = 0;
    for (int j = 0; j < topk_counts[t]; ++j) {
      before += static_cast<double>(weights[j]);
      if (work.admitted[ids[j]] == 0) continue;
      after += static_cast<double>(weights[j]);
      ids[kept] = ids[j];
      weights[kept] = weights[j];
      ++kept;
    }
    if (kept < topk_counts[t] && after > 0.0)
      for (int j = 0; j < kept; ++j)
        weights[j] = static_cast<float>(static_cast<double>(weights[j]) * (before / after));
    for (int j = kept; j < topk_counts[t]; ++j) {
      ids[j] = -1;
      weights[j] = 0.0f;
    }
    topk_counts[t] = kept;
  }
  if (distinct_out != nullptr) *distinct_out = distinct;
  return {};
}

/// What k = 1..K0 cost a token by the mass that they drop: of `weights` [T, K0], as a call at full
/// K wrote them, the share of the ranks behind k, in 0..1; 0 at K0. Convex wherever weights
/// descend. `costs` [T, K0] may be `weights`. The same bits as cuda::mass_costs.
inline status mass_costs(const float* weights, std::int64_t num_tokens, int top_k,
                         float* costs) noexcept {
  const status checked = detail::check_mass_costs(weights, num_tokens, top_k, costs);
  for (std::int64_t t = 0; checked.ok() && t < num_tokens; ++t)
    detail::write_mass_costs(weights + t * top_k, top_k, costs + t * top_k);
  return checked;
}

/// Sets k of each token so that their sum is at most `budget` and the summed cost least. `costs`
/// [T, K0] holds what k = 1..K0 cost a token, such as router_costs gives it; infinite or NaN: the
/// token may not have that k. `assigned_k` [T], 1..K0, is what routing_extras::k_min and k_max
/// take: both set to it give every token that k. `gains` [T, K0 - 1] is room to work in.
///
/// The k_t go down each token's lower convex hull of costs, the steps of all tokens in order of the
/// cost saved by expert, equal ones by token, until the next step would pass the budget. Where
/// costs are convex in k the sum is the least that any k_t within the budget have; else its
/// distance to that is less than what the first step that was not taken saves. Experts that save
/// nothing are not bought. A budget below the sum of the least k allowed gives these; padding
/// tokens, non-zero in `padding_mask` [T] or null, get 1 and are not counted. The sum goes to
/// `sum_out`, where given. Deterministic, the same bits as cuda::assign_k_by_budget; O(T K0^2), no
/// allocation.
inline status assign_k_by_budget(const float* costs, std::int64_t num_tokens, int top_k,
                                 std::int64_t budget, const std::uint8_t* padding_mask,
                                 std::uint32_t* gains, std::uint8_t* assigned_k,
                                 std::int64_t* sum_out = nullptr) noexcept {
  const status checked = detail::check_k_budget(costs, num_tokens, top_k, gains, assigned_k);
  if (!checked.ok()) return checked;
  if (budget < 0)
    return status::error(status_code::invalid_argument, "`budget` is %lld, expected 0 or more",
                         static_cast<long long>(budget));
  const auto is_padding = [&](std::int64_t t) {
    return padding_mask != nullptr && padding_mask[t] != 0;
  };
  const int per_token = top_k - 1;
  std::int64_t sum = 0;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    int least = 1;
    if (is_padding(t))
      for (int j = 0; j < per_token; ++j) gains[t * per_token + j] = 0;
    else
      sum += least = detail::write_gain_keys(costs + t * top_k, top_k, gains + t * per_token);
    assigned_k[t] = static_cast<std::uint8_t>(least);
  }
  const std::int64_t num_gains = num_tokens * per_token;
  std::int64_t wanted = 0;
  for (std::int64_t i = 0; i < num_gains; ++i) wanted += gains[i] != 0 ? 1 : 0;
  detail::budget_cut cut = {0, 0};  // all of them
  if (sum >= budget) {
    cut.key = 0xFFFFFFFFu;  // none: no key is as large
  } else if (wanted > budget - sum) {
    cut.equal = budget - sum;
    for (int shift = 32 - detail::key_digit_bits; shift >= 0; shift -= detail::key_digit_bits) {
      std::int64_t counts[detail::key_digits] = {};
      for (std::int64_t i = 0; i < num_gains; ++i)
        if (gains[i] != 0 && detail::has_prefix(gains[i], cut.key, shift))
          ++counts[detail::digit_of(gains[i], shift)];
      detail::narrow_cut(counts, shift, cut);
    }
  }
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    int k = assigned_k[t];
    for (const std::uint32_t* key = gains + t * per_token; k < top_k; ++k) {
      if (key[k - 1] == 0 || key[k - 1] < cut.key) break;
      if (key[k - 1] == cut.key && cut.equal-- <= 0) break;
    }
    if (is_padding(t)) continue;
    const int corner = detail::corner_before(costs + t * top_k, top_k, k);
    sum += corner - assigned_k[t];
    assigned_k[t] = static_cast<std::uint8_t>(corner);
  }
  if (sum_out != nullptr) *sum_out = sum;
  return {};
}

ADAPTIVE_K_NAMESPACE_END
