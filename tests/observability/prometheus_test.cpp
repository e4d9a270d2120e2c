// The exposition of recorded batches: names, types, units, escapes, values.
#include "adaptive_k/observability/prometheus.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "exposition.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using exposition_text::parse;

routing_metrics three_tokens() {
  routing_metrics m;
  m.calls = 1;
  m.tokens = 3;
  m.padding_tokens = 2;
  m.expert_calls = 5;
  m.full_expert_calls = 12;
  m.nonfinite_rows = 1;
  m.distinct_experts = 4;
  m.shadow_expert_calls = 6;
  m.shadow_full_expert_calls = 8;
  m.super_expert_tokens = 2;
  m.out_of_domain = 3;
  m.k_histogram[1] = 2;
  m.k_histogram[3] = 1;
  return m;
}

TEST(Prometheus, ShowsWhatWasRecorded) {
  prometheus_options options;
  options.expert_load = 6;
  prometheus_recorder recorder(options);
  const metric_labels labels = {"olmoe", 3, "top_p"};
  recorder.record(labels, three_tokens(), 0.003);
  recorder.record(labels, three_tokens(), 0.5);
  recorder.record({"olmoe", -1, "full"}, three_tokens(), 2.0);
  const std::uint64_t expert_counts[8] = {2, 0, 0, 0, 0, 0, 0, 3};
  for (int batch = 0; batch < 2; ++batch)
    recorder.record_expert_counts(recorder.find(labels), expert_counts, 8);
  const std::string l = "{model=\"olmoe\",layer=\"3\",policy=\"top_p\"";
  for (const exposition format : {exposition::prometheus, exposition::openmetrics}) {
    const auto shown = parse(recorder.render(format));
    EXPECT_EQ(shown.ended, format == exposition::openmetrics);
    const auto value = [&](const std::string& name) {
      const auto found = shown.samples.find(name);
      return found == shown.samples.end() ? -1.0 : found->second;
    };
    EXPECT_EQ(value("adaptive_k_tokens_total" + l + "}"), 6);
    EXPECT_EQ(value("adaptive_k_padding_tokens_total" + l + "}"), 4);
    EXPECT_EQ(value("adaptive_k_expert_calls_total" + l + "}"), 10);
    EXPECT_EQ(value("adaptive_k_full_expert_calls_total" + l + "}"), 24);
    EXPECT_EQ(value("adaptive_k_nonfinite_rows_total" + l + "}"), 2);
    EXPECT_EQ(value("adaptive_k_routing_calls_total" + l + "}"), 2);
    EXPECT_EQ(value("adaptive_k_experts_touched_total" + l + "}"), 8);
    EXPECT_EQ(value("adaptive_k_distinct_experts" + l + "}"), 4);
    EXPECT_DOUBLE_EQ(value("adaptive_k_avg_k" + l + "}"), 10.0 / 6.0);
    EXPECT_DOUBLE_EQ(value("adaptive_k_compute_saved_ratio" + l + "}"), 1 - 10.0 / 24.0);
    EXPECT_EQ(value("adaptive_k_shadow_expert_calls_total" + l + "}"), 12);
    EXPECT_EQ(value("adaptive_k_shadow_full_expert_calls_total" + l + "}"), 16);
    EXPECT_EQ(value("adaptive_k_super_expert_tokens_total" + l + "}"), 4);
    EXPECT_EQ(value("adaptive_k_out_of_domain_total" + l + "}"), 6);
    EXPECT_DOUBLE_EQ(value("adaptive_k_shadow_saved_ratio" + l + "}"), 0.25);
    EXPECT_EQ(value("adaptive_k_k_total" + l + ",k=\"1\"}"), 4);
    EXPECT_EQ(value("adaptive_k_k_total" + l + ",k=\"2\"}"), 0);
    EXPECT_EQ(value("adaptive_k_k_total" + l + ",k=\"3\"}"), 2);
    EXPECT_EQ(value("adaptive_k_k_total" + l + ",k=\"4\"}"), 0);
    EXPECT_EQ(value("adaptive_k_k_total" + l + ",k=\"5\"}"), -1);
    EXPECT_EQ(value("adaptive_k_expert_load_total" + l + ",expert=\"0\"}"), 4);
    EXPECT_EQ(value("adaptive_k_expert_load_total" + l + ",expert=\"5\"}"), 0);
    EXPECT_EQ(value("adaptive_k_expert_load_total" + l + ",expert=\"6\"}"), -1);
    EXPECT_EQ(value("adaptive_k_expert_load_total" + l + ",expert=\"7\"}"), 6);
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + l + ",le=\"0.0025\"}"), 0);
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + l + ",le=\"0.005\"}"), 1);
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + l + ",le=\"1.0\"}"), 2);
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + l + ",le=\"+Inf\"}"), 2);
    EXPECT_EQ(value("adaptive_k_latency_seconds_count" + l + "}"), 2);
    EXPECT_NEAR(value("adaptive_k_latency_seconds_sum" + l + "}"), 0.503, 1e-12);
    const std::string all = "{model=\"olmoe\",layer=\"all\",policy=\"full\"";
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + all + ",le=\"1.0\"}"), 0);
    EXPECT_EQ(value("adaptive_k_latency_seconds_bucket" + all + ",le=\"+Inf\"}"), 1);
  }
}

