// Runs a model over a data set under several routings at once, side by side.
#pragma once

#include <moe_engine/engine.hpp>
#include <utility>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"
#include "bench/adaptive_k/measure/quality.hpp"
#include "bench/adaptive_k/measure/variant.hpp"

namespace bench {

/// A routing and what came of it.
struct evaluated {
  explicit evaluated(variant way) : routing(std::move(way)) {}

  variant routing;
  quality result;
  std::vector<double> moe_seconds;    ///< per batch of windows
  std::vector<double> total_seconds;  ///< per batch of windows
};

/// Windows run in one call: 16, or fewer where their logits would take more than 256 MB.
int windows_at_once(const moe_engine::model_config& model, int length);

/// Every batch of windows runs under every routing before the next one does, so that whatever
/// disturbs the machine meets them all. `routings[0]` is full K, the reference of all quality;
/// the first two take turns in going first. A first, unmeasured run warms up.
void evaluate(moe_engine::engine& model, const dataset& data, const window_plan& plan,
              std::vector<evaluated>& routings);

}  // namespace bench
