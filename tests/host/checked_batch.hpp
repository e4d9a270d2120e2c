// Routes a batch with the library and compares every slot with the oracle.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "inputs.hpp"
#include "oracle.hpp"

namespace checked {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test helper
using oracle::at;

/// What was compared, to be asserted at the end of a test: nothing passes by being left out.
struct tally {
  long tokens = 0;
  long close_rank = 0;        ///< left out: another order is within rounding
  long close_k = 0;           ///< left out: another k is within rounding
  double worst_weight = 0.0;  ///< error over its bound
  double worst_signal = 0.0;  ///< error over its bound
  long by_k[max_top_k + 1] = {};
};

/// Worst relative error of a float weight in units of 2^-24, by counting roundings. A score is off
/// by at most 11 (exp or sigmoid, its argument on a 1/64 grid exact; or a square root), a sum over
/// all E by one for each term of a slot and level of the tree, a sum over the top K0 by one a term.
inline double weight_bound(const gating& g, bool restored) {
  const double score = 11.0;
  const int slot_terms = g.num_experts / 32 + 1;
  const double all_sum = slot_terms + 5;
  const double top_sum = g.top_k;
  const bool renormalized = g.renormalize || g.kind == gating_kind::top_k_softmax;
  double bound = score + 3.0 + (renormalized ? score + top_sum : score + all_sum);
  // r^-a: both sums again, a logarithm of at most ln 2^100 in magnitude rarely above 8, an exp.
  if (restored) bound += 2.0 * (score + top_sum) + 2.0 * 8.0 + 6.0;
  return bound * std::ldexp(1.0, -24);
}

template <class Logit>
struct batch {
  std::vector<Logit> logits;
  std::int64_t num_tokens = 0;
  int num_experts = 0;
  std::int64_t row_stride = 0;  ///< 0: num_experts

