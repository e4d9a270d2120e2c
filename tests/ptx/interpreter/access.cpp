#include "access.hpp"

#include <algorithm>

namespace ptx {

namespace {

std::string place_in(const region& r, std::uint64_t address, const std::string& kind) {
  const std::string name = r.name.empty() ? kind : kind + " " + r.name;
  if (address >= r.base + r.size)
    return std::to_string(address - r.base - r.size) + " bytes past the end of " + name + " of " +
           std::to_string(r.size) + " bytes";
  return std::to_string(address - r.base) + " bytes into " + name + " of " +
         std::to_string(r.size) + " bytes";
}

/// The clock's kind of an access, where its text did not say which memory it would be.
op_kind kind_in(const instruction& in, space where) {
  if (in.where != space::generic) return in.kind;
  const bool shared = where == space::shared;
  const bool local = where == space::local;
  switch (in.kind) {
    case op_kind::load_global:
      return shared ? op_kind::load_shared : local ? op_kind::load_local : in.kind;
    case op_kind::store_global:
      return shared ? op_kind::store_shared : local ? op_kind::store_local : in.kind;
    case op_kind::atomic_global:
    case op_kind::reduce_global:
      return shared ? op_kind::atomic_shared : in.kind;
    default:
      return in.kind;
  }
}

}  // namespace

accessor::accessor(warp& w, const instruction& in, lane_mask lanes, unsigned bytes,
                   const char* doing)
    : warp_(&w),
      in_(&in),
      base_(&w.in(in.src[0])),
      bytes_(bytes),
      doing_(doing),
      races_(w.home().owner().request().enabled.races) {
  w.require_defined(in.src[0], lanes, in.where == space::shared ? 4 : 8, "an address");
}

void accessor::out_of_bounds(int lane, const char* space, std::uint64_t address,
                             const std::string& detail) {
  throw kernel_fault(fault_kind::out_of_bounds, lane,
                     std::string(doing_) + " of " + std::to_string(bytes_) + " bytes at " + space +
                         " address " + hex(address) + ": " + detail);
}

located accessor::locate(int lane) {
  std::uint64_t a = address(lane);
  if (in_->where == space::shared || in_->where == space::local) a &= 0xffffffff;
  if (a % bytes_ != 0)
    throw kernel_fault(
        fault_kind::misaligned, lane,
        std::string(doing_) + " of " + std::to_string(bytes_) + " bytes at address " + hex(a));
  switch (in_->where) {
    case space::shared:
      return locate_shared(lane, a);
    case space::local:
      return locate_local(lane, a);
    case space::param:
      return locate_parameter(lane, a);
    case space::generic:
      if (a - shared_window < window_span) return locate_shared(lane, a - shared_window);
      if (a - local_window < window_span) return locate_local(lane, a - local_window);
      if (a - param_window < window_span) return locate_parameter(lane, a - param_window);
      return locate_global(lane, a);
    default:
      return locate_global(lane, a);
  }
}

located accessor::locate_shared(int lane, std::uint64_t offset) {
  region* r = warp_->home().shared_at(offset, bytes_);
  if (r == nullptr) {
    std::string detail = "the kernel has no shared variable there";
    for (const shared_variable& v : warp_->home().owner().kernel().shared) {
      const std::uint64_t base = shared_origin + v.offset;
      const std::uint64_t size =
          v.dynamic ? warp_->home().owner().request().dynamic_shared : v.bytes;
      if (offset >= base) {
        region near;
        near.base = base;
        near.size = size;
        near.name = v.name;
        detail = place_in(near, offset, v.dynamic ? "dynamic shared" : "shared");
      }
    }
    out_of_bounds(lane, "shared", offset, detail);
  }
  const std::uint64_t at = offset - r->base;
  // Blocks have shared memory of their own; the key keeps them apart.
  const std::uint64_t key = shared_window + (std::uint64_t{warp_->home().number()} << 20) + offset;
  return {r, at, key, r->bytes + at, r->undefined + at, space::shared};
}

located accessor::locate_local(int lane, std::uint64_t offset) {
  const region r = warp_->home().local_of(warp_->thread_of(lane));
  if (!r.holds(offset, bytes_))
    out_of_bounds(lane, "local", offset, place_in(r, offset, "local memory"));
  return {nullptr, offset, offset, r.bytes + offset, r.undefined + offset, space::local};
}

located accessor::locate_parameter(int lane, std::uint64_t offset) {
  const launch_request& request = warp_->home().owner().request();
  const std::size_t size = request.parameters.size();
  if (offset > size || size - offset < bytes_)
    out_of_bounds(lane, "parameter", offset,
                  "the parameters take " + std::to_string(size) + " bytes");
  // Only loads come here: PTX has no store to the parameters of a kernel.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast)
  auto* bytes = const_cast<std::uint8_t*>(request.parameters.data()) + offset;
  return {nullptr, offset, offset, bytes, nullptr, space::param};
}

located accessor::locate_global(int lane, std::uint64_t address) {
  if (warp_->home().owner().request().overlaps && ((warp_->waited >> lane) & 1) == 0)
    throw kernel_fault(fault_kind::early_access, lane,
                       std::string(doing_) +
                           " of global memory in a launch that may overlap the "
                           "kernel before it, without griddepcontrol.wait");
  if (last_ == nullptr || !last_->holds(address, bytes_)) {
    last_ = device_memory().find(address);
    if (last_ == nullptr || !last_->holds(address, bytes_)) {
      const region* near = device_memory().nearest_below(address);
      std::string detail = "no allocation is near";
      if (address == 0) {
        detail = "a null pointer";
      } else if (address < 4096) {
        detail = "close to a null pointer";
      } else if (near != nullptr && address - near->base < near->size + (1U << 20)) {
        detail = place_in(*near, address, "an allocation");
      } else if (address < global_window) {
        detail = "a host address";
      }
      out_of_bounds(lane, "global", address, detail);
    }
  }
  const std::uint64_t at = address - last_->base;
  return {last_, at, address, last_->bytes + at, last_->undefined + at, space::global};
}

void accessor::record(int lane, const located& at, bool write, bool strong, bool silent) {
  if (!races_ || at.where == nullptr) return;
  block& home = warp_->home();
  if (home.order().exhausted()) return;
  memory_access access;
  access.block = home.number();
  access.thread = warp_->thread_of(lane);
  access.clock = home.order().clock(warp_->index());
  access.write = write;
  access.strong = strong;
  const std::uint64_t epoch = at.in == space::shared ? home.epoch() : home.owner().epoch();
  memory_access other;
  if (!at.where->races->record(at.offset, bytes_, access, silent, home.order(), epoch, &other))
    return;
  const extent& size = home.owner().request().threads;
  const auto triple = [](unsigned n, unsigned x, unsigned y) {
    return "(" + std::to_string(n % x) + "," + std::to_string(n / x % y) + "," +
           std::to_string(n / (x * y)) + ")";
  };
  std::string who = "thread " + triple(other.thread, size[0], size[1]);
  if (other.block != home.number()) {
    const extent& grid = home.owner().request().grid;
    who += " of block " + triple(other.block, grid[0], grid[1]);
  }
  const bool shared = at.in == space::shared;
  throw kernel_fault(
      shared ? fault_kind::shared_race : fault_kind::global_race, lane,
      std::string(write ? "a write" : "a read") + " of " + std::to_string(bytes_) + " bytes at " +
          place_in(*at.where, at.where->base + at.offset, shared ? "shared" : "an allocation") +
          " is not ordered with a " + (other.write ? "write" : "read") + " by " + who);
}

void accessor::count(kind what, lane_mask lanes) {
  counters& c = warp_->home().owner().counts();
  space where = in_->where;
  if (where == space::generic) {
    const std::uint64_t first = address(__builtin_ctz(lanes));
    where = first - shared_window < window_span  ? space::shared
            : first - local_window < window_span ? space::local
                                                 : space::global;
  }
  const auto tell_clock = [&](std::uint64_t passes) {
    if (warp_clock* const clock = warp_->clock())
      clock->step(*in_, kind_in(*in_, where), warp_->group(), lanes,
                  static_cast<unsigned>(std::max<std::uint64_t>(passes, 1)));
  };
  if (where == space::param || where == space::constant) return tell_clock(1);
  if (where == space::local) {
    ++c.local_requests;
    return tell_clock(1);
  }
  if (where == space::shared) {
    ++(what == kind::load    ? c.shared_load_requests
       : what == kind::store ? c.shared_store_requests
                             : c.shared_atomic_requests);
    return tell_clock(count_banks(lanes));
  }
  std::uint64_t sectors[lanes_per_warp];
  std::size_t used = 0;
  for_lanes(lanes, [&](int i) { sectors[used++] = address(i) / 32; });
  if (!std::is_sorted(sectors, sectors + used)) std::sort(sectors, sectors + used);
  const auto different = static_cast<std::uint64_t>(std::unique(sectors, sectors + used) - sectors);
  ++(what == kind::load    ? c.global_load_requests
     : what == kind::store ? c.global_store_requests
                           : c.global_atomic_requests);
  (what == kind::load    ? c.global_load_sectors
   : what == kind::store ? c.global_store_sectors
                         : c.global_atomic_sectors) += different;
  tell_clock((different + 3) / 4);  // 128 bytes at a time
}

/// 32 banks of four bytes. A pass serves each bank one word; wide accesses go by half or quarter
/// warps. What a pass needs beyond one is a conflict. Returns the passes with their conflicts.
std::uint64_t accessor::count_banks(lane_mask lanes) {
  const unsigned words = std::max(1U, bytes_ / 4);
  const unsigned lanes_per_pass = lanes_per_warp / words;
  std::uint64_t conflicts = 0;
  std::uint64_t passes = 0;
  for (unsigned first = 0; first < lanes_per_warp; first += lanes_per_pass) {
    std::uint64_t touched[lanes_per_warp];
    std::size_t used = 0;
    for (unsigned lane = first; lane < first + lanes_per_pass; ++lane)
      if ((lanes >> lane) & 1)
        for (unsigned k = 0; k < words; ++k)
          touched[used++] = (address(static_cast<int>(lane)) & 0xffffffff) / 4 + k;
    if (used == 0) continue;
    std::sort(touched, touched + used);
    const auto* end = std::unique(touched, touched + used);
    unsigned load[lanes_per_warp] = {};
    unsigned worst = 0;
    for (const std::uint64_t* t = touched; t != end; ++t)
      worst = std::max(worst, ++load[*t % lanes_per_warp]);
    conflicts += worst - 1;
    passes += worst;
  }
  warp_->home().owner().counts().shared_bank_conflicts += conflicts;
  return passes;
}

}  // namespace ptx
