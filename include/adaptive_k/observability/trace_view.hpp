// Routing calls made visible: bars in a terminal, and a timeline that Perfetto opens.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/text.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// One layer's routing call. The arrays are the `signal` and `topk_counts` of a router whose signal
/// is an entropy; they must live while they are shown.
struct trace_call {
  int layer = 0;                         ///< counted from 0
  std::int64_t num_tokens = 0;           ///< of the call
  const float* entropies = nullptr;      ///< nats, [num_tokens]
  const std::int32_t* counts = nullptr;  ///< K, [num_tokens]; 0: a padding token, left out
  double start_us = 0.0;                 ///< since any moment, the same for all calls of a trace
  double duration_us = 0.0;              ///< at least 0
};

/// How bars of entropies and K's are drawn.
struct bar_options {
  double full_entropy = 0.0;  ///< nats, length of a full bar: ln E; 0: the highest that is shown
  int full_k = 0;             ///< the model's own top-k; 0: the highest that is shown
  int width = 24;             ///< characters of a full bar, 1 to 200
  bool color = false;         ///< green up to half of full_k, yellow below it; see color_wanted
};

/// Whether to colour output: for a terminal, unless NO_COLOR is set and not empty.
inline bool color_wanted(bool is_terminal) noexcept {
  const char* const no_color = std::getenv("NO_COLOR");
  return is_terminal && (no_color == nullptr || *no_color == '\0');
}

namespace detail {

struct bar_scale {
  double entropy = 0.0;
  double k = 0.0;
  int width = 1;
  bool color = false;
};

inline bar_scale scale_of(const std::vector<trace_call>& calls, const bar_options& options) {
  bar_scale scale;
  scale.entropy = options.full_entropy;
  scale.k = options.full_k;
  scale.width = options.width < 1 ? 1 : options.width > 200 ? 200 : options.width;
  scale.color = options.color;
  const bool find_entropy = !(scale.entropy > 0), find_k = !(scale.k > 0);
  for (const trace_call& call : calls)
    for (std::int64_t t = 0; t < call.num_tokens; ++t) {
      const auto entropy = static_cast<double>(call.entropies[t]);
      if (find_entropy && std::isfinite(entropy) && entropy > scale.entropy)
        scale.entropy = entropy;
      if (find_k && call.counts[t] > scale.k) scale.k = call.counts[t];
    }
  return scale;
}

/// Appends a bar such as "####....", `value` of `full`; an empty one where that is NaN.
inline void append_bar(std::string& out, double value, double full, int width,
                       const char* color = "") {
  int filled = 0;
  if (full > 0 && value > 0) {
    const double length = value / full * width + 0.5;
    filled = length >= width ? width : static_cast<int>(length);
  }
  if (*color != '\0' && filled > 0) out += color;
  out.append(static_cast<std::size_t>(filled), '#');
  if (*color != '\0' && filled > 0) out += "\033[0m";
  out.append(static_cast<std::size_t>(width - filled), '.');
}

/// Appends `value` with two digits after the point, right-aligned to `width`; "-" if not finite.
inline void append_fixed(std::string& out, double value, int width) {
  std::string text;
  if (std::isfinite(value) && std::abs(value) < 1e15)
    append_decimals(text, std::abs(value) < 0.005 ? 0.0 : value, 2);
  else
    text = "-";
  if (text.size() < static_cast<std::size_t>(width))
    out.append(static_cast<std::size_t>(width) - text.size(), ' ');
  out += text;
}

inline void append_entropy_and_k(std::string& out, const bar_scale& scale, double entropy,
                                 double k) {
  const char* color = "";
  if (scale.color && 2 * k <= scale.k) {
    color = "\033[32m";
  } else if (scale.color && k < scale.k) {
    color = "\033[33m";
  }
  out += "H ";
  append_fixed(out, entropy, 5);
  out += ' ';
  append_bar(out, entropy, scale.entropy, scale.width);
  out += "  K ";
  append_fixed(out, k, 5);
  out += ' ';
  append_bar(out, k, scale.k, scale.width, color);
  out += '\n';
}

struct call_means {
  std::int64_t tokens = 0;  // padding left out
  double entropy = std::numeric_limits<double>::quiet_NaN();
  double k = std::numeric_limits<double>::quiet_NaN();
};

inline call_means means_of(const trace_call& call) noexcept {
  call_means means;
  double entropy = 0.0, k = 0.0;
  std::int64_t entropies = 0;
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    if (call.counts[t] == 0) continue;
    ++means.tokens;
    k += call.counts[t];
    if (!std::isfinite(call.entropies[t])) continue;
    ++entropies;
    entropy += static_cast<double>(call.entropies[t]);
  }
  if (means.tokens > 0) means.k = k / static_cast<double>(means.tokens);
  if (entropies > 0) means.entropy = entropy / static_cast<double>(entropies);
  return means;
}

inline void append_right(std::string& out, std::int64_t value, int width) {
  std::string text;
  append_number(text, value);
  if (text.size() < static_cast<std::size_t>(width))
    out.append(static_cast<std::size_t>(width) - text.size(), ' ');
  out += text;
}

}  // namespace detail

/// One line a call: mean entropy and mean K of its tokens. Entropies that are not finite are left
/// out of the mean; a call with none shows "-".
inline std::string layer_bars(const std::vector<trace_call>& calls,
                              const bar_options& options = {}) {
  const detail::bar_scale scale = detail::scale_of(calls, options);
  std::string out;
  for (const trace_call& call : calls) {
    const detail::call_means means = detail::means_of(call);
    out += "layer ";
    detail::append_right(out, call.layer, 3);
    out += "  ";
    detail::append_entropy_and_k(out, scale, means.entropy, means.k);
  }
  return out;
}

