#include "bench/adaptive_k/speed/memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/text_table.hpp"

namespace bench {
namespace {

double first_number(const char* file) {
  std::ifstream stream(file);
  double number = 0.0;
  return stream >> number ? number : 0.0;
}

double free_on_machine() {
  std::ifstream stream("/proc/meminfo");
  std::string key;
  double kilobytes = 0.0;
  std::string unit;
  while (stream >> key >> kilobytes) {
    std::getline(stream, unit);
    if (key == "MemAvailable:") return kilobytes * 1024.0;
  }
  return 0.0;
}

}  // namespace

double free_memory_bytes() {
  const double machine = free_on_machine();
  const double limit = first_number("/sys/fs/cgroup/memory.max");  // "max" reads as 0: no limit
  const double used = first_number("/sys/fs/cgroup/memory.current");
  return limit > 0.0 ? std::min(machine, std::max(limit - used, 0.0)) : machine;
}

void require_memory(double bytes, const std::string& purpose) {
  const double available = free_memory_bytes();
  if (available > 0.0 && bytes > available)
    throw failure(fmt::format("{} would take {} of memory, {} are free", purpose, bytes_text(bytes),
                              bytes_text(available)));
}

}  // namespace bench
