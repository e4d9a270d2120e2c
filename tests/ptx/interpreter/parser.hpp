// PTX function bodies to statements. Names are left as text: the decoder knows what they mean.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "scanner.hpp"
#include "types.hpp"

namespace ptx {

/// .reg .b32 %r<5>; .local .align 8 .b8 depot[16]; .param .b32 retval0; and module variables.
struct declaration {
  std::string_view space;  ///< ".reg", ".local", ".shared", ".param", ".global", ".const"
  scalar type = scalar::none;
  std::string_view name;
  std::uint64_t count = 0;  ///< of %r<5>; 0 for a single register
  std::uint64_t align = 0;  ///< 0: that of the type
  std::uint64_t bytes = 0;  ///< of the whole variable; 0 for name[]
  bool external = false;
  bool managed = false;
  std::string_view initialiser;  ///< the text after '='
};

struct operand {
  enum class form { name, immediate, address, vector, list };
  form shape = form::name;
  bool negated = false;     ///< !%p
  std::string_view name;    ///< register, symbol or immediate; the base of an address
  std::string_view second;  ///< the q of p|q
  std::int64_t offset = 0;  ///< of an address, or of symbol+offset
  std::vector<std::string_view> elements;  ///< of {a, b} and of (a, b)
};

struct statement {
  enum class form { instruction, label, open_scope, close_scope, declare, location, targets };
  form shape = form::instruction;
  std::string_view opcode;  ///< or the label
  std::string_view guard;   ///< empty without one
  bool guard_negated = false;
  std::vector<operand> operands;
  std::vector<declaration> declarations;
  // .loc
  int file = 0;
  int line = 0;
  int column = 0;
  int from_file = 0;  ///< inlined_at; 0 when not inlined
  int from_line = 0;
  int from_column = 0;
  std::string_view text;  ///< the source text of an instruction
};

std::vector<statement> parse_body(std::string_view body);

/// Names and types of one .reg or variable statement, its space word just taken.
std::vector<declaration> parse_declaration(scanner& in, std::string_view space);

/// The parameters between the parentheses of a function header.
std::vector<declaration> parse_parameters(std::string_view text);

/// Integers in any base (with U), 0f and 0d floats: the bits of a value of `type`.
std::uint64_t parse_immediate(std::string_view text, scalar type);
bool looks_like_number(std::string_view text);

}  // namespace ptx
