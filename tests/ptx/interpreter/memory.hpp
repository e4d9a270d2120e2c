// Device memory: allocations with a shadow that knows which bytes were ever written and who
// touched them last.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "race.hpp"

namespace ptx {

/// One object that a kernel may touch. Addresses in [base, base + size) are its own.
struct region {
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  std::uint8_t* bytes = nullptr;
  std::uint8_t* undefined = nullptr;  ///< one a byte: 0xff where nothing was written yet
  race_shadow* races = nullptr;       ///< nullptr for memory of one thread
  std::string name;

  bool holds(std::uint64_t address, std::uint64_t count) const {
    return address - base < size && size - (address - base) >= count;
  }
};

class device_heap {
 public:
  device_heap();
  ~device_heap();
  device_heap(const device_heap&) = delete;
  device_heap& operator=(const device_heap&) = delete;

  /// Device memory that the host cannot follow; `defined` means zeroed rather than undefined.
  std::uint64_t allocate(std::uint64_t size, const std::string& name, bool defined);
  /// Memory that both sides see at one address (pinned, managed).
  void* allocate_host(std::uint64_t size, bool managed);
  /// False when nothing was allocated at `address`.
  bool release(std::uint64_t address);
  /// The allocation that `address` lies in; nullptr without one.
  region* find(std::uint64_t address);
  /// As find, and the allocation that starts next below: what an overrun most likely left.
  const region* nearest_below(std::uint64_t address) const;
  bool is_host(const region& r) const { return r.base < global_base; }
  bool is_managed(const region& r) const;
  std::size_t live_allocations() const { return user_allocations_; }
  std::uint64_t live_bytes() const { return user_bytes_; }

 private:
  static constexpr std::uint64_t global_base = std::uint64_t{1} << 52;
  struct allocation;
  region* insert(std::unique_ptr<allocation> a);

  std::map<std::uint64_t, std::unique_ptr<allocation>> allocations_;
  region* last_ = nullptr;
  std::uint64_t next_ = global_base + (1U << 20);
  std::size_t user_allocations_ = 0;
  std::uint64_t user_bytes_ = 0;
};

device_heap& device_memory();

}  // namespace ptx
