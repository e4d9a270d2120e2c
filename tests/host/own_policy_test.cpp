// A router of a user's own K policy: the bits of a built-in one that says the same, its own
// refusals, and the instructions that it says it runs on.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "../../examples/own_policy/own_policy.hpp"
#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/host/route_in_threads.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test

constexpr int num_experts = 60;
constexpr std::int64_t num_tokens = 300;

gating model() {
  gating g;
  g.num_experts = num_experts;
  g.top_k = 6;
  return g;
}

std::vector<float> some_logits() {
  inputs::sequence from(7);
  std::vector<float> logits(num_experts * num_tokens);
  for (float& logit : logits) logit = inputs::grid_logit(from, 64);  // with ties
  return logits;
}

TEST(own_policy, gives_the_bits_of_top_p_where_it_says_the_same) {
  const basic_router own(model(), engine::mass_or_gap{0.85f, 0.0f});
  const router built_in(model(), k_policy::top_p(0.85f, 6));
  const std::vector<float> logits = some_logits();
  const logits_view<float> view = {logits.data(), num_tokens, num_experts};
  routing_metrics counted, expected;
  const routed_batch a = own.route(0, view, &counted);
  const routed_batch b = built_in.route(0, view, &expected);
  ASSERT_TRUE(a.result.ok()) << a.result.message();
  EXPECT_EQ(a.topk_ids, b.topk_ids);
  EXPECT_EQ(a.topk_weights, b.topk_weights);
  EXPECT_EQ(a.topk_counts, b.topk_counts);
  EXPECT_EQ(a.expert_counts, b.expert_counts);
  EXPECT_EQ(counted.expert_calls, expected.expert_calls);
  EXPECT_LT(counted.expert_calls, counted.full_expert_calls);

  std::vector<std::int32_t> ids(a.topk_ids.size());
  std::vector<float> weights(a.topk_weights.size());
  const status in_threads =
      route_in_threads<float>(own, 3, 0, view, routing_output<>{ids.data(), weights.data()});
  ASSERT_TRUE(in_threads.ok()) << in_threads.message();
  EXPECT_EQ(ids, a.topk_ids);
  EXPECT_EQ(weights, a.topk_weights);
}

TEST(own_policy, is_refused_by_its_own_words_and_by_layer) {
  const basic_router one(model(), engine::mass_or_gap{2.0f, 0.1f});
  EXPECT_STREQ(one.validity().message(), "mass is 2, expected above 0, at most 1");
  EXPECT_EQ(one.validity().field(), "mass");
  const basic_router layers(model(), std::vector<engine::mass_or_gap>{{0.9f, 0.1f}, {0.9f, 1.0f}});
  EXPECT_STREQ(layers.validity().message(), "layer 1: ratio is 1, expected 0 or more, below 1");
}

TEST(own_policy, a_gating_that_names_its_score_leaves_its_kind) {
  engine::relu_gating relu;
  relu.num_experts = num_experts;
  relu.top_k = 6;
  EXPECT_TRUE(basic_router(relu, k_policy::top_p(0.85f, 6)).validity().ok());
  relu.kind = gating_kind::sigmoid;
  const basic_router refused(relu, k_policy::top_p(0.85f, 6));
  EXPECT_STREQ(refused.validity().message(),
               "kind is sigmoid, expected softmax, its default: the gating's type names its score");
  EXPECT_EQ(refused.validity().field(), "kind");
}

TEST(own_policy, says_what_it_runs_on) {
  const basic_router own(model(), engine::mass_or_gap{});
  const bool vectors = detail::has_vectors_for<engine::mass_or_gap_plan, gating>;
  EXPECT_EQ(own.instructions(), vectors ? best_instruction_set() : instruction_set::scalar);
  for (const auto set :
       {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
    router_options options;
    options.instructions = set;
    const basic_router asked(model(), engine::mass_or_gap{}, options);
    EXPECT_EQ(asked.validity().ok(), vectors && is_available(set)) << name_of(set);
    if (!asked.validity().ok()) {
      EXPECT_EQ(asked.validity().code(), status_code::unsupported);
    }
  }
}

}  // namespace
