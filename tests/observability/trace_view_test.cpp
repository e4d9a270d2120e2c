// Bars line by line, and the timeline as a JSON parser and the Trace Event Format read it.
#include "adaptive_k/observability/trace_view.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using nlohmann::json;

constexpr float nan_of_float = std::numeric_limits<float>::quiet_NaN();

struct arrays {
  std::vector<float> entropies;
  std::vector<std::int32_t> counts;
  trace_call call(int layer, double start = 0, double duration = 0) const {
    return {
        layer,   static_cast<std::int64_t>(counts.size()), entropies.data(), counts.data(), start,
        duration};
  }
};

TEST(TraceView, LayersAsBars) {
  const arrays first = {{1.0f, 2.0f, 9.0f}, {2, 4, 0}};  // the last is padding
  const arrays second = {{0.5f, nan_of_float}, {8, 8}};
  const arrays nothing = {{1.0f}, {0}};
  bar_options options;
  options.full_entropy = 3.0;
  options.full_k = 8;
  options.width = 8;
  EXPECT_EQ(layer_bars({first.call(0), second.call(11), nothing.call(12)}, options),
            "layer   0  H  1.50 ####....  K  3.00 ###.....\n"
            "layer  11  H  0.50 #.......  K  8.00 ########\n"
            "layer  12  H     - ........  K     - ........\n");
  EXPECT_EQ(layer_bars({}), "");
}

TEST(TraceView, TokensAsBars) {
  const arrays tokens = {{0.0f, 2.0f, 1.0f, nan_of_float, 100.0f}, {1, 4, 0, 2, 3}};
  bar_options options;
  options.full_entropy = 2.0;
  options.width = 4;  // full_k: the highest, 4
  const std::string_view names[] = {"a", "\xC3\xA9", "padding", "\x1B[31m\n\xFF\xC2\x9B", ""};
  EXPECT_EQ(token_bars(tokens.call(0), options, names),
            "token     0  H  0.00 ....  K  1.00 #...  a\n"
            "token     1  H  2.00 ####  K  4.00 ####  \xC3\xA9\n"
            "token     3  H     - ....  K  2.00 ##..  \xEF\xBF\xBD[31m\xEF\xBF\xBD\xEF\xBF\xBD"
            "\xEF\xBF\xBD\n"
            "token     4  H 100.00 ####  K  3.00 ###.\n");
}

TEST(TraceView, ColourOnlyWhenAskedFor) {
  const arrays tokens = {{1.0f, 1.0f, 1.0f}, {4, 6, 8}};
  bar_options options;
  EXPECT_EQ(token_bars(tokens.call(0), options).find('\033'), std::string::npos);
  options.color = true;
  const std::string bars = token_bars(tokens.call(0), options);
  const std::size_t second = bars.find("token     1"), third = bars.find("token     2");
  EXPECT_NE(bars.substr(0, second).find("\033[32m############\033[0m"), std::string::npos);
  EXPECT_NE(bars.substr(second, third - second).find("\033[33m"), std::string::npos);
  EXPECT_EQ(bars.substr(third).find('\033'), std::string::npos) << "full K has no colour";
}

TEST(TraceView, HonoursNoColor) {
  unsetenv("NO_COLOR");
  EXPECT_TRUE(color_wanted(true));
  EXPECT_FALSE(color_wanted(false));
  setenv("NO_COLOR", "", 1);
  EXPECT_TRUE(color_wanted(true));
  setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(color_wanted(true));
  unsetenv("NO_COLOR");
}

TEST(TraceView, OddWidthsAndScales) {
  const arrays zero = {{0.0f}, {1}};
  bar_options options;
  for (const int width : {-5, 0, 1, 200, 100000}) {
    options.width = width;
    const std::string line = token_bars(zero.call(0), options);
    EXPECT_LT(line.size(), 500U);
    EXPECT_EQ(line.back(), '\n');
  }
  options.full_entropy = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(token_bars(zero.call(0), options), "");
}

/// What the format asks of every event.
void check_events(const json& trace) {
  ASSERT_TRUE(trace.is_object());
  for (const json& event : trace.at("traceEvents")) {
    ASSERT_TRUE(event.at("name").is_string()) << event;
    ASSERT_TRUE(event.at("ts").is_number()) << event;
    ASSERT_TRUE(event.at("pid").is_number_integer()) << event;
    ASSERT_TRUE(event.at("tid").is_number_integer()) << event;
    const std::string phase = event.at("ph");
    ASSERT_EQ(std::set<std::string>({"X", "C", "M"}).count(phase), 1U) << event;
    if (phase == "X") {
      ASSERT_GE(event.at("dur").get<double>(), 0.0);
    }
    if (phase == "C") {
      ASSERT_FALSE(event.at("args").empty());
      for (const auto& item : event["args"].items()) ASSERT_TRUE(item.value().is_number()) << event;
    }
  }
}

