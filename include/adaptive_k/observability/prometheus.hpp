// Metrics as Prometheus and OpenMetrics text, from routing_metrics that many threads record.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/metrics.hpp"
#include "adaptive_k/observability/lasting_sum.hpp"
#include "adaptive_k/observability/prometheus_options.hpp"
#include "adaptive_k/observability/text.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Counters that any number of threads add to, and any number render. Recording into a known series
/// takes no lock and allocates nothing: it adds atomically what is not zero. No count is lost or
/// wraps, and a rendering includes every batch whose recording ended before it began.
class prometheus_recorder {
 public:
  /// One set of labels; lives as long as its recorder.
  class series {
    friend class prometheus_recorder;
    std::unique_ptr<std::atomic<std::uint64_t>[]> cells;  // [shards, stride]
  };

  /// Throws std::invalid_argument for options outside their ranges.
  explicit prometheus_recorder(prometheus_options options = {}) : options_(std::move(options)) {
    check_buckets(options_.latency_buckets, "latency_buckets");
    check_buckets(options_.entropy_buckets, "entropy_buckets");
    if (options_.expert_load < 0 || options_.expert_load > max_experts)
      throw std::invalid_argument("prometheus_options.expert_load is " +
                                  std::to_string(options_.expert_load) + ", expected 0 to " +
                                  std::to_string(max_experts));
    if (options_.shards < 1 || options_.shards > 256)
      throw std::invalid_argument("prometheus_options.shards is " +
                                  std::to_string(options_.shards) + ", expected 1 to 256");
    check_size(options_.max_series, 0, std::size_t{1} << 20, "max_series");
    check_size(options_.max_label_bytes, 1, 65536, "max_label_bytes");
    latency_ = fixed_cells;
    entropy_ = latency_ + options_.latency_buckets.size() + 3;
    load_ = entropy_ + options_.entropy_buckets.size() + 3;
    const std::size_t cells = load_ + (options_.expert_load > 0 ? max_experts : 0);
    stride_ = (cells + 15) / 8 * 8;  // a cache line lies between two shards
  }

  prometheus_recorder(const prometheus_recorder&) = delete;
  prometheus_recorder& operator=(const prometheus_recorder&) = delete;

  /// The series of `labels`, made at its first use (a lock and an allocation; afterwards a shared
  /// lock). Keep the pointer. Null, and counted in adaptive_k_refused_labels_total, for labels past
  /// options.max_series or longer than options.max_label_bytes; recording to null counts as
  /// dropped.
  series* find(const metric_labels& labels) {
    if (labels.model.size() > options_.max_label_bytes ||
        labels.policy.size() > options_.max_label_bytes) {
      too_long_.fetch_add(1, std::memory_order_relaxed);
      return nullptr;
    }
    const auto view =
        std::make_tuple(labels.model, labels.layer < 0 ? -1 : labels.layer, labels.policy);
    {
      const std::shared_lock<std::shared_mutex> lock(mutex_);
      if (const auto found = series_.find(view); found != series_.end()) return &found->second;
    }
    const std::lock_guard<std::shared_mutex> lock(mutex_);
    if (const auto found = series_.find(view); found != series_.end()) return &found->second;
    if (series_.size() >= options_.max_series) {
      too_many_.fetch_add(1, std::memory_order_relaxed);
      return nullptr;
    }
    series made;
    made.cells.reset(
        new std::atomic<std::uint64_t>[stride_ * static_cast<std::size_t>(options_.shards)]());
    return &series_
                .emplace(
                    key(std::string(labels.model), std::get<1>(view), std::string(labels.policy)),
                    std::move(made))
                .first->second;
  }

