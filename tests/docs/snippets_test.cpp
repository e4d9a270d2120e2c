// The code that public headers show in their comments, and the page of the example engine, compiled
// and run as it stands there.
#include <gtest/gtest.h>

#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/calibration/calibrator.hpp>
#include <adaptive_k/core/plan.hpp>
#include <adaptive_k/core/score.hpp>
#include <adaptive_k/observability/ab_test.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "calibration/toy_model.hpp"

/// What plan.hpp and score.hpp list, with the least in it.
namespace listed {

using adaptive_k::gating, adaptive_k::plan_base, adaptive_k::status;

struct Policy {};
struct Plan;
#include "plan.hpp.1.inc"
#include "plan.hpp.2.inc"
#include "score.hpp.1.inc"

status validate(const Policy&, const gating& model) noexcept {
  return adaptive_k::validate(model);
}
Plan make_plan(const gating& model, const Policy&) noexcept {
  Plan plan;
  static_cast<plan_base&>(plan) = plan_base(model);
  return plan;
}
template <class Token>
ADAPTIVE_K_HD typename Token::integers Plan::choose_k(const Token& token) const noexcept {
  return adaptive_k::math::select(token.score(0) > 2.0f, typename Token::integers(1),
                                  typename Token::integers(2));
}
template <class F>
ADAPTIVE_K_HD F Score::of(const F& logit) noexcept {
  return adaptive_k::math::minimum(adaptive_k::math::maximum(logit, 0.0f), 1e30f);
}
struct own_gating : gating {
  using score = Score;
};

}  // namespace listed

namespace {

TEST(docs, plan_hpp_and_score_hpp) {
  listed::own_gating model;
  model.num_experts = 4;
  model.top_k = 2;
  const adaptive_k::basic_router router{model, listed::Policy()};
  const float logits[] = {3, 0, 1, -1, 1, 0, -2, 1};
  std::int32_t ids[4], counts[2];
  float weights[4];
  const adaptive_k::status routed = router.route<float>(0, {logits, 2, 4}, {ids, weights, counts});
  ASSERT_TRUE(routed.ok()) << routed.message();
  EXPECT_EQ(counts[0], 1);
  EXPECT_EQ(counts[1], 2);
  EXPECT_EQ(ids[3], 3);
  EXPECT_FLOAT_EQ(weights[3], 0.5f);  // shares of a ReLU: 1 and 1
}

TEST(docs, adaptive_k_hpp) {
  constexpr int layer = 0;
  const float values[] = {9, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const adaptive_k::logits_view<float> logits{values, 2, 8};
  std::int32_t ids[4], counts[2];
  float weights[4];
#include "adaptive_k.hpp.1.inc"
  EXPECT_EQ(counts[0], 1);  // sure of expert 0
  EXPECT_EQ(counts[1], 2);
  EXPECT_EQ(metrics.expert_savings(), 0.25);
}

TEST(docs, moe_engine) {
  constexpr int layer = 0, num_tokens = 1, num_experts = 8;
  const float data[] = {9, 0, 1, 0, 0, 0, 0, 0};
  adaptive_k::gating gating;
  gating.num_experts = num_experts;
  gating.top_k = 2;
  const adaptive_k::k_policy policy = adaptive_k::k_policy::top_p(0.9f, 2);
  std::int32_t topk_ids[2], topk_counts[1];
  float topk_weights[2];
  adaptive_k::routing_metrics metrics;
#include "moe_engine.inc"
  EXPECT_EQ(topk_counts[0], 1);
  EXPECT_EQ(topk_ids[0], 0);
  EXPECT_EQ(topk_weights[0], 1.0f);
  EXPECT_EQ(metrics.expert_savings(), 0.5);
}

TEST(docs, ab_test_hpp) {
  using adaptive_k::ab_test, adaptive_k::status;
  const std::string request_id = "request-1";
  const double seconds = 0.1, log_likelihood = -1.2;
  const adaptive_k::routing_metrics metrics;
#include "ab_test.hpp.1.inc"
  EXPECT_LT(arm, 2u);
  EXPECT_FALSE(test.compute_results().sentence.empty());
}

// NOLINTNEXTLINE(google-build-using-namespace): the header stands in it
using namespace adaptive_k;

/// "Any type with" what calibrator.hpp lists.
struct listed_model {
  using Dataset = toy_text;
#include "calibrator.hpp.2.inc"
  toy_model toy{8, 4, {1.0, 0.5}};
};
const gating& listed_model::router_gating() const {
  return toy.router_gating();
}
int listed_model::num_layers() const {
  return toy.num_layers();
}
int listed_model::window_length(const toy_text& data) const {
  return toy.window_length(data);
}
std::int64_t listed_model::num_windows(const toy_text& data) const {
  return toy.num_windows(data);
}
std::vector<window_outcome> listed_model::run(const toy_text& data, window_range range,
                                              const layer_route& route,
                                              const block_observer& observe) {
  return toy.run(data, range, route, observe);
}

TEST(docs, calibrator_hpp) {
  listed_model model;
  const toy_text text;
  const adaptive_k::gating& gating = model.router_gating();
#include "calibrator.hpp.1.inc"
  EXPECT_TRUE(adaptive.validity().ok()) << adaptive.validity().message();
  EXPECT_NEAR(found.expert_savings, 0.4, 0.05);
}

}  // namespace
