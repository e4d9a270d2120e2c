// The engine against a naive computation in double, and proof that dropped experts do not run.
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>
#include <moe_engine/loss.hpp>

#include <cmath>
#include <limits>
#include <numeric>

#include "model/naive_forward.hpp"

namespace small_model {
namespace {

moe_engine::route_function fixed_k(const moe_engine::model_config& config, int k) {
  return moe_engine::route_with(adaptive_k::router(config.gating, adaptive_k::k_policy::fixed(k)));
}

std::vector<int> some_tokens(int length, int vocab, int first) {
  std::vector<int> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((first + 7 * i + i * i) % vocab);
  return tokens;
}

/// Two sequences at once, for every k, against the naive computation of each.
void expect_naive_logits(const shape& s, int length, const std::string& dtype = "F32") {
  const temporary_folder folder("engine");
  tensors weights = weights_of(s, 17);
  write_model(folder.path(), s, weights, dtype);
  for (auto& [name, t] : weights)
    for (float& v : t.values) v = rounded(v, dtype);
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  const auto first = some_tokens(length, s.vocab, 3);
  const auto second = some_tokens(length, s.vocab, 11);
  std::vector<std::int32_t> tokens(first.begin(), first.end());
  tokens.insert(tokens.end(), second.begin(), second.end());
  std::vector<float> logits(tokens.size() * static_cast<std::size_t>(s.vocab));
  for (int k = 1; k <= s.top_k; ++k) {
    engine.forward(tokens.data(), 2, length, fixed_k(engine.config(), k), logits.data());
    auto expected = naive_forward(s, weights, first, k);
    for (const row& r : naive_forward(s, weights, second, k)) expected.push_back(r);
    for (std::size_t t = 0; t < expected.size(); ++t)
      for (std::size_t v = 0; v < expected[t].size(); ++v)
        ASSERT_NEAR(logits[t * expected[t].size() + v], expected[t][v], 2e-5)
            << "k = " << k << ", token " << t << ", logit " << v;
  }
}

TEST(engine, equals_naive_computation_for_every_k) {
  expect_naive_logits({}, 9);
}

TEST(engine, equals_naive_computation_across_query_blocks) {
  expect_naive_logits({}, 64);
}

TEST(engine, shares_one_key_value_head) {
  shape s;
  s.kv_heads = 1;
  expect_naive_logits(s, 7);
}

TEST(engine, has_a_key_value_head_for_each_head) {
  shape s;
  s.kv_heads = s.heads;
  expect_naive_logits(s, 7);
}

TEST(engine, looks_back_no_further_than_the_sliding_window) {
  shape s;
  s.sliding_window = 5;
  expect_naive_logits(s, 12);
}

TEST(engine, ties_embeddings) {
  shape s;
  s.tied = true;
  expect_naive_logits(s, 5);
}

TEST(engine, reads_half_precision) {
  expect_naive_logits({}, 5, "F16");
  expect_naive_logits({}, 5, "BF16");
}

TEST(engine, has_one_token_or_none) {
  expect_naive_logits({}, 1);
  const temporary_folder folder("empty");
  write_model(folder.path(), {}, weights_of({}, 1));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  engine.forward(nullptr, 0, 8, fixed_k(engine.config(), 1), nullptr);
}

TEST(engine, refuses_tokens_and_lengths_it_cannot_take) {
  const temporary_folder folder("tokens");
  write_model(folder.path(), {}, weights_of({}, 1));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  std::vector<float> logits(65 * 19);
  std::vector<std::int32_t> tokens(65, 0);
  const auto route = fixed_k(engine.config(), 1);
  EXPECT_THROW(engine.forward(tokens.data(), 1, 65, route, logits.data()), std::runtime_error);
  tokens[2] = 19;
  EXPECT_THROW(engine.forward(tokens.data(), 1, 4, route, logits.data()), std::runtime_error);
  tokens[2] = -1;
  EXPECT_THROW(engine.forward(tokens.data(), 1, 4, route, logits.data()), std::runtime_error);
}

TEST(engine, passes_on_a_refusal_of_the_router) {
  const temporary_folder folder("refusal");
  write_model(folder.path(), {}, weights_of({}, 1));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  std::vector<float> logits(19);
  const std::int32_t token = 1;
  try {
    engine.forward(&token, 1, 1, fixed_k(engine.config(), 4), logits.data());
    FAIL() << "k = 4 of 3 was accepted";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("layer 0"), std::string::npos) << error.what();
  }
}

TEST(engine, gives_the_same_bits_again) {
  const temporary_folder folder("bits");
  write_model(folder.path(), {}, weights_of({}, 5));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  const auto tokens = some_tokens(40, 19, 1);
  const std::vector<std::int32_t> ids(tokens.begin(), tokens.end());
  std::vector<float> first(40 * 19);
  std::vector<float> again(40 * 19);
  engine.forward(ids.data(), 1, 40, fixed_k(engine.config(), 2), first.data());
  for (int run = 0; run < 3; ++run) {
    engine.forward(ids.data(), 1, 40, fixed_k(engine.config(), 2), again.data());
    EXPECT_EQ(first, again);
  }
}

TEST(engine, counts_time_and_savings) {
  const temporary_folder folder("time");
  write_model(folder.path(), {}, weights_of({}, 5));
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  const adaptive_k::router router(engine.config().gating, adaptive_k::k_policy::fixed(1));
  adaptive_k::routing_metrics metrics;
  moe_engine::timing time;
  std::vector<float> logits(2 * 8 * 19);
  const std::vector<std::int32_t> ids(16, 3);
  engine.forward(ids.data(), 2, 8, moe_engine::route_with(router, &metrics), logits.data(), &time);
  EXPECT_GT(time.moe_seconds, 0.0);
  EXPECT_GT(time.total_seconds, time.moe_seconds);
  EXPECT_EQ(metrics.tokens, 32u);  // 16 tokens in each of two layers
  EXPECT_NEAR(metrics.expert_savings(), 2.0 / 3.0, 1e-12);
}

TEST(window_losses, equal_naive_losses_whatever_the_batch) {
  const shape s;
  const temporary_folder folder("loss");
  const tensors weights = weights_of(s, 23);
  write_model(folder.path(), s, weights);
  moe_engine::engine engine = moe_engine::engine::load(folder.path());
  const int length = 6;
  const auto tokens = some_tokens(5 * length, s.vocab, 2);
  const std::vector<std::int32_t> ids(tokens.begin(), tokens.end());
  const auto route = fixed_k(engine.config(), s.top_k);
  const auto losses = moe_engine::window_losses(engine, ids.data(), 5, length, route, 2);
  ASSERT_EQ(losses.size(), 25u);
  for (std::size_t w = 0; w < 5; ++w) {
    const std::vector<int> window(tokens.begin() + static_cast<int>(w) * length,
                                  tokens.begin() + static_cast<int>(w + 1) * length);
    const auto logits = naive_forward(s, weights, window, s.top_k);
    for (std::size_t i = 0; i + 1 < window.size(); ++i) {
      double sum = 0.0;
      for (const double logit : logits[i]) sum += std::exp(logit);
      const double expected = std::log(sum) - logits[i][static_cast<std::size_t>(window[i + 1])];
      EXPECT_NEAR(losses[w * 5 + i], expected, 2e-5);
    }
  }
}

/// A layer of its own, wide enough to be cut into several slices with a smaller last one.
class wide_layer : public ::testing::Test {
 protected:
  static constexpr int hidden = 1100;
  static constexpr int intermediate = 600;
  static constexpr int experts = 3;
  static constexpr int top_k = 2;

