// Further complaints: shapes, ids, fills, padding, order, K that differs from token to token; and
// the weaknesses of the published package.
#include <algorithm>
#include <map>

#include "policies.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

// vllm#50982, sglang#29134, aiter#2359 (long inputs only), flashinfer#3840 (returned silently):
// experts that are not a power of two.
TEST(Complaints, ExpertsNotAPowerOfTwo) {
  inputs::sequence from(601);
  tally seen;
  for (int num_experts : {3, 5, 12, 24, 40, 60, 72, 96, 160, 192, 288, 320, 384, 576, 896, 1023}) {
    const int top_k = std::min(8, num_experts);
    for (gating_kind kind : {gating_kind::softmax, gating_kind::sigmoid})
      route_and_compare<std::int32_t>(make_gating(kind, num_experts, top_k),
                                      k_policy::top_p(0.6789f, top_k),
                                      grid_batch(from, 33, num_experts), {}, seen);
  }
  route_and_compare<std::int32_t>(make_gating(gating_kind::sigmoid, 160, 8),
                                  k_policy::top_p(0.6789f, 8), grid_batch(from, 5000, 160), {},
                                  seen);
  EXPECT_EQ(seen.tokens, 16 * 2 * 33 + 5000);
  EXPECT_LE(seen.close_k, 20);
}

// vllm#17150, vllm#47785: an id of -1 was used as an index further on. Engines that cannot skip
// get ids they can index with, and a weight of 0 for them.
TEST(Complaints, FillsThatCanBeIndexed) {
  inputs::sequence from(602);
  const int num_experts = 12, top_k = 4, num_tokens = 60;
  const gating g = make_gating(gating_kind::softmax, num_experts, top_k);
  const auto input = grid_batch(from, num_tokens, num_experts, 160);
  const k_policy policy = k_policy::top_p(0.6f, top_k);
  const routed_batch marked = router(g, policy).route(0, input.view());
  const routed_batch beyond = router(g, policy, {fill_id::num_experts}).route(0, input.view());
  const routed_batch repeated = router(g, policy, {fill_id::first_expert}).route(0, input.view());
  int filled = 0;
  for (int t = 0; t < num_tokens; ++t) {
    std::vector<float> plain(num_experts), dense(num_experts + 1);
    for (int j = 0; j < top_k; ++j) {
      const std::size_t slot = at(t * top_k + j);
      const bool used = j < marked.topk_counts[at(t)];
      filled += used ? 0 : 1;
      EXPECT_EQ(marked.topk_ids[slot] == -1, !used);
      EXPECT_EQ(beyond.topk_ids[slot] == num_experts, !used);
      ASSERT_GE(repeated.topk_ids[slot], 0);
      ASSERT_LT(repeated.topk_ids[slot], num_experts);
      const std::size_t filled_from = used ? slot : at(t * top_k);
      EXPECT_EQ(repeated.topk_ids[slot], repeated.topk_ids[filled_from]);
      // An engine that runs every slot gets the same sums, whichever fill it reads.
      if (used) plain[at(marked.topk_ids[slot])] += marked.topk_weights[slot];
      dense[at(beyond.topk_ids[slot])] += beyond.topk_weights[slot];
      plain[at(repeated.topk_ids[slot])] -= repeated.topk_weights[slot];
    }
    for (float left : plain) EXPECT_EQ(left, 0.0f);
    EXPECT_EQ(dense[num_experts], 0.0f);
  }
  EXPECT_GT(filled, num_tokens);
}

// vllm#48979, vllm#38128: padding tokens polluted the load counts.
TEST(Complaints, PaddingDoesNotPolluteLoadCounts) {
  const int num_experts = 8, num_tokens = 32;
  const gating g = make_gating(gating_kind::softmax, num_experts, 2);
  std::vector<float> logits(num_tokens * num_experts,
                            0.0f);  // padding rows: zeros, as engines have
  std::vector<std::uint8_t> padding(num_tokens, 1);
  for (std::size_t t = 0; t < 5; ++t) {
    padding[t] = 0;
    logits[t * 8 + 6] = 2.0f;
    logits[t * 8 + 7] = 1.0f;
  }
  routing_extras extras;
  extras.padding_mask = padding.data();
  routing_metrics metrics;
  const auto routed =
      router(g, k_policy::full())
          .route(0, logits_view<float>{logits.data(), num_tokens, num_experts}, &metrics, extras);
  EXPECT_EQ(routed.expert_counts[0], 0u);
  EXPECT_EQ(routed.expert_counts[1], 0u);
  EXPECT_EQ(routed.expert_counts[6], 5u);
  EXPECT_EQ(routed.expert_counts[7], 5u);
  EXPECT_EQ(metrics.tokens, 5u);
  EXPECT_EQ(metrics.padding_tokens, 27u);
  EXPECT_EQ(metrics.full_expert_calls, 10u);
}