TEST(PerfettoTrace, HoldsCallsTokensAndNames) {
  const arrays first = {{1.0f, 2.0f, 9.0f, nan_of_float}, {2, 4, 0, 6}};
  const arrays second = {{0.5f}, {8}};
  perfetto_trace trace("a \"model\" \xFF");
  trace.add(first.call(0, 100, 40));
  trace.add(second.call(1, 150.5, 2.25));
  trace.add(second.call(1, 160, 2), false);
  const json parsed = json::parse(trace.json());
  check_events(parsed);
  std::vector<json> slices;
  std::map<std::string, std::vector<json>> counters;
  std::map<int, std::string> tracks;
  std::string process;
  for (const json& event : parsed["traceEvents"]) {
    if (event["ph"] == "X") slices.push_back(event);
    if (event["ph"] == "C") counters[event["name"]].push_back(event);
    if (event["name"] == "thread_name") tracks[event["tid"]] = event["args"]["name"];
    if (event["name"] == "process_name") process = event["args"]["name"];
  }
  EXPECT_EQ(process, "a \"model\" \xEF\xBF\xBD");
  ASSERT_EQ(slices.size(), 3U);
  EXPECT_EQ(slices[0]["ts"], 100.0);
  EXPECT_EQ(slices[0]["dur"], 40.0);
  EXPECT_EQ(slices[0]["args"],
            json({{"layer", 0}, {"tokens", 3}, {"avg_k", 4.0}, {"entropy_nats", 1.5}}));
  EXPECT_EQ(slices[1]["ts"], 150.5);
  EXPECT_EQ(slices[1]["dur"], 2.25);
  for (const json& slice : slices)
    EXPECT_EQ(tracks.at(slice["tid"]),
              "layer " + std::to_string(slice["args"]["layer"].get<int>()));
  ASSERT_EQ(counters["K layer 0"].size(), 3U) << "not of the padding token";
  EXPECT_EQ(counters["K layer 0"][1]["ts"], 110.0);
  EXPECT_EQ(counters["K layer 0"][2]["ts"], 130.0);
  EXPECT_EQ(counters["K layer 0"][2]["args"]["value"], 6.0);
  EXPECT_EQ(counters["entropy_nats layer 0"].size(), 2U) << "not of the one that is none";
  EXPECT_EQ(counters["K layer 1"].size(), 1U) << "a call added without its tokens";
}

TEST(PerfettoTrace, LeavesOutImpossibleTimesAndSaysSo) {
  const arrays one = {{0.5f}, {8}};
  perfetto_trace trace("m");
  trace.add(one.call(0, std::numeric_limits<double>::quiet_NaN(), 1));
  trace.add(one.call(0, 0, -1));
  trace.add(one.call(0, 0, std::numeric_limits<double>::infinity()));
  EXPECT_EQ(trace.skipped(), 3U);
  for (const double far : {1e306, std::numeric_limits<double>::max(), 9.3e15}) {
    trace.add(one.call(0, -far, 1));
    trace.add(one.call(0, far, 1));
    trace.add(one.call(0, 0, far));
    trace.add(one.call(0, 5e15, far / 2));
  }
  EXPECT_EQ(trace.skipped(), 15U);
  const json parsed = json::parse(trace.json());
  check_events(parsed);
  EXPECT_EQ(parsed["traceEvents"].size(), 1U);
}

// Microseconds since 1970, and the smallest and largest times that are taken.
TEST(PerfettoTrace, WritesEveryTimeThatItTakesAsJson) {
  const arrays tokens = {{0.5f, 1.5f, 2.5f}, {8, 7, 6}};
  perfetto_trace trace("m");
  const double times[] = {-8.9e15, -1e-300, 0, 1e-300, 0.0004, 1.8e15, 8.9e15};
  for (const double start : times)
    for (const double duration : {0.0, 1e-300, 0.25, 1e13})
      trace.add(tokens.call(3, start, duration));
  EXPECT_EQ(trace.skipped(), 0U);
  check_events(json::parse(trace.json()));
}

// What a router put out, as it is.
TEST(PerfettoTrace, OfARoutedBatch) {
  gating model;
  model.num_experts = 16;
  model.top_k = 4;
  const router route(model, k_policy::entropy({2, 4}, {2.0f}));
  std::vector<float> logits(100 * 16);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i * i % 101 * (i % 160)) / 1000;
  const logits_view<float> view = {logits.data(), 100, 16};
  const auto batch = route.route(0, view);
  ASSERT_TRUE(batch.result.ok());
  const trace_call call = {5, 100, batch.signal.data(), batch.topk_counts.data(), 1.0, 100.0};
  perfetto_trace trace("m");
  trace.add(call);
  const json parsed = json::parse(trace.json());
  check_events(parsed);
  double sum = 0;
  for (const json& event : parsed["traceEvents"])
    if (event["name"] == "K layer 5") sum += event["args"]["value"].get<double>();
  std::int64_t expected = 0;
  for (const std::int32_t k : batch.topk_counts) expected += k;
  EXPECT_EQ(sum, static_cast<double>(expected));
}

}  // namespace
