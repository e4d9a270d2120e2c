// cudaMalloc to cudaMemcpyToSymbol.
#include <algorithm>
#include <cstring>

#include "device.hpp"

namespace {

using ptx::device;
using ptx::device_memory;
using ptx::region;

std::uint64_t address(const void* p) {
  return reinterpret_cast<std::uint64_t>(p);
}

/// Device memory behind a pointer; nullptr for memory of the host alone.
region* region_of(const void* p) {
  return device_memory().find(address(p));
}

bool is_device_address(const void* p) {
  return address(p) >= ptx::global_window;
}

/// Copies bytes and what is known about them. Host memory is always defined.
cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  region* target = region_of(to);
  region* source = region_of(from);
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to_device && target == nullptr) || (from_device && source == nullptr) ||
      (is_device_address(to) && target == nullptr) ||
      (is_device_address(from) && source == nullptr))
    return cudaErrorInvalidValue;
  if ((target != nullptr && !target->holds(address(to), bytes)) ||
      (source != nullptr && !source->holds(address(from), bytes)))
    return cudaErrorInvalidValue;
  const std::uint64_t at = target != nullptr ? address(to) - target->base : 0;
  const std::uint64_t origin = source != nullptr ? address(from) - source->base : 0;
  std::memmove(target != nullptr ? target->bytes + at : static_cast<std::uint8_t*>(to),
               source != nullptr ? source->bytes + origin : static_cast<const std::uint8_t*>(from),
               bytes);
  if (target != nullptr) {
    if (source != nullptr) {
      std::memmove(target->undefined + at, source->undefined + origin, bytes);
    } else {
      std::memset(target->undefined + at, 0, bytes);
    }
  }
  return cudaSuccess;
}

cudaError_t fill(void* to, int value, std::size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  region* target = region_of(to);
  if (target == nullptr || !target->holds(address(to), bytes)) return cudaErrorInvalidValue;
  const std::uint64_t at = address(to) - target->base;
  std::memset(target->bytes + at, value, bytes);
  std::memset(target->undefined + at, 0, bytes);
  return cudaSuccess;
}

cudaError_t allocate(void** pointer, std::size_t bytes) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  constexpr std::size_t limit = std::size_t{16} << 30;
  *pointer = nullptr;
  if (bytes > limit) return cudaErrorMemoryAllocation;
  if (bytes != 0) *pointer = reinterpret_cast<void*>(device_memory().allocate(bytes, "", false));
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  return device_memory().release(address(pointer)) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t allocate_host(void** pointer, std::size_t bytes, bool managed) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = device_memory().allocate_host(bytes, managed);
  return *pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

std::string size_text(std::size_t bytes) {
  return std::to_string(bytes) + " bytes";
}

cudaError_t symbol_address(const void* symbol, std::size_t offset, std::size_t bytes, void** out) {
  const ptx::symbol_record* record = device::get().find_symbol(symbol);
  if (record == nullptr) return cudaErrorInvalidSymbol;
  if (offset + bytes > record->bytes) return cudaErrorInvalidValue;
  try {
    *out = reinterpret_cast<void*>(device::get().address_of(*record) + offset);
  } catch (const std::exception&) {
    return cudaErrorInvalidPtx;
  }
  return cudaSuccess;
}

