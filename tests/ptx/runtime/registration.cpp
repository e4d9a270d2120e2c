// The entry points that nvcc's host code calls: registration in static constructors, and <<<>>>.
#include <algorithm>
#include <vector>

#include "device.hpp"

namespace {

struct call_configuration {
  dim3 grid;
  dim3 threads;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
};

std::vector<call_configuration>& configurations() {
  static auto* stack = new std::vector<call_configuration>;
  return *stack;
}

ptx::fat_binary* binary_of(void** handle) {
  return reinterpret_cast<ptx::fat_binary*>(handle);
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(ptx::device::get().add_binary(wrapper));
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  ptx::device::get().add_kernel(binary_of(handle), host, name);
}

void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, std::size_t bytes,
                       int, int) {
  ptx::device::get().add_symbol(host, {binary_of(handle), name, bytes, nullptr});
}

void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int,
                              std::size_t bytes, int, int) {
  ptx::device::get().add_symbol(host, {binary_of(handle), name, bytes, host});
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, std::size_t shared,
                                     cudaStream_t stream) {
  configurations().push_back({grid, threads, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, std::size_t* shared,
                                       void* stream) {
  if (configurations().empty()) return cudaErrorMissingConfiguration;
  const call_configuration c = configurations().back();
  configurations().pop_back();
  *grid = c.grid;
  *threads = c.threads;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  ptx::kernel_record* record = ptx::device::get().find_kernel(host);
  *kernel = reinterpret_cast<cudaKernel_t>(record);
  return record != nullptr ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 threads, void** arguments,
                             std::size_t shared, cudaStream_t) {
  ptx::device& d = ptx::device::get();
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr) return d.done("cudaLaunchKernel", cudaErrorInvalidDeviceFunction);
  return d.launch(*kernel, grid, threads, arguments, shared);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 threads, void** arguments,
                               std::size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, threads, arguments, shared,
                          stream);
}

cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 threads, void** arguments,
                                    std::size_t shared, cudaStream_t stream) {
  return __cudaLaunchKernel(kernel, grid, threads, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host,
                                void** arguments) {
  ptx::device& d = ptx::device::get();
  bool overlaps = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    const bool clustered = a.id == cudaLaunchAttributeClusterDimension &&
                           a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z > 1;
    const bool cooperative = a.id == cudaLaunchAttributeCooperative && a.val.cooperative != 0;
    if (clustered || cooperative) return d.done("cudaLaunchKernelExC", cudaErrorNotSupported);
    if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization)
      overlaps = a.val.programmaticStreamSerializationAllowed != 0;
  }
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr) return d.done("cudaLaunchKernelExC", cudaErrorInvalidDeviceFunction);
  return d.launch(*kernel, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                  overlaps);
}

cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, std::size_t,
                                        cudaStream_t) {
  return ptx::device::get().done("cudaLaunchCooperativeKernel", cudaErrorNotSupported);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  ptx::device& d = ptx::device::get();
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr) return d.done("cudaFuncGetAttributes", cudaErrorInvalidDeviceFunction);
  *attributes = {};
  try {
    const ptx::module& unit = d.load(*kernel->home);
    const ptx::program& code = d.load(*kernel->home).kernel(kernel->name);
    attributes->sharedSizeBytes = code.static_shared;
    attributes->localSizeBytes = code.local_bytes;
    attributes->maxThreadsPerBlock = static_cast<int>(code.max_threads);
    attributes->numRegs = 32;  // not known without ptxas
    attributes->ptxVersion = unit.target();
    attributes->binaryVersion = unit.target();
    attributes->maxDynamicSharedSizeBytes =
        kernel->max_dynamic_shared != 0
            ? kernel->max_dynamic_shared
            : ptx::shared_unasked - static_cast<int>(code.static_shared);
  } catch (const std::exception&) {
    return d.done("cudaFuncGetAttributes", cudaErrorInvalidPtx);
  }
  return d.done("cudaFuncGetAttributes", cudaSuccess);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  ptx::device& d = ptx::device::get();
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr) return d.done("cudaFuncSetAttribute", cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > ptx::max_shared_per_block)
      return d.done("cudaFuncSetAttribute", cudaErrorInvalidValue);
    kernel->max_dynamic_shared = value;
  }
  return d.done("cudaFuncSetAttribute", cudaSuccess);
}

cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) {
  return ptx::device::get().done("cudaFuncSetCacheConfig", cudaSuccess);
}

cudaError_t cudaFuncGetName(const char** name, const void* host) {
  ptx::device& d = ptx::device::get();
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr) return d.done("cudaFuncGetName", cudaErrorInvalidDeviceFunction);
  *name = kernel->name.c_str();
  return d.done("cudaFuncGetName", cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host,
                                                                   int threads, std::size_t shared,
                                                                   unsigned) {
  const char* name = "cudaOccupancyMaxActiveBlocksPerMultiprocessor";
  ptx::device& d = ptx::device::get();
  ptx::kernel_record* kernel = d.find_kernel(host);
  if (kernel == nullptr || threads <= 0) return d.done(name, cudaErrorInvalidValue);
  std::size_t used = shared;
  try {
    used += d.load(*kernel->home).kernel(kernel->name).static_shared;
  } catch (const std::exception&) {
    return d.done(name, cudaErrorInvalidPtx);
  }
  const int by_threads = 2048 / threads;
  const int by_shared =
      used == 0 ? 32 : static_cast<int>(static_cast<std::size_t>(ptx::max_shared_per_block) / used);
  *blocks = std::max(0, std::min({by_threads, by_shared, 32}));
  return d.done(name, cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host,
                                                          int threads, std::size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}

}  // extern "C"
