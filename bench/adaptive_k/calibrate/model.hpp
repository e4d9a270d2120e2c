// The example engine as the calibrator sees a model.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <cstddef>
#include <cstdint>
#include <map>
#include <moe_engine/engine.hpp>
#include <utility>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"

namespace bench {

/// Windows `first` .. `first + count - 1` of a data set cut into windows of `length` tokens.
struct calibration_text {
  dataset data;
  std::int64_t first = 0;
  std::int64_t count = 0;
  int length = 0;
};

/// What adaptive_k::calibrator asks of a model. Keeps the full-K predictions of texts up to
/// 400 MB; a larger one runs under full K again each time.
class calibration_model {
 public:
  /// At most `windows_per_call` go through the model together; 0: as many as `evaluate` takes.
  explicit calibration_model(moe_engine::engine& model, int windows_per_call = 0)
      : model_(model), windows_per_call_(windows_per_call) {}

  const adaptive_k::gating& router_gating() const { return model_.config().gating; }
  int num_layers() const { return model_.config().num_moe_layers; }
  int window_length(const calibration_text& text) const { return text.length; }
  std::int64_t num_windows(const calibration_text& text) const { return text.count; }

  std::vector<adaptive_k::window_outcome> run(const calibration_text& text,
                                              adaptive_k::window_range range,
                                              const adaptive_k::layer_route& route,
                                              const adaptive_k::block_observer& observe);

 private:
  const std::vector<double>& full_predictions(const calibration_text& text, std::int64_t window,
                                              int count);

  moe_engine::engine& model_;
  int windows_per_call_;
  // By text and first window of a batch: log-probabilities [windows, length, vocab_size].
  std::map<std::pair<const calibration_text*, std::pair<std::int64_t, int>>, std::vector<double>>
      full_;
  std::size_t kept_bytes_ = 0;
};

}  // namespace bench