// vllm#48032, sglang#33511: order changed from run to run. Ties go to the lower index, always.
TEST(Complaints, TheSameOrderEveryRun) {
  inputs::sequence from(604);
  for (gating_kind kind :
       {gating_kind::softmax, gating_kind::sigmoid, gating_kind::sqrt_softplus}) {
    const gating g = make_gating(kind, 200, 16);
    batch<float> input = grid_batch(from, 60, 200);
    for (float& logit : input.logits) logit = std::floor(logit);  // few values, many ties
    for (float& logit : input.logits)
      if (logit == 0.0f && from.chance(2)) logit = -0.0f;
    const router under_test(g, k_policy::top_p(0.8123f, 16));
    const routed_batch first = under_test.route(0, input.view());
    for (int run = 0; run < 5; ++run) {
      const routed_batch again = router(g, under_test.policy(0)).route(0, input.view());
      ASSERT_EQ(again.topk_ids, first.topk_ids);
      ASSERT_EQ(again.topk_weights, first.topk_weights);
    }
    tally seen;
    route_and_compare<std::int32_t>(g, under_test.policy(0), input, {}, seen);
    EXPECT_LE(seen.close_k, 2);
    // A row routes the same alone as among others.
    for (int t = 0; t < 60; t += 7) {
      const routed_batch alone =
          under_test.route(0, logits_view<float>{input.logits.data() + t * 200, 1, 200});
      for (int j = 0; j < 16; ++j) ASSERT_EQ(alone.topk_ids[at(j)], first.topk_ids[at(t * 16 + j)]);
    }
  }
  const std::vector<float> equal(33, 0.5f);
  const routed_batch routed = router(make_gating(gating_kind::softmax, 33, 5), k_policy::full())
                                  .route(0, logits_view<float>{equal.data(), 1, 33});
  EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
  const std::vector<float> zeros = {-1.0f, -0.0f, 0.0f, -0.0f, 0.0f};  // all four are equal
  const routed_batch signs = router(make_gating(gating_kind::softmax, 5, 4), k_policy::full())
                                 .route(0, logits_view<float>{zeros.data(), 1, 5});
  EXPECT_EQ(signs.topk_ids, (std::vector<std::int32_t>{1, 2, 3, 4}));
}

// sglang#25380: the type of ids. All four hold the same ids, the fill included.
TEST(Complaints, IdTypesHoldTheSameIds) {
  inputs::sequence from(605);
  const gating g = make_gating(gating_kind::softmax, 1024, 8);
  const auto input = grid_batch(from, 40, 1024, 200);
  const router under_test(g, k_policy::top_p(0.5f, 8));
  std::vector<float> weights(320);
  std::vector<std::int32_t> i32(320);
  std::vector<std::int64_t> i64(320);
  std::vector<std::int16_t> i16(320);
  std::vector<std::uint16_t> u16(320);
  const auto view = input.view();
  EXPECT_TRUE(
      under_test.route(0, view, routing_output<std::int32_t, float>{i32.data(), weights.data()})
          .ok());
  EXPECT_TRUE(
      under_test.route(0, view, routing_output<std::int64_t, float>{i64.data(), weights.data()})
          .ok());
  EXPECT_TRUE(
      under_test.route(0, view, routing_output<std::int16_t, float>{i16.data(), weights.data()})
          .ok());
  EXPECT_TRUE(
      under_test.route(0, view, routing_output<std::uint16_t, float>{u16.data(), weights.data()})
          .ok());
  int fills = 0;
  for (std::size_t i = 0; i < 320; ++i) {
    EXPECT_EQ(i64[i], i32[i]);
    EXPECT_EQ(i16[i], i32[i]);
    EXPECT_EQ(u16[i], i32[i] == -1 ? 65535 : i32[i]);
    fills += i32[i] == -1 ? 1 : 0;
  }
  EXPECT_GT(fills, 0);
  EXPECT_LT(fills, 280);
}

// llama.cpp#4470, #13572, #18029, vllm#2096: K that differs from token to token. The published
// package gave a whole batch its largest K.
TEST(Complaints, KDiffersWithinABatch) {
  std::vector<float> logits;
  for (float peak : {0.0f, 12.0f, 2.75f}) {  // unsure, sure, in between
    std::vector<float> row(8, 0.0f);
    row[5] = peak;
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const gating g = make_gating(gating_kind::softmax, 8, 4);
  routing_metrics metrics;
  const routed_batch routed = router(g, k_policy::entropy({1, 2, 4}, {0.6f, 1.6f}))
                                  .route(0, logits_view<float>{logits.data(), 3, 8}, &metrics);
  EXPECT_EQ(routed.topk_counts, (std::vector<std::int32_t>{4, 1, 2}));
  EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{0, 1, 2, 3, 5, -1, -1, -1, 5, 0, -1, -1}));
  EXPECT_EQ(metrics.k_histogram[1], 1u);
  EXPECT_EQ(metrics.k_histogram[2], 1u);
  EXPECT_EQ(metrics.k_histogram[4], 1u);
}