/// One line a token of one call, without padding tokens. `names`, where given, [num_tokens], any
/// bytes, stand before the bars, with what a terminal would act upon replaced.
inline std::string token_bars(const trace_call& call, const bar_options& options = {},
                              const std::string_view* names = nullptr) {
  const detail::bar_scale scale = detail::scale_of({call}, options);
  std::string out;
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    if (call.counts[t] == 0) continue;
    out += "token ";
    detail::append_right(out, t, 5);
    out += "  ";
    detail::append_entropy_and_k(out, scale, static_cast<double>(call.entropies[t]),
                                 call.counts[t]);
    if (names == nullptr || names[t].empty()) continue;
    out.back() = ' ';  // the name goes behind, whose width nobody knows
    out += ' ';
    detail::for_each_character(names[t], [&](std::string_view character) {
      const auto first = static_cast<unsigned char>(character[0]);
      const bool c1 = first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
      out += first < 0x20 || first == 0x7F || c1 ? std::string_view("\xEF\xBF\xBD") : character;
    });
    out += '\n';
  }
  return out;
}

/// Collects calls as trace events, for ui.perfetto.dev and chrome://tracing: for each layer a track
/// with a slice for each call, and counters of entropy and K. Not for several threads at once.
class perfetto_trace {
 public:
  /// `process` names what ran, such as the model: any bytes. Process and thread ids are made up, as
  /// a track stands for a layer.
  explicit perfetto_trace(std::string_view process) {
    events_ =
        "{\"name\":\"process_name\",\"ph\":\"M\",\"ts\":0,\"pid\":1,\"tid\":0,\"args\":{\"name\":";
    detail::append_json_string(events_, process);
    events_ += "}}";
  }

  /// Adds a call: a slice with its means. With `tokens`, also the entropy and K of each token, as
  /// counters at equal steps over the call, as the time of a single token is not measured. Calls
  /// with a negative duration, or with times that are not finite or 9e15 us (285 years) or more
  /// from zero, where the viewer's clock ends, are left out and counted.
  void add(const trace_call& call, bool tokens = true) {
    if (!(call.start_us > -most_us) || !(call.duration_us >= 0) ||
        !(call.start_us + call.duration_us < most_us)) {
      ++skipped_;
      return;
    }
    if (layers_.insert(call.layer).second) name_track(call.layer);
    const detail::call_means means = detail::means_of(call);
    begin("route", 'X', call.layer, call.start_us);
    events_ += ",\"dur\":";
    detail::append_number(events_, in_ns(call.duration_us));
    events_ += ",\"cat\":\"routing\",\"args\":{\"layer\":";
    detail::append_number(events_, std::int64_t{call.layer});
    events_ += ",\"tokens\":";
    detail::append_number(events_, means.tokens);
    if (std::isfinite(means.k)) argument("avg_k", means.k);
    if (std::isfinite(means.entropy)) argument("entropy_nats", means.entropy);
    events_ += "}}";
    if (!tokens) return;
    const double step =
        call.num_tokens > 0 ? call.duration_us / static_cast<double>(call.num_tokens) : 0.0;
    for (std::int64_t t = 0; t < call.num_tokens; ++t) {
      if (call.counts[t] == 0) continue;
      const double at = call.start_us + step * static_cast<double>(t);
      counter("K", call.layer, at, call.counts[t]);
      if (std::isfinite(call.entropies[t]))
        counter("entropy_nats", call.layer, at, static_cast<double>(call.entropies[t]));
    }
  }

  /// The whole file: a JSON object in the Trace Event Format, times in microseconds.
  std::string json() const {
    return "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n" + events_ + "\n]}\n";
  }

  std::uint64_t skipped() const noexcept { return skipped_; }  ///< calls left out

 private:
  void begin(std::string_view name, char phase, int layer, double ts) {
    events_.append(",\n{\"name\":\"").append(name).append("\",\"ph\":\"");
    events_ += phase;
    events_ += "\",\"pid\":1,\"tid\":";
    detail::append_number(events_, std::int64_t{layer} + 1);  // thread 0 is no thread to Perfetto
    events_ += ",\"ts\":";
    detail::append_number(events_, in_ns(ts));
  }

  static constexpr double most_us = 9e15;  // Perfetto keeps ns in 64 bits

  /// Rounded to ns: clocks tell no more, and further digits would be noise of the conversion.
  static double in_ns(double us) noexcept { return std::round(us * 1e3) / 1e3; }

  void argument(std::string_view name, double value) {
    events_.append(",\"").append(name).append("\":");
    detail::append_number(events_, value);
  }

  /// Counters belong to a process, not to a thread: the layer is part of their name.
  void counter(std::string_view name, int layer, double ts, double value) {
    std::string full(name);
    full += " layer ";
    detail::append_number(full, std::int64_t{layer});
    begin(full, 'C', layer, ts);
    events_ += ",\"args\":{\"value\":";
    detail::append_number(events_, value);
    events_ += "}}";
  }

  void name_track(int layer) {
    begin("thread_name", 'M', layer, 0.0);
    events_ += ",\"args\":{\"name\":\"layer ";
    detail::append_number(events_, std::int64_t{layer});
    events_ += "\"}}";
    begin("thread_sort_index", 'M', layer, 0.0);
    events_ += ",\"args\":{\"sort_index\":";
    detail::append_number(events_, std::int64_t{layer});
    events_ += "}}";
  }

  std::string events_;
  std::set<int> layers_;
  std::uint64_t skipped_ = 0;
};

ADAPTIVE_K_NAMESPACE_END
