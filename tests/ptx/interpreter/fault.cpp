#include "fault.hpp"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

namespace ptx {

const char* name_of(fault_kind kind) {
  switch (kind) {
    case fault_kind::none:
      return "no fault";
    case fault_kind::out_of_bounds:
      return "out of bounds";
    case fault_kind::misaligned:
      return "misaligned";
    case fault_kind::uninitialised:
      return "uninitialised read";
    case fault_kind::shared_race:
      return "shared-memory race";
    case fault_kind::global_race:
      return "global-memory race";
    case fault_kind::early_access:
      return "early access";
    case fault_kind::divergent_barrier:
      return "divergent barrier";
    case fault_kind::inactive_lane:
      return "shuffle from an inactive lane";
    case fault_kind::missing_lane:
      return "missing lane";
    case fault_kind::deadlock:
      return "deadlock";
    case fault_kind::runaway:
      return "runaway loop";
    case fault_kind::trap:
      return "trap";
    case fault_kind::unsupported:
      return "unsupported";
    case fault_kind::bad_launch:
      return "bad launch";
  }
  return "unknown";
}

std::string fault::text() const {
  if (kind == fault_kind::none) return {};
  std::string out = std::string(name_of(kind)) + ": " + message + "\n  in kernel " + kernel;
  if (line > 0) out += "\n  at " + file + ":" + std::to_string(line) + call_path;
  if (!instruction.empty()) out += "\n  instruction " + instruction;
  const auto triple = [](const std::array<unsigned, 3>& v) {
    return "(" + std::to_string(v[0]) + "," + std::to_string(v[1]) + "," + std::to_string(v[2]) +
           ")";
  };
  return out + "\n  block " + triple(block) + " thread " + triple(thread);
}

bool fault::is_at(const std::string& file_name, int source_line) const {
  std::string all = " <- " + file + ":" + std::to_string(line) + call_path + " ";
  const std::string wanted = file_name + ":" + std::to_string(source_line) + " ";
  for (std::size_t at = all.find(wanted); at != std::string::npos; at = all.find(wanted, at + 1))
    if (at > 0 && (all[at - 1] == '/' || all[at - 1] == ' ')) return true;
  return false;
}

std::string demangle(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  return status == 0 && text ? std::string(text.get()) : name;
}

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace ptx
