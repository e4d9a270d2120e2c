// What tests see of the interpreter: the CUDA runtime API does the rest.
//
// Link the target ptx_device instead of the CUDA runtime, compile kernels with
// `nvcc -cudart none -gencode arch=compute_XX,code=compute_XX -lineinfo --no-compress`, and launch
// them as ever. A kernel that faults makes its launch return an error; last_fault() says what
// happened. Everything here and in the runtime is for one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clock/grid_model.hpp"
#include "interpreter/counters.hpp"
#include "interpreter/fault.hpp"
#include "interpreter/settings.hpp"

namespace ptx {

/// Order of warps and blocks for the launches that follow.
void set_schedule(const schedule& order);
const schedule& current_schedule();
/// The plain order (0) or a shaken one, other settings as they are.
void set_seed(std::uint64_t seed);
void set_checks(const checks& enabled);

/// Sums since the last reset.
counters total_counters();
/// By kernel, demangled.
std::map<std::string, counters> kernel_counters();
/// Those of the last launch alone.
counters last_launch();
void reset_counters();

/// Models times of the launches that follow (clock/grid_model.hpp): what they are worth is in
/// README.md. Throws std::invalid_argument for an sm without timings.
void set_clock(const clock_settings& settings);
/// Machine code for the clock, where the program holds none for the modelled device: the path of a
/// cubin that ptxas -lineinfo made of the PTX of this very program. Throws parse_error for any
/// other file.
void add_cubin(const std::string& path);
/// Of each launch since reset_counters().
const std::vector<launch_time>& modelled_times();

/// The fault of the last launch that had one; its kind is none without any.
const fault& last_fault();
void clear_fault();

/// One call of the runtime API, or one launch ("launch" and the kernel's name).
struct api_call {
  std::string name;
  std::string detail;
  bool synchronous = false;  ///< waits for the device, or allocates: not for a hot path
};
const std::vector<api_call>& call_log();
void clear_call_log();
/// Names of the logged calls that a captured graph could not hold.
std::vector<std::string> synchronous_calls();

/// Kernels of every registered fat binary, demangled; and those that were launched.
std::vector<std::string> kernels_registered();
std::vector<std::string> kernels_executed();

/// How many of the bytes at a device pointer were never written, or hold undefined values.
std::size_t undefined_bytes(const void* device_pointer, std::size_t bytes);
/// As after a fresh cudaMalloc.
void mark_undefined(void* device_pointer, std::size_t bytes);
std::size_t live_allocations();
/// Decodes every kernel and names the instructions that the interpreter would refuse.
std::vector<std::string> unknown_instructions();

/// Which PTX of a fat binary runs: the highest target up to `sm` (75, 80, 90); 0 takes the
/// highest there is. To be set before the first launch; the environment variable PTX_SM does too.
void set_compute_capability(int sm);
int compute_capability();

}  // namespace ptx
