#include "resources.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <regex>
#include <stdexcept>

#include "ptx_device.hpp"

namespace kernel_cost {
namespace {

std::string demangled(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? text : mangled;
  std::free(text);
  return name;
}

}  // namespace

resource_map read_resources(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  const std::regex entry(R"(Compiling entry function '([^']+)' for '([^']+)')");
  const std::regex stack(
      R"((\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads)");
  const std::regex registers(R"(Used (\d+) registers)");
  const std::regex shared(R"((\d+) bytes smem)");
  resource_map found;
  resources* current = nullptr;
  std::smatch match;
  for (std::string line; std::getline(file, line);) {
    if (std::regex_search(line, match, entry)) current = &found[{match[2], demangled(match[1])}];
    if (current == nullptr) continue;
    if (std::regex_search(line, match, stack)) {
      current->stack_bytes = std::stoi(match[1]);
      current->spill_bytes = std::stoi(match[2]) + std::stoi(match[3]);
    }
    if (std::regex_search(line, match, registers)) current->registers = std::stoi(match[1]);
    if (std::regex_search(line, match, shared)) current->shared_bytes = std::stoi(match[1]);
  }
  if (found.empty())
    throw std::runtime_error(path + ": no kernel in it, expected the output of nvcc -Xptxas -v");
  return found;
}

double theoretical_occupancy(const resources& used, const std::string& architecture,
                             int threads_per_block, int dynamic_shared_bytes) {
  struct multiprocessor {
    const char* name;
    unsigned warps, shared_kib, blocks;  // CUDA C++ Programming Guide, technical specifications
  };
  constexpr multiprocessor known[] = {{"sm_75", 32, 64, 16},  {"sm_80", 64, 164, 32},
                                      {"sm_86", 48, 100, 16}, {"sm_89", 48, 100, 24},
                                      {"sm_90", 64, 228, 32}, {"sm_100", 64, 228, 32},
                                      {"sm_120", 48, 100, 24}};
  for (const multiprocessor& m : known) {
    if (architecture != m.name) continue;
    ptx::machine limits;
    limits.max_warps = m.warps;
    limits.max_blocks = m.blocks;
    limits.shared_kib = m.shared_kib;
    if (architecture == "sm_75") limits.shared_reserved = 0;
    const unsigned blocks =
        ptx::resident_blocks(limits, static_cast<unsigned>(used.registers),
                             static_cast<std::uint64_t>(used.shared_bytes + dynamic_shared_bytes),
                             static_cast<std::uint64_t>(threads_per_block));
    return static_cast<double>(blocks) * threads_per_block / 32 / m.warps;
  }
  throw std::runtime_error("--arch " + architecture + ": expected one of sm_75 to sm_120");
}

}  // namespace kernel_cost
