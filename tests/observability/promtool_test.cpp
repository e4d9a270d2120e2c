// The rendered text as Prometheus' own linter reads it.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "adaptive_k/observability/prometheus.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

TEST(Promtool, AcceptsEveryMetric) {
  if (std::string(ADAPTIVE_K_PROMTOOL).empty())
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus): not checked";
  prometheus_options options;
  options.expert_load = 4;
  prometheus_recorder recorder(options);
  routing_metrics batch;
  batch.calls = 1;
  batch.tokens = 10;
  batch.full_expert_calls = 80;
  batch.expert_calls = 50;
  batch.distinct_experts = 4;
  batch.k_histogram[5] = 10;
  const std::uint64_t expert_counts[4] = {0, 0, 0, 50};
  const float entropy = 1.25f;
  const std::string models[] = {"olmoe", "quote \" backslash \\ line\nend", "broken \xFF utf-8",
                                "broken \xFE utf-8", std::string("a\0b", 3)};
  for (const std::string& model : models) {
    recorder.record({model, 0, "top_p"}, batch, 3e-5);
    recorder.record({model, -1, "top_p"}, batch, 3e-3);
    recorder.record_entropies(recorder.find({model, 0, "top_p"}), &entropy, 1);
    recorder.record_expert_counts(recorder.find({model, 0, "top_p"}), expert_counts, 4);
  }
  std::FILE* const pipe = popen(ADAPTIVE_K_PROMTOOL " check metrics 2>&1 >/dev/null", "w");
  ASSERT_NE(pipe, nullptr);
  const std::string text = recorder.render();
  EXPECT_EQ(std::fwrite(text.data(), 1, text.size(), pipe), text.size());
  EXPECT_EQ(pclose(pipe), 0) << "promtool complained, see above, of\n" << text;
}

// Shows that the check above can fail.
TEST(Promtool, FindsAMistake) {
  if (std::string(ADAPTIVE_K_PROMTOOL).empty())
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus): not checked";
  std::FILE* const pipe = popen(ADAPTIVE_K_PROMTOOL " check metrics >/dev/null 2>&1", "w");
  ASSERT_NE(pipe, nullptr);
  std::fputs("# TYPE tokens counter\ntokens 1\n", pipe);
  EXPECT_NE(pclose(pipe), 0);
}

}  // namespace