  std::int64_t stride() const { return row_stride != 0 ? row_stride : num_experts; }
  logits_view<Logit> view() const { return {logits.data(), num_tokens, num_experts, row_stride}; }
  std::vector<double> row(std::int64_t token) const {
    std::vector<double> numbers;
    for (int e = 0; e < num_experts; ++e)
      numbers.push_back(inputs::number(logits[static_cast<std::size_t>(token * stride() + e)]));
    return numbers;
  }
};

/// A batch of grid logits; the gap between rows is NaN, which no row may read.
template <class Logit = float>
batch<Logit> grid_batch(inputs::sequence& from, std::int64_t num_tokens, int num_experts,
                        int spread = 96, int gap = 0) {
  batch<Logit> made;
  made.num_tokens = num_tokens;
  made.num_experts = num_experts;
  made.row_stride = gap == 0 ? 0 : num_experts + gap;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  made.logits.assign(static_cast<std::size_t>(num_tokens * made.stride()), from_float<Logit>(nan));
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (int e = 0; e < num_experts; ++e)
      made.logits[static_cast<std::size_t>(t * made.stride() + e)] =
          from_float<Logit>(inputs::grid_logit(from, spread));
  return made;
}

template <class Id>
Id filler(fill_id fill, const gating& g, Id first) {
  if (fill == fill_id::first_expert) return first;
  return static_cast<Id>(fill == fill_id::num_experts ? g.num_experts : -1);
}

/// One token's answer and what the library wrote for it.
template <class Id>
void compare(const gating& g, fill_id fill, const oracle::answer& expected, const Id* ids,
             const float* weights, std::int32_t count, float signal, tally& seen) {
  seen.tokens += 1;
  const double signal_bound =
      2e-6 * std::max(1.0, std::abs(expected.signal)) + expected.signal_slack;
  const double signal_error =
      std::abs(static_cast<double>(signal) - expected.signal) / signal_bound;
  if (expected.close_rank) {
    seen.close_rank += 1;
    return;
  }
  seen.worst_signal = std::max(seen.worst_signal, signal_error);
  EXPECT_LE(signal_error, 1.0) << "signal " << signal << ", expected " << expected.signal;
  if (expected.close_k) {
    seen.close_k += 1;
    return;
  }
  ASSERT_EQ(count, expected.k);
  seen.by_k[count] += 1;
  const double bound = weight_bound(g, expected.k < g.top_k);
  for (int j = 0; j < g.top_k; ++j) {
    if (j >= count) {
      ASSERT_EQ(ids[j], filler<Id>(fill, g, ids[0])) << "slot " << j;
      ASSERT_EQ(inputs::bits_of(weights[j]), 0u) << "slot " << j;
      continue;
    }
    ASSERT_EQ(ids[j], static_cast<Id>(expected.experts[at(j)])) << "slot " << j;
    const double weight = expected.weights[at(j)];
    const double error = std::abs(static_cast<double>(weights[j]) - weight);
    ASSERT_LE(error, bound * weight + 1e-37)
        << "slot " << j << ": " << weights[j] << ", expected " << weight;
    if (weight > 1e-30) seen.worst_weight = std::max(seen.worst_weight, error / (bound * weight));
  }
}

/// Routes the batch with ids of type Id into buffers with guards, and compares.
template <class Id, class Logit>
void route_and_compare(const gating& g, const k_policy& policy, const batch<Logit>& input,
                       const routing_extras& extras, tally& seen,
                       fill_id fill = fill_id::minus_one) {
  const router checked_router(g, policy, {fill});
  const auto slots = static_cast<std::size_t>(input.num_tokens * g.top_k);
  const auto tokens = static_cast<std::size_t>(input.num_tokens);
  const Id guard_id = 12345;
  std::vector<Id> ids(slots + 1, guard_id);
  std::vector<float> weights(slots + 1, -7.0f);
  std::vector<std::int32_t> counts(tokens + 1, -9);
  std::vector<float> signal(tokens + 1, -8.0f);
  const routing_output<Id, float> output = {ids.data(), weights.data(), counts.data(),
                                            signal.data()};
  const status result = checked_router.route(0, input.view(), output, nullptr, extras);
  ASSERT_TRUE(result.ok()) << result.message();
  ASSERT_EQ(ids[slots], guard_id);
  ASSERT_EQ(weights[slots], -7.0f);
  ASSERT_EQ(counts[tokens], -9);
  ASSERT_EQ(signal[tokens], -8.0f);
  for (std::int64_t t = 0; t < input.num_tokens; ++t) {
    SCOPED_TRACE("token " + std::to_string(t));
    const auto index = static_cast<std::size_t>(t);
    if (extras.padding_mask != nullptr && extras.padding_mask[t] != 0) {
      EXPECT_EQ(counts[index], 0);
      EXPECT_EQ(signal[index], 0.0f);
      continue;
    }
    oracle::token token;
    token.logits = input.row(t);
    token.bias = extras.routing_bias;
    token.k_min = extras.k_min != nullptr ? extras.k_min[t] : 0;
    token.k_max = extras.k_max != nullptr ? extras.k_max[t] : 0;
    const std::size_t first = index * at(g.top_k);
    compare<Id>(g, fill, oracle::route(g, policy, token), &ids[first], &weights[first],
                counts[index], signal[index], seen);
    if (::testing::Test::HasFailure()) return;
  }
}

/// A gating with the fields every test sets.
inline gating make_gating(gating_kind kind, int num_experts, int top_k, bool renormalize = true) {
  gating g;
  g.kind = kind;
  g.num_experts = num_experts;
  g.top_k = top_k;
  g.renormalize = renormalize;
  return g;
}

/// Multiples of 1/256 within about 0.1, as a selection bias.
inline std::vector<float> grid_bias(inputs::sequence& from, int num_experts) {
  std::vector<float> bias;
  for (int e = 0; e < num_experts; ++e)
    bias.push_back(static_cast<float>(from.between(-24, 24)) / 256.0f);
  return bias;
}

}  // namespace checked
