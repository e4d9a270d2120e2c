// Operands: names to rows, symbols to addresses, immediates to constants.
#include <array>
#include <cctype>

#include "decoder.hpp"

namespace ptx {

namespace {

constexpr std::array<std::pair<std::string_view, special>, 31> special_names = {{
    {"%tid.x", special::tid_x},
    {"%tid.y", special::tid_y},
    {"%tid.z", special::tid_z},
    {"%ntid.x", special::ntid_x},
    {"%ntid.y", special::ntid_y},
    {"%ntid.z", special::ntid_z},
    {"%ctaid.x", special::ctaid_x},
    {"%ctaid.y", special::ctaid_y},
    {"%ctaid.z", special::ctaid_z},
    {"%nctaid.x", special::nctaid_x},
    {"%nctaid.y", special::nctaid_y},
    {"%nctaid.z", special::nctaid_z},
    {"%laneid", special::laneid},
    {"%warpid", special::warpid},
    {"%nwarpid", special::nwarpid},
    {"%smid", special::smid},
    {"%nsmid", special::nsmid},
    {"%gridid", special::gridid},
    {"%lanemask_eq", special::lanemask_eq},
    {"%lanemask_le", special::lanemask_le},
    {"%lanemask_lt", special::lanemask_lt},
    {"%lanemask_ge", special::lanemask_ge},
    {"%lanemask_gt", special::lanemask_gt},
    {"%dynamic_smem_size", special::dynamic_smem_size},
    {"%total_smem_size", special::total_smem_size},
    // A launch without clusters has clusters of one block.
    {"%cluster_ctarank", special::zero},
    {"%cluster_nctarank", special::one},
    {"%cluster_ctaid.x", special::zero},
    {"%cluster_nctaid.x", special::one},
    {"%is_explicit_cluster", special::zero},
    {"WARP_SZ", special::one},  // replaced in row_of
}};

std::size_t digits_start(std::string_view name) {
  std::size_t start = name.size();
  while (start > 0 && std::isdigit(static_cast<unsigned char>(name[start - 1])) != 0) --start;
  return start;
}

std::uint64_t round_up_to(std::uint64_t value, std::uint64_t align) {
  return (value + align - 1) / align * align;
}

}  // namespace

bool decoder::has(std::string_view part) const {
  for (const std::string_view p : parts)
    if (p == part) return true;
  return false;
}

scalar decoder::type() const {
  if (types.empty()) throw unknown_form("no type");
  return types.back();
}

void decoder::declare(const declaration& d) {
  scope& here = scopes_[static_cast<std::size_t>(scope_)];
  if (d.space == ".reg") {
    const bool predicate = d.type == scalar::pred;
    std::size_t& used = predicate ? out_.predicates : out_.registers;
    if (d.count != 0) {
      here.ranges[d.name] = {static_cast<std::int32_t>(used), d.count, predicate, d.type};
      used += d.count;
      return;
    }
    symbol s;
    s.what = predicate ? symbol::kind::predicate : symbol::kind::row;
    s.row = static_cast<std::int32_t>(used++);
    s.type = d.type;
    here.names[d.name] = s;
    return;
  }
  symbol s;
  if (d.space == ".shared") {
    if (d.external || d.bytes == 0) {
      here.names[d.name] = module_symbol(d.name);
      return;
    }
    s.what = symbol::kind::shared;
    s.value = place_shared(d);
  } else if (d.space == ".local" || d.space == ".param") {
    // The .param variables of a call live in the frame of the caller.
    s.what = symbol::kind::local;
    s.value = place_local(d.bytes, d.align);
  } else {
    throw parse_error("variable in " + std::string(d.space) + " within a function");
  }
  here.names[d.name] = s;
}

std::uint64_t decoder::place_shared(const declaration& d) {
  const auto known = shared_.find(d.name);
  if (known != shared_.end()) return known->second;
  // A gap of whole bank rows between variables: an overrun hits nothing, and banks stay as
  // they would be for a variable that starts a row.
  constexpr std::uint64_t row = 128;
  const std::uint64_t offset = round_up_to(out_.shared_extent, std::max(row, d.align));
  out_.shared.push_back({std::string(d.name), offset, d.bytes, false});
  out_.shared_extent = round_up_to(offset + d.bytes, row) + row;
  out_.static_shared = round_up_to(out_.static_shared, d.align) + d.bytes;
  return shared_[d.name] = shared_origin + offset;
}

std::uint64_t decoder::place_local(std::uint64_t bytes, std::uint64_t align) {
  const std::uint64_t offset = round_up_to(out_.local_bytes, std::max<std::uint64_t>(align, 8));
  out_.local_bytes = round_up_to(offset + bytes, 16);
  return offset;
}

symbol decoder::module_symbol(std::string_view name) {
  symbol s;
  const declaration* d = unit_.find_variable(name);
  if (d == nullptr) throw unknown_form("unknown name " + std::string(name));
  if (d->space == ".shared") {
    s.what = symbol::kind::shared;
    if (d->bytes == 0) {
      dynamic_shared_ = d;
      s.value = shared_window - 1;  // placeholder, set once the static size is known
    } else {
      s.value = place_shared(*d);
    }
    return s;
  }
  s.what = symbol::kind::global;
  s.value = unit_.address_of(name);
  return s;
}

const symbol* decoder::find(std::string_view name) {
  const std::size_t start = digits_start(name);
  const std::string_view prefix = name.substr(0, start);
  for (int i = scope_; i >= 0; i = scopes_[static_cast<std::size_t>(i)].parent) {
    scope& s = scopes_[static_cast<std::size_t>(i)];
    if (const auto found = s.names.find(name); found != s.names.end()) return &found->second;
    if (start == name.size()) continue;
    const auto found = s.ranges.find(prefix);
    if (found == s.ranges.end()) continue;
    const std::uint64_t number =
        std::strtoull(std::string(name.substr(start)).c_str(), nullptr, 10);
    if (number >= found->second.count) continue;
    symbol made;
    made.what = found->second.predicate ? symbol::kind::predicate : symbol::kind::row;
    made.row = found->second.first + static_cast<std::int32_t>(number);
    made.type = found->second.type;
    return &(s.names[name] = made);
  }
  return nullptr;
}

symbol decoder::symbol_of(std::string_view name) {
  if (const symbol* s = find(name)) return *s;
  return module_symbol(name);
}

std::int32_t decoder::constant(std::uint64_t value) {
  const auto known = constants_.find(value);
  if (known != constants_.end()) return known->second;
  const auto row = ~static_cast<std::int32_t>(out_.constants.size());
  out_.constants.emplace_back();
  for (std::uint64_t& lane : out_.constants.back().lane) lane = value;
  return constants_[value] = row;
}

std::int32_t decoder::scratch_row() {
  return static_cast<std::int32_t>(out_.registers++);
}

std::int32_t decoder::special_row(special s) {
  const auto known = specials_.find(s);
  if (known != specials_.end()) return known->second;
  const std::int32_t row = scratch_row();
  out_.specials.emplace_back(s, row);
  return specials_[s] = row;
}

std::int32_t decoder::row_of(std::string_view name, scalar type) {
  if (name == "_") return scratch_row();
  if (looks_like_number(name)) return constant(parse_immediate(name, type));
  if (name == "WARP_SZ") return constant(lanes_per_warp);
  if (const symbol* s = find(name)) {
    if (s->what == symbol::kind::predicate) throw unknown_form("a predicate as a value");
    return s->what == symbol::kind::row ? s->row : constant(s->value);
  }
  for (const auto& [text, what] : special_names)
    if (text == name) return special_row(what);
  return constant(module_symbol(name).value);
}

std::int32_t decoder::predicate_of(std::string_view name) {
  const symbol* s = find(name);
  if (s == nullptr || s->what != symbol::kind::predicate)
    throw unknown_form(std::string(name) + " is not a predicate");
  return s->row;
}

bool decoder::is_predicate(std::size_t i) const {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast)
  const symbol* s = const_cast<decoder*>(this)->find(operands().at(i).name);
  return s != nullptr && s->what == symbol::kind::predicate;
}