/// 64 bits of nanoseconds are 18 billion seconds: of one thread centuries, of many servers' years.
TEST(Prometheus, SumsGoOnPastOneWord) {
  prometheus_options options;
  options.shards = 1;
  prometheus_recorder recorder(options);
  for (int i = 1; i <= 100; ++i) {
    recorder.record({"m", 0, "p"}, three_tokens(), 9e8);
    const auto shown = parse(recorder.render());
    EXPECT_DOUBLE_EQ(
        shown.samples.at("adaptive_k_latency_seconds_sum{model=\"m\",layer=\"0\",policy=\"p\"}"),
        9e8 * i);
  }
}

TEST(Prometheus, SumsNeverFallWhileTheyTurn) {
  constexpr std::uint64_t half = std::uint64_t{1} << 63;
  std::atomic<std::uint64_t> cells[2] = {};
  double expected = 0.0;
  for (const std::uint64_t value : {half - 5, std::uint64_t{4}, std::uint64_t{1}, half - 1,
                                    half - 1, std::uint64_t{2}, half - 1, half - 1, half - 1}) {
    detail::add_to_sum(cells, value);
    expected += static_cast<double>(value);
    EXPECT_DOUBLE_EQ(detail::value_of_sum(cells), expected);
  }
  // Between the two additions of one thread another reads: the turn is seen already.
  for (std::uint64_t turns = 0; turns < 4; ++turns) {
    cells[0] = turns % 2 == 0 ? half + 7 : 7;  // has turned once more
    cells[1] = turns;
    EXPECT_DOUBLE_EQ(detail::value_of_sum(cells),
                     static_cast<double>(turns + 1) * static_cast<double>(half) + 7.0);
  }
}

TEST(Prometheus, NamesTypesAndUnitsAreThoseOfTheFormat) {
  prometheus_recorder recorder;
  recorder.record({"m", 0, "p"}, three_tokens(), 0.1);
  const auto old_text = parse(recorder.render(exposition::prometheus));
  const auto open = parse(recorder.render(exposition::openmetrics));
  EXPECT_EQ(old_text.types.at("adaptive_k_tokens_total"), "counter");
  EXPECT_EQ(open.types.at("adaptive_k_tokens"), "counter");
  EXPECT_EQ(open.types.count("adaptive_k_tokens_total"), 0U);
  EXPECT_EQ(open.types.at("adaptive_k_latency_seconds"), "histogram");
  EXPECT_EQ(open.types.at("adaptive_k_entropy_nats"), "histogram");
  EXPECT_EQ(open.types.at("adaptive_k_avg_k"), "gauge");
  EXPECT_EQ(open.units.at("adaptive_k_latency_seconds"), "seconds");
  EXPECT_EQ(open.units.at("adaptive_k_compute_saved_ratio"), "ratio");
  EXPECT_EQ(open.units.at("adaptive_k_entropy_nats"), "nats");
  EXPECT_TRUE(old_text.units.empty());
  for (const auto& [family, type] : open.types) EXPECT_EQ(open.helps.count(family), 1U) << family;
  for (const auto& [family, type] : old_text.types)
    EXPECT_EQ(old_text.helps.count(family), 1U) << family;
  EXPECT_EQ(open.types.count("adaptive_k_expert_load"), 0U) << "is opt-in";
}

