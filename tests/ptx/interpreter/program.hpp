// A decoded kernel: what the executor runs.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../clock/op_kind.hpp"
#include "counters.hpp"
#include "types.hpp"

namespace ptx {

class warp;
struct instruction;

/// One register of a warp: a value for each lane. Narrow values lie in the low bytes.
struct alignas(64) lane_row {
  std::uint64_t lane[lanes_per_warp];
};

/// Does the work of one instruction for the lanes in the mask.
using handler = void (*)(warp&, const instruction&, lane_mask);

/// How the scheduler has to treat an instruction.
enum class action : std::uint8_t {
  compute,  ///< registers to registers
  access,   ///< memory, fences: the handler sees to undefined values itself
  branch,
  indexed_branch,
  exit,
  warp_sync,  ///< waits for the lanes of its member mask
  barrier,    ///< waits for other warps
};

/// How undefined bytes of the sources reach the destination.
enum class spread : std::uint8_t {
  all,          ///< any undefined byte makes the whole result undefined
  upwards,      ///< carries only go up: add, sub, mul.lo
  bytewise,     ///< byte by byte: mov, xor, not
  conjunction,  ///< as bytewise, but a defined 0 byte decides
  disjunction,  ///< as bytewise, but a defined 0xff byte decides
  shift_left,
  shift_right,
  convert,  ///< truncation or extension of an integer
  select,   ///< selp: the chosen operand
  pack,     ///< vector to scalar
  unpack,   ///< scalar to vector
  permute,  ///< prmt
  extract,  ///< bfe
  insert,   ///< bfi
};

// Modifier bits; their meaning belongs to the instruction's family.
enum modifier : std::uint32_t {
  saturate = 1U << 0,
  flush = 1U << 1,       // .ftz
  round_zero = 1U << 2,  // the default is to nearest even
  round_down = 1U << 3,
  round_up = 1U << 4,
  strong = 1U << 5,  // volatile, relaxed, atomics
  acquiring = 1U << 6,
  releasing = 1U << 7,
  nan_wins = 1U << 8,  // min.NaN
  relu = 1U << 9,
  absolute = 1U << 10,   // .abs, .xorsign.abs
  carry_out = 1U << 11,  // .cc
  unordered = 1U << 12,  // setp.*u
  aligned = 1U << 13,    // bar.sync rather than barrier.sync
  no_result = 1U << 14,  // red
  wide = 1U << 15,
  clamp = 1U << 16,
  approximate = 1U << 17,
  fresh = 1U << 18,  // st.param of a call: private, never raced
};

struct instruction {
  handler run = nullptr;
  action what = action::compute;
  instruction_class counted = instruction_class::integer;
  op_kind kind = op_kind::other;  ///< for the clock
  spread undefined = spread::all;
  scalar type = scalar::none;         ///< of the operation
  scalar source_type = scalar::none;  ///< cvt, set: of the source
  space where = space::generic;
  std::uint8_t select = 0;  ///< comparison, boolean, shuffle mode, atomic operation
  std::uint8_t combine = 0;
  std::uint8_t dst_count = 0;
  std::uint8_t src_count = 0;
  bool guard_negated = false;
  bool pred_negated[2] = {false, false};
  std::int32_t guard = -1;
  // Rows: registers from 0, constants as ~index. Loads and packs use up to eight.
  std::int32_t dst[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  std::int32_t src[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  std::int32_t pred_dst[2] = {-1, -1};
  std::int32_t pred_src[2] = {-1, -1};
  std::uint32_t flags = 0;
  std::int64_t offset = 0;   ///< of an address
  std::uint32_t target = 0;  ///< of a branch
  std::uint32_t location = 0;
  std::uint32_t text = 0;
  std::uint32_t line = 0;  ///< of the PTX; 0 for what the decoder adds
};

struct source_location {
  int file = 0;
  int line = 0;
  std::string call_path;
};

enum class special : std::uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  smid,
  nsmid,
  gridid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  dynamic_smem_size,
  total_smem_size,
  zero,
  one,
};

/// A shared variable, apart from its neighbours so that an overrun hits nothing.
struct shared_variable {
  std::string name;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  bool dynamic = false;  ///< takes what the launch asks for
};

struct parameter {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

struct program {
  std::string name;    ///< mangled
  std::string pretty;  ///< demangled
  std::vector<instruction> code;
  std::vector<lane_row> constants;
  std::vector<std::pair<special, std::int32_t>> specials;  ///< registers set at the start
  std::vector<std::vector<std::uint32_t>> branch_tables;
  std::vector<source_location> locations;
  std::vector<std::string> files;
  std::vector<std::string> texts;
  std::vector<shared_variable> shared;
  std::vector<parameter> parameters;
  std::size_t registers = 0;
  std::size_t predicates = 0;
  std::uint64_t static_shared = 0;  ///< as declared, without the gaps
  std::uint64_t shared_extent = 0;  ///< with them; dynamic shared memory starts here
  std::uint64_t local_bytes = 0;
  std::uint64_t parameter_bytes = 0;
  unsigned max_threads = 1024;
};

}  // namespace ptx
