#include "module.hpp"

#include <algorithm>
#include <cstdlib>

#include "decoder.hpp"
#include "memory.hpp"
#include "program.hpp"

namespace ptx {

namespace {

template <class T>
T read_at(const unsigned char* bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes + offset, sizeof value);
  return value;
}

}  // namespace

std::vector<ptx_image> images_of(const void* wrapper) {
  // The wrapper holds a magic number, a version and the address of the fat binary; that has a
  // 16-byte header, then entries, each with a header of its own size. Kind 1 is PTX.
  constexpr std::uint32_t wrapper_magic = 0x466243b1;
  constexpr std::uint32_t binary_magic = 0xba55ed50;
  constexpr std::uint64_t compressed_flags = 0x2000 | 0x8000;
  const auto* outer = static_cast<const unsigned char*>(wrapper);
  if (read_at<std::uint32_t>(outer, 0) != wrapper_magic) throw parse_error("not a fat binary");
  const auto* binary = read_at<const unsigned char*>(outer, 8);
  if (read_at<std::uint32_t>(binary, 0) != binary_magic) throw parse_error("not a fat binary");
  std::size_t at = read_at<std::uint16_t>(binary, 6);
  const std::size_t end = at + read_at<std::uint64_t>(binary, 8);
  std::vector<ptx_image> images;
  while (at < end) {
    const unsigned char* entry = binary + at;
    const auto kind = read_at<std::uint16_t>(entry, 0);
    const auto header = read_at<std::uint32_t>(entry, 4);
    const auto size = read_at<std::uint64_t>(entry, 8);
    if (kind == 1) {
      if ((read_at<std::uint64_t>(entry, 40) & compressed_flags) != 0)
        throw parse_error("compressed PTX; compile with nvcc --no-compress");
      const auto* text = reinterpret_cast<const char*>(entry + header);
      images.push_back({read_at<std::int32_t>(entry, 28), {text, ::strnlen(text, size)}});
    }
    at += header + size;
  }
  return images;
}

module::module(std::string_view text, int target) :target_(target) {
  for (const char& c : text)
    if (c == '\n') line_ends_.push_back(&c);
  scanner in(text);
  bool external = false;
  for (;;) {
    const std::string_view token = in.next();
    if (token.empty()) break;
    if (token == ".version" || token == ".address_size") {
      in.next();
    } else if (token == ".target") {
      do in.next();
      while (in.accept(","));
    } else if (token == ".file") {
      const int number = std::atoi(std::string(in.next()).c_str());
      const std::string_view path = in.next();
      files_[number] = std::string(path.substr(1, path.size() - 2));
      while (in.accept(",")) in.next();
    } else if (token == ".section") {
      in.next();
      in.expect("{");
      in.rest_of_braces();
    } else if (token == ".extern") {
      external = true;
      continue;
    } else if (token == ".visible" || token == ".weak" || token == ".common") {
      continue;
    } else if (token == ".entry" || token == ".func") {
      parse_function(in, token == ".entry");
    } else if (token == ".global" || token == ".const" || token == ".shared") {
      parse_variable(in, token, external);
    } else if (token == ".pragma") {
      in.until(';');
    } else if (token != ";") {
      throw parse_error("unknown module directive " + std::string(token));
    }
    external = false;
  }
  place_variables();
}

module::~module() = default;

std::uint32_t module::line_of(std::string_view part) const {
  const auto ended = std::lower_bound(line_ends_.begin(), line_ends_.end(), part.data());
  return static_cast<std::uint32_t>(ended - line_ends_.begin()) + 1;
}

