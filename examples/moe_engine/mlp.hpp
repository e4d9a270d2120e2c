// The feed-forward network that every token runs: of a dense layer, or of shared experts.
#pragma once

#include <cstdint>

#include "dense.hpp"

namespace moe_engine {

/// activations [size] = silu(gate) * up.
void swiglu(const float* gate, const float* up, int size, float* activations);

/// down (silu(gate x) * up x)
class gated_mlp {
 public:
  gated_mlp() = default;
  /// gate, up [width, hidden_size], down [hidden_size, width].
  gated_mlp(int hidden_size, int width, const float* gate, const float* up, const float* down);

  int width() const noexcept { return down_.inputs(); }

  /// y [rows, hidden_size] of x [rows, hidden_size], on all cores.
  void forward(const float* x, std::int64_t rows, float* y) const;

 private:
  dense gate_up_;  // gate over up
  dense down_;
};

}  // namespace moe_engine