std::uint64_t decoder::immediate(std::size_t i, scalar type) const {
  const operand& o = operands().at(i);
  if (o.shape != operand::form::immediate) throw unknown_form("expected a number");
  return parse_immediate(o.name, type);
}

void decoder::dst(std::size_t i) {
  const operand& o = operands().at(i);
  const std::int32_t row = row_of(o.name, scalar::none);
  if (row < 0) throw unknown_form("the result is not a register");
  in.dst[in.dst_count++] = row;
}

void decoder::src(std::size_t i, scalar type) {
  const operand& o = operands().at(i);
  std::int32_t row = row_of(o.name, type);
  if (o.offset != 0 && o.shape == operand::form::name && row < 0)  // symbol+4
    row = constant(out_.constants[static_cast<std::size_t>(~row)].lane[0] +
                   static_cast<std::uint64_t>(o.offset));
  in.src[in.src_count++] = row;
}

void decoder::src_constant(std::uint64_t value) {
  in.src[in.src_count++] = constant(value);
}

void decoder::pred_dst(std::size_t i) {
  const operand& o = operands().at(i);
  in.pred_dst[0] = o.name == "_" ? -1 : predicate_of(o.name);
  if (!o.second.empty() && o.second != "_") in.pred_dst[1] = predicate_of(o.second);
}

