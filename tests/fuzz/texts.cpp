// What other programs read: exposition text, log lines and timelines of any labels and figures,
// parsed back by readers that are not ours.
#include <adaptive_k/observability/json_log.hpp>
#include <adaptive_k/observability/prometheus.hpp>
#include <adaptive_k/observability/trace_view.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fuzz.hpp"
#include "observability/exposition.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it
using nlohmann::json;

double drawn_number(fuzz::bytes& from) {
  switch (from.between(0, 3)) {
    case 0:
      return static_cast<double>(from.raw<std::uint16_t>()) / 1024.0;
    case 1:
      return static_cast<double>(from.raw<std::uint8_t>()) * 1e-6;
    default:
      return from.raw<double>();
  }
}

routing_metrics drawn_metrics(fuzz::bytes& from) {
  routing_metrics made;
  made.calls = from.raw<std::uint8_t>();
  made.tokens = from.raw<std::uint32_t>();
  made.padding_tokens = from.raw<std::uint8_t>();
  made.expert_calls = from.raw<std::uint32_t>();
  made.full_expert_calls = made.expert_calls + from.raw<std::uint16_t>();
  made.nonfinite_rows = from.raw<std::uint8_t>();
  made.distinct_experts = from.raw<std::uint16_t>();
  made.signal_sum_fixed = from.raw<std::int32_t>();
  made.k_histogram[from.between(0, max_top_k)] = from.raw<std::uint16_t>();
  made.super_expert_tokens = from.raw<std::uint8_t>();
  made.out_of_domain = from.raw<std::uint8_t>();
  made.touched_experts.add(from.between(0, max_experts - 1));
  return made;
}

/// The cumulative buckets of a histogram never fall, and the last is the count.
void require_histograms(const exposition_text::parsed& parsed) {
  for (const auto& [family, type] : parsed.types) {
    if (type != "histogram") continue;
    std::map<std::string, double> highest, counts;
    const std::string bucket = family + "_bucket{", count = family + "_count{";
    for (const auto& [name, value] : parsed.samples) {
      fuzz::require(value >= 0.0, "no sample below zero: " + name);
      if (name.compare(0, count.size(), count) == 0)
        counts[name.substr(count.size(), name.size() - count.size() - 1)] = value;
      const std::size_t bound = name.rfind(",le=\"");
      if (name.compare(0, bucket.size(), bucket) != 0 || bound == std::string::npos) continue;
      double& most = highest[name.substr(bucket.size(), bound - bucket.size())];
      most = std::max(most, value);
    }
    fuzz::require(counts == highest, "a histogram's count is its +Inf bucket: " + family);
  }
}

void expose(fuzz::bytes& from) {
  prometheus_options options;
  if (from.chance(3)) options.expert_load = from.between(0, 40);
  options.shards = from.between(1, 3);
  options.max_series = static_cast<std::size_t>(from.between(1, 6));
  prometheus_recorder recorder(options);
  const int batches = from.between(1, 6);
  for (int i = 0; i < batches; ++i) {
    const std::string model = from.text(40), policy = from.text(40);
    const metric_labels labels = {model, from.between(-2, 3), policy};
    recorder.record(labels, drawn_metrics(from), drawn_number(from));
    const float entropies[] = {static_cast<float>(drawn_number(from)), 1.0f};
    const std::int32_t counts[] = {from.between(0, 2), 1};
    recorder.record_entropies(recorder.find(labels), entropies, 2, from.coin() ? counts : nullptr);
  }
  for (const exposition format : {exposition::prometheus, exposition::openmetrics}) {
    const std::string text = recorder.render(format);
    fuzz::require(fuzz::is_utf8(text), "exposition text in UTF-8");
    const exposition_text::parsed parsed = exposition_text::parse(text);  // throws: a crash
    fuzz::require(parsed.ended == (format == exposition::openmetrics), "# EOF where it belongs");
    require_histograms(parsed);
  }
}

void require_text(const json& line, const char* name, const std::string& written) {
  if (written.empty()) return;
  const std::string read = line.at(name).get<std::string>();
  fuzz::require(!fuzz::is_utf8(written) || read == written, std::string(name) + " reads back");
}

