// `dense` whose rows do not depend on one another to the last bit: one sum after the other.
#include <moe_engine/dense.hpp>
#include <vector>

namespace moe_engine {

struct dense::packed {
  std::vector<float> weight;  // [outputs, inputs]
  int outputs;
  int inputs;
};

dense::dense() = default;
dense::dense(dense&&) noexcept = default;
dense& dense::operator=(dense&&) noexcept = default;
dense::~dense() = default;

dense::dense(const float* weight, int outputs, int inputs)
    : packed_(new packed{
          {weight, weight + static_cast<std::size_t>(outputs) * static_cast<std::size_t>(inputs)},
          outputs,
          inputs}) {}

int dense::outputs() const noexcept {
  return packed_ ? packed_->outputs : 0;
}

int dense::inputs() const noexcept {
  return packed_ ? packed_->inputs : 0;
}

void dense::multiply(const float* x, std::int64_t rows, float* y) const {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* w = packed_->weight.data();
    for (int o = 0; o < outputs(); ++o, w += inputs()) {
      float sum = 0.0f;
      for (int i = 0; i < inputs(); ++i) sum += w[i] * x[r * inputs() + i];
      y[r * outputs() + o] = sum;
    }
  }
}

const char* dense::backend() noexcept {
  return "ordered";
}

}  // namespace moe_engine