cudaError_t copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                      std::size_t width, std::size_t height, cudaMemcpyKind kind) {
  for (std::size_t y = 0; y < height; ++y) {
    const cudaError_t error = copy(static_cast<char*>(to) + y * to_pitch,
                                   static_cast<const char*>(from) + y * from_pitch, width, kind);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return device::get().done("cudaMalloc", allocate(pointer, bytes), true, size_text(bytes));
}
cudaError_t cudaFree(void* pointer) {
  return device::get().done("cudaFree", release(pointer), true);
}
cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t) {
  return device::get().done("cudaMallocAsync", allocate(pointer, bytes), false, size_text(bytes));
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  return device::get().done("cudaFreeAsync", release(pointer));
}
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return device::get().done("cudaMallocHost", allocate_host(pointer, bytes, false), true);
}
cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  return device::get().done("cudaHostAlloc", allocate_host(pointer, bytes, false), true);
}
cudaError_t cudaFreeHost(void* pointer) {
  return device::get().done("cudaFreeHost", release(pointer), true);
}
cudaError_t cudaMallocManaged(void** pointer, std::size_t bytes, unsigned) {
  return device::get().done("cudaMallocManaged", allocate_host(pointer, bytes, true), true);
}
cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) {
  *out = host;
  return device::get().done("cudaHostGetDevicePointer",
                            region_of(host) != nullptr ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return device::get().done("cudaMemcpy", copy(to, from, bytes, kind), true, size_text(bytes));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  // From or to pageable host memory it is not asynchronous at all.
  const bool pageable = region_of(to) == nullptr || region_of(from) == nullptr;
  return device::get().done("cudaMemcpyAsync", copy(to, from, bytes, kind), pageable,
                            size_text(bytes));
}
cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                         std::size_t width, std::size_t height, cudaMemcpyKind kind) {
  return device::get().done("cudaMemcpy2D",
                            copy_rows(to, to_pitch, from, from_pitch, width, height, kind), true);
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t) {
  return device::get().done("cudaMemcpy2DAsync",
                            copy_rows(to, to_pitch, from, from_pitch, width, height, kind));
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return device::get().done("cudaMemset", fill(to, value, bytes), true, size_text(bytes));
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return device::get().done("cudaMemsetAsync", fill(to, value, bytes), false, size_text(bytes));
}

cudaError_t cudaGetSymbolAddress(void** out, const void* symbol) {
  return device::get().done("cudaGetSymbolAddress", symbol_address(symbol, 0, 0, out));
}
cudaError_t cudaGetSymbolSize(std::size_t* bytes, const void* symbol) {
  const ptx::symbol_record* record = device::get().find_symbol(symbol);
  if (record != nullptr) *bytes = record->bytes;
  return device::get().done("cudaGetSymbolSize",
                            record != nullptr ? cudaSuccess : cudaErrorInvalidSymbol);
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes,
                               std::size_t offset, cudaMemcpyKind kind) {
  void* to = nullptr;
  cudaError_t error = symbol_address(symbol, offset, bytes, &to);
  if (error == cudaSuccess) error = copy(to, from, bytes, kind);
  return device::get().done("cudaMemcpyToSymbol", error, true);
}
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t bytes,
                                    std::size_t offset, cudaMemcpyKind kind, cudaStream_t) {
  void* to = nullptr;
  cudaError_t error = symbol_address(symbol, offset, bytes, &to);
  if (error == cudaSuccess) error = copy(to, from, bytes, kind);
  return device::get().done("cudaMemcpyToSymbolAsync", error);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes,
                                 std::size_t offset, cudaMemcpyKind kind) {
  void* from = nullptr;
  cudaError_t error = symbol_address(symbol, offset, bytes, &from);
  if (error == cudaSuccess) error = copy(to, from, bytes, kind);
  return device::get().done("cudaMemcpyFromSymbol", error, true);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  const region* r = region_of(pointer);
  if (r == nullptr) {
    attributes->type = cudaMemoryTypeUnregistered;
  } else {
    const bool host = device_memory().is_host(*r);
    attributes->type = device_memory().is_managed(*r) ? cudaMemoryTypeManaged
                       : host                         ? cudaMemoryTypeHost
                                                      : cudaMemoryTypeDevice;
    void* const at = const_cast<void*>(pointer);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
    attributes->devicePointer = at;
    attributes->hostPointer = host ? at : nullptr;
  }
  return device::get().done("cudaPointerGetAttributes", cudaSuccess);
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = std::size_t{16} << 30;
  *free = *total - device_memory().live_bytes();
  return device::get().done("cudaMemGetInfo", cudaSuccess);
}

}  // extern "C"
