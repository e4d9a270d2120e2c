#include "op_kind.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <vector>

#include "../interpreter/program.hpp"

namespace ptx {

namespace {

using words = std::vector<std::string_view>;

/// The parts of the opcode between its dots, without a guard.
words opcode_of(std::string_view text) {
  const auto skip_blanks = [&] {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  };
  skip_blanks();
  if (!text.empty() && text.front() == '@') {
    text.remove_prefix(std::min(text.find_first_of(" \t"), text.size()));
    skip_blanks();
  }
  text = text.substr(0, text.find_first_of(" \t;"));
  words parts;
  for (;;) {
    const std::size_t dot = text.find('.');
    parts.push_back(text.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    text = text.substr(dot + 1);
  }
}

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

struct opcode {
  words parts;
  scalar type = scalar::none;    ///< the first
  scalar source = scalar::none;  ///< the last
  std::string_view root() const { return parts.front(); }
  bool has(std::string_view word) const {
    return std::find(parts.begin() + 1, parts.end(), word) != parts.end();
  }
  bool is_wide() const { return size_of(type) == 8; }
};

op_kind move_kind(const opcode& o, std::string_view text) {
  if (o.root() == "mov" || o.root() == "cvta" || o.root() == "isspacep") {
    // The program's text knows %tid and its like by name.
    const bool is_special = text.find("%tid") != text.npos || text.find("%ctaid") != text.npos ||
                            text.find("%ntid") != text.npos || text.find("%nctaid") != text.npos ||
                            text.find("%laneid") != text.npos ||
                            text.find("%lanemask") != text.npos ||
                            text.find("%smid") != text.npos || text.find("%warpid") != text.npos ||
                            text.find("smem_size") != text.npos || text.find("%clock") != text.npos;
    return is_special ? op_kind::special : op_kind::named;
  }
  return op_kind::integer;  // prmt, selp and what else moves bits
}

op_kind memory_kind(const opcode& o) {
  const bool shared = o.has("shared") || o.has("shared::cta");
  if (o.root() == "atom" || o.root() == "red") {
    if (shared) return op_kind::atomic_shared;
    return o.root() == "atom" ? op_kind::atomic_global : op_kind::reduce_global;
  }
  const bool loads = o.root() != "st";
  if (o.has("param") || o.has("const") || o.has("param::entry") || o.has("param::func"))
    return loads ? op_kind::named : op_kind::store_local;
  if (shared) return loads ? op_kind::load_shared : op_kind::store_shared;
  if (o.has("local")) return loads ? op_kind::load_local : op_kind::store_local;
  return loads ? op_kind::load_global : op_kind::store_global;
}

op_kind convert_kind(const opcode& o) {
  if (is_half(o.type) || is_half(o.source)) return op_kind::convert_half;
  const bool floats = is_float(o.type) || is_float(o.source);
  if (!floats) {  // integers: widening an unsigned one, or narrowing, takes a name
    const bool widens = size_of(o.type) > size_of(o.source);
    if (widens && is_signed(o.source)) return op_kind::integer;
    return widens && size_of(o.source) < 4 ? op_kind::integer : op_kind::named;
  }
  if (o.type == scalar::f32 && o.source == scalar::f32) return op_kind::float32;  // rounding
  return o.is_wide() || size_of(o.source) == 8 ? op_kind::convert64 : op_kind::convert;
}

op_kind float_kind(const opcode& o) {
  const bool divides = is_one_of(o.root(), {"div", "rcp", "rsqrt", "sqrt"});
  if (o.has("approx")) return op_kind::special_function;
  if (o.type == scalar::f64) return divides ? op_kind::divide_double : op_kind::float64;
  if (divides) return op_kind::divide_float;
  if (is_one_of(o.root(), {"abs", "neg", "copysign"})) return op_kind::named;  // operand modifiers
  if (is_one_of(o.root(), {"min", "max", "testp"})) return op_kind::integer;
  return op_kind::float32;
}

op_kind integer_kind(const opcode& o) {
  const std::string_view root = o.root();
  const bool wide = o.is_wide();
  if (is_one_of(root, {"div", "rem"})) return wide ? op_kind::divide64 : op_kind::divide;
  if (is_one_of(root, {"mul", "mad"})) {
    if (o.has("wide")) return wide ? op_kind::multiply64 : op_kind::multiply_wide;
    return wide ? op_kind::multiply64 : op_kind::multiply;
  }
  if (is_one_of(root, {"mul24", "mad24", "dp4a", "dp2a", "madc"}))
    return wide ? op_kind::multiply64 : op_kind::multiply;
  if (is_one_of(root, {"popc", "clz", "bfind", "brev", "fns"})) return op_kind::count_bits;
  if (is_one_of(root, {"bfe", "bfi", "sad", "szext", "bmsk"})) return op_kind::bit_field;
  if (is_one_of(root, {"add", "sub", "addc", "subc"}))
    return wide ? op_kind::add64 : op_kind::integer_add;
  if (!wide) return op_kind::integer;
  if (is_one_of(root, {"shl", "shr"})) return op_kind::shift64;
  if (is_one_of(root, {"min", "max", "abs"})) return op_kind::minimum64;
  if (root == "neg") return op_kind::add64;
  return op_kind::logic64;
}

}  // namespace

const char* name_of(op_kind kind) {
  static constexpr std::array<const char*, op_kinds> names = {
      "named",         "special",       "integer_add",   "integer",      "bit_field",
      "multiply",      "multiply_wide", "add64",         "logic64",      "shift64",
      "compare64",     "minimum64",     "multiply64",    "divide",       "divide64",
      "count_bits",    "float32",       "half",          "float64",      "special_function",
      "divide_float",  "divide_double", "convert",       "convert_half", "convert64",
      "shuffle",       "vote",          "match",         "reduce",       "sync_warp",
      "load_shared",   "store_shared",  "atomic_shared", "load_global",  "store_global",
      "atomic_global", "reduce_global", "load_local",    "store_local",  "barrier",
      "fence",         "fence_device",  "branch",        "exit",         "other"};
  return names[static_cast<std::size_t>(kind)];
}

op_kind kind_of(std::string_view text) {
  opcode o;
  o.parts = opcode_of(text);
  for (const std::string_view part : o.parts)
    if (const scalar t = parse_scalar(part); t != scalar::none) {
      if (o.type == scalar::none) o.type = t;
      o.source = t;
    }
  const std::string_view root = o.root();
  if (root == "bra" || root == "brx") return op_kind::branch;
  if (root == "call") return op_kind::named;  // expanded in place
  if (root == "exit" || root == "ret" || root == "trap" || root == "brkpt") return op_kind::exit;
  if (is_one_of(root, {"ld", "ldu", "st", "atom", "red"})) return memory_kind(o);
  if (root == "bar" || root == "barrier")
    return o.has("warp") ? op_kind::sync_warp : op_kind::barrier;
  if (root == "membar" || root == "fence")
    return o.has("cta") ? op_kind::fence : op_kind::fence_device;
  if (root == "shfl") return op_kind::shuffle;
  if (root == "vote" || root == "activemask" || root == "elect") return op_kind::vote;
  if (root == "match") return op_kind::match;
  if (root == "redux") return op_kind::reduce;
  if (is_one_of(root, {"griddepcontrol", "nanosleep", "pmevent", "setmaxnreg", "prefetch",
                       "prefetchu", "discard", "applypriority"}))
    return op_kind::other;
  if (root == "cvt") return convert_kind(o);
  if (is_one_of(root, {"mov", "cvta", "isspacep", "prmt"})) return move_kind(o, text);
  if (root == "setp" || root == "set")
    return o.source == scalar::f64  ? op_kind::float64
           : size_of(o.source) == 8 ? op_kind::compare64
                                    : op_kind::integer;
  if (root == "selp" || root == "slct") return o.is_wide() ? op_kind::logic64 : op_kind::integer;
  if (is_one_of(root, {"ex2", "lg2", "sin", "cos", "tanh"})) return op_kind::special_function;
  if (is_half(o.type)) return op_kind::half;
  if (is_float(o.type)) return float_kind(o);
  return integer_kind(o);
}

void set_kinds(program& p) {
  for (instruction& i : p.code) i.kind = kind_of(p.texts[i.text]);
}

}  // namespace ptx
