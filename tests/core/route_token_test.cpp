// One decision for any number of lanes, and the order that selection rests on.
#include "adaptive_k/core/route_token.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "adaptive_k/core/host_warp.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using inputs::bits_of;
using inputs::from_bits;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

using token_route = detail::token_route<max_top_k>;

/// What one token is routed with.
struct request {
  gating model;
  detail::k_plan plan;
  std::vector<float> logits, bias;
};

template <int Lanes, int RowWidth = 32, int MaxRows = max_experts / RowWidth>
token_route route(const request& r) {
  return detail::with_score(r.model.kind, [&](auto score) {
    return detail::route_token<decltype(score), MaxRows, max_top_k>(
        detail::host_warp<Lanes, RowWidth>{}, r.model, r.plan, r.bias.data(), r.plan.limits, false,
        detail::logit_row<float>{r.logits.data()});
  });
}

void expect_same_bits(const token_route& a, const token_route& b, int top_k, int lanes) {
  ASSERT_EQ(a.count, b.count) << lanes << " lanes";
  ASSERT_EQ(bits_of(a.signal), bits_of(b.signal)) << lanes << " lanes";
  ASSERT_EQ(a.has_nonfinite, b.has_nonfinite) << lanes << " lanes";
  for (int j = 0; j < top_k; ++j) ASSERT_EQ(a.expert[j], b.expert[j]) << lanes << " lanes";
  for (int j = 0; j < a.count; ++j)
    ASSERT_EQ(bits_of(a.weight[j]), bits_of(b.weight[j])) << lanes << " lanes, slot " << j;
}

token_route expect_one_answer(const request& r) {
  const token_route one = route<1>(r);
  const int top_k = r.model.top_k;
  expect_same_bits(one, route<2>(r), top_k, 2);
  expect_same_bits(one, route<4>(r), top_k, 4);
  expect_same_bits(one, route<8>(r), top_k, 8);
  expect_same_bits(one, route<16>(r), top_k, 16);
  expect_same_bits(one, route<32>(r), top_k, 32);
  return one;
}

/// A random gating of a kind, with groups and bias now and then.
gating random_gating(inputs::sequence& from, gating_kind kind) {
  gating g;
  g.kind = kind;
  g.num_experts = from.pick<int>({1, 2, 7, 31, 32, 33, 60, 64, 96, 255, 256, 1000, 1024});
  const int most = std::min(g.num_experts, kind == gating_kind::sparsemixer ? 2 : max_top_k);
  g.top_k = from.between(1, std::min(most, from.chance(3) ? 32 : 8));
  g.renormalize = kind != gating_kind::sparsemixer && from.chance(2);
  g.routed_scaling_factor = from.pick<float>({1.0f, 2.5f});
  if (kind != gating_kind::sparsemixer) {
    g.selection_bias = from.chance(2);
    if (g.num_experts % 8 == 0 && from.chance(2)) {
      const int size = g.num_experts / 8;
      g.n_group = 8;
      g.topk_group = from.between((g.top_k + size - 1) / size, 8);
      g.group_rank = from.chance(2) ? group_score::maximum : group_score::top2_sum;
    }
  }
  return g;
}

k_policy random_policy(inputs::sequence& from, const gating& g,
                       const inputs::distortion_tables& tables) {
  const auto kind = static_cast<signal_kind>(from.between(1, 6));
  k_policy policy;
  if (from.chance(3)) {
    distortion_ref model;
    model.coefficients = tables.coefficients.data();
    model.first_expert = tables.first_expert.data();
    model.next_expert = tables.next_expert.data();
    model.lambda = 0.03125f;
    policy = k_policy::min_distortion(model);
    policy.signal = kind;
  } else {
    std::vector<int> values;
    std::vector<float> thresholds;
    for (int k = 1; k <= g.top_k; ++k) {
      values.push_back(k);
      const float rising = static_cast<float>(k) / static_cast<float>(g.top_k);
      thresholds.push_back(detail::high_is_sure(kind) ? 1.0f - rising : rising);
    }
    policy.set_thresholds(kind, values.data(), g.top_k, thresholds.data(), g.top_k - 1);
  }
  policy.mass_exponent = from.pick<float>({-1.0f, 0.0f, 0.3f, 0.5f, 0.7f, 1.0f});
  return policy;
}

