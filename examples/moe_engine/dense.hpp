// The engine's dense algebra: one weight matrix, packed once, multiplied many times.
#pragma once

#include <cstdint>
#include <memory>

namespace moe_engine {

/// W [outputs, inputs] in the layout that the backend's kernels read (oneDNN where CMake found it,
/// else Eigen). Immutable once packed; threads may multiply at the same time.
class dense {
 public:
  dense();
  dense(const float* weight /* [outputs, inputs] */, int outputs, int inputs);
  dense(dense&&) noexcept;
  dense& operator=(dense&&) noexcept;
  ~dense();

  int outputs() const noexcept;
  int inputs() const noexcept;

  /// y [rows, outputs] = x [rows, inputs] W^T. Call it inside `parallel_for`: it computes in the
  /// calling thread alone.
  void multiply(const float* x, std::int64_t rows, float* y) const;

  /// "oneDNN" or "Eigen".
  static const char* backend() noexcept;

 private:
  struct packed;
  std::unique_ptr<packed> packed_;
};

}  // namespace moe_engine
