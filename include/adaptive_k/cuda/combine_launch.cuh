// Host side of the combine kernel: checks, the width of its loads, the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "adaptive_k/core/expert_combine.hpp"
#include "adaptive_k/cuda/combine_kernel.cuh"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Instantiated in kernels/ for each value type. Fills in the counts of vectors.
template <class Value>
status launch_combine(combine_params params, bool overlaps, cudaStream_t stream) noexcept {
  constexpr int widest = 16 / static_cast<int>(sizeof(Value));
  const auto misaligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0;
  };
  const combine_shape& shape = params.shape;
  const bool wide = !misaligned(params.expert_outputs) && !misaligned(params.addend) &&
                    !misaligned(params.output) && shape.hidden_size % widest == 0 &&
                    shape.row_stride % widest == 0;
  params.vectors_per_token =
      static_cast<std::uint32_t>(wide ? shape.hidden_size / widest : shape.hidden_size);
  const std::int64_t vectors = shape.num_tokens * params.vectors_per_token;
  if (shape.num_tokens > 0xFFFFFFFF || vectors > 0xFFFFFFFF - combine_threads)
    return status::error(status_code::unsupported,
                         "`num_tokens` is %lld, too many for one launch with hidden_size = %d",
                         static_cast<long long>(shape.num_tokens), shape.hidden_size);
  params.num_vectors = static_cast<std::uint32_t>(vectors);
  const launch_shape grid = {
      static_cast<unsigned>((vectors + combine_threads - 1) / combine_threads), combine_threads, 0,
      stream, overlaps};
  return to_status(wide ? launch(combine_kernel<Value, widest>, grid, params)
                        : launch(combine_kernel<Value, 1>, grid, params));
}

#if defined(ADAPTIVE_K_LINKED_KERNELS)
extern template status launch_combine<float>(combine_params, bool, cudaStream_t) noexcept;
extern template status launch_combine<float16>(combine_params, bool, cudaStream_t) noexcept;
extern template status launch_combine<bfloat16>(combine_params, bool, cudaStream_t) noexcept;
#endif

/// The device twin of host/expert_combine.hpp: same bits, every pointer in device memory. Enqueues
/// one kernel on `stream`, which may overlap the kernel before it where `overlaps` says so (see
/// overlap_supported). No allocation, no synchronisation. Rows outside the experts' outputs
/// are the caller's mistake, and not found out here.
template <class Value, class Weight>
status combine_experts(const combine_shape& shape, const combine_input<Value, Weight>& input,
                       Value* output, bool overlaps, cudaStream_t stream) noexcept {
  const status checked = detail::check_combine(shape, input, output);
  if (!checked.ok() || shape.num_tokens == 0) return checked;
  combine_params params = {};
  params.shape = shape;
  if (shape.row_stride == 0) params.shape.row_stride = shape.hidden_size;
  params.expert_outputs = input.expert_outputs;
  params.row_of_slot = input.row_of_slot;
  params.topk_counts = input.topk_counts;
  params.topk_weights = input.topk_weights;
  params.addend = input.addend;
  params.output = output;
  params.weights = float_type_of<Weight>();
  return launch_combine<Value>(params, overlaps, stream);
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