  wide_layer() : layer(hidden, intermediate, gating()) {
    std::uint64_t state = 99;
    const std::size_t size = std::size_t{hidden} * intermediate;
    router = random_values(experts * hidden, state, 0.2f);
    layer.set_router(router.data());
    for (int e = 0; e < experts; ++e) {
      w1.push_back(random_values(size, state, 0.2f));
      w3.push_back(random_values(size, state, 0.2f));
      w2.push_back(random_values(size, state, 0.2f));
      set_expert(e);
    }
    x = random_values(std::size_t{150} * hidden, state);
    output.resize(x.size());
  }

  static adaptive_k::gating gating() {
    adaptive_k::gating g;
    g.num_experts = experts;
    g.top_k = top_k;
    return g;
  }

  void set_expert(int e) {
    const auto i = static_cast<std::size_t>(e);
    layer.set_expert(e, w1[i].data(), w3[i].data(), w2[i].data());
  }

  /// Every expert's output for `token`; experts not wanted are left at zero.
  std::vector<row> naive_experts(int token, const std::vector<int>& wanted) const {
    const row in = input(token);
    std::vector<row> outputs(experts, row(hidden, 0.0));
    for (const int e : wanted) {
      const auto i = static_cast<std::size_t>(e);
      outputs[i] = expert(w1[i], w3[i], w2[i], in);
    }
    return outputs;
  }

