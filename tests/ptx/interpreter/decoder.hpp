// Statements to instructions. The decoder knows names, scopes, labels and calls; what an opcode
// means is known by its family, one decode_* function each.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "module.hpp"
#include "parser.hpp"
#include "program.hpp"

namespace ptx {

/// Decodes a kernel with every function it calls expanded in place. Instructions that are not
/// known become ones that fault when they are reached.
std::unique_ptr<program> decode(const module& unit, const ptx_function& kernel);

/// Lets registers that are never alive together share a row.
void share_rows(program& p);

/// The opcodes of a program that would fault as unknown.
std::vector<std::string> refused_by(const program& code);

/// Thrown by families for a form they do not know.
class unknown_form : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct symbol {
  enum class kind { row, predicate, local, shared, param, global };
  kind what = kind::row;
  std::int32_t row = -1;  ///< register row or predicate
  scalar type = scalar::none;
  std::uint64_t value = 0;  ///< address in its space
};

class decoder {
 public:
  decoder(const module& unit, program& out) : unit_(unit), out_(out) {}

  void run(const ptx_function& kernel);

  // --- for the families: the statement at hand and the instruction being made -----------------
  instruction in;
  std::vector<std::string_view> parts;  ///< of the opcode, between the dots
  std::vector<scalar> types;            ///< those of the parts that are types
  const std::vector<operand>& operands() const { return statement_->operands; }
  std::string_view root() const { return parts.front(); }
  bool has(std::string_view part) const;
  /// The last type; throws unknown_form without one.
  scalar type() const;
  program& target() { return out_; }

  void dst(std::size_t i);
  void src(std::size_t i, scalar type);
  void src_constant(std::uint64_t value);
  void pred_dst(std::size_t i);
  void pred_src(std::size_t i);
  /// The p of d|p, where there is one.
  void result_predicate(std::size_t i);
  bool is_predicate(std::size_t i) const;
  /// dst or src for each element of {a, b, ...}; a plain register is a vector of one.
  void dst_elements(std::size_t i);
  void src_elements(std::size_t i, scalar type);
  /// [base+offset]: one source row, in.offset, and in.where where the symbol decides it.
  void address(std::size_t i);
  std::int32_t row_of(std::string_view name, scalar type);
  std::int32_t constant(std::uint64_t value);
  std::int32_t scratch_row();
  std::uint64_t immediate(std::size_t i, scalar type) const;
  /// dst, then `sources` operands of one type.
  void simple(scalar type, std::size_t sources);

 private:
  struct range {
    std::int32_t first = 0;
    std::uint64_t count = 0;
    bool predicate = false;
    scalar type = scalar::none;
  };
  struct scope {
    int parent = -1;
    std::unordered_map<std::string_view, symbol> names;
    std::unordered_map<std::string_view, range> ranges;
    std::unordered_map<std::string_view, std::uint32_t> labels;
  };
  struct fixup {
    std::uint32_t instruction;
    int scope;
    std::string_view label;
  };

  void body(const std::vector<statement>& statements);
  void declare(const declaration& d);
  void locate(const statement& s);
  void emit(const statement& s);
  void emit_branch();
  void emit_indexed_branch();
  void emit_call();
  void emit_return();
  void expand(const ptx_function& f, const std::vector<symbol>& results,
              const std::vector<symbol>& arguments);
  void bind_guard();
  void finish(instruction made);
  bool decode_family();
  int open_scope(int parent);
  const symbol* find(std::string_view name);
  symbol symbol_of(std::string_view name);
  symbol module_symbol(std::string_view name);
  std::int32_t special_row(special s);
  std::int32_t predicate_of(std::string_view name);
  std::uint64_t place_shared(const declaration& d);
  std::uint64_t place_local(std::uint64_t bytes, std::uint64_t align);
  std::uint32_t place_text(std::string_view text);
  void resolve_labels();

  const module& unit_;
  program& out_;
  const statement* statement_ = nullptr;
  std::vector<scope> scopes_;
  int scope_ = -1;
  std::vector<std::string_view> active_;             // functions being expanded
  std::vector<std::vector<std::uint32_t>> returns_;  // their ret branches
  std::unordered_map<std::uint64_t, std::int32_t> constants_;
  std::unordered_map<std::string_view, std::uint64_t> shared_;
  std::map<special, std::int32_t> specials_;
  std::vector<fixup> fixups_;
  std::map<std::pair<int, std::string_view>, std::vector<std::string_view>> branch_targets_;
  struct pending_table {
    std::uint32_t instruction;
    int scope;
    std::string_view name;
  };
  std::vector<pending_table> pending_tables_;
  using place = std::tuple<int, int, int>;  // file, line, column
  std::map<place, place> inlined_at_;
  std::map<std::tuple<int, int, std::string>, std::uint32_t> locations_;
  std::map<int, int> files_;
  std::uint32_t location_ = 0;
  const declaration* dynamic_shared_ = nullptr;
};

// Shared by loads, stores and atomics.
space space_of(const decoder& d);
void read_ordering(decoder& d);

// The families. Each looks at the opcode, and returns false when it is not one of its own.
bool decode_move(decoder& d);
bool decode_integer(decoder& d);
bool decode_bits(decoder& d);
bool decode_float(decoder& d);
bool decode_half(decoder& d);
bool decode_compare(decoder& d);
bool decode_convert(decoder& d);
bool decode_memory(decoder& d);
bool decode_atomic(decoder& d);
bool decode_warp(decoder& d);
bool decode_control(decoder& d);

}  // namespace ptx
