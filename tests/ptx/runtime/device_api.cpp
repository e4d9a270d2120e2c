// Devices, streams, events, errors. Work is done when it is asked for, so streams and events only
// keep their manners.
#include <cstring>
#include <set>

#include "device.hpp"

namespace {

using ptx::device;

/// Streams and events that exist, to catch the use of others.
std::set<const void*>& handles() {
  static auto* live = new std::set<const void*>;
  return *live;
}

template <class Handle>
cudaError_t create(Handle* out) {
  auto* token = new char;
  handles().insert(token);
  *out = reinterpret_cast<Handle>(token);
  return cudaSuccess;
}

cudaError_t destroy(const void* handle) {
  if (handles().erase(handle) == 0) return cudaErrorInvalidResourceHandle;
  delete static_cast<const char*>(handle);
  return cudaSuccess;
}

bool is_default(const void* stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

cudaError_t check(const void* handle) {
  return is_default(handle) || handles().count(handle) != 0 ? cudaSuccess
                                                            : cudaErrorInvalidResourceHandle;
}

/// What a synchronisation says: the fault of a launch before it, once.
cudaError_t take_pending() {
  const cudaError_t error = device::get().pending_error;
  device::get().pending_error = cudaSuccess;
  return error;
}

int attribute(cudaDeviceAttr which) {
  const int sm = device::get().sm();
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      return sm / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return sm % 10;
    case cudaDevAttrMultiProcessorCount:
      return 16;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return 32;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 * 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return ptx::max_shared_per_block;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 228 * 1024;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
    case cudaDevAttrTotalConstantMemory:
      return 65536;
    case cudaDevAttrL2CacheSize:
      return 32 << 20;
    case cudaDevAttrClockRate:
      return 1000000;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return device::get().done("cudaGetDeviceCount", cudaSuccess);
}
cudaError_t cudaGetDevice(int* which) {
  *which = 0;
  return device::get().done("cudaGetDevice", cudaSuccess);
}
cudaError_t cudaSetDevice(int which) {
  return device::get().done("cudaSetDevice", which == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int index) {
  if (index != 0) return device::get().done("cudaDeviceGetAttribute", cudaErrorInvalidDevice);
  *value = attribute(which);
  return device::get().done("cudaDeviceGetAttribute", cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index != 0) return device::get().done("cudaGetDeviceProperties", cudaErrorInvalidDevice);
  std::memset(properties, 0, sizeof *properties);
  std::strncpy(properties->name, "PTX interpreter", sizeof properties->name - 1);
  properties->totalGlobalMem = std::size_t{16} << 30;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = ptx::max_shared_per_block;
  properties->sharedMemPerMultiprocessor = 228 * 1024;
  properties->regsPerBlock = 65536;
  properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = attribute(cudaDevAttrComputeCapabilityMajor);
  properties->minor = attribute(cudaDevAttrComputeCapabilityMinor);
  properties->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
  properties->totalConstMem = 65536;
  properties->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  properties->unifiedAddressing = 1;
  properties->managedMemory = 1;
  return device::get().done("cudaGetDeviceProperties", cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return device::get().done("cudaDriverGetVersion", cudaSuccess);
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return device::get().done("cudaRuntimeGetVersion", cudaSuccess);
}
cudaError_t cudaDeviceSynchronize() {
  return device::get().done("cudaDeviceSynchronize", take_pending(), true);
}
cudaError_t cudaDeviceReset() {
  return device::get().done("cudaDeviceReset", cudaSuccess, true);
}

cudaError_t cudaGetLastError() {
  device& d = device::get();
  const cudaError_t error = d.last_error;
  d.last_error = d.pending_error = cudaSuccess;
  d.calls.push_back({"cudaGetLastError", "", false});
  return error;
}
cudaError_t cudaPeekAtLastError() {
  device::get().calls.push_back({"cudaPeekAtLastError", "", false});
  return device::get().last_error;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidSymbol:
      return "cudaErrorInvalidSymbol";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidPtx:
      return "cudaErrorInvalidPtx";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorMisalignedAddress:
      return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchTimeout:
      return "cudaErrorLaunchTimeout";
    case cudaErrorAssert:
      return "cudaErrorAssert";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    default:
      return "an error";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return device::get().done("cudaStreamCreate", create(stream));
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return device::get().done("cudaStreamCreateWithFlags", create(stream));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return device::get().done("cudaStreamCreateWithPriority", create(stream));
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return device::get().done("cudaStreamDestroy", destroy(stream));
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t error = check(stream);
  return device::get().done("cudaStreamSynchronize", error != cudaSuccess ? error : take_pending(),
                            true);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return device::get().done("cudaStreamQuery", check(stream));
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  *flags = cudaStreamDefault;
  return device::get().done("cudaStreamGetFlags", check(stream));
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = 0;
  return device::get().done("cudaStreamGetPriority", check(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const cudaError_t error = check(stream);
  return device::get().done("cudaStreamWaitEvent", error != cudaSuccess ? error : check(event));
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return device::get().done("cudaStreamIsCapturing", check(stream));
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return device::get().done("cudaStreamBeginCapture", cudaErrorNotSupported);
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = nullptr;
  return device::get().done("cudaStreamEndCapture", cudaErrorNotSupported);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return device::get().done("cudaEventCreate", create(event));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return device::get().done("cudaEventCreateWithFlags", create(event));
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return device::get().done("cudaEventDestroy", destroy(event));
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const cudaError_t error = check(stream);
  return device::get().done("cudaEventRecord", error != cudaSuccess ? error : check(event));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return device::get().done("cudaEventQuery", check(event));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cudaError_t error = check(event);
  return device::get().done("cudaEventSynchronize", error != cudaSuccess ? error : take_pending(),
                            true);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0;  // the interpreter knows nothing of time
  return device::get().done("cudaEventElapsedTime", cudaErrorNotSupported);
}

}  // extern "C"
