// The GPUs of a job: a rank each, with NCCL between them, none of which waits for ever.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <functional>

#include "device_layer.hpp"
#include "ranks.hpp"

namespace expert_parallel {

/// A communicator that does not block, and two streams: computing, and exchanging. What does not
/// finish within the time-out of `job` ends the job, and so does an error of CUDA or NCCL, which
/// tells of a rank that died.
class nccl_job {
 public:
  /// Takes the device number `rank` modulo the devices of this machine. The id comes by MPI.
  explicit nccl_job(const ranks& job);
  ~nccl_job();
  nccl_job(const nccl_job&) = delete;
  nccl_job& operator=(const nccl_job&) = delete;

  const ranks& job() const noexcept { return job_; }
  cudaStream_t compute() const noexcept { return compute_; }

  void check(cudaError_t result, const char* what) const;
  void check(const adaptive_k::status& result) const;
  /// Until everything enqueued on `compute` is done.
  void wait(const char* what) const;

  /// The layer on this rank's tokens, all ranks together: x [num_tokens, H], logits [num_tokens, E]
  /// and y are device memory. Waits once, for the numbers of rows, which NCCL wants on the host.
  void forward(device_layer& layer, const placement& where, int number,
               const device_experts& experts, const float* x, const float* logits,
               std::int64_t num_tokens, int hidden_size, float* y);

 private:
  void check(ncclResult_t result, const char* what) const;
  [[noreturn]] void fail(const std::string& message) const;
  void group(const char* what, const std::function<ncclResult_t()>& calls) const;
  void exchange_rows(const float* from, const rows_of_ranks& leaving, float* to,
                     const rows_of_ranks& arriving, int hidden_size, const char* what) const;
  /// What is enqueued on `later` from here on starts when `earlier` is done so far.
  void order(cudaStream_t earlier, cudaStream_t later) const;

  const ranks& job_;
  ncclComm_t communicator_ = nullptr;
  cudaStream_t compute_ = nullptr, exchange_ = nullptr;
  cudaEvent_t event_ = nullptr;
  std::int32_t* counts_ =
      nullptr;  // pinned: [1024] of slots, then [R * own], fewer than 2048, of arrivals
};

}  // namespace expert_parallel
