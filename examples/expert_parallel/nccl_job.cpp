#include "nccl_job.hpp"

#include <adaptive_k/config.hpp>
#include <chrono>
#include <cstddef>
#include <string>
#include <thread>

namespace expert_parallel {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

constexpr std::size_t most_counts = std::size_t{4} * adaptive_k::max_experts;

}  // namespace

nccl_job::nccl_job(const ranks& job) : job_(job) {
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "count the devices");
  check(cudaSetDevice(job.rank() % devices), "take a device");
  check(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking), "make a stream");
  check(cudaStreamCreateWithFlags(&exchange_, cudaStreamNonBlocking), "make a stream");
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make an event");
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, most_counts * sizeof(std::int32_t)), "take pinned memory");
  counts_ = static_cast<std::int32_t*>(pinned);

  ncclUniqueId id = {};
  if (job.rank() == 0) check(ncclGetUniqueId(&id), "make NCCL's id");
  job.broadcast(&id, sizeof id, "NCCL's id");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check(ncclCommInitRankConfig(&communicator_, job.size(), id, job.rank(), &config), "start NCCL");
}

nccl_job::~nccl_job() {
  if (communicator_ != nullptr) ncclCommAbort(communicator_);
  cudaFreeHost(counts_);
  cudaEventDestroy(event_);
  cudaStreamDestroy(exchange_);
  cudaStreamDestroy(compute_);
}

void nccl_job::fail(const std::string& message) const {
  // Ends kernels that wait for another rank's.
  if (communicator_ != nullptr) ncclCommAbort(communicator_);
  job_.fail(message);
}

void nccl_job::check(cudaError_t result, const char* what) const {
  if (result != cudaSuccess)
    fail(std::string("cannot ") + what + ": " + cudaGetErrorString(result));
}

void nccl_job::check(const adaptive_k::status& result) const {
  if (!result.ok()) fail(result.message());
}

void nccl_job::check(ncclResult_t result, const char* what) const {
  const double start = now_s();
  while (result == ncclInProgress) {
    if (now_s() - start > job_.timeout_s())
      fail(std::string("waited too long to ") + what + ": a rank does not answer, so the job ends");
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (ncclCommGetAsyncError(communicator_, &result) != ncclSuccess) result = ncclSystemError;
  }
  if (result != ncclSuccess)
    fail(std::string("cannot ") + what + ": " + ncclGetErrorString(result));
}

void nccl_job::wait(const char* what) const {
  const double start = now_s();
  for (;;) {
    const cudaError_t state = cudaStreamQuery(compute_);
    if (state == cudaSuccess) return;
    if (state != cudaErrorNotReady) check(state, what);
    ncclResult_t result = ncclSuccess;
    if (ncclCommGetAsyncError(communicator_, &result) != ncclSuccess) result = ncclSystemError;
    if (result != ncclSuccess && result != ncclInProgress)
      fail(std::string("lost a rank while it waited for ") + what + ": " +
           ncclGetErrorString(result));
    if (now_s() - start > job_.timeout_s())
      fail(std::string("waited too long for ") + what +
           ": a rank does not answer, so the job ends");
    std::this_thread::yield();
  }
}

void nccl_job::group(const char* what, const std::function<ncclResult_t()>& calls) const {
  check(ncclGroupStart(), what);
  const ncclResult_t called = calls();
  const ncclResult_t ended = ncclGroupEnd();
  if (called != ncclInProgress) check(called, what);
  check(ended, what);
}

void nccl_job::order(cudaStream_t earlier, cudaStream_t later) const {
  check(cudaEventRecord(event_, earlier), "record an event");
  check(cudaStreamWaitEvent(later, event_, 0), "wait for an event");
}

void nccl_job::exchange_rows(const float* from, const rows_of_ranks& leaving, float* to,
                             const rows_of_ranks& arriving, int hidden_size,
                             const char* what) const {
  group(what, [&] {
    ncclResult_t result = ncclSuccess;
    const auto keep = [&](ncclResult_t next) {
      if (result == ncclSuccess || result == ncclInProgress) result = next;
    };
    for (int rank = 0; rank < job_.size(); ++rank) {
      const auto size = [&](const rows_of_ranks& side) {
        return at(side.counts[at(rank)] * hidden_size);
      };
      if (size(leaving) != 0)
        keep(ncclSend(from + leaving.first[at(rank)] * hidden_size, size(leaving), ncclFloat, rank,
                      communicator_, exchange_));
      if (size(arriving) != 0)
        keep(ncclRecv(to + arriving.first[at(rank)] * hidden_size, size(arriving), ncclFloat, rank,
                      communicator_, exchange_));
    }
    return result;
  });
}

void nccl_job::forward(device_layer& layer, const placement& where, int number,
                       const device_experts& experts, const float* x, const float* logits,
                       std::int64_t num_tokens, int hidden_size, float* y) {
  check(layer.route(number, x, logits, num_tokens, compute_));
  const int own = where.slots_of(job_.rank());
  order(compute_, exchange_);
  group("exchange the numbers of rows", [&] {
    ncclResult_t result = ncclSuccess;
    const auto keep = [&](ncclResult_t next) {
      if (result == ncclSuccess || result == ncclInProgress) result = next;
    };
    for (int rank = 0; rank < job_.size(); ++rank) {
      if (rank == job_.rank()) continue;
      keep(ncclSend(layer.slot_counts() + where.first_slot(rank), at(where.slots_of(rank)),
                    ncclInt32, rank, communicator_, exchange_));
      keep(ncclRecv(layer.arriving_counts() + std::int64_t{rank} * own, at(own), ncclInt32, rank,
                    communicator_, exchange_));
    }
    return result;
  });
  order(exchange_, compute_);
  std::int32_t* const arrivals = counts_ + adaptive_k::max_experts;
  check(cudaMemcpyAsync(counts_, layer.slot_counts(), at(where.num_slots()) * sizeof(std::int32_t),
                        cudaMemcpyDeviceToHost, compute_),
        "copy the numbers of rows");
  check(cudaMemcpyAsync(arrivals, layer.arriving_counts(),
                        at(std::int64_t{job_.size()} * own) * sizeof(std::int32_t),
                        cudaMemcpyDeviceToHost, compute_),
        "copy the numbers of rows");
  wait("the numbers of rows from other ranks");
  check(layer.plan(counts_, arrivals));

  // The exchange stream is behind the compute stream already: this rank's experts run while it
  // sends and receives.
  exchange_rows(layer.inputs(), layer.leaving(), layer.arrived(), layer.arriving(), hidden_size,
                "send rows to experts");
  check(layer.run_own(experts, compute_));
  order(exchange_, compute_);
  check(layer.run_arrivals(experts, compute_));
  order(compute_, exchange_);
  exchange_rows(layer.answers(), layer.arriving(), layer.outputs(), layer.leaving(), hidden_size,
                "send rows back");
  order(exchange_, compute_);
  check(layer.combine(y, compute_));
}

}  // namespace expert_parallel
