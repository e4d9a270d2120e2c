#include "bench/adaptive_k/output/signal_text.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/names.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>

namespace bench {
namespace {

using adaptive_k::signal_kind;

/// What stands before the "=" of a bar.
const char* symbol_of(signal_kind kind) {
  switch (kind) {
    case signal_kind::topk_mass:
      return "p1";
    case signal_kind::score_ratio:
      return "ratio";
    case signal_kind::margin:
      return "margin";
    case signal_kind::none:
    case signal_kind::softmax_entropy:
    case signal_kind::normalized_entropy:
    case signal_kind::topk_entropy:
      break;
  }
  return "H";
}

const char* meaning_of(signal_kind kind) {
  switch (kind) {
    case signal_kind::softmax_entropy:
      return "entropy over all experts";
    case signal_kind::normalized_entropy:
      return "entropy over all experts / ln E";
    case signal_kind::topk_entropy:
      return "entropy over the renormalised top-K0 weights";
    case signal_kind::topk_mass:
      return "share of the first expert in the top-K0 mass";
    case signal_kind::score_ratio:
      return "second score / first score";
    case signal_kind::margin:
      return "first - second renormalised top-K0 weight";
    case signal_kind::none:
      break;
  }
  return "not computed";
}

}  // namespace

double signal_range(signal_kind kind, const adaptive_k::gating& model) {
  if (kind == signal_kind::softmax_entropy) return std::log(std::max(model.num_experts, 2));
  if (kind == signal_kind::topk_entropy) return std::log(std::max(model.top_k, 2));
  return 1.0;
}

std::string describe_signal(signal_kind kind, const adaptive_k::gating& model) {
  const std::string unit = adaptive_k::unit_of(kind);
  return fmt::format("{} = {}: {}, 0..{:.3g}{}, {} is sure", symbol_of(kind),
                     adaptive_k::to_string(kind), meaning_of(kind), signal_range(kind, model),
                     unit.empty() ? "" : " " + unit,
                     adaptive_k::detail::high_is_sure(kind) ? "high" : "low");
}

std::string inspect_line(int layer, signal_kind kind, float signal, int k,
                         const adaptive_k::gating& model, bool color) {
  constexpr int width = 24;
  const double share = static_cast<double>(signal) / signal_range(kind, model);
  const auto filled = static_cast<std::size_t>(std::lround(std::clamp(share, 0.0, 1.0) * width));
  const std::string bar(filled, '#');
  const std::string rest(width - filled, '.');
  const char* start = "";
  if (color && 2 * k <= model.top_k) {
    start = "\033[32m";
  } else if (color && k < model.top_k) {
    start = "\033[33m";
  }
  return fmt::format("  Layer {} | {}={:.2f} {}{}{}{} | K={}", layer, symbol_of(kind), signal,
                     start, bar, *start != '\0' ? "\033[0m" : "", rest, k);
}

}  // namespace bench
