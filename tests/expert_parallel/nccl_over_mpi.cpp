// A stand-in for the NCCL calls of the example, over MPI, for memory of the interpreter's runtime.
// It knows no streams: what is enqueued happens at once, as the interpreter's launches do. Calls
// that may be in progress say so once, as a communicator that does not block does.
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

struct ncclComm {
  MPI_Comm ranks = MPI_COMM_NULL;
  bool in_progress = false;
};

namespace {

struct transfer {
  bool sends;
  const void* from;
  void* to;
  std::size_t bytes;
  int peer;
  ncclComm* communicator;
};

bool grouped = false;
std::vector<transfer> transfers;

std::size_t bytes_of(std::size_t count, ncclDataType_t type) {
  if (type == ncclFloat || type == ncclInt32) return 4 * count;
  std::fprintf(stderr, "the stand-in for NCCL knows float and int32 alone\n");
  std::abort();
}

ncclResult_t add(const transfer& each) {
  int ranks = 0;
  MPI_Comm_size(each.communicator->ranks, &ranks);
  if (!grouped || each.peer < 0 || each.peer >= ranks) return ncclInvalidUsage;
  transfers.push_back(each);
  return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  id->internal[0] = 7;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  int own_rank = 0, own_ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &own_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &own_ranks);
  if (ranks != own_ranks || rank != own_rank || id.internal[0] != 7 || config->blocking != 0)
    return ncclInvalidArgument;
  *made = new ncclComm;
  MPI_Comm_dup(MPI_COMM_WORLD, &(*made)->ranks);
  (*made)->in_progress = true;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* result) {
  *result = communicator->in_progress ? ncclInProgress : ncclSuccess;
  communicator->in_progress = false;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  delete communicator;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t) {
  return "refused by the stand-in";
}

ncclResult_t ncclGroupStart() {
  if (grouped) return ncclInvalidUsage;
  grouped = true;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t) {
  return add({true, from, nullptr, bytes_of(count, type), peer, communicator});
}

ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t) {
  return add({false, nullptr, to, bytes_of(count, type), peer, communicator});
}

ncclResult_t ncclGroupEnd() {
  if (!grouped) return ncclInvalidUsage;
  grouped = false;
  std::vector<std::vector<char>> buffers(transfers.size());
  std::vector<MPI_Request> requests(transfers.size());
  for (std::size_t i = 0; i < transfers.size(); ++i) {
    const transfer& each = transfers[i];
    buffers[i].resize(each.bytes);
    const auto bytes = static_cast<int>(each.bytes);
    if (each.sends) {
      if (cudaMemcpy(buffers[i].data(), each.from, each.bytes, cudaMemcpyDeviceToHost) !=
          cudaSuccess)
        return ncclUnhandledCudaError;
      MPI_Isend(buffers[i].data(), bytes, MPI_BYTE, each.peer, 0, each.communicator->ranks,
                &requests[i]);
    } else {
      MPI_Irecv(buffers[i].data(), bytes, MPI_BYTE, each.peer, 0, each.communicator->ranks,
                &requests[i]);
    }
  }
  for (std::size_t i = 0; i < transfers.size(); ++i) {
    MPI_Status status;
    int bytes = 0;
    MPI_Wait(&requests[i], &status);
    if (transfers[i].sends) continue;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (static_cast<std::size_t>(bytes) != transfers[i].bytes) return ncclInternalError;
    if (cudaMemcpy(transfers[i].to, buffers[i].data(), transfers[i].bytes,
                   cudaMemcpyHostToDevice) != cudaSuccess)
      return ncclUnhandledCudaError;
  }
  ncclComm* const communicator = transfers.empty() ? nullptr : transfers.front().communicator;
  transfers.clear();
  if (communicator == nullptr) return ncclSuccess;
  communicator->in_progress = true;
  return ncclInProgress;
}

}  // extern "C"