void route_with_any_lanes(gating_kind kind, std::uint64_t seed) {
  inputs::sequence from(seed);
  long fewer = 0, dead = 0;
  for (int i = 0; i < 1200; ++i) {
    const gating g = random_gating(from, kind);
    const inputs::distortion_tables tables(from, g.num_experts, g.top_k);
    request r;
    const k_policy policy = random_policy(from, g, tables);
    const status fits = validate(policy, g);
    ASSERT_TRUE(validate(g).ok()) << validate(g).message();
    ASSERT_TRUE(fits.ok()) << fits.message();
    r.model = g;
    r.plan = adaptive_k::make_plan(g, policy);
    const int kind_of_row = from.below(8);
    for (int e = 0; e < g.num_experts; ++e) {
      // Any bits at all; few values; nothing finite; or ordinary logits of full precision.
      float logit = inputs::fine_logit(from);
      if (kind_of_row == 0) logit = from_bits(from.bits());
      if (kind_of_row == 1) logit = static_cast<float>(from.between(-1, 1));
      if (kind_of_row == 2) logit = from.pick<float>({nan, infinity, -infinity});
      if (kind_of_row == 3 && from.chance(5)) logit = from.pick<float>({nan, infinity, -infinity});
      r.logits.push_back(logit);
      r.bias.push_back(static_cast<float>(from.between(-64, 64)) / 512.0f);
    }
    SCOPED_TRACE("case " + std::to_string(i) + ", E " + std::to_string(g.num_experts));
    const token_route routed = expect_one_answer(r);
    if (::testing::Test::HasFailure()) return;
    fewer += routed.count < g.top_k ? 1 : 0;
    dead += kind_of_row == 2 ? 1 : 0;
    // Neither does the room set aside for experts matter, nor narrower rows for few of them.
    if (kind == gating_kind::softmax) {
      if (g.num_experts <= 64) expect_same_bits(routed, route<8, 32, 2>(r), g.top_k, 8);
      if (g.num_experts <= 8) expect_same_bits(routed, route<4, 8, 2>(r), g.top_k, 4);
    }
  }
  EXPECT_GT(fewer, 50);
  EXPECT_GT(dead, 50);
}

TEST(RouteToken, SoftmaxWithAnyLanes) {
  route_with_any_lanes(gating_kind::softmax, 1);
}
TEST(RouteToken, SigmoidWithAnyLanes) {
  route_with_any_lanes(gating_kind::sigmoid, 2);
}
TEST(RouteToken, TopKSoftmaxWithAnyLanes) {
  route_with_any_lanes(gating_kind::top_k_softmax, 3);
}
TEST(RouteToken, SqrtSoftplusWithAnyLanes) {
  route_with_any_lanes(gating_kind::sqrt_softplus, 4);
}
TEST(RouteToken, SparsemixerWithAnyLanes) {
  route_with_any_lanes(gating_kind::sparsemixer, 5);
}

// The sum has the documented shape: expert e adds into slot e mod 32 in order of e, and the slots
// are summed as a tree, neighbours first.
TEST(RouteToken, SumsInTheDocumentedOrder) {
  inputs::sequence from(6);
  for (int num_experts : {5, 32, 60, 128, 1000}) {
    gating g;
    g.num_experts = num_experts;
    g.top_k = 1;
    g.renormalize = false;
    request r;
    r.model = g;
    r.plan = adaptive_k::make_plan(g, k_policy::full());
    for (int e = 0; e < num_experts; ++e) r.logits.push_back(inputs::fine_logit(from));
    const float largest = *std::max_element(r.logits.begin(), r.logits.end());
    float slots[32] = {};
    for (int e = 0; e < num_experts; ++e)
      slots[e % 32] += math::exp(r.logits[static_cast<std::size_t>(e)] - largest);
    for (int count = 16; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) slots[i] = slots[2 * i] + slots[2 * i + 1];
    EXPECT_EQ(bits_of(expect_one_answer(r).weight[0]), bits_of(1.0f / slots[0]));
  }
}