TEST(Prometheus, EscapesLabelsAndSpellsOutWhatIsNotUtf8) {
  prometheus_recorder recorder;
  recorder.record({"a\\b\"c\nd", 0, "gr\xC3\xBC\xC3n\xFF"}, three_tokens(), 0.1);
  const std::string text = recorder.render();
  EXPECT_NO_THROW(parse(text));
  EXPECT_NE(text.find("{model=\"a\\\\b\\\"c\\nd\",layer=\"0\",policy=\"gr\xC3\xBC\xEF\xBF\xBD"
                      "C3n\xEF\xBF\xBD"
                      "FF\"}"),
            std::string::npos)
      << text;
}

// Series whose labels read the same would make the whole text invalid.
TEST(Prometheus, LabelsThatDifferStayDifferent) {
  const std::vector<std::string> parts = {
      "a",  "\xFF", "\xFE", "\xC3",     "\xE2\x82",           "\x82", "\xEF\xBF\xBD",
      "FF", "EF",   "BF",   "\xED\xA0", "\xF4\x90",           "\\",   "\\xFF",
      "\"", "\n",   "n",    "\xEF\xBF", std::string(1, '\0'), "00",   ""};
  prometheus_recorder recorder;
  std::set<std::string> names;
  for (const std::string& first : parts)
    for (const std::string& second : parts) {
      names.insert(first + second);
      recorder.record({first + second, 0, "p"}, three_tokens(), 0.1);
    }
  ASSERT_GT(names.size(), 300U);
  for (const exposition format : {exposition::prometheus, exposition::openmetrics}) {
    const std::string text = recorder.render(format);
    EXPECT_EQ(text.find('\0'), std::string::npos);
    const auto shown = parse(text);  // throws for a sample that comes twice
    std::size_t models = 0;
    for (const auto& [name, value] : shown.samples)
      models += name.compare(0, 24, "adaptive_k_tokens_total{") == 0 ? 1 : 0;
    EXPECT_EQ(models, names.size());
  }
}

TEST(Prometheus, BoundsTheLengthOfLabelsAndSaysSo) {
  prometheus_options options;
  options.max_label_bytes = 10;
  options.max_series = 1;
  prometheus_recorder recorder(options);
  EXPECT_NE(recorder.find({"0123456789", 0, "0123456789"}), nullptr);
  EXPECT_EQ(recorder.find({"0123456789a", 0, ""}), nullptr);
  EXPECT_EQ(recorder.find({"", 0, "0123456789a"}), nullptr);
  EXPECT_EQ(recorder.find({"a", 0, ""}), nullptr);
  recorder.record({std::string(1000000, 'x'), 0, ""}, three_tokens(), 0.1);
  const auto shown = parse(recorder.render());
  EXPECT_EQ(shown.samples.at("adaptive_k_refused_labels_total{limit=\"max_label_bytes\"}"), 3);
  EXPECT_EQ(shown.samples.at("adaptive_k_refused_labels_total{limit=\"max_series\"}"), 1);
  EXPECT_EQ(shown.samples.at("adaptive_k_dropped_batches_total"), 1);
}

TEST(Prometheus, EmptyIsValid) {
  EXPECT_TRUE(parse(prometheus_recorder().render(exposition::openmetrics)).ended);
  prometheus_recorder recorder;
  recorder.record({"", 0, ""}, routing_metrics(), 0.0);
  const auto shown = parse(recorder.render());
  EXPECT_EQ(shown.samples.at("adaptive_k_avg_k{model=\"\",layer=\"0\",policy=\"\"}"), 0);
  EXPECT_EQ(shown.samples.at("adaptive_k_compute_saved_ratio{model=\"\",layer=\"0\",policy=\"\"}"),
            0);
}