// The published package counted savings against all E experts: 1 of 8 was "87.5% saved" on a model
// that runs 2 by itself.
TEST(Published, SavingsAreNotAgainstAllExperts) {
  inputs::sequence from(607);
  const gating g = make_gating(gating_kind::softmax, 8, 2);
  const auto input = grid_batch(from, 50, 8);
  routing_metrics one, own;
  EXPECT_TRUE(router(g, k_policy::fixed(1)).route(0, input.view(), &one).result.ok());
  EXPECT_TRUE(router(g, k_policy::full()).route(0, input.view(), &own).result.ok());
  EXPECT_DOUBLE_EQ(one.expert_savings(), 0.5);
  EXPECT_DOUBLE_EQ(own.expert_savings(), 0.0);
}

// The published package took sigmoid routers for softmax ones. Their entropy is that of the
// normalised sigmoid scores, and their weights are sigmoids.
TEST(Published, SigmoidIsNotSoftmax) {
  const std::vector<float> logits = {3.0f, 1.0f, -1.0f, -3.0f};
  const logits_view<float> row = {logits.data(), 1, 4};
  const k_policy reported = k_policy::full();
  const routed_batch sigmoid =
      router(make_gating(gating_kind::sigmoid, 4, 2, false), reported).route(0, row);
  const routed_batch softmax =
      router(make_gating(gating_kind::softmax, 4, 2, false), reported).route(0, row);
  EXPECT_NEAR(sigmoid.topk_weights[0], 0.9525741268224334, 1e-7);
  EXPECT_NEAR(sigmoid.topk_weights[1], 0.7310585786300049, 1e-7);
  EXPECT_NEAR(softmax.topk_weights[0], 0.8649548767993755, 1e-7);
  // p = (0.952574, 0.731059, 0.268941, 0.047426) / 2
  EXPECT_NEAR(sigmoid.signal[0], 1.0796812205572754, 1e-6);
  EXPECT_NEAR(softmax.signal[0], 0.4554286228533835, 1e-6);
}

// The published package mixed bits and nats: thresholds here are in nats, and a uniform row of 128
// experts is at ln 128 = 4.852, below a threshold of "5.5".
TEST(Published, EntropyIsInNats) {
  const std::vector<float> uniform(128, 0.25f);
  const logits_view<float> row = {uniform.data(), 1, 128};
  const gating g = make_gating(gating_kind::sigmoid, 128, 6);
  const auto policy = k_policy::entropy({2, 4, 6}, {4.5f, 5.5f});
  const routed_batch bits_taken_for_nats = router(g, policy).route(0, row);
  EXPECT_NEAR(bits_taken_for_nats.signal[0], 4.852030263919617, 2e-6);
  EXPECT_EQ(bits_taken_for_nats.topk_counts[0], 4);  // 6 is out of reach
  const float nats_per_bit = 0.6931472f;
  const auto converted = k_policy::entropy({2, 4, 6}, {4.5f * nats_per_bit, 5.5f * nats_per_bit});
  EXPECT_EQ(router(g, converted).route(0, row).topk_counts[0], 6);
}

// The published example, K {1, 2, 4} at H < 0.6 and H < 1.2, on rows of known entropy: m equal
// experts of 8 and none else give ln m.
TEST(Published, TheExampleOnKnownEntropies) {
  const std::map<int, int> k_of = {{1, 1}, {2, 2}, {3, 2}, {4, 4}, {8, 4}};  // ln 3 = 1.099
  const gating g = make_gating(gating_kind::softmax, 8, 4);
  const router published(g, k_policy::entropy({1, 2, 4}, {0.6f, 1.2f}));
  for (const auto& [equal, k] : k_of) {
    std::vector<float> row(8, -200.0f);
    std::fill(row.begin() + 8 - equal, row.end(), 1.5f);
    const routed_batch routed = published.route(0, logits_view<float>{row.data(), 1, 8});
    EXPECT_NEAR(routed.signal[0], std::log(static_cast<double>(equal)), 1e-6);
    EXPECT_EQ(routed.topk_counts[0], k);
    for (int j = 0; j < std::min(equal, k); ++j) {
      EXPECT_EQ(routed.topk_ids[at(j)], 8 - equal + j);
      EXPECT_NEAR(routed.topk_weights[at(j)], 1.0 / std::min(equal, k), 1e-6);
    }
  }
}

}  // namespace