void log_line(fuzz::bytes& from) {
  const std::string message = from.text(), model = from.text(), policy = from.text(),
                    trace_id = from.text(), logger = from.text();
  log_event event(drawn_metrics(from), drawn_number(from));
  event.level = static_cast<log_level>(from.between(0, 3));
  event.message = message;
  event.model = model;
  event.policy = policy;
  event.trace_id = trace_id;
  event.layer = from.between(-2, 100);
  if (from.chance(3)) event.mean_k = from.raw<double>();
  if (from.chance(3)) event.expert_savings = from.raw<double>();
  event.time = std::chrono::system_clock::time_point(
      std::chrono::system_clock::duration(from.raw<std::int64_t>()));
  for (const log_fields fields : {log_fields::ecs, log_fields::datadog}) {
    std::string out;
    append_json(out, event, logger, fields);
    fuzz::require(out.size() >= 3 && out.find('\n') == out.size() - 1, "one line");
    const json line = json::parse(out);  // throws: a crash
    fuzz::require(line.is_object(), "an object a line");
    const bool ecs = fields == log_fields::ecs;
    fuzz::require(line.at("message").is_string(), "a message");
    require_text(line, "message", message);
    require_text(line, "adaptive_k.model", model);
    require_text(line, "adaptive_k.policy", policy);
    require_text(line, ecs ? "trace.id" : "dd.trace_id", trace_id);
    require_text(line, ecs ? "log.logger" : "logger.name", logger);
    fuzz::require(line.at("adaptive_k.tokens").get<std::uint64_t>() == event.tokens, "tokens");
    if (std::isfinite(event.mean_k))
      fuzz::require(line.at("adaptive_k.avg_k").get<double>() == event.mean_k, "avg_k reads back");
    fuzz::require(line.at(ecs ? "@timestamp" : "timestamp").get<std::string>().size() == 24,
                  "a time of fixed length");
  }
}

void timeline(fuzz::bytes& from) {
  const std::string process = from.text(60);
  perfetto_trace trace(process);
  std::vector<float> entropies;
  std::vector<std::int32_t> counts;
  std::vector<trace_call> calls;
  const int number = from.between(0, 4);
  std::size_t added = 0;
  for (int i = 0; i < number; ++i) {
    const int tokens = from.between(0, 5);
    entropies.assign(static_cast<std::size_t>(tokens), 0.0f);
    counts.assign(static_cast<std::size_t>(tokens), 0);
    for (float& entropy : entropies)
      entropy =
          from.coin() ? from.raw<float>() : static_cast<float>(from.raw<std::uint8_t>()) / 64.0f;
    for (std::int32_t& count : counts) count = from.between(0, 8);
    const trace_call call = {from.between(-1, 40), tokens,
                             entropies.data(),     counts.data(),
                             drawn_number(from),   drawn_number(from)};
    trace.add(call, from.coin());
    ++added;
    bar_options options;
    options.full_entropy = drawn_number(from);
    options.full_k = from.between(0, 40);
    options.width = from.between(-1, 300);
    options.color = from.coin();
    const std::string name = from.text(20);
    const std::vector<std::string_view> names(static_cast<std::size_t>(tokens), name);
    fuzz::require(fuzz::is_utf8(layer_bars({call}, options)), "bars in UTF-8");
    fuzz::require(fuzz::is_utf8(token_bars(call, options, names.data())), "bars in UTF-8");
  }
  const json read = json::parse(trace.json());  // throws: a crash
  std::size_t slices = 0;
  for (const json& event : read.at("traceEvents")) {
    fuzz::require(event.at("ts").is_number() && event.at("pid").is_number(), "an event has a time");
    if (event.at("ph") != "X") continue;
    ++slices;
    fuzz::require(event.at("dur").get<double>() >= 0.0, "a duration of 0 or more");
  }
  fuzz::require(slices + trace.skipped() == added, "every call is a slice, or counted as skipped");
  if (fuzz::is_utf8(process))
    fuzz::require(read["traceEvents"][0]["args"]["name"] == process,
                  "the process' name reads back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::bytes from(data, size);
  switch (from.between(0, 2)) {
    case 0:
      expose(from);
      break;
    case 1:
      log_line(from);
      break;
    default:
      timeline(from);
  }
  return 0;
}
