// The state behind the runtime stand-in: fat binaries, kernels, symbols, errors, the call log.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../interpreter/machine.hpp"
#include "../interpreter/module.hpp"
#include "../ptx_device.hpp"

namespace ptx {

/// What nvcc registers at start-up; parsed when something first needs it.
struct fat_binary {
  const void* wrapper = nullptr;
  std::vector<ptx_image> images;
  std::unique_ptr<module> loaded;
};

struct kernel_record {
  fat_binary* home = nullptr;
  std::string name;            // mangled
  int max_dynamic_shared = 0;  // 0: the kernel has not asked for more than is given unasked
};

struct symbol_record {
  fat_binary* home = nullptr;
  std::string name;
  std::size_t bytes = 0;
  void** managed = nullptr;  // where the host keeps its pointer
};

class device {
 public:
  static device& get();

  // Registration.
  fat_binary* add_binary(const void* wrapper);
  void add_kernel(fat_binary* home, const void* host, const char* name);
  void add_symbol(const void* host, const symbol_record& record);
  /// nullptr when `host` is neither a kernel's stub nor a handle of one.
  kernel_record* find_kernel(const void* host);
  const symbol_record* find_symbol(const void* host) const;
  module& load(fat_binary& binary);
  std::uint64_t address_of(const symbol_record& symbol);

  /// `overlaps`: the launch may overlap the kernel before it.
  cudaError_t launch(kernel_record& kernel, dim3 grid, dim3 threads, void** arguments,
                     std::size_t shared, bool overlaps = false);
  int sm();

  /// Logs a call and remembers its error.
  cudaError_t done(const char* name, cudaError_t error, bool synchronous = false,
                   const std::string& detail = {});

  std::map<std::string, counters> by_kernel;
  counters last;
  fault last_fault;
  schedule order;
  checks enabled;
  std::unique_ptr<machine> modelled;  // whose times launches are to have
  std::vector<launch_time> times;     // of the launches since the last reset
  std::vector<std::string> cubins;    // besides those of the program
  std::map<const kernel_record*, machine_code> machine_codes;  // for the modelled device
  std::vector<api_call> calls;
  std::vector<std::string> executed;
  cudaError_t last_error = cudaSuccess;
  cudaError_t pending_error = cudaSuccess;  // of a launch, for the next synchronisation
  int wanted_sm = 0;
  std::vector<std::unique_ptr<fat_binary>> binaries;
  std::vector<std::unique_ptr<kernel_record>> kernels;

 private:
  const machine_code& machine_code_of(const kernel_record& kernel);
  cudaError_t refuse(const kernel_record& kernel, fault_kind kind, const std::string& why,
                     cudaError_t error);
  std::map<const void*, kernel_record*> kernels_by_host_;
  std::map<const void*, symbol_record> symbols_;
};

inline constexpr int max_shared_per_block = 227 * 1024;
inline constexpr int shared_unasked = 48 * 1024;

}  // namespace ptx