  row input(int token) const {
    const float* begin = x.data() + static_cast<std::ptrdiff_t>(token) * hidden;
    return {begin, begin + hidden};
  }

  void expect_row(int token, const row& expected) const {
    for (std::size_t i = 0; i < hidden; ++i)
      ASSERT_NEAR(output[static_cast<std::size_t>(token) * hidden + i], expected[i], 2e-5)
          << "token " << token << ", channel " << i;
  }

  moe_engine::moe_layer layer;
  moe_engine::moe_workspace workspace;
  std::vector<float> router;
  std::vector<std::vector<float>> w1;
  std::vector<std::vector<float>> w3;
  std::vector<std::vector<float>> w2;
  std::vector<float> x;
  std::vector<float> output;
};

TEST_F(wide_layer, equals_naive_computation) {
  for (int k = 1; k <= top_k; ++k) {
    const auto route =
        moe_engine::route_with(adaptive_k::router(gating(), adaptive_k::k_policy::fixed(k)));
    layer.forward(0, x.data(), 150, route, output.data(), workspace);
    for (int token = 0; token < 150; token += 37)
      expect_row(token, mixture(times(router, input(token)), k, naive_experts(token, {0, 1, 2})));
  }
}

// All tokens at one expert: more rows than one product takes.
TEST_F(wide_layer, runs_only_what_routing_asks_for) {
  for (const std::size_t dropped : {0u, 2u}) {
    std::fill(w1[dropped].begin(), w1[dropped].end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(w2[dropped].begin(), w2[dropped].end(), std::numeric_limits<float>::quiet_NaN());
    set_expert(static_cast<int>(dropped));
  }
  int calls = 0;
  const auto route = [&](int layer_index, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& out,
                         const adaptive_k::routing_extras&) -> adaptive_k::status {
    ++calls;
    EXPECT_EQ(layer_index, 7);
    EXPECT_EQ(logits.num_experts, experts);
    for (std::int64_t t = 0; t < logits.num_tokens; ++t) {
      out.topk_counts[t] = 1;
      out.topk_ids[t * top_k] = 1;
      out.topk_weights[t * top_k] = 0.5f;
      out.topk_ids[t * top_k + 1] = -1;
      out.topk_weights[t * top_k + 1] = 0.0f;
    }
    return {};
  };
  for (const int num_tokens : {1, 2, 150}) {
    layer.forward(7, x.data(), num_tokens, route, output.data(), workspace);
    EXPECT_EQ(workspace.active, std::vector<std::int32_t>{1});
    EXPECT_EQ(workspace.tokens.size(), static_cast<std::size_t>(num_tokens));
    for (int token = 0; token < num_tokens; token += 49) {
      row expected = naive_experts(token, {1})[1];
      for (double& v : expected) v *= 0.5;
      expect_row(token, expected);
    }
  }
  EXPECT_EQ(calls, 3);
}

TEST_F(wide_layer, gives_zero_to_tokens_without_experts) {
  const auto route = [&](int, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& out,
                         const adaptive_k::routing_extras&) -> adaptive_k::status {
    std::fill_n(out.topk_counts, logits.num_tokens, 0);
    return {};
  };
  std::fill(output.begin(), output.end(), 1.0f);
  layer.forward(0, x.data(), 3, route, output.data(), workspace);
  for (std::size_t i = 0; i < 3 * hidden; ++i) ASSERT_EQ(output[i], 0.0f);
  EXPECT_EQ(output[3 * hidden], 1.0f);
}

TEST_F(wide_layer, refuses_impossible_choices) {
  for (const int count : {-1, top_k + 1, 1}) {
    const auto route = [&](int, const adaptive_k::logits_view<float>&,
                           const adaptive_k::routing_output<>& out,
                           const adaptive_k::routing_extras&) -> adaptive_k::status {
      out.topk_counts[0] = count;
      out.topk_ids[0] = experts;
      return {};
    };
    EXPECT_THROW(layer.forward(0, x.data(), 1, route, output.data(), workspace),
                 std::runtime_error);
  }
}

TEST(router_head, is_multiplied_by_what_the_router_gets) {
  adaptive_k::gating gating;
  gating.num_experts = 6;
  gating.top_k = 3;
  const auto layer = moe_engine::moe_layer::random(64, 32, gating, 5);
  std::vector<float> x(70 * 64), head(2 * 64), coefficients(2 * 5, 0.0f);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f;
  for (std::size_t i = 0; i < head.size(); ++i)
    head[i] = static_cast<float>(i * 29 % 83) / 40.0f - 1.0f;
  adaptive_k::distortion_ref policy;
  policy.coefficients = coefficients.data();
  policy.lambda = 0.5f;
  policy.head = head.data();
  policy.hidden_size = 64;
  const auto router_of = [&] {
    return adaptive_k::router(gating, adaptive_k::k_policy::min_distortion(policy));
  };
  const adaptive_k::router router = router_of();
  int calls = 0;
  const moe_engine::route_function route(
      [&](int index, const adaptive_k::logits_view<float>& logits,
          const adaptive_k::routing_output<>& output, const adaptive_k::routing_extras& extras) {
        ++calls;
        for (std::size_t t = 0; t < 70; ++t)
          for (std::size_t j = 0; j < 2; ++j) {
            double expected = 0.0;
            for (std::size_t c = 0; c < 64; ++c)
              expected +=
                  static_cast<double>(x[t * 64 + c]) * static_cast<double>(head[j * 64 + c]);
            EXPECT_NEAR(logits.head[t * 2 + j], expected, 1e-4);
          }
        return router.route(index, logits, output, nullptr, extras);
      },
      router);
  std::vector<float> output(x.size()), own(x.size());
  moe_engine::moe_workspace workspace;
  layer.forward(0, x.data(), 70, route, output.data(), workspace);
  EXPECT_EQ(calls, 1);
  layer.forward(0, x.data(), 70, moe_engine::route_with(router), own.data(), workspace);
  EXPECT_EQ(own, output);
  policy.hidden_size = 32;
  try {
    layer.forward(3, x.data(), 70, moe_engine::route_with(router_of()), own.data(), workspace);
    ADD_FAILURE() << "a head of another size";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(),
                 "routing of layer 3: the policy's router head is for a hidden size of 32, "
                 "expected the model's, 64");
  }
}

TEST(random_layer, depends_on_the_seed_alone) {
  adaptive_k::gating gating;
  gating.num_experts = 4;
  gating.top_k = 2;
  const auto run = [&](std::uint64_t seed) {
    const auto layer = moe_engine::moe_layer::random(64, 32, gating, seed);
    std::vector<float> x(3 * 64);
    std::iota(x.begin(), x.end(), -100.0f);
    std::vector<float> output(x.size());
    moe_engine::moe_workspace workspace;
    const adaptive_k::router router(gating, adaptive_k::k_policy::full());
    layer.forward(0, x.data(), 3, moe_engine::route_with(router), output.data(), workspace);
    return output;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

}  // namespace
}  // namespace small_model
