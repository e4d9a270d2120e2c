// Texts that go on: how a text is cut into calls, and which others are with it, changes no bit; the
// engine is built here with dense algebra that keeps rows apart (causality_test.cpp says why).
#include <gtest/gtest.h>
#include <moe_engine/engine.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "model/fixture_models.hpp"

namespace {

using fixture_models::fixture;
using moe_engine::text_cache;

using tokens_of_texts = std::vector<std::vector<std::int32_t>>;

/// Logits of every text, read in the pieces that `cut` gives: cut(text, round) tokens of it.
template <class Cut>
std::vector<std::vector<float>> read_texts(fixture& model, const moe_engine::route_function& route,
                                           const tokens_of_texts& texts, const Cut& cut) {
  text_cache cache(static_cast<int>(texts.size()));
  std::vector<std::vector<float>> logits(texts.size());
  const auto left = [&](std::size_t s) {
    return static_cast<int>(texts[s].size()) - cache.length(static_cast<int>(s));
  };
  for (int round = 0;; ++round) {
    std::vector<int> counts;
    std::vector<std::int32_t> tokens;
    bool is_done = true;
    for (std::size_t s = 0; s < texts.size(); ++s) {
      counts.push_back(std::min(cut(static_cast<int>(s), round), left(s)));
      is_done = is_done && left(s) == 0;
      const auto next = texts[s].begin() + cache.length(static_cast<int>(s));
      tokens.insert(tokens.end(), next, next + counts.back());
    }
    if (is_done) return logits;
    std::vector<float> given(tokens.size() * model.vocab);
    model.engine.extend(cache, tokens.data(), counts, route, given.data());
    auto from = given.begin();
    for (std::size_t s = 0; s < texts.size(); ++s) {
      const auto end = from + counts[s] * static_cast<std::ptrdiff_t>(model.vocab);
      logits[s].insert(logits[s].end(), from, end);
      from = end;
    }
  }
}

class decode : public testing::TestWithParam<const char*> {
 protected:
  decode() : model(GetParam()) {
    const auto half = model.tokens.begin() + model.length;
    first.assign(model.tokens.begin(), half);
    second.assign(half, model.tokens.end());
  }

  /// Every fixed K, and a K that follows the token.
  std::vector<moe_engine::route_function> routings() const {
    const adaptive_k::gating& gating = model.engine.config().gating;
    std::vector<moe_engine::route_function> all;
    for (int k = 1; k <= gating.top_k; ++k) all.push_back(model.fixed_k(k));
    all.push_back(moe_engine::route_with(
        adaptive_k::router(gating, adaptive_k::k_policy::top_p(0.7f, gating.top_k))));
    return all;
  }

  fixture model;
  std::vector<std::int32_t> first, second;
};

TEST_P(decode, equals_prefill) {
  for (const auto& route : routings()) {
    const auto whole = read_texts(model, route, {first}, [](int, int) { return 1000; })[0];
    ASSERT_EQ(whole.size(), first.size() * model.vocab);
    EXPECT_EQ(read_texts(model, route, {first}, [](int, int) { return 1; })[0], whole);
    EXPECT_EQ(read_texts(model, route, {first}, [](int, int r) { return 3 * r % 5; })[0], whole);
    // The plain pass adds up attention in another order.
    std::vector<float> plain(whole.size());
    model.engine.forward(first.data(), 1, model.length, route, plain.data());
    for (std::size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(plain[i], whole[i], 2e-5);
  }
}

TEST_P(decode, batches_of_different_lengths_equal_single_texts) {
  const std::vector<std::int32_t> third(second.begin() + 3, second.begin() + 10);
  const tokens_of_texts texts = {first, third, {}, {second.begin(), second.begin() + 23}, {5}};
  for (const auto& route : routings()) {
    std::vector<std::vector<float>> alone;
    for (const auto& text : texts)
      alone.push_back(read_texts(model, route, {text}, [](int, int) { return 1000; })[0]);
    EXPECT_EQ(read_texts(model, route, texts, [](int, int) { return 1000; }), alone);
    EXPECT_EQ(read_texts(model, route, texts, [](int, int) { return 1; }), alone);
    EXPECT_EQ(read_texts(model, route, texts, [](int s, int r) { return (3 * s + 2 * r) % 7; }),
              alone);
  }
}

TEST_P(decode, a_refusal_leaves_the_texts_as_they_were) {
  const auto route = model.fixed_k(1);
  const int most = model.engine.config().max_positions;
  const auto whole = read_texts(model, route, {first}, [](int, int) { return 1000; })[0];
  text_cache cache(1);
  std::vector<float> logits(static_cast<std::size_t>(most + 1) * model.vocab);
  model.engine.extend(cache, first.data(), {5}, route, logits.data());
  const auto refuses = [&](const std::vector<int>& counts, const std::string& words) {
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(most) + 1, 0);
    try {
      model.engine.extend(cache, zeros.data(), counts, route, logits.data());
      ADD_FAILURE() << words;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    EXPECT_EQ(cache.length(0), 5);
  };
  refuses({most - 4}, "counts[0] is " + std::to_string(most - 4) + ", expected 0.." +
                          std::to_string(most - 5) + " behind a text of 5");
  refuses({-1}, "counts[0] is -1, expected 0..");
  refuses({1, 1}, "counts holds 2 values, expected 1");
  const std::int32_t wrong = model.engine.config().vocab_size;
  EXPECT_THROW(model.engine.extend(cache, &wrong, {1}, route, logits.data()), std::runtime_error);
  const auto fails = [&](int layer, const adaptive_k::logits_view<float>& view,
                         const adaptive_k::routing_output<>& output,
                         const adaptive_k::routing_extras& extras) {
    if (layer + 1 == model.engine.config().num_moe_layers)
      return adaptive_k::status::error(adaptive_k::status_code::invalid_argument, "no");
    return route(layer, view, output, extras);
  };
  EXPECT_THROW(model.engine.extend(cache, first.data(), {3}, fails, logits.data()),
               std::runtime_error);
  const auto rest = static_cast<int>(first.size()) - 5;
  model.engine.extend(cache, first.data() + 5, {rest}, route, logits.data());
  const auto from = whole.begin() + 5 * static_cast<std::ptrdiff_t>(model.vocab);
  EXPECT_TRUE(std::equal(from, whole.end(), logits.begin()));
}

INSTANTIATE_TEST_SUITE_P(, decode, testing::ValuesIn(fixture_models::names),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
