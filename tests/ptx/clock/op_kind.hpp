// What an instruction costs is decided by its kind, which its PTX text says.
#pragma once

#include <cstdint>
#include <string_view>

namespace ptx {

struct program;

enum class op_kind : std::uint8_t {
  named,          ///< names a value: moves, packs, address spaces, parameters
  special,        ///< reads tid and its like
  integer_add,    ///< add, sub: either the integer or the multiply-add unit
  integer,        ///< logic, shifts, comparisons, minima, selections, of any 32-bit type
  bit_field,      ///< bfe, bfi: two instructions
  multiply,       ///< 32-bit product, and product with sum
  multiply_wide,  ///< 32 by 32 to 64 bits
  add64,
  logic64,  ///< bitwise, and selections
  shift64,
  compare64,
  minimum64,
  multiply64,
  divide,  ///< 32-bit integer division and remainder
  divide64,
  count_bits,  ///< popc, clz, bfind, brev
  float32,
  half,
  float64,
  special_function,  ///< *.approx
  divide_float,      ///< div, rcp, sqrt of fp32, rounded once
  divide_double,
  convert,       ///< between fp32 and integers
  convert_half,  ///< to and from fp16 and bf16
  convert64,     ///< to and from 64-bit types, widening of unsigned integers apart
  shuffle,
  vote,
  match,
  reduce,  ///< redux
  sync_warp,
  load_shared,
  store_shared,
  atomic_shared,
  load_global,
  store_global,
  atomic_global,  ///< with a result
  reduce_global,  ///< without
  load_local,
  store_local,
  barrier,
  fence,  ///< of the block
  fence_device,
  branch,
  exit,
  other,  ///< hints, griddepcontrol
};
inline constexpr int op_kinds = static_cast<int>(op_kind::other) + 1;

const char* name_of(op_kind kind);

/// The kind of a statement such as "@%p1 add.s32 %r1, %r2, 1"; memory operations on generic
/// addresses count as global here, and as what they turn out to be when they run.
op_kind kind_of(std::string_view text);

/// Fills in the kind of every instruction.
void set_kinds(program& p);

}  // namespace ptx
