// Host side of the permute kernel: checks, workspace, the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "adaptive_k/core/permutation.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/permute_kernel.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

namespace permute_detail {

/// How many blocks count a permutation of `num_tokens`: none but one at work up to one chunk.
constexpr int num_parts(std::int64_t num_tokens) noexcept {
  const std::int64_t chunks = (num_tokens + chunk_tokens - 1) / chunk_tokens;
  const std::int64_t each = (chunks + max_counting_blocks - 1) / max_counting_blocks;
  return chunks <= 1 ? 1 : static_cast<int>((chunks + each - 1) / each);
}

inline constexpr std::size_t header_bytes = 16;
static_assert(sizeof(permute_tickets) <= header_bytes, "the counts follow the tickets, aligned");

/// Never less for more tokens, so that a workspace for the largest call serves every other.
inline std::size_t workspace_bytes(const permutation_shape& shape) noexcept {
  const std::int64_t chunks = (shape.num_tokens + chunk_tokens - 1) / chunk_tokens;
  if (chunks <= 1) return header_bytes;
  const auto parts = chunks < max_counting_blocks ? chunks : max_counting_blocks;
  return header_bytes + static_cast<std::size_t>(parts) *
                            static_cast<std::size_t>(detail::local_experts(shape)) *
                            sizeof(std::int32_t);
}

/// What is looked at when only the workspace's size is asked for.
inline status check_shape(const permutation_shape& shape, bool has_map,
                          const std::size_t* workspace_bytes) noexcept {
  if (workspace_bytes == nullptr)
    return status::error(status_code::invalid_argument, "`workspace_bytes` is null");
  return detail::check_permutation(shape, true, has_map);
}

inline status check_workspace(const void* workspace, std::size_t given,
                              std::size_t needed) noexcept {
  if (given < needed)
    return status::error(status_code::invalid_argument,
                         "`workspace_bytes` is %zu, this shape needs %zu", given, needed);
  if (reinterpret_cast<std::uintptr_t>(workspace) % header_bytes != 0)
    return status::error(status_code::invalid_argument, "`workspace` is not aligned to %zu bytes",
                         header_bytes);
  return {};
}

/// `shape` and `workspace` are checked.
template <class Id>
permute_params make_params(const permutation_shape& shape, const permutation_input<Id>& input,
                           const permutation_output& output, void* workspace) noexcept {
  permute_params params = {};
  params.shape = shape;
  params.shape.num_local_experts = detail::local_experts(shape);
  params.topk_ids = input.topk_ids;
  params.topk_counts = input.topk_counts;
  params.expert_map = input.expert_map;
  params.output = output;
  params.capacity = static_cast<std::int32_t>(permuted_capacity(shape));
  params.num_parts = num_parts(shape.num_tokens);
  params.tickets = static_cast<permute_tickets*>(workspace);
  params.part_counts =
      reinterpret_cast<std::int32_t*>(static_cast<char*>(workspace) + header_bytes);
  params.ids = id_type_of<Id>();
  return params;
}

}  // namespace permute_detail

/// Instantiated in kernels/. With many parts the tickets are zero when the kernel starts.
template <bool ManyParts>
status launch_permute(const permute_params& params, bool overlaps, cudaStream_t stream) noexcept {
  const int blocks = ManyParts ? 2 * params.num_parts : 1;
  const int bytes = permute_detail::chunk_memory::bytes(params.shape.num_local_experts);
  return to_status(launch(permute_kernel<ManyParts>,
                          {static_cast<unsigned>(blocks), permute_threads,
                           static_cast<std::size_t>(bytes), stream, overlaps},
                          params));
}

/// Whether the kernels, as compiled for the current device, may overlap the kernel before them
/// (sm_90 and later). A query of the runtime: ask once, not at every launch.
template <bool ManyParts = false>
status overlap_supported(bool* supported) noexcept {
  return to_status(waits_itself(permute_kernel<ManyParts>, supported));
}

#if defined(ADAPTIVE_K_LINKED_KERNELS)
extern template status overlap_supported<false>(bool*) noexcept;
extern template status launch_permute<false>(const permute_params&, bool, cudaStream_t) noexcept;
extern template status launch_permute<true>(const permute_params&, bool, cudaStream_t) noexcept;
#endif

/// What a routing call permutes by, in the same launch or the next.
struct expert_major {
  permutation_output output;                 ///< as the host's
  int block_size = 1;                        ///< as permutation_shape
  int num_local_experts = 0;                 ///< likewise
  const std::int32_t* expert_map = nullptr;  ///< as permutation_input
};

/// The device twin of host/permutation.hpp: same bits, every pointer in device memory. Two calls,
/// as CUB has it: with a null `workspace` only `*workspace_bytes` is set; else one launch is
/// enqueued on `stream`, before it, above 256 tokens, a memset of 8 bytes. No allocation, no
/// synchronisation. `overlaps`: the launch may overlap the kernel before it (see
/// overlap_supported); not after a memset. The workspace needs no initialisation, an alignment of
/// 16 bytes, and is free for other use when the kernel is done. What it takes never falls with T.
template <class Id = std::int32_t>
status permute(const permutation_shape& shape, const permutation_input<Id>& input,
               const permutation_output& output, void* workspace, std::size_t* workspace_bytes,
               bool overlaps, cudaStream_t stream) noexcept {
  const bool has_map = workspace == nullptr || input.expert_map != nullptr;
  status checked = permute_detail::check_shape(shape, has_map, workspace_bytes);
  if (!checked.ok()) return checked;
  const std::size_t needed = permute_detail::workspace_bytes(shape);
  if (workspace == nullptr) {
    *workspace_bytes = needed;
    return {};
  }
  checked = detail::check_permutation(shape, input.topk_ids != nullptr, has_map);
  if (checked.ok()) checked = permute_detail::check_workspace(workspace, *workspace_bytes, needed);
  if (!checked.ok()) return checked;
  const permute_params params = permute_detail::make_params(shape, input, output, workspace);
  if (params.num_parts == 1) return launch_permute<false>(params, overlaps, stream);
  const status cleared =
      to_status(cudaMemsetAsync(params.tickets, 0, offsetof(permute_tickets, arrived), stream));
  return cleared.ok() ? launch_permute<true>(params, false, stream) : cleared;
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END
