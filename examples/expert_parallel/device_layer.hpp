// One rank's half of a MoE layer on a GPU: everything but the exchange, which NCCL does, or a test.
#pragma once

#include <cuda_runtime_api.h>
#include <adaptive_k/host/router.hpp>
#include <adaptive_k/status.hpp>
#include <cstdint>
#include <memory>
#include <vector>

#include "placement.hpp"

namespace expert_parallel {

/// This rank's experts, in device memory, slot by slot.
struct device_experts {
  const float* gate = nullptr;  ///< [slots, H, F]
  const float* up = nullptr;    ///< [slots, H, F]
  const float* down = nullptr;  ///< [slots, F, H]
};

/// Rows to each rank, or from it, and where they begin.
struct rows_of_ranks {
  std::vector<std::int64_t> counts, first;  ///< [R]; none for the rank itself
};

/// A call is: `route`; exchange `slot_counts` for `arriving_counts`; `plan`; send the leaving rows
/// of `inputs` to `arrived` of other ranks, and meanwhile `run_own`; `run_arrivals`; send the
/// arriving rows of `answers` back to `outputs`; `combine`. All but `plan` enqueue on a stream and
/// do not wait; buffers grow in `route` and `plan`. With equal weights the bits are those of the
/// host's.
class device_layer {
 public:
  device_layer(const placement& where, int rank, const adaptive_k::router& router, int hidden_size,
               int intermediate_size);
  ~device_layer();
  device_layer(const device_layer&) = delete;
  device_layer& operator=(const device_layer&) = delete;

  /// The same policies moved, as a controller moves them: uploaded in place.
  adaptive_k::status replace(const adaptive_k::router& router, cudaStream_t stream);

  /// Device memory: x [T, H], logits [T, E].
  adaptive_k::status route(int layer, const float* x, const float* logits, std::int64_t num_tokens,
                           cudaStream_t stream);
  const std::int32_t* slot_counts() const noexcept;  ///< [S], device: rows for each slot
  std::int32_t* arriving_counts() noexcept;  ///< [R, own slots], device; the own rank's are 0
  /// The two arrays, copied to the host.
  adaptive_k::status plan(const std::int32_t* slot_counts, const std::int32_t* arriving_counts);
  const rows_of_ranks& leaving() const noexcept;   ///< of `inputs` and `outputs`
  const rows_of_ranks& arriving() const noexcept;  ///< of `arrived` and `answers`
  const float* inputs() const noexcept;            ///< [rows, H], device, as the next three
  float* outputs() noexcept;
  float* arrived() noexcept;
  const float* answers() const noexcept;
  adaptive_k::status run_own(const device_experts& experts, cudaStream_t stream);
  adaptive_k::status run_arrivals(const device_experts& experts, cudaStream_t stream);
  /// y [T, H], device.
  adaptive_k::status combine(float* y, cudaStream_t stream);

 private:
  struct state;
  std::unique_ptr<state> state_;
};

/// y [rows, outputs] = x [rows, inputs] W [inputs, outputs], device memory, in the host's order.
adaptive_k::status multiply_on_device(const float* x, const float* weight, std::int64_t rows,
                                      int inputs, int outputs, float* y, cudaStream_t stream);

/// x [count] = (x + y) / 2.
adaptive_k::status average_on_device(float* x, const float* y, std::int64_t count,
                                     cudaStream_t stream);

}  // namespace expert_parallel