template <int Lanes>
void reduce_like_one_lane() {
  using tile = detail::host_warp<Lanes>;
  inputs::sequence from(8);
  for (int i = 0; i < 200; ++i) {
    typename tile::template per_lane<float> values;
    typename tile::template per_lane<int> indices;
    typename tile::template per_lane<std::uint32_t> words;
    float highest = -infinity;
    int lowest = 1000000;
    std::uint32_t most = 0;
    int sum = 0;
    for (int lane = 0; lane < Lanes; ++lane) {
      values[lane] = inputs::fine_logit(from);
      indices[lane] = from.below(100000);
      words[lane] = from.bits();
      highest = std::max(highest, values[lane]);
      lowest = std::min(lowest, indices[lane]);
      most = std::max(most, words[lane]);
      sum += indices[lane];
    }
    EXPECT_EQ(tile::reduce_max(values), highest);
    EXPECT_EQ(tile::reduce_min(indices), lowest);
    EXPECT_EQ(tile::reduce_max(words), most);
    EXPECT_EQ(tile::reduce_sum(indices), sum);
    const int source = from.below(Lanes);
    EXPECT_EQ(tile::broadcast(indices, source), indices[source]);
  }
}

TEST(HostWarp, Reduces) {
  reduce_like_one_lane<1>();
  reduce_like_one_lane<2>();
  reduce_like_one_lane<8>();
  reduce_like_one_lane<32>();
}

TEST(OrderKey, IsTheOrderOfTheReals) {
  inputs::sequence from(7);
  std::vector<float> values = {0.0f,    -0.0f,    1.0f,     -1.0f,     1e-45f,          -1e-45f,
                               3.4e38f, -3.4e38f, infinity, -infinity, 1.17549435e-38f, 1.0000001f};
  for (int i = 0; i < 3000; ++i) {
    const float value = from_bits(from.bits());
    if (value == value) values.push_back(value);
  }
  for (std::size_t i = 0; i < values.size(); ++i)
    for (std::size_t j = 0; j < values.size(); j += 1 + i % 7) {
      const std::uint32_t a = detail::order_key(values[i]), b = detail::order_key(values[j]);
      ASSERT_EQ(values[i] > values[j], a > b) << values[i] << ", " << values[j];
      ASSERT_EQ(values[i] == values[j], a == b) << values[i] << ", " << values[j];
    }
}

TEST(OrderKey, NanIsBelowEverythingAndAboveNothing) {
  for (float number : {nan, -nan, from_bits(0x7F800001u), from_bits(0xFFFFFFFFu)}) {
    EXPECT_EQ(detail::order_key(number), detail::nan_key);
    EXPECT_LT(detail::order_key(number), detail::order_key(-infinity));
    EXPECT_GT(detail::order_key(number), detail::no_expert_key);
  }
  EXPECT_EQ(detail::key_value(detail::nan_key), -infinity);
}

TEST(OrderKey, LeadsBackToTheValue) {
  inputs::sequence from(9);
  for (int i = 0; i < 100000; ++i) {
    const float value = from_bits(from.bits());
    if (value != value) continue;
    ASSERT_EQ(detail::key_value(detail::order_key(value)), value);
  }
  EXPECT_EQ(detail::key_value(detail::order_key(-infinity)), -infinity);
  EXPECT_EQ(detail::key_value(detail::order_key(infinity)), infinity);
}

}  // namespace
