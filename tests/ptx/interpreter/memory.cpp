#include "memory.hpp"

#include <cstdlib>
#include <cstring>

#include "types.hpp"

namespace ptx {

static_assert(global_window == std::uint64_t{1} << 52);

struct device_heap::allocation {
  region view;
  std::unique_ptr<std::uint8_t[]> own_bytes;
  std::unique_ptr<std::uint8_t[]> undefined;
  std::unique_ptr<race_shadow> races;
  void* host_block = nullptr;
  bool managed = false;
  bool internal = false;  // module variables are not the user's to leak

  allocation() = default;
  allocation(const allocation&) = delete;
  allocation& operator=(const allocation&) = delete;
  ~allocation() { std::free(host_block); }
};

device_heap::device_heap() = default;
device_heap::~device_heap() = default;

region* device_heap::insert(std::unique_ptr<allocation> a) {
  const std::uint64_t size = a->view.size;
  a->undefined = std::make_unique<std::uint8_t[]>(size + 8);
  a->races = std::make_unique<race_shadow>(size);
  a->view.undefined = a->undefined.get();
  a->view.races = a->races.get();
  region* view = &a->view;
  if (!a->internal) {
    ++user_allocations_;
    user_bytes_ += size;
  }
  allocations_[view->base] = std::move(a);
  return view;
}

std::uint64_t device_heap::allocate(std::uint64_t size, const std::string& name, bool defined) {
  auto a = std::make_unique<allocation>();
  a->own_bytes = std::make_unique<std::uint8_t[]>(size + 8);
  a->internal = defined;
  a->view.base = next_;
  a->view.size = size;
  a->view.bytes = a->own_bytes.get();
  a->view.name = name;
  // What is read before it is written should not look like a sensible zero.
  if (!defined) std::memset(a->view.bytes, 0xcd, size);
  constexpr std::uint64_t alignment = 512;
  constexpr std::uint64_t gap = 4096;
  next_ += (size + gap + alignment - 1) / alignment * alignment;
  region* view = insert(std::move(a));
  if (!defined) std::memset(view->undefined, 0xff, size);
  return view->base;
}

void* device_heap::allocate_host(std::uint64_t size, bool managed) {
  auto a = std::make_unique<allocation>();
  constexpr std::uint64_t alignment = 512;
  const std::uint64_t rounded = (size + alignment) / alignment * alignment;
  a->host_block = std::aligned_alloc(alignment, rounded);
  if (a->host_block == nullptr) return nullptr;
  std::memset(a->host_block, 0, rounded);
  a->managed = managed;
  a->view.base = reinterpret_cast<std::uint64_t>(a->host_block);
  a->view.size = size;
  a->view.bytes = static_cast<std::uint8_t*>(a->host_block);
  a->view.name = managed ? "managed memory" : "pinned memory";
  return insert(std::move(a))->bytes;
}

bool device_heap::release(std::uint64_t address) {
  const auto found = allocations_.find(address);
  if (found == allocations_.end() || found->second->internal) return false;
  --user_allocations_;
  user_bytes_ -= found->second->view.size;
  last_ = nullptr;
  allocations_.erase(found);
  return true;
}

region* device_heap::find(std::uint64_t address) {
  if (last_ != nullptr && last_->holds(address, 1)) return last_;
  auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return nullptr;
  region* r = &std::prev(after)->second->view;
  if (!r->holds(address, 1)) return nullptr;
  last_ = r;
  return r;
}

const region* device_heap::nearest_below(std::uint64_t address) const {
  const auto after = allocations_.upper_bound(address);
  return after == allocations_.begin() ? nullptr : &std::prev(after)->second->view;
}

bool device_heap::is_managed(const region& r) const {
  const auto found = allocations_.find(r.base);
  return found != allocations_.end() && found->second->managed;
}

device_heap& device_memory() {
  // Never destroyed: static destructors of the program under test may still free memory.
  static device_heap* heap = new device_heap;
  return *heap;
}

}  // namespace ptx
