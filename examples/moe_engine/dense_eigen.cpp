// `dense` by Eigen: column-major weights, so that the packing inside each product is a plain copy.
#include <Eigen/Core>

#include "dense.hpp"

namespace moe_engine {

using column_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct dense::packed {
  column_major weight;  // [outputs, inputs]
};

dense::dense() = default;
dense::dense(dense&&) noexcept = default;
dense& dense::operator=(dense&&) noexcept = default;
dense::~dense() = default;

dense::dense(const float* weight, int outputs, int inputs)
    : packed_(new packed{Eigen::Map<const row_major>(weight, outputs, inputs)}) {}

int dense::outputs() const noexcept {
  return packed_ ? static_cast<int>(packed_->weight.rows()) : 0;
}

int dense::inputs() const noexcept {
  return packed_ ? static_cast<int>(packed_->weight.cols()) : 0;
}

void dense::multiply(const float* x, std::int64_t rows, float* y) const {
  // Transposed throughout: a row-major [rows, n] is a column-major [n, rows].
  const Eigen::Map<const column_major> in(x, inputs(), rows);
  Eigen::Map<column_major> out(y, outputs(), rows);
  if (rows == 1)
    out.col(0).noalias() = packed_->weight * in.col(0);
  else
    out.noalias() = packed_->weight * in;
}

const char* dense::backend() noexcept {
  return "Eigen";
}

}  // namespace moe_engine
