// Signals as words and bars.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/core/signal.hpp>
#include <string>

namespace bench {

/// The largest value that the signal reaches, the length of a full bar.
double signal_range(adaptive_k::signal_kind kind, const adaptive_k::gating& model);

/// Name, unit, range, and which end is sure.
std::string describe_signal(adaptive_k::signal_kind kind, const adaptive_k::gating& model);

/// "Layer 0 | H=0.42 ####.... | K=1". With `color` the bar is green up to half of K0, yellow below
/// K0.
std::string inspect_line(int layer, adaptive_k::signal_kind kind, float signal, int k,
                         const adaptive_k::gating& model, bool color);

}  // namespace bench