  /// Adds one batch: its counters and how long its routing took. A latency that is negative or not
  /// finite is left out of the histogram and counted in adaptive_k_invalid_latencies_total.
  void record(series* to, const routing_metrics& batch, double latency_seconds) noexcept {
    if (to == nullptr) {
      dropped_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    std::atomic<std::uint64_t>* const cells = own_shard(*to);
    for (std::size_t k = 0; k <= max_top_k; ++k) add(cells[k_cells + k], batch.k_histogram[k]);
    add(cells[tokens], batch.tokens);
    add(cells[padding_tokens], batch.padding_tokens);
    add(cells[calls], batch.calls);
    add(cells[full_expert_calls], batch.full_expert_calls);
    add(cells[nonfinite_rows], batch.nonfinite_rows);
    add(cells[shadow_expert_calls], batch.shadow_expert_calls);
    add(cells[shadow_full_expert_calls], batch.shadow_full_expert_calls);
    add(cells[super_expert_tokens], batch.super_expert_tokens);
    add(cells[out_of_domain], batch.out_of_domain);
    // Last, and read first: no rendering shows a batch's experts without its tokens.
    cells[expert_calls].fetch_add(batch.expert_calls, std::memory_order_release);
    cells[distinct_experts].fetch_add(batch.distinct_experts, std::memory_order_release);
    record_latency(cells, latency_seconds);
  }

  /// Adds how many tokens each expert got, [num_experts]: one batch's
  /// routing_output::expert_counts, which started at zero. Ignored unless options.expert_load is
  /// above 0, and for experts past max_experts.
  void record_expert_counts(series* to, const std::uint64_t* expert_counts,
                            int num_experts) noexcept {
    if (to == nullptr) {
      dropped_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    if (options_.expert_load <= 0) return;
    std::atomic<std::uint64_t>* const cells = own_shard(*to);
    for (int e = 0; e < num_experts && e < max_experts; ++e)
      add(cells[load_ + static_cast<std::size_t>(e)], expert_counts[e]);
  }

  /// The same by labels, which are looked up; not noexcept, as the first use of a series allocates.
  void record(const metric_labels& labels, const routing_metrics& batch, double latency_seconds) {
    record(find(labels), batch, latency_seconds);
  }

  /// Adds a histogram of the router's entropies, nats, [num_tokens]: the `signal` output of a
  /// router whose signal is softmax_entropy. Tokens with k_t = 0 in `counts` (padding) are left
  /// out; null: none are. Entropies that are negative or not finite are counted like bad latencies.
  void record_entropies(series* to, const float* entropies, std::int64_t num_tokens,
                        const std::int32_t* counts = nullptr) noexcept {
    if (to == nullptr) {
      dropped_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const std::vector<double>& bounds = options_.entropy_buckets;
    std::uint64_t in_bucket[max_buckets + 1] = {};
    std::uint64_t sum = 0, bad = 0;
    std::atomic<std::uint64_t>* const cells = own_shard(*to);
    std::atomic<std::uint64_t>* const total = cells + entropy_ + bounds.size() + 1;
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      if (counts != nullptr && counts[t] == 0) continue;
      if (!(entropies[t] >= 0.0f) || !(entropies[t] < 1024.0f)) {
        ++bad;
        continue;
      }
      ++in_bucket[bucket_of(bounds, static_cast<double>(entropies[t]))];
      sum += static_cast<std::uint64_t>(detail::signal_to_fixed(entropies[t]));
      if (sum >> 62 != 0) detail::add_to_sum(total, std::exchange(sum, 0));
    }
    for (std::size_t b = 0; b <= bounds.size(); ++b) add(cells[entropy_ + b], in_bucket[b]);
    detail::add_to_sum(total, sum);
    add(cells[invalid_entropies], bad);
  }

  /// All that was recorded, as text. Cost: one pass over the counters of every series.
  std::string render(exposition format = exposition::prometheus) const {
    std::vector<snapshot> all;
    {
      const std::shared_lock<std::shared_mutex> lock(mutex_);
      all.reserve(series_.size());
      for (const auto& [labels, one] : series_) all.push_back(snapshot_of(labels, one));
    }
    const bool open = format == exposition::openmetrics;
    std::string out;
    out.reserve(last_size_.load(std::memory_order_relaxed) + 4096);
    render_latency(out, all, open);
    for (const counter& c : counters) {
      head(out, c.name, "counter", "", c.help, open);
      for (const snapshot& s : all) {
        sample(out, c.name, "_total", s.labels, "");
        line_end(out, s.cells[c.of]);
      }
    }
    render_gauges(out, all, open);
    render_k(out, all, open);
    histogram(out, all, entropy_, options_.entropy_buckets, &snapshot::entropy_nats,
              "adaptive_k_entropy_nats", "nats", "Entropy of the router's scores, by token.", open);
    if (options_.expert_load > 0) render_load(out, all, open);
    head(out, "adaptive_k_dropped_batches", "counter", "",
         "Batches not counted because their labels were refused.", open);
    out += "adaptive_k_dropped_batches_total ";
    line_end(out, dropped_.load(std::memory_order_relaxed));
    head(out, "adaptive_k_refused_labels", "counter", "",
         "Look-ups of new labels that were refused, by the limit that they passed.", open);
    for (const auto& [limit, count] : {std::make_pair("max_series", &too_many_),
                                       std::make_pair("max_label_bytes", &too_long_)}) {
      out.append("adaptive_k_refused_labels_total{limit=\"").append(limit).append("\"} ");
      line_end(out, count->load(std::memory_order_relaxed));
    }
    if (open) out += "# EOF\n";
    last_size_.store(out.size(), std::memory_order_relaxed);
    return out;
  }

 private:
  using key = std::tuple<std::string, int, std::string>;
  /// Compares views of one type: clang 14 as C++20 cannot compare tuples of two.
  struct key_less {
    using is_transparent = void;
    using view = std::tuple<std::string_view, int, std::string_view>;
    template <class Left, class Right>
    bool operator()(const Left& left, const Right& right) const noexcept {
      return view(left) < view(right);
    }
  };
  struct snapshot {
    std::string labels;  // without braces
    std::vector<std::uint64_t> cells;
    double latency_seconds = 0.0, entropy_nats = 0.0;  // sums
  };
  enum cell : std::size_t {
    expert_calls,
    distinct_experts,  // these two first: see record
    tokens,
    padding_tokens,
    calls,
    full_expert_calls,
    nonfinite_rows,
    shadow_expert_calls,
    shadow_full_expert_calls,
    super_expert_tokens,
    out_of_domain,
    invalid_latencies,
    invalid_entropies,
    k_cells,
    fixed_cells = k_cells + max_top_k + 1
  };
  struct counter {
    cell of;
    const char* name;
    const char* help;
  };
  static constexpr counter counters[] = {
      {tokens, "adaptive_k_tokens", "Tokens routed, padding left out."},
      {padding_tokens, "adaptive_k_padding_tokens", "Tokens skipped by the padding mask."},
      {calls, "adaptive_k_routing_calls", "Routing calls with at least one token."},
      {expert_calls, "adaptive_k_expert_calls", "Experts run, summed over tokens."},
      {full_expert_calls, "adaptive_k_full_expert_calls",
       "Experts that the model's own top-k would have run, summed over tokens."},
      {distinct_experts, "adaptive_k_experts_touched",
       "Distinct experts of each routing call, summed over calls."},
      {nonfinite_rows, "adaptive_k_nonfinite_rows", "Tokens with a NaN or infinite router logit."},
      {shadow_expert_calls, "adaptive_k_shadow_expert_calls",
       "Experts that the policy of calls in shadow mode would have run, summed over tokens."},
      {shadow_full_expert_calls, "adaptive_k_shadow_full_expert_calls",
       "Experts that calls in shadow mode did run: the model's own top-k, summed over tokens."},
      {super_expert_tokens, "adaptive_k_super_expert_tokens",
       "Tokens that got more experts than the rule says, as super experts are never dropped."},
      {out_of_domain, "adaptive_k_out_of_domain",
       "Tokens that do not look like those that the policy was calibrated on."},
      {invalid_latencies, "adaptive_k_invalid_latencies",
       "Recorded latencies that were negative or not finite."},
      {invalid_entropies, "adaptive_k_invalid_entropies",
       "Recorded entropies that were negative, too large or not finite."},
  };
  static constexpr std::size_t max_buckets = 64;

  static void check_buckets(const std::vector<double>& bounds, const char* name) {
    bool good = !bounds.empty() && bounds.size() <= max_buckets;
    for (std::size_t i = 0; i < bounds.size(); ++i)
      good = good && std::isfinite(bounds[i]) && (i == 0 || bounds[i - 1] < bounds[i]);
    if (!good)
      throw std::invalid_argument(std::string("prometheus_options.") + name +
                                  " is not 1 to 64 finite, ascending bounds");
  }

  static void check_size(std::size_t value, std::size_t least, std::size_t most, const char* name) {
    if (value < least || value > most)
      throw std::invalid_argument(std::string("prometheus_options.") + name + " is " +
                                  std::to_string(value) + ", expected " + std::to_string(least) +
                                  " to " + std::to_string(most));
  }

  static std::size_t bucket_of(const std::vector<double>& bounds, double value) noexcept {
    std::size_t bucket = 0;
    while (bucket < bounds.size() && value > bounds[bucket]) ++bucket;
    return bucket;
  }

  static void add(std::atomic<std::uint64_t>& to, std::uint64_t value) noexcept {
    if (value != 0) to.fetch_add(value, std::memory_order_relaxed);
  }

  std::atomic<std::uint64_t>* own_shard(series& of) const noexcept {
    static std::atomic<unsigned> threads{0};
    thread_local const unsigned own = threads.fetch_add(1, std::memory_order_relaxed);
    return of.cells.get() + stride_ * (own % static_cast<unsigned>(options_.shards));
  }

  void record_latency(std::atomic<std::uint64_t>* cells, double seconds) noexcept {
    // 31 years is no latency, and a sum takes no more than this at once.
    if (!(seconds >= 0.0) || !(seconds < 1e9)) return add(cells[invalid_latencies], 1);
    const std::vector<double>& bounds = options_.latency_buckets;
    add(cells[latency_ + bucket_of(bounds, seconds)], 1);
    detail::add_to_sum(cells + latency_ + bounds.size() + 1,
                       static_cast<std::uint64_t>(std::llround(seconds * 1e9)));
  }

  snapshot snapshot_of(const key& labels, const series& of) const {
    snapshot result;
    result.labels = label_text(labels);
    result.cells.resize(stride_);
    for (int i = 0; i < options_.shards; ++i) {
      const std::atomic<std::uint64_t>* const shard =
          of.cells.get() + stride_ * static_cast<std::size_t>(i);
      for (std::size_t c = 0; c < stride_; ++c)
        result.cells[c] += shard[c].load(std::memory_order_acquire);
      result.latency_seconds +=
          detail::value_of_sum(shard + latency_ + options_.latency_buckets.size() + 1) / 1e9;
      result.entropy_nats +=
          detail::value_of_sum(shard + entropy_ + options_.entropy_buckets.size() + 1) /
          detail::signal_scale;
    }
    return result;
  }

  static std::string label_text(const key& of) {
    std::string out = "model=\"";
    escape(out, std::get<0>(of));
    out += "\",layer=\"";
    out += std::get<1>(of) < 0 ? "all" : std::to_string(std::get<1>(of));
    out += "\",policy=\"";
    escape(out, std::get<2>(of));
    out += '"';
    return out;
  }

  static void escape(std::string& out, std::string_view value) {
    constexpr char digits[] = "0123456789ABCDEF";
    constexpr std::string_view replacement = "\xEF\xBF\xBD";
    while (!value.empty()) {
      const int length = detail::utf8_sequence(value.data(), value.size());
      const auto first = static_cast<unsigned char>(value[0]);
      const bool shown = length > 0 && first != 0;  // Prometheus takes a zero byte for the end
      const std::string_view character =
          value.substr(0, shown ? static_cast<std::size_t>(length) : 1);
      if (!shown) {
        out += replacement;
        out += digits[first >> 4];
        out += digits[first & 15];
      } else if (character == "\n") {
        out += "\\n";
      } else {
        if (character == "\\" || character == "\"") out += '\\';
        if (character == replacement) out += replacement;
        out += character;
      }
      value.remove_prefix(character.size());
    }
  }

  /// OpenMetrics names the family without _total, the older format with it; it has no UNIT.
  static void head(std::string& out, std::string_view name, std::string_view type,
                   std::string_view unit, std::string_view help, bool open) {
    std::string family(name);
    if (type == "counter" && !open) family += "_total";
    out.append("# HELP ").append(family).append(" ").append(help).append("\n");
    out.append("# TYPE ").append(family).append(" ").append(type).append("\n");
    if (open && !unit.empty())
      out.append("# UNIT ").append(family).append(" ").append(unit).append("\n");
  }

  static void sample(std::string& out, std::string_view name, std::string_view suffix,
                     const std::string& labels, std::string_view more) {
    out.append(name).append(suffix).append("{").append(labels).append(more).append("} ");
  }

  template <class Number>
  static void line_end(std::string& out, Number value) {
    detail::append_number(out, value);
    out += '\n';
  }

  void render_latency(std::string& out, const std::vector<snapshot>& all, bool open) const {
    histogram(out, all, latency_, options_.latency_buckets, &snapshot::latency_seconds,
              "adaptive_k_latency_seconds", "seconds", "Time of a routing call.", open);
  }

  /// Cells from `first`: one count a bucket, not cumulative.
  static void histogram(std::string& out, const std::vector<snapshot>& all, std::size_t first,
                        const std::vector<double>& bounds, double snapshot::*sum,
                        std::string_view name, std::string_view unit, std::string_view help,
                        bool open) {
    head(out, name, "histogram", unit, help, open);
    for (const snapshot& s : all) {
      std::uint64_t count = 0;
      for (std::size_t b = 0; b <= bounds.size(); ++b) {
        count += s.cells[first + b];
        std::string bound = ",le=\"";
        if (b < bounds.size()) {
          detail::append_number(bound, bounds[b]);
        } else {
          bound += "+Inf";
        }
        bound += '"';
        sample(out, name, "_bucket", s.labels, bound);
        line_end(out, count);
      }
      sample(out, name, "_sum", s.labels, "");
      line_end(out, s.*sum);
      sample(out, name, "_count", s.labels, "");
      line_end(out, count);
    }
  }

  static void gauge(std::string& out, const std::vector<snapshot>& all, std::string_view name,
                    std::string_view unit, std::string_view help, bool open, cell part, cell whole,
                    bool of_one) {
    head(out, name, "gauge", unit, help, open);
    for (const snapshot& s : all) {
      double value = 0.0;
      if (s.cells[whole] != 0) {
        const double ratio =
            static_cast<double>(s.cells[part]) / static_cast<double>(s.cells[whole]);
        value = of_one ? 1.0 - ratio : ratio;
      }
      sample(out, name, "", s.labels, "");
      line_end(out, value);
    }
  }

  static void render_gauges(std::string& out, const std::vector<snapshot>& all, bool open) {
    gauge(out, all, "adaptive_k_avg_k", "", "Mean experts of a token since the start.", open,
          expert_calls, tokens, false);
    gauge(out, all, "adaptive_k_compute_saved_ratio", "ratio",
          "Share of the model's own expert calls that were not run, since the start.", open,
          expert_calls, full_expert_calls, true);
    gauge(out, all, "adaptive_k_shadow_saved_ratio", "ratio",
          "Share of expert calls that the policy of calls in shadow mode would have saved.", open,
          shadow_expert_calls, shadow_full_expert_calls, true);
    gauge(out, all, "adaptive_k_distinct_experts", "",
          "Mean distinct experts of a routing call since the start.", open, distinct_experts, calls,
          false);
  }

  static void render_k(std::string& out, const std::vector<snapshot>& all, bool open) {
    head(out, "adaptive_k_k", "counter", "", "Tokens by how many experts ran for them.", open);
    for (const snapshot& s : all) {
      // Up to the model's own top-k, so that a series does not appear with its first token.
      std::uint64_t highest =
          s.cells[tokens] == 0 ? 0 : s.cells[full_expert_calls] / s.cells[tokens];
      for (std::uint64_t k = 0; k <= max_top_k; ++k)
        if (s.cells[k_cells + k] != 0 && k > highest) highest = k;
      for (std::uint64_t k = 0; k <= highest && k <= max_top_k; ++k) {
        if (k == 0 && s.cells[k_cells] == 0) continue;
        sample(out, "adaptive_k_k", "_total", s.labels, ",k=\"" + std::to_string(k) + "\"");
        line_end(out, s.cells[k_cells + k]);
      }
    }
  }

  void render_load(std::string& out, const std::vector<snapshot>& all, bool open) const {
    head(out, "adaptive_k_expert_load", "counter", "", "Tokens by expert.", open);
    const auto asked_for = static_cast<std::size_t>(options_.expert_load);
    for (const snapshot& s : all)
      for (std::size_t e = 0; e < max_experts; ++e) {
        if (e >= asked_for && s.cells[load_ + e] == 0) continue;
        sample(out, "adaptive_k_expert_load", "_total", s.labels,
               ",expert=\"" + std::to_string(e) + "\"");
        line_end(out, s.cells[load_ + e]);
      }
  }

  prometheus_options options_;
  std::size_t latency_ = 0, entropy_ = 0, load_ = 0, stride_ = 0;  // where cells lie in a shard
  mutable std::shared_mutex mutex_;                                // of the map, not of the counts
  std::map<key, series, key_less> series_;
  std::atomic<std::uint64_t> dropped_{0}, too_many_{0}, too_long_{0};
  mutable std::atomic<std::size_t> last_size_{0};  // of a rendering, to reserve as much
};

/// The recorder of programs that need only one; lives until the process ends.
inline prometheus_recorder& default_recorder() {
  static prometheus_recorder* const recorder = new prometheus_recorder;  // outlives every thread
  return *recorder;
}

ADAPTIVE_K_NAMESPACE_END
