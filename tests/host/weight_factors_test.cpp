// What an engine that keeps its own weights multiplies them by: r^-a, the same bits on every path.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "policies.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using oracle::at;

constexpr std::int64_t num_tokens = 77;  // blocks of 16, of 8, and a rest
constexpr std::int64_t padded_token = 5;

template <class Id, class Weight>
struct routed {
  routed(const router& r, const checked::batch<float>& batch, const routing_extras& extras,
         std::int64_t middle = num_tokens)
      : ids(static_cast<std::size_t>(num_tokens * r.model().top_k)),
        weights(ids.size()),
        counts(static_cast<std::size_t>(num_tokens)),
        factors(counts.size(), -7.0f) {
    routing_output<Id, Weight> output = {ids.data(), weights.data(), counts.data()};
    output.weight_factors = factors.data();
    EXPECT_TRUE(r.route_range(0, batch.view(), output, 0, middle, nullptr, extras).ok());
    EXPECT_TRUE(r.route_range(0, batch.view(), output, middle, num_tokens, nullptr, extras).ok());
  }
  std::vector<Id> ids;
  std::vector<Weight> weights;
  std::vector<std::int32_t> counts;
  std::vector<float> factors;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(weight_factors, are_the_kept_share_to_minus_a_of_the_models_own_weights) {
  inputs::sequence from(131);
  int fewer = 0, index = 0;
  for (const gating& g : checked::all_gatings()) {
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    const checked::batch<float> batch = checked::grid_batch(from, num_tokens, g.num_experts);
    const std::vector<float> bias = checked::grid_bias(from, g.num_experts);
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(num_tokens));
    mask[static_cast<std::size_t>(padded_token)] = 1;
    routing_extras extras;
    extras.padding_mask = mask.data();
    if (g.selection_bias) extras.routing_bias = bias.data();
    const routed<std::int32_t, float> own(router(g, k_policy::full()), batch, extras);
    for (checked::named_policy& named : checked::all_policies(from, g, tables)) {
      SCOPED_TRACE(named.name);
      named.policy.mass_exponent = checked::mass_exponent_number(index++);
      const float given = named.policy.mass_exponent;
      const double a =
          given >= 0.0f ? static_cast<double>(given) : (detail::renormalizes(g) ? 1.0 : 0.0);
      const router r(g, named.policy);
      const routed<std::int32_t, float> out(r, batch, extras, 23);
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        const auto token = static_cast<std::size_t>(t);
        const int k = out.counts[token];
        if (k == g.top_k || t == padded_token) {
          ASSERT_EQ(out.factors[token], 1.0f) << t;
          continue;
        }
        double kept = 0.0, total = 0.0;
        for (int j = 0; j < g.top_k; ++j) {
          const double weight = static_cast<double>(own.weights[token * at(g.top_k) + at(j)]);
          total += weight;
          if (j < k) kept += weight;
        }
        if (!(kept > 1e-6 * total)) continue;  // shares are floored
        ++fewer;
        const double expected = std::pow(kept / total, -a);
        ASSERT_NEAR(static_cast<double>(out.factors[token]), expected, 4e-6 * expected) << t;
        for (int j = 0; j < k; ++j) {  // and so the library's own weights follow from the model's
          const auto slot = token * at(g.top_k) + at(j);
          const double weight = static_cast<double>(own.weights[slot]) * expected;
          ASSERT_NEAR(static_cast<double>(out.weights[slot]), weight, 8e-6 * weight);
        }
      }
      for (const instruction_set set : {instruction_set::scalar, instruction_set::generic,
                                        instruction_set::avx2, instruction_set::avx512}) {
        router_options options;
        options.instructions = set;
        const router other(g, named.policy, options);
        if (!other.validity().ok()) continue;  // not of this machine
        EXPECT_TRUE(
            same_bits(out.factors, routed<std::int32_t, float>(other, batch, extras).factors))
            << name_of(set);
      }
      EXPECT_TRUE(same_bits(out.factors, routed<std::int64_t, bfloat16>(r, batch, extras).factors));
    }
  }
  EXPECT_GT(fewer, 3000);
}

/// Kept scores that are all 0: nothing restores them.
TEST(weight_factors, of_experts_without_mass_are_one) {
  gating g;
  g.kind = gating_kind::sigmoid;
  g.num_experts = 4;
  g.top_k = 2;
  g.selection_bias = true;
  k_policy policy = k_policy::fixed(1);
  policy.mass_exponent = 1.0f;
  const float bias[4] = {100.0f, 50.0f, 0.0f, 0.0f};
  const float logits[4] = {-200.0f, 1.0f, 2.0f, 3.0f};
  routing_extras extras;
  extras.routing_bias = bias;
  std::int32_t ids[2], count = 0;
  float weights[2], factor = 0.0f;
  routing_output<> output = {ids, weights, &count};
  output.weight_factors = &factor;
  ASSERT_TRUE(router(g, policy).route(0, {logits, 1, 4}, output, nullptr, extras).ok());
  EXPECT_EQ(ids[0], 0);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(factor, 1.0f);
}

/// In shadow mode the model's own routing is what is written.
TEST(weight_factors, of_shadow_mode_are_one) {
  inputs::sequence from(132);
  gating g;
  g.num_experts = 32;
  g.top_k = 4;
  const checked::batch<float> batch = checked::grid_batch(from, 20, g.num_experts);
  std::vector<std::int32_t> ids(80), chosen(20);
  std::vector<float> weights(80), factors(20);
  routing_output<> output = {ids.data(), weights.data()};
  output.chosen_counts = chosen.data();
  output.weight_factors = factors.data();
  ASSERT_TRUE(router(g, k_policy::fixed(2)).route(0, batch.view(), output).ok());
  EXPECT_EQ(chosen[7], 2);
  for (const float factor : factors) EXPECT_EQ(factor, 1.0f);
}

}  // namespace
