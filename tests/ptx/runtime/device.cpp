#include "device.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "../interpreter/decoder.hpp"

namespace ptx {

namespace {

cudaError_t error_of(fault_kind kind) {
  switch (kind) {
    case fault_kind::none:
      return cudaSuccess;
    case fault_kind::out_of_bounds:
      return cudaErrorIllegalAddress;
    case fault_kind::misaligned:
      return cudaErrorMisalignedAddress;
    case fault_kind::runaway:
      return cudaErrorLaunchTimeout;
    case fault_kind::trap:
      return cudaErrorAssert;
    case fault_kind::unsupported:
      return cudaErrorNotSupported;
    case fault_kind::bad_launch:
      return cudaErrorInvalidConfiguration;
    default:
      return cudaErrorLaunchFailure;
  }
}

const ptx_image* choose(const std::vector<ptx_image>& images, int wanted) {
  const ptx_image* best = nullptr;
  for (const ptx_image& i : images)
    if ((wanted == 0 || i.target <= wanted) && (best == nullptr || i.target > best->target))
      best = &i;
  return best;
}

}  // namespace

device& device::get() {
  // Never destroyed: kernels unregister from static destructors.
  static device* one = [] {
    auto* made = new device;
    if (const char* sm = std::getenv("PTX_SM")) made->wanted_sm = std::atoi(sm);
    return made;
  }();
  return *one;
}

fat_binary* device::add_binary(const void* wrapper) {
  binaries.push_back(std::make_unique<fat_binary>());
  binaries.back()->wrapper = wrapper;
  return binaries.back().get();
}

void device::add_kernel(fat_binary* home, const void* host, const char* name) {
  kernels.push_back(std::make_unique<kernel_record>());
  kernels.back()->home = home;
  kernels.back()->name = name;
  kernels_by_host_[host] = kernels.back().get();
}

void device::add_symbol(const void* host, const symbol_record& record) {
  symbols_[host] = record;
}

kernel_record* device::find_kernel(const void* host) {
  const auto found = kernels_by_host_.find(host);
  if (found != kernels_by_host_.end()) return found->second;
  for (const std::unique_ptr<kernel_record>& k : kernels)
    if (k.get() == host) return k.get();
  return nullptr;
}

const symbol_record* device::find_symbol(const void* host) const {
  const auto found = symbols_.find(host);
  return found == symbols_.end() ? nullptr : &found->second;
}

module& device::load(fat_binary& binary) {
  if (binary.loaded) return *binary.loaded;
  if (binary.images.empty()) binary.images = images_of(binary.wrapper);
  const ptx_image* image = choose(binary.images, wanted_sm);
  if (image == nullptr)
    throw parse_error("no PTX for this device in a fat binary; compile with code=compute_XX");
  binary.loaded = std::make_unique<module>(image->text, image->target);
  for (const auto& [host, symbol] : symbols_)
    if (symbol.home == &binary && symbol.managed != nullptr)
      *symbol.managed = reinterpret_cast<void*>(binary.loaded->address_of(symbol.name));
  return *binary.loaded;
}

std::uint64_t device::address_of(const symbol_record& symbol) {
  return load(*symbol.home).address_of(symbol.name);
}

int device::sm() {
  // The target of the PTX that would run: what CUB's dispatch is to believe.
  int target = 0;
  for (const std::unique_ptr<fat_binary>& b : binaries) {
    try {
      if (b->images.empty()) b->images = images_of(b->wrapper);
    } catch (const parse_error&) {
      continue;
    }
    if (const ptx_image* image = choose(b->images, wanted_sm))
      target = std::max(target, image->target);
  }
  return target != 0 ? target : wanted_sm != 0 ? wanted_sm : 75;
}

cudaError_t device::done(const char* name, cudaError_t error, bool synchronous,
                         const std::string& detail) {
  calls.push_back({name, detail, synchronous});
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t device::refuse(const kernel_record& kernel, fault_kind kind, const std::string& why,
                           cudaError_t error) {
  last_fault = {};
  last_fault.kind = kind;
  last_fault.kernel = demangle(kernel.name);
  last_fault.message = why;
  return done("launch", error, false, last_fault.kernel);
}

/// Empty where there is none that was made of the PTX that runs.
const machine_code& device::machine_code_of(const kernel_record& kernel) {
  const auto known = machine_codes.find(&kernel);
  if (known != machine_codes.end()) return known->second;
  machine_code& made = machine_codes[&kernel];
  if (load(*kernel.home).target() != modelled->sm) return made;
  std::vector<cubin_image> images = cubins_of(kernel.home->wrapper);
  for (const std::string& cubin : cubins) images.push_back({sm_of_cubin(cubin), cubin});
  for (const cubin_image& image : images)
    if (image.sm == modelled->sm && made.code.empty())
      made = ptx::machine_code_of(image, kernel.name);
  return made;
}

cudaError_t device::launch(kernel_record& kernel, dim3 grid, dim3 threads, void** arguments,
                           std::size_t shared, bool overlaps) {
  const program* code = nullptr;
  try {
    code = &load(*kernel.home).kernel(kernel.name);
  } catch (const std::exception& what) {
    return refuse(kernel, fault_kind::unsupported, what.what(), cudaErrorInvalidPtx);
  }
  const std::uint64_t per_block = std::uint64_t{threads.x} * threads.y * threads.z;
  if (per_block == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535 || grid.x > 0x7fffffff || threads.x > 1024 || threads.y > 1024 ||
      threads.z > 64 || per_block > 1024)
    return refuse(kernel, fault_kind::bad_launch, "grid or block size",
                  cudaErrorInvalidConfiguration);
  if (per_block > code->max_threads)
    return refuse(kernel, fault_kind::bad_launch,
                  std::to_string(per_block) + " threads a block, and its launch bounds allow " +
                      std::to_string(code->max_threads),
                  cudaErrorInvalidValue);
  const std::size_t in_all = shared + code->static_shared;
  const bool within = kernel.max_dynamic_shared == 0
                          ? in_all <= shared_unasked
                          : shared <= static_cast<std::size_t>(kernel.max_dynamic_shared) &&
                                in_all <= max_shared_per_block;
  if (!within)
    return refuse(kernel, fault_kind::bad_launch,
                  std::to_string(shared) + " bytes of dynamic shared memory",
                  cudaErrorInvalidValue);

  launch_request request;
  request.kernel = code;
  request.grid = {grid.x, grid.y, grid.z};
  request.threads = {threads.x, threads.y, threads.z};
  request.dynamic_shared = shared;
  request.order = order;
  request.enabled = enabled;
  request.modelled = modelled.get();
  request.overlaps = overlaps && load(*kernel.home).target() >= 90;
  request.parameters.resize(code->parameter_bytes);
  for (std::size_t i = 0; i < code->parameters.size(); ++i)
    std::memcpy(request.parameters.data() + code->parameters[i].offset, arguments[i],
                code->parameters[i].bytes);
  ptx::launch run(std::move(request));
  run.run();
  last = run.counts();
  if (modelled != nullptr) {
    times.push_back(std::move(run.times()));
    times.back().kernel = code->pretty;
    times.back().threads = per_block;
    times.back().shared_bytes = in_all;
    times.back().schedule = schedule_of(machine_code_of(kernel), times.back().runs_of_line);
  }
  by_kernel[code->pretty] += last;
  executed.push_back(code->pretty);
  const cudaError_t error = error_of(run.result().kind);
  if (error != cudaSuccess) {
    last_fault = run.result();
    pending_error = error;
  }
  return done("launch", error, false, code->pretty);
}

// --- ptx_device.hpp -----------------------------------------------------------------------------

void set_schedule(const schedule& order) {
  device::get().order = order;
}
const schedule& current_schedule() {
  return device::get().order;
}
void set_seed(std::uint64_t seed) {
  device::get().order.seed = seed;
}
void set_checks(const checks& enabled) {
  device::get().enabled = enabled;
}

void set_clock(const clock_settings& settings) {
  device& d = device::get();
  d.machine_codes.clear();
  d.modelled = settings.sm == 0
                   ? nullptr
                   : std::make_unique<machine>(machine_of(settings.sm, settings.memory));
}
void add_cubin(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw parse_error(path + ": cannot be read");
  try {
    check_cubin(bytes);
  } catch (const parse_error& error) {
    throw parse_error(path + ": " + error.what());
  }
  device::get().cubins.push_back(std::move(bytes));
}
const std::vector<launch_time>& modelled_times() {
  return device::get().times;
}

counters total_counters() {
  counters sum;
  for (const auto& [name, c] : device::get().by_kernel) sum += c;
  return sum;
}

std::map<std::string, counters> kernel_counters() {
  return device::get().by_kernel;
}
counters last_launch() {
  return device::get().last;
}

void reset_counters() {
  device::get().by_kernel.clear();
  device::get().last = {};
  device::get().times.clear();
}

const fault& last_fault() {
  return device::get().last_fault;
}

void clear_fault() {
  device& d = device::get();
  d.last_fault = {};
  d.last_error = d.pending_error = cudaSuccess;
}

const std::vector<api_call>& call_log() {
  return device::get().calls;
}
void clear_call_log() {
  device::get().calls.clear();
}

std::vector<std::string> synchronous_calls() {
  std::vector<std::string> names;
  for (const api_call& c : call_log())
    if (c.synchronous) names.push_back(c.name);
  return names;
}

std::vector<std::string> kernels_registered() {
  std::vector<std::string> names;
  for (const std::unique_ptr<kernel_record>& k : device::get().kernels)
    names.push_back(demangle(k->name));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<std::string> kernels_executed() {
  std::vector<std::string> names = device::get().executed;
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::size_t undefined_bytes(const void* device_pointer, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(device_pointer);
  const region* r = device_memory().find(address);
  if (r == nullptr || !r->holds(address, bytes)) return bytes;
  const std::uint8_t* shadow = r->undefined + (address - r->base);
  return static_cast<std::size_t>(bytes -
                                  static_cast<std::size_t>(std::count(shadow, shadow + bytes, 0)));
}

void mark_undefined(void* device_pointer, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(device_pointer);
  region* r = device_memory().find(address);
  if (r == nullptr || !r->holds(address, bytes)) return;
  std::memset(r->undefined + (address - r->base), 0xff, bytes);
  std::memset(r->bytes + (address - r->base), 0xcd, bytes);
}

std::size_t live_allocations() {
  return device_memory().live_allocations();
}

std::vector<std::string> unknown_instructions() {
  std::vector<std::string> unknown;
  device& d = device::get();
  for (const std::unique_ptr<kernel_record>& k : d.kernels) {
    const program& code = d.load(*k->home).kernel(k->name);
    for (const std::string& text : refused_by(code)) unknown.push_back(text + " in " + code.pretty);
  }
  return unknown;
}

void set_compute_capability(int sm) {
  device::get().wanted_sm = sm;
}
int compute_capability() {
  return device::get().sm();
}

}  // namespace ptx
