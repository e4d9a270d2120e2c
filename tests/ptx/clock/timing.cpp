#include "timing.hpp"

#include <array>
#include <stdexcept>
#include <string>

namespace ptx {

namespace {

// Sources. Cycles of latency are from issue to issue of a dependent instruction.
//   ptxas     stall counts that ptxas 13.0 sets between a producer and its first consumer: the
//   least
//             distance over the compiled kernels of the parent project (11,000 pairs FFMA to FFMA
//             alone), the same on sm_80 and sm_90. The hardware relies on them.
//   A         Abdelkhalik et al. 2022, arXiv 2208.11174 (A100)
//   L         Luo et al. 2024, arXiv 2402.13499 (A100, H100 PCIe)
//   G         CUDA C++ guides, throughput of native arithmetic instructions, by results per cycle
//   and
//             multiprocessor: 128 is one warp a cycle and partition
//   N         NVIDIA A100 whitepaper
//   about     public microbenchmarks differ; the middle of what they say
//   assumed   nobody's measurement
constexpr const char* ptxas = "ptxas";
constexpr const char* guide = "G";
constexpr const char* ampere = "A";
constexpr const char* luo = "L";
constexpr const char* about = "about";
constexpr const char* assumed = "assumed";

// Both architectures where a row has one; where they differ, a pair {sm_80, sm_90}.
struct pair {
  unsigned sm80, sm90;
  constexpr pair(unsigned both) : sm80(both), sm90(both) {}  // NOLINT(google-explicit-constructor)
  constexpr pair(unsigned a, unsigned b) : sm80(a), sm90(b) {}
};
struct row {
  op_kind kind;
  ptx::unit unit;
  unsigned instructions;
  pair latency, interval, shared;
  const char *latency_source, *rate_source;
};
using k = op_kind;
using u = unit;

// clang-format off
constexpr std::array<row, op_kinds> table = {{
    // kind, unit, machine instructions; latency, interval, shared; source of the latency, of the others
    {k::named,            u::none,     0,  {0},      {0},    {0}, assumed,    assumed},
    {k::special,          u::special,  1,  {20},     {2},    {0}, assumed,    assumed},
    {k::integer_add,      u::either,   1,  {4},      {2},    {0}, ptxas,      guide},
    {k::integer,          u::integer,  1,  {4},      {2},    {0}, ptxas,      guide},
    {k::bit_field,        u::integer,  2,  {8},      {2},    {0}, ptxas,      guide},
    {k::multiply,         u::multiply, 1,  {4},      {2},    {0}, ptxas,      guide},
    {k::multiply_wide,    u::multiply, 1,  {5},      {2},    {0}, ptxas,      assumed},
    {k::add64,            u::either,   2,  {6},      {2},    {0}, assumed,    guide},
    {k::logic64,          u::integer,  2,  {4},      {2},    {0}, ptxas,      guide},
    {k::shift64,          u::integer,  2,  {6},      {2},    {0}, assumed,    guide},
    {k::compare64,        u::integer,  2,  {6},      {2},    {0}, assumed,    guide},
    {k::minimum64,        u::integer,  4,  {10},     {2},    {0}, assumed,    guide},
    {k::multiply64,       u::multiply, 4,  {14},     {2},    {0}, assumed,    guide},
    {k::divide,           u::integer,  16, {70},     {2},    {0}, ampere,     assumed},
    {k::divide64,         u::integer,  70, {400},    {2},    {0}, ampere,     assumed},
    {k::count_bits,       u::special,  1,  {17},     {8},    {0}, assumed,    guide},
    {k::float32,          u::float32,  1,  {4},      {2, 1}, {0}, ptxas,      guide},
    {k::half,             u::float32,  1,  {5},      {1},    {0}, assumed,    guide},
    {k::float64,          u::float64,  1,  {8},      {4, 2}, {0}, assumed,    guide},
    {k::special_function, u::special,  1,  {18, 23}, {8},    {0}, "A, about", guide},
    {k::divide_float,     u::float32,  9,  {48},     {2, 1}, {0}, assumed,    assumed},
    {k::divide_double,    u::float64,  12, {120},    {4, 2}, {0}, assumed,    assumed},
    {k::convert,          u::special,  1,  {14},     {8},    {0}, assumed,    guide},
    {k::convert_half,     u::integer,  1,  {5},      {2},    {0}, assumed,    assumed},
    {k::convert64,        u::special,  1,  {18},     {8},    {0}, assumed,    guide},
    {k::shuffle,          u::memory,   1,  {23},     {2},    {1}, about,      guide},
    {k::vote,             u::integer,  1,  {6},      {2},    {0}, assumed,    guide},
    {k::match,            u::special,  1,  {28},     {8},    {2}, assumed,    assumed},
    {k::reduce,           u::special,  1,  {17},     {2},    {2}, about,      guide},
    {k::sync_warp,        u::control,  1,  {4},      {1},    {0}, assumed,    assumed},
    {k::load_shared,      u::memory,   1,  {23, 29}, {2},    {1}, "A, L",     guide},
    {k::store_shared,     u::memory,   1,  {0},      {2},    {1}, assumed,    guide},
    {k::atomic_shared,    u::memory,   1,  {60},     {2},    {2}, assumed,    assumed},
    {k::load_global,      u::memory,   1,  {0},      {2},    {1}, luo,        guide},
    {k::store_global,     u::memory,   1,  {0},      {2},    {1}, assumed,    guide},
    {k::atomic_global,    u::memory,   1,  {300},    {2},    {1}, assumed,    assumed},
    {k::reduce_global,    u::memory,   1,  {0},      {2},    {1}, assumed,    assumed},
    {k::load_local,       u::memory,   1,  {33, 41}, {2},    {1}, "A, L",     guide},
    {k::store_local,      u::memory,   1,  {0},      {2},    {1}, assumed,    guide},
    {k::barrier,          u::control,  1,  {20},     {1},    {0}, assumed,    assumed},
    {k::fence,            u::memory,   1,  {20},     {2},    {1}, assumed,    assumed},
    {k::fence_device,     u::memory,   1,  {500},    {2},    {1}, assumed,    assumed},
    {k::branch,           u::control,  1,  {0},      {1},    {0}, assumed,    assumed},
    {k::exit,             u::control,  1,  {0},      {1},    {0}, assumed,    assumed},
    {k::other,            u::control,  1,  {0},      {1},    {0}, assumed,    assumed},
}};
// clang-format on

constexpr bool is_in_order() {
  for (int i = 0; i < op_kinds; ++i)
    if (table[static_cast<std::size_t>(i)].kind != static_cast<op_kind>(i)) return false;
  return true;
}
static_assert(is_in_order(), "the table has a row for each kind, in their order");

struct level {
  unsigned l1, l2, dram;
};
// A has 33, 200 and 290 on the A100, by smaller strides.
constexpr level latency_80 = {38, 262, 466};  // L, A100: 37.9, 261.5, 466.3
constexpr level latency_90 = {41, 263, 479};  // L, H100 PCIe: 40.7, 263.0, 478.8

template <bool Sm90>
constexpr std::array<timing, op_kinds> timings() {
  std::array<timing, op_kinds> made{};
  for (std::size_t i = 0; i < made.size(); ++i) {
    const row& r = table[i];
    const auto of = [](const pair& p) { return Sm90 ? p.sm90 : p.sm80; };
    made[i] = {r.kind,         r.unit,       r.instructions,   of(r.latency),
               of(r.interval), of(r.shared), r.latency_source, r.rate_source};
  }
  return made;
}
constexpr std::array<timing, op_kinds> timings_80 = timings<false>();
constexpr std::array<timing, op_kinds> timings_90 = timings<true>();

}  // namespace

const char* name_of(memory_level level) {
  return level == memory_level::l1 ? "L1" : level == memory_level::l2 ? "L2" : "DRAM";
}

const timing& machine::of(op_kind kind) const {
  return (sm >= 90 ? timings_90 : timings_80)[static_cast<std::size_t>(kind)];
}

unsigned machine::load_latency() const {
  const level& l = sm >= 90 ? latency_90 : latency_80;
  return memory == memory_level::l1 ? l.l1 : memory == memory_level::l2 ? l.l2 : l.dram;
}

machine machine_of(int sm, memory_level memory) {
  if (sm != 80 && sm != 90)
    throw std::invalid_argument("no timings for sm_" + std::to_string(sm) + ": expected 80 or 90");
  machine m;
  m.sm = sm;
  m.multiprocessors = sm == 80 ? 108 : 132;
  m.crossing = 1;     // ptxas
  m.guard = 13;       // ptxas
  m.taken = 10;       // assumed
  m.l2_bytes = 5120;  // N for the A100; assumed for the H100
  m.max_warps = 64;   // this and the next two: CUDA C++ Programming Guide
  m.max_blocks = 32;
  m.shared_kib = sm == 80 ? 164 : 228;
  m.memory = memory;
  return m;
}

const char* timing_sources() {
  return "ptxas: least stall counts that ptxas 13.0 sets; A: Abdelkhalik et al. 2022; L: Luo et "
         "al. "
         "2024; G: CUDA C++ guide, arithmetic throughput; N: A100 whitepaper; about: public "
         "microbenchmarks, which differ; assumed: no measurement";
}

}  // namespace ptx