void decoder::result_predicate(std::size_t i) {
  const operand& o = operands().at(i);
  if (!o.second.empty() && o.second != "_") in.pred_dst[0] = predicate_of(o.second);
}

void decoder::pred_src(std::size_t i) {
  const operand& o = operands().at(i);
  const int slot = in.pred_src[0] < 0 ? 0 : 1;
  if (o.shape == operand::form::immediate) throw unknown_form("a number as a predicate");
  in.pred_src[slot] = predicate_of(o.name);
  in.pred_negated[slot] = o.negated;
}

void decoder::dst_elements(std::size_t i) {
  const operand& o = operands().at(i);
  if (o.shape != operand::form::vector) return dst(i);
  if (o.elements.size() > 8) throw unknown_form("more than eight elements");
  for (const std::string_view name : o.elements) {
    const std::int32_t row = row_of(name, scalar::none);
    if (row < 0) throw unknown_form("the result is not a register");
    in.dst[in.dst_count++] = row;
  }
}

void decoder::src_elements(std::size_t i, scalar type) {
  const operand& o = operands().at(i);
  if (o.shape != operand::form::vector) return src(i, type);
  if (in.src_count + o.elements.size() > 8) throw unknown_form("more than eight elements");
  for (const std::string_view name : o.elements) in.src[in.src_count++] = row_of(name, type);
}

void decoder::address(std::size_t i) {
  const operand& o = operands().at(i);
  if (o.shape != operand::form::address) throw unknown_form("expected an address");
  in.offset = o.offset;
  if (looks_like_number(o.name)) {
    in.src[in.src_count++] = constant(parse_immediate(o.name, scalar::u64));
    return;
  }
  if (const symbol* s = find(o.name); s != nullptr && s->what == symbol::kind::row) {
    in.src[in.src_count++] = s->row;
    return;
  }
  const symbol s = symbol_of(o.name);
  if (in.where == space::param && s.what == symbol::kind::local) {
    in.where = space::local;
    in.flags |= fresh;
  }
  in.src[in.src_count++] = constant(s.value);
}

void decoder::simple(scalar type, std::size_t sources) {
  in.type = type;
  if (operands().size() != sources + 1) throw unknown_form("other operands");
  dst(0);
  for (std::size_t i = 1; i <= sources; ++i) src(i, type);
}

}  // namespace ptx
