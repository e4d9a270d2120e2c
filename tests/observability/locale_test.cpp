// Numbers in everything that the headers write, under a locale with a decimal comma.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/calibration/policy_spec.hpp"
#include "adaptive_k/observability/json_log.hpp"
#include "adaptive_k/observability/prometheus.hpp"
#include "adaptive_k/observability/trace_view.hpp"
#include "comma_locale.hpp"

#if defined(ADAPTIVE_K_TEST_AB)
#include "adaptive_k/observability/ab_test.hpp"
#endif

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// Every text with a number in it that the headers write, each made anew.
std::vector<std::string> all_texts() {
  std::vector<std::string> texts;
  routing_metrics batch;
  batch.calls = 1;
  batch.tokens = 1234567;
  batch.expert_calls = 3456789;
  batch.full_expert_calls = 9876536;
  batch.k_histogram[3] = 1234567;

  log_event event(batch, 0.00125);
  event.time = {};
  for (const log_fields fields : {log_fields::ecs, log_fields::datadog})
    append_json(texts.emplace_back(), event, "l", fields);

  prometheus_recorder recorder;
  const float entropies[] = {1.25f, 2.5f};
  recorder.record({"m", 1234, "p"}, batch, 0.0123);
  recorder.record_entropies(recorder.find({"m", 1234, "p"}), entropies, 2);
  for (const exposition format : {exposition::prometheus, exposition::openmetrics})
    texts.push_back(recorder.render(format));

  const std::int32_t counts[] = {1, 2};
  const trace_call call = {1234, 2, entropies, counts, 1234567.25, 1.5};
  perfetto_trace trace("m");
  trace.add(call);
  texts.push_back(trace.json());
  texts.push_back(layer_bars({call}));
  texts.push_back(token_bars(call));

  gating model;
  model.num_experts = 8;
  model.top_k = 4;
  const k_policy policy = k_policy::entropy({2, 4}, {1.5f});
  texts.push_back(to_spec(policy));
  EXPECT_EQ(to_spec(parse_policy(texts.back(), model).layers.at(0)), texts.back());

  model.routed_scaling_factor = -1.5f;
  texts.emplace_back(validate(model).message());
  model.routed_scaling_factor = 1.0f;
  texts.emplace_back(validate(k_policy::entropy({1, 2, 4}, {2.5f, 1.5f}), model).message());
  k_policy exponent = policy;
  exponent.mass_exponent = 1.5f;
  texts.emplace_back(validate(exponent, model).message());

#if defined(ADAPTIVE_K_TEST_AB)
  ab_test test({{"full"}, {"adaptive"}}, {});
  for (int i = 0; i < 200; ++i)
    for (std::size_t arm = 0; arm < 2; ++arm) {
      const double latency = 1.0 + 0.01 * (i % 10) + 0.1 * static_cast<double>(arm);
      EXPECT_TRUE(test.record(arm, {latency, 0.25 * static_cast<double>(arm), -2.5}).ok());
    }
  texts.push_back(test.compute_results().sentence);
  texts.emplace_back(test.record(0, {-0.5, 0.0, 0.0}).message());
  texts.emplace_back(ab_test({{"a"}, {"b", 1e-9}}, {}).validity().message());
#endif
  return texts;
}

TEST(Locale, NumbersHaveAPointAndNoGroups) {
  const std::vector<std::string> expected = all_texts();
  int with_fractions = 0;
  for (const std::string& text : expected) {
    EXPECT_NE(text, "");
    with_fractions += text.find('.') != std::string::npos ? 1 : 0;
  }
  EXPECT_GT(with_fractions, 10);
  const comma_locale german;
  EXPECT_EQ(all_texts(), expected);
  if (!comma_locale::rules_printf())
    GTEST_SKIP() << "no German locale and none could be made (Debian package locales): only "
                    "std::locale::global was set";
}

}  // namespace