TEST(Prometheus, CountsWhatItCannotTake) {
  prometheus_options options;
  options.max_series = 2;
  prometheus_recorder recorder(options);
  const auto infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {-1.0, infinity, -infinity, std::nan(""), 1e300})
    recorder.record({"m", 0, "p"}, three_tokens(), bad);
  recorder.record({"m", 1, "p"}, three_tokens(), 0.1);
  EXPECT_EQ(recorder.find({"m", 2, "p"}), nullptr);
  recorder.record({"m", 2, "p"}, three_tokens(), 0.1);
  recorder.record(nullptr, three_tokens(), 0.1);
  const auto shown = parse(recorder.render());
  const std::string l = "{model=\"m\",layer=\"0\",policy=\"p\"}";
  EXPECT_EQ(shown.samples.at("adaptive_k_dropped_batches_total"), 2);
  EXPECT_EQ(shown.samples.at("adaptive_k_invalid_latencies_total" + l), 5);
  EXPECT_EQ(shown.samples.at("adaptive_k_tokens_total" + l), 15) << "their counts are good";
  EXPECT_EQ(shown.samples.at("adaptive_k_latency_seconds_count" + l), 0);
}

TEST(Prometheus, RefusesOptionsOutOfRange) {
  const auto refused = [](auto change) {
    prometheus_options options;
    change(options);
    try {
      prometheus_recorder recorder(options);
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(refused([](auto& o) { o.latency_buckets = {}; }).find("latency_buckets"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) {
              o.latency_buckets = {1, 1};
            }).find("ascending"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.entropy_buckets = {std::nan("")}; }).find("entropy_buckets"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.latency_buckets.assign(65, 0); }), "");
  EXPECT_NE(refused([](auto& o) { o.expert_load = 1025; }).find("1025"), std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.shards = 0; }).find("shards"), std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.max_series = std::size_t{1} << 30; }).find("max_series"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.max_label_bytes = 0; }).find("max_label_bytes is 0"),
            std::string::npos);
}

// A routed batch end to end: the histogram of entropies against the router's own output.
TEST(Prometheus, EntropiesOfARoutedBatch) {
  const int num_tokens = 501, num_experts = 60, top_k = 4;
  gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  k_policy policy = k_policy::fixed(2);
  inputs::sequence from(7001);
  std::vector<float> logits;
  for (int i = 0; i < num_tokens * num_experts; ++i)
    logits.push_back(static_cast<float>(from.next() % 1024) / 128.0f);
  std::vector<std::int32_t> ids(num_tokens * top_k), counts(num_tokens);
  std::vector<float> weights(num_tokens * top_k), entropies(num_tokens);
  routing_metrics metrics;
  const router r(g, policy);
  const status routed =
      r.route(0, {logits.data(), num_tokens, num_experts},
              {ids.data(), weights.data(), counts.data(), entropies.data()}, &metrics);
  ASSERT_TRUE(routed.ok()) << routed.message();
  counts[5] = 0;  // as padding would be

  prometheus_recorder recorder;
  auto* const series = recorder.find({"m", 0, "p"});
  recorder.record_entropies(series, entropies.data(), num_tokens, counts.data());
  double below = 0, sum = 0;
  for (int t = 0; t < num_tokens; ++t) {
    if (t == 5) continue;
    below += entropies[static_cast<std::size_t>(t)] <= 2.5 ? 1 : 0;
    sum += entropies[static_cast<std::size_t>(t)];
  }
  ASSERT_GT(sum, 100.0);
  const auto shown = parse(recorder.render());
  const std::string l = "{model=\"m\",layer=\"0\",policy=\"p\"";
  EXPECT_EQ(shown.samples.at("adaptive_k_entropy_nats_count" + l + "}"), num_tokens - 1);
  EXPECT_EQ(shown.samples.at("adaptive_k_entropy_nats_bucket" + l + ",le=\"2.5\"}"), below);
  EXPECT_NEAR(shown.samples.at("adaptive_k_entropy_nats_sum" + l + "}"), sum, 1e-3);
  const float bad[] = {-0.5f, std::nanf(""), 1024.0f, 1.0f};
  recorder.record_entropies(series, bad, 4);
  EXPECT_EQ(parse(recorder.render()).samples.at("adaptive_k_invalid_entropies_total" + l + "}"), 3);
}

}  // namespace
