#include "mlp.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "parallel.hpp"

namespace moe_engine {

void swiglu(const float* gate, const float* up, int size, float* activations) {
  const Eigen::Map<const Eigen::ArrayXf> g(gate, size);
  const Eigen::Map<const Eigen::ArrayXf> u(up, size);
  Eigen::Map<Eigen::ArrayXf>(activations, size) = g / (1.0f + (-g).exp()) * u;
}

gated_mlp::gated_mlp(int hidden_size, int width, const float* gate, const float* up,
                     const float* down)
    : down_(down, hidden_size, width) {
  const auto size = static_cast<std::ptrdiff_t>(width) * hidden_size;
  std::vector<float> both(gate, gate + size);
  both.insert(both.end(), up, up + size);
  gate_up_ = dense(both.data(), 2 * width, hidden_size);
}

void gated_mlp::forward(const float* x, std::int64_t rows, float* y) const {
  const int width = down_.inputs();
  parallel_ranges(rows, row_block, [&](std::int64_t begin, std::int64_t end) {
    thread_local std::vector<float> buffer;
    const std::int64_t count = end - begin;
    const auto needed = static_cast<std::size_t>(count * 3 * width);
    buffer.resize(std::max(buffer.size(), needed));
    float* gate_up = buffer.data();                    // [count, 2 * width]
    float* activations = gate_up + count * 2 * width;  // [count, width]
    gate_up_.multiply(x + begin * gate_up_.inputs(), count, gate_up);
    for (std::int64_t row = 0; row < count; ++row) {
      const float* gate = gate_up + row * 2 * width;
      swiglu(gate, gate + width, width, activations + row * width);
    }
    down_.multiply(activations, count, y + begin * down_.outputs());
  });
}

}  // namespace moe_engine
