#include "bench/adaptive_k/calibrate/model.hpp"

#include <algorithm>
#include <cstddef>

#include "bench/adaptive_k/measure/evaluation.hpp"
#include "bench/adaptive_k/measure/quality.hpp"

namespace bench {
namespace {

constexpr std::size_t most_kept_bytes = 400'000'000;

const std::int32_t* tokens_of(const calibration_text& text, std::int64_t window) {
  return text.data.tokens.data() + (text.first + window) * text.length;
}

}  // namespace

const std::vector<double>& calibration_model::full_predictions(const calibration_text& text,
                                                               std::int64_t window, int count) {
  std::vector<double>& kept = full_[{&text, {window, count}}];
  if (!kept.empty()) return kept;
  const int vocab = model_.config().vocab_size;
  const std::ptrdiff_t rows = static_cast<std::ptrdiff_t>(count) * text.length;
  const adaptive_k::router full(router_gating(), adaptive_k::k_policy::full());
  std::vector<float> logits(static_cast<std::size_t>(rows * vocab));
  model_.forward(tokens_of(text, window), count, text.length, moe_engine::route_with(full),
                 logits.data());
  kept.resize(logits.size());
  for (std::ptrdiff_t row = 0; row < rows; ++row)
    log_softmax(logits.data() + row * vocab, vocab, kept.data() + row * vocab);
  kept_bytes_ += kept.size() * sizeof(double);
  return kept;
}

std::vector<adaptive_k::window_outcome> calibration_model::run(
    const calibration_text& text, adaptive_k::window_range range,
    const adaptive_k::layer_route& route, const adaptive_k::block_observer& observe) {
  const int at_once =
      windows_per_call_ > 0 ? windows_per_call_ : windows_at_once(model_.config(), text.length);
  const int vocab = model_.config().vocab_size;
  moe_engine::observe_function shown;
  if (observe)
    shown = [&](const moe_engine::expert_outputs& block) {
      observe({block.layer, block.num_tokens, block.hidden_size, block.logits, block.residual,
               block.outputs, block.routing_bias, block.input});
    };
  moe_engine::route_function routed(route);
  if (route.heads() != nullptr) routed = {route, *route.heads()};
  std::vector<adaptive_k::window_outcome> outcomes;
  std::vector<float> logits;
  for (std::int64_t done = 0; done < range.count; done += at_once) {
    const auto count = static_cast<int>(std::min<std::int64_t>(at_once, range.count - done));
    const std::int64_t first = range.first + done;
    const std::vector<double>& full = full_predictions(text, first, count);
    logits.resize(full.size());
    model_.forward(tokens_of(text, first), count, text.length, routed, logits.data(), nullptr,
                   shown);
    quality measured;
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(text.length) * vocab;
    for (int w = 0; w < count; ++w)
      add_window(full.data() + w * size, logits.data() + w * size, tokens_of(text, first + w),
                 text.length, vocab, measured);
    for (const window_quality& window : measured.windows) {
      const auto n = static_cast<double>(window.predictions);
      outcomes.push_back(
          {window.kl / n, window.nll / n, static_cast<double>(window.agreements) / n});
    }
    if (kept_bytes_ > most_kept_bytes) {
      full_.clear();
      kept_bytes_ = 0;
    }
  }
  return outcomes;
}

}  // namespace bench
