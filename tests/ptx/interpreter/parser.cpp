#include "parser.hpp"

#include <cstdlib>

namespace ptx {

namespace {

std::int64_t to_integer(std::string_view text) {
  return static_cast<std::int64_t>(std::strtoull(std::string(text).c_str(), nullptr, 0));
}

/// +4, -8, +-4, +a: the sum of the signed integers that follow.
std::int64_t parse_offset(scanner& in) {
  std::int64_t sum = 0;
  while (in.peek() == "+" || in.peek() == "-") {
    bool negative = in.next() == "-";
    while (in.peek() == "-" || in.peek() == "+") negative = (in.next() == "-") != negative;
    const std::int64_t value = to_integer(in.next());
    sum += negative ? -value : value;
  }
  return sum;
}

/// A word or a signed number; the sign and its number lie next to each other in the text.
std::string_view parse_word(scanner& in) {
  const std::string_view token = in.next();
  if (token != "-") return token;
  const std::string_view number = in.next();
  return {token.data(), static_cast<std::size_t>(number.data() + number.size() - token.data())};
}

operand parse_operand(scanner& in) {
  operand o;
  const std::string_view head = in.peek();
  if (head == "[") {
    in.next();
    o.shape = operand::form::address;
    o.name = parse_word(in);
    o.offset = parse_offset(in);
    in.expect("]");
    return o;
  }
  if (head == "{" || head == "(") {
    in.next();
    const std::string_view end = head == "{" ? "}" : ")";
    o.shape = head == "{" ? operand::form::vector : operand::form::list;
    while (!in.accept(end)) {
      o.elements.push_back(parse_word(in));
      in.accept(",");
    }
    return o;
  }
  if (in.accept("!")) o.negated = true;
  o.name = parse_word(in);
  if (o.name.empty()) throw parse_error("an operand is missing");
  o.shape = looks_like_number(o.name) ? operand::form::immediate : operand::form::name;
  if (in.accept("|")) o.second = in.next();
  if (in.peek() == "+" || in.peek() == "-") o.offset = parse_offset(in);
  return o;
}

statement parse_location(scanner& in) {
  statement s;
  s.shape = statement::form::location;
  s.file = static_cast<int>(to_integer(in.next()));
  s.line = static_cast<int>(to_integer(in.next()));
  s.column = static_cast<int>(to_integer(in.next()));
  while (in.accept(",")) {
    const std::string_view what = in.next();
    if (what == "function_name") {
      in.next();
      parse_offset(in);
    } else if (what == "inlined_at") {
      s.from_file = static_cast<int>(to_integer(in.next()));
      s.from_line = static_cast<int>(to_integer(in.next()));
      s.from_column = static_cast<int>(to_integer(in.next()));
    }
  }
  return s;
}

statement parse_instruction(scanner& in, std::string_view first) {
  statement s;
  const char* const start = first.data();
  if (first == "@") {
    s.guard_negated = in.accept("!");
    s.guard = in.next();
    first = in.next();
  }
  s.opcode = first;
  while (!in.accept(";")) {
    s.operands.push_back(parse_operand(in));
    in.accept(",");
  }
  s.text = {start, static_cast<std::size_t>(in.text().data() + in.position() - start)};
  return s;
}

/// .reg and its kin; of .reg.b32 too.
bool declares(std::string_view token) {
  const std::string_view word = token.substr(0, token.find('.', 1));
  return word == ".reg" || word == ".local" || word == ".shared" || word == ".param" ||
         word == ".extern";
}

}  // namespace

bool looks_like_number(std::string_view text) {
  if (!text.empty() && text[0] == '-') text.remove_prefix(1);
  return !text.empty() && text[0] >= '0' && text[0] <= '9';
}

std::uint64_t parse_immediate(std::string_view text, scalar type) {
  const bool negative = !text.empty() && text[0] == '-';
  std::string_view digits = text.substr(negative ? 1 : 0);
  const bool prefixed = digits.size() > 1 && digits[0] == '0';
  if (prefixed && (digits[1] == 'f' || digits[1] == 'F')) {
    auto bits = static_cast<std::uint32_t>(
        std::strtoul(std::string(digits.substr(2)).c_str(), nullptr, 16));
    if (negative) bits ^= 0x80000000U;
    if (type == scalar::f64) return bits_as<std::uint64_t>(double{bits_as<float>(bits)});
    return bits;
  }
  if (prefixed && (digits[1] == 'd' || digits[1] == 'D')) {
    auto bits = std::uint64_t{std::strtoull(std::string(digits.substr(2)).c_str(), nullptr, 16)};
    if (negative) bits ^= std::uint64_t{1} << 63;
    if (type == scalar::f32)
      return bits_as<std::uint32_t>(static_cast<float>(bits_as<double>(bits)));
    return bits;
  }
  if (is_float(type)) {
    const double value = std::strtod(std::string(text).c_str(), nullptr);
    if (type == scalar::f64) return bits_as<std::uint64_t>(value);
    return bits_as<std::uint32_t>(static_cast<float>(value));
  }
  const std::uint64_t magnitude =
      prefixed && (digits[1] == 'b' || digits[1] == 'B')
          ? std::strtoull(std::string(digits.substr(2)).c_str(), nullptr, 2)
          : std::strtoull(std::string(digits).c_str(), nullptr, 0);
  const std::uint64_t value = negative ? ~magnitude + 1 : magnitude;
  const unsigned bytes = size_of(type);
  return bytes == 8 ? value : value & ((std::uint64_t{1} << (8 * bytes)) - 1);
}

std::vector<declaration> parse_declaration(scanner& in, std::string_view space) {
  declaration common;
  // Inline assembly may leave out the blank: .reg.b32
  const std::size_t dot = space.find('.', 1);
  common.space = space.substr(0, dot);
  if (dot != std::string_view::npos) {
    common.type = parse_scalar(space.substr(dot + 1));
    if (common.type == scalar::none) throw parse_error("declaration with " + std::string(space));
  }
  while (!in.peek().empty() && in.peek()[0] == '.') {
    const std::string_view word = in.next();
    if (word == ".align") {
      common.align = static_cast<std::uint64_t>(to_integer(in.next()));
    } else if (word == ".attribute") {
      in.expect("(");
      if (in.until(')').find(".managed") != std::string_view::npos) common.managed = true;
    } else if (const scalar type = parse_scalar(word.substr(1)); type != scalar::none) {
      common.type = type;
    } else if (word != ".ptr" && word != ".global" && word != ".shared" && word != ".const" &&
               word != ".local" && word != ".param") {
      throw parse_error("declaration with " + std::string(word));
    }
  }
  std::vector<declaration> all;
  do {
    declaration d = common;
    d.name = in.next();
    d.bytes = size_of(d.type);
    if (in.accept("<")) {
      d.count = static_cast<std::uint64_t>(to_integer(in.next()));
      in.expect(">");
    }
    while (in.accept("[")) {
      if (in.accept("]")) {
        d.bytes = 0;
      } else {
        d.bytes *= static_cast<std::uint64_t>(to_integer(in.next()));
        in.expect("]");
      }
    }
    if (in.accept("=")) {
      if (in.accept("{")) {
        d.initialiser = in.rest_of_braces();
      } else {
        const std::size_t start = in.position();
        int depth = 0;  // of generic(name)
        while (!(depth == 0 && (in.peek() == "," || in.peek() == ";" || in.peek().empty()))) {
          const std::string_view token = in.next();
          depth += token == "(" ? 1 : token == ")" ? -1 : 0;
        }
        d.initialiser = in.text().substr(start, in.position() - start);
      }
    }
    if (d.align == 0) d.align = size_of(d.type);
    all.push_back(d);
  } while (in.accept(","));
  return all;
}

std::vector<declaration> parse_parameters(std::string_view text) {
  std::vector<declaration> all;
  scanner in(text);
  while (!in.peek().empty()) {
    const std::string_view space = in.next();
    if (space != ".param" && space != ".reg")
      throw parse_error("parameter with " + std::string(space));
    // One at a time: the comma that follows separates parameters, not names.
    const std::size_t comma = text.find(',', in.position());
    scanner one(text.substr(in.position(), comma - in.position()));
    all.push_back(parse_declaration(one, ".param").front());
    if (comma == std::string_view::npos) break;
    text = text.substr(comma + 1);
    in = scanner(text);
  }
  return all;
}

std::vector<statement> parse_body(std::string_view body) {
  std::vector<statement> all;
  scanner in(body);
  for (;;) {
    const std::string_view token = in.next();
    if (token.empty()) return all;
    if (token == ";") continue;
    statement s;
    if (token == "{") {
      s.shape = statement::form::open_scope;
    } else if (token == "}") {
      s.shape = statement::form::close_scope;
    } else if (token == ".loc") {
      s = parse_location(in);
    } else if (token == ".pragma") {
      in.until(';');
      continue;
    } else if (declares(token)) {
      s.shape = statement::form::declare;
      s.declarations = parse_declaration(in, token == ".extern" ? in.next() : token);
      for (declaration& d : s.declarations) d.external = token == ".extern";
      in.expect(";");
    } else if (token[0] == '.') {
      throw parse_error("directive " + std::string(token));
    } else if (token != "@" && in.accept(":")) {
      s.opcode = token;
      s.shape = statement::form::label;
      if (in.accept(".branchtargets")) {
        s.shape = statement::form::targets;
        do {
          operand o;
          o.name = in.next();
          s.operands.push_back(o);
        } while (in.accept(","));
        in.expect(";");
      }
    } else {
      s = parse_instruction(in, token);
    }
    all.push_back(std::move(s));
  }
}

}  // namespace ptx
