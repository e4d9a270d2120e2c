// Greedy continuations against ones that are computed anew token by token.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/adaptive_k/measure/continuation.hpp"
#include "model/fixture_models.hpp"

namespace {

using adaptive_k::k_policy;
using adaptive_k::router;
using bench::continuation_figures;
using bench::continuation_lengths;
using bench::continuations;
using fixture_models::fixture;

class continuation : public testing::TestWithParam<const char*> {
 protected:
  continuation() : model(GetParam()) {
    data.path = "tokens";
    data.unit = "token ids";
    data.tokens = model.tokens;
    windows = bench::plan_windows(data, 16, 0);
  }

  router with(const k_policy& policy) const { return {model.engine.config().gating, policy}; }

  /// What the model writes behind `text` under `how`, one whole pass a token.
  std::vector<std::int32_t> written(std::vector<std::int32_t> text, int new_tokens,
                                    const router& how) {
    const std::size_t prompt = text.size();
    for (int i = 0; i < new_tokens; ++i) {
      std::vector<float> logits(text.size() * model.vocab);
      model.engine.forward(text.data(), 1, static_cast<int>(text.size()),
                           moe_engine::route_with(how), logits.data());
      const auto last = logits.end() - static_cast<std::ptrdiff_t>(model.vocab);
      text.push_back(static_cast<std::int32_t>(std::max_element(last, logits.end()) - last));
    }
    return {text.begin() + static_cast<std::ptrdiff_t>(prompt), text.end()};
  }

  fixture model;
  bench::dataset data;
  bench::window_plan windows;
  const continuation_lengths lengths{4, 8, 20};
};

TEST_P(continuation, is_what_the_model_writes_and_agrees_as_long_as_it_does) {
  const router full = with(k_policy::full());
  const continuations texts(model.engine, data, windows, full, lengths);
  ASSERT_EQ(texts.num_prompts(), 4);
  std::vector<std::vector<std::int32_t>> prompts, answers;
  for (const std::ptrdiff_t window : {0, 1, 2, 3}) {  // of 5: 0, 5/4, 10/4, 15/4
    const auto from = data.tokens.begin() + window * 16;
    prompts.emplace_back(from, from + 8);
    answers.push_back(written(prompts.back(), 20, full));
    const auto kept = texts.tokens().begin() + window * 28;
    EXPECT_EQ(std::vector<std::int32_t>(kept, kept + 8), prompts.back());
    EXPECT_EQ(std::vector<std::int32_t>(kept + 8, kept + 28), answers.back());
  }

  const continuation_figures own = texts.compare("full", full);
  EXPECT_EQ(own.agreed, std::vector<int>(4, 20));
  EXPECT_EQ(own.median, 20.0);
  EXPECT_EQ(own.never_differs, 1.0);
  EXPECT_EQ(own.mean_k, model.engine.config().gating.top_k);

  std::vector<router> others = {with(k_policy::top_p(0.8f, model.engine.config().gating.top_k))};
  for (int k = 1; k < model.engine.config().gating.top_k; ++k)
    others.push_back(with(k_policy::fixed(k)));
  int differences = 0;
  for (const router& other : others) {
    const continuation_figures figures = texts.compare("other", other);
    std::vector<int> expected;
    int whole = 0;
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      const auto own_words = written(prompts[p], 20, other);
      const auto differs = std::mismatch(own_words.begin(), own_words.end(), answers[p].begin());
      expected.push_back(static_cast<int>(differs.first - own_words.begin()));
      whole += expected.back() == 20 ? 1 : 0;
      differences += expected.back() == 20 ? 0 : 1;
    }
    EXPECT_EQ(figures.agreed, expected);
    EXPECT_EQ(figures.never_differs, whole / 4.0);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(figures.median, (expected[1] + expected[2]) / 2.0);
    EXPECT_LT(figures.mean_k, own.mean_k);
  }
  EXPECT_GT(differences, 0);
}

TEST_P(continuation, says_what_there_is_no_room_for) {
  const auto& config = model.engine.config();
  EXPECT_EQ(bench::why_no_continuations(config, windows, lengths), "");
  EXPECT_EQ(bench::why_no_continuations(config, windows, {4, 16, 48}), "");
  EXPECT_EQ(bench::why_no_continuations(config, windows, {4, 17, 20}),
            "windows of 16 tokens, expected 17 or more for prompts of that length");
  EXPECT_EQ(bench::why_no_continuations(config, windows, {4, 8, 57}),
            "the model's context is 64, expected 65 or more: 8 of a prompt and 57 new");
  const router full = with(k_policy::full());
  EXPECT_THROW(continuations(model.engine, data, windows, full, {4, 8, 57}), std::runtime_error);
  EXPECT_EQ(continuations(model.engine, data, windows, full, {99, 8, 1}).num_prompts(), 5);
}

INSTANTIATE_TEST_SUITE_P(, continuation, testing::ValuesIn(fixture_models::names),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