void module::parse_function(scanner& in, bool entry) {
  ptx_function f;
  f.entry = entry;
  if (in.accept("(")) f.results = in.until(')');
  const std::string_view name = in.next();
  f.name = name;
  if (in.accept("(")) f.parameters = in.until(')');
  for (;;) {
    const std::string_view token = in.next();
    if (token == ";") break;
    if (token == "{") {
      f.body = in.rest_of_braces();
      break;
    }
    if (token.empty()) throw parse_error("function " + f.name + " ends early");
    if (token == ".explicitcluster" || token == ".reqnctapercluster") f.clustered = true;
    if (token == ".maxntid" || token == ".reqntid") {
      f.max_threads = 1;
      do f.max_threads *= static_cast<unsigned>(std::atoi(std::string(in.next()).c_str()));
      while (in.accept(","));
    }
  }
  // A definition wins over the declaration before it.
  const auto found = functions_.find(name);
  if (found == functions_.end()) {
    order_.push_back(name);
    functions_.emplace(name, std::move(f));
  } else if (found->second.body.empty()) {
    found->second = std::move(f);
  }
}

void module::parse_variable(scanner& in, std::string_view space, bool external) {
  for (declaration& d : parse_declaration(in, space)) {
    d.external = external;
    if (variables_.emplace(d.name, d).second) variable_order_.push_back(d.name);
  }
  in.expect(";");
}

void module::place_variables() {
  for (const std::string_view name : variable_order_) {
    const declaration& d = variables_.at(name);
    if (d.space == ".shared") continue;  // laid out kernel by kernel
    if (d.external) continue;
    addresses_[name] =
        d.managed ? reinterpret_cast<std::uint64_t>(device_memory().allocate_host(d.bytes, true))
                  : device_memory().allocate(d.bytes, std::string(name), true);
  }
  for (const auto& [name, address] : addresses_) initialise(variables_.at(name), address);
}

std::uint64_t module::value_of(std::string_view expression, scalar type) const {
  scanner in(expression);
  std::string_view token = in.next();
  if (looks_like_number(token)) return parse_immediate(token, type);
  if (token == "-") {
    const std::string text = "-" + std::string(in.next());
    return parse_immediate(text, type);
  }
  if (token == "generic") {
    in.expect("(");
    token = in.next();
    in.expect(")");
  }
  std::uint64_t value = address_of(token);
  if (in.accept("+")) value += parse_immediate(in.next(), scalar::u64);
  return value;
}

void module::initialise(const declaration& variable, std::uint64_t address) {
  const unsigned width = size_of(variable.type);
  // Nested braces only group; the elements follow one another in memory order.
  std::string flat(variable.initialiser);
  for (char& c : flat)
    if (c == '{' || c == '}') c = ' ';
  std::string_view rest(flat);
  region* r = device_memory().find(address);
  for (std::uint64_t offset = 0; offset + width <= variable.bytes && !rest.empty();
       offset += width) {
    const std::size_t comma = rest.find(',');
    const std::string_view one = rest.substr(0, comma);
    if (one.find_first_not_of(" \t\r\n") != std::string_view::npos) {
      const std::uint64_t value = value_of(one, variable.type);
      std::memcpy(r->bytes + offset, &value, width);
    }
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
}

const ptx_function* module::find_function(std::string_view name) const {
  const auto found = functions_.find(name);
  return found == functions_.end() ? nullptr : &found->second;
}

const declaration* module::find_variable(std::string_view name) const {
  const auto found = variables_.find(name);
  return found == variables_.end() ? nullptr : &found->second;
}

std::uint64_t module::address_of(std::string_view variable) const {
  const auto found = addresses_.find(variable);
  if (found == addresses_.end()) throw parse_error("no variable named " + std::string(variable));
  return found->second;
}

const std::string& module::file(int number) const {
  static const std::string unknown = "?";
  const auto found = files_.find(number);
  return found == files_.end() ? unknown : found->second;
}

std::vector<std::string> module::entries() const {
  std::vector<std::string> names;
  for (const std::string_view name : order_)
    if (functions_.at(name).entry) names.emplace_back(name);
  return names;
}

const program& module::kernel(const std::string& name) {
  std::unique_ptr<program>& slot = kernels_[name];
  if (!slot) {
    const ptx_function* f = find_function(name);
    if (f == nullptr || !f->entry) throw parse_error("no kernel named " + name);
    if (f->clustered) throw parse_error("clusters are not supported: " + name);
    slot = decode(*this, *f);
  }
  return *slot;
}

}  // namespace ptx
