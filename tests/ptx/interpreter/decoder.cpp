// The decoder: scopes, labels, calls and source locations. Operands are in operands.cpp.
#include "decoder.hpp"

#include <algorithm>

#include "fault.hpp"
#include "machine.hpp"

namespace ptx {

namespace {

void refuse(warp& w, const instruction& in, lane_mask lanes) {
  throw kernel_fault(fault_kind::unsupported, __builtin_ctz(lanes),
                     "the interpreter does not know " +
                         w.home().owner().kernel().texts[static_cast<std::size_t>(in.offset)]);
}

void jump_nowhere(warp&, const instruction&, lane_mask) {}

std::string read_text(std::uint64_t address) {
  std::string text;
  region* r = device_memory().find(address);
  for (; r != nullptr && r->holds(address, 1) && r->bytes[address - r->base] != 0; ++address)
    text += static_cast<char>(r->bytes[address - r->base]);
  return text;
}

/// __assertfail(message, file, line, function, char size); arguments lie in local memory.
void fail_assertion(warp& w, const instruction& in, lane_mask lanes) {
  const int lane = __builtin_ctz(lanes);
  const region local = w.home().local_of(w.thread_of(lane));
  std::uint64_t message = 0;
  std::memcpy(&message, local.bytes + in.offset, sizeof message);
  throw kernel_fault(fault_kind::trap, lane, "assertion failed: " + read_text(message));
}

}  // namespace

std::unique_ptr<program> decode(const module& unit, const ptx_function& kernel) {
  auto made = std::make_unique<program>();
  made->name = kernel.name;
  made->pretty = demangle(kernel.name);
  if (kernel.max_threads != 0) made->max_threads = kernel.max_threads;
  decoder(unit, *made).run(kernel);
  share_rows(*made);
  set_kinds(*made);
  return made;
}

std::vector<std::string> refused_by(const program& code) {
  std::vector<std::string> texts;
  for (const instruction& i : code.code)
    if (i.run == refuse) texts.push_back(code.texts[static_cast<std::size_t>(i.offset)]);
  return texts;
}

void decoder::run(const ptx_function& kernel) {
  out_.locations.push_back({});
  out_.files.emplace_back("?");
  scope_ = open_scope(-1);
  for (const declaration& d : parse_parameters(kernel.parameters)) {
    std::uint64_t& end = out_.parameter_bytes;
    end = (end + d.align - 1) / d.align * d.align;
    symbol s;
    s.what = symbol::kind::param;
    s.value = end;
    scopes_[static_cast<std::size_t>(scope_)].names[d.name] = s;
    out_.parameters.push_back({end, d.bytes});
    end += d.bytes;
  }
  active_.push_back(kernel.name);
  returns_.emplace_back();
  body(parse_body(kernel.body));
  // Falling off the end leaves the kernel.
  instruction end;
  end.what = action::exit;
  end.counted = instruction_class::control;
  end.location = location_;
  end.text = place_text("exit");
  out_.code.push_back(end);
  resolve_labels();
  if (dynamic_shared_ != nullptr) {
    constexpr std::uint64_t alignment = 1024;
    out_.shared_extent = (out_.shared_extent + alignment - 1) / alignment * alignment;
    shared_variable v;
    v.name = std::string(dynamic_shared_->name);
    v.offset = out_.shared_extent;
    v.dynamic = true;
    out_.shared.push_back(v);
    // Its address is known only now, after the static variables.
    const auto placeholder = constants_.find(shared_window - 1);
    if (placeholder != constants_.end())
      for (std::uint64_t& lane :
           out_.constants[static_cast<std::size_t>(~placeholder->second)].lane)
        lane = shared_origin + v.offset;
  }
}

int decoder::open_scope(int parent) {
  scopes_.emplace_back();
  scopes_.back().parent = parent;
  return static_cast<int>(scopes_.size()) - 1;
}

void decoder::body(const std::vector<statement>& statements) {
  for (const statement& s : statements) {
    statement_ = &s;
    switch (s.shape) {
      case statement::form::open_scope:
        scope_ = open_scope(scope_);
        break;
      case statement::form::close_scope:
        scope_ = scopes_[static_cast<std::size_t>(scope_)].parent;
        break;
      case statement::form::declare:
        for (const declaration& d : s.declarations) declare(d);
        break;
      case statement::form::label:
        scopes_[static_cast<std::size_t>(scope_)].labels[s.opcode] =
            static_cast<std::uint32_t>(out_.code.size());
        break;
      case statement::form::targets: {
        auto& labels = branch_targets_[{scope_, s.opcode}];
        for (const operand& o : s.operands) labels.push_back(o.name);
        break;
      }
      case statement::form::location:
        locate(s);
        break;
      case statement::form::instruction:
        emit(s);
        break;
    }
  }
}

void decoder::locate(const statement& s) {
  const place here{s.file, s.line, s.column};
  if (s.from_file != 0) inlined_at_[here] = {s.from_file, s.from_line, s.from_column};
  std::string path;
  place at = here;
  for (int depth = 0; depth < 16; ++depth) {
    const auto caller = inlined_at_.find(at);
    if (caller == inlined_at_.end() || (depth == 0 && s.from_file == 0)) break;
    at = caller->second;
    path += " <- " + unit_.file(std::get<0>(at)) + ":" + std::to_string(std::get<1>(at));
  }
  const auto key = std::make_tuple(s.file, s.line, path);
  const auto known = locations_.find(key);
  if (known != locations_.end()) {
    location_ = known->second;
    return;
  }
  auto [file, fresh] = files_.emplace(s.file, static_cast<int>(out_.files.size()));
  if (fresh) out_.files.push_back(unit_.file(s.file));
  location_ = static_cast<std::uint32_t>(out_.locations.size());
  out_.locations.push_back({file->second, s.line, path});
  locations_[key] = location_;
}

std::uint32_t decoder::place_text(std::string_view text) {
  std::string clean(text);
  std::replace_if(
      clean.begin(), clean.end(), [](char c) { return c == '\t' || c == '\n'; }, ' ');
  out_.texts.push_back(std::move(clean));
  return static_cast<std::uint32_t>(out_.texts.size() - 1);
}

bool decoder::decode_family() {
  return decode_move(*this) || decode_integer(*this) || decode_bits(*this) || decode_float(*this) ||
         decode_half(*this) || decode_compare(*this) || decode_convert(*this) ||
         decode_memory(*this) || decode_atomic(*this) || decode_warp(*this) ||
         decode_control(*this);
}

void decoder::bind_guard() {
  if (statement_->guard.empty()) return;
  in.guard = predicate_of(statement_->guard);
  in.guard_negated = statement_->guard_negated;
}

void decoder::finish(instruction made) {
  made.location = location_;
  made.text = place_text(statement_->text);
  made.line = unit_.line_of(statement_->text);
  out_.code.push_back(made);
}

void decoder::emit(const statement& s) {
  statement_ = &s;
  parts.clear();
  types.clear();
  for (std::string_view rest = s.opcode; !rest.empty();) {
    const std::size_t dot = rest.find('.');
    parts.push_back(rest.substr(0, dot));
    if (const scalar t = parse_scalar(parts.back()); t != scalar::none) types.push_back(t);
    rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
  }
  in = {};
  try {
    bind_guard();
    if (root() == "bra") return emit_branch();
    if (root() == "brx") return emit_indexed_branch();
    if (root() == "call") return emit_call();
    if (root() == "ret") return emit_return();
    if (decode_family()) return finish(in);
  } catch (const unknown_form& why) {
    out_.texts.emplace_back(std::string(s.opcode) + " (" + why.what() + ")");
  }
  if (out_.texts.empty() || out_.texts.back().rfind(s.opcode, 0) != 0)
    out_.texts.emplace_back(s.opcode);
  const std::int32_t guard = in.guard;
  in = {};
  in.guard = guard;
  in.guard_negated = s.guard_negated;
  in.what = action::access;
  in.run = refuse;
  in.offset = static_cast<std::int64_t>(out_.texts.size()) - 1;
  finish(in);
}

void decoder::emit_branch() {
  in.what = action::branch;
  in.counted = instruction_class::control;
  in.run = jump_nowhere;
  fixups_.push_back({static_cast<std::uint32_t>(out_.code.size()), scope_, operands().at(0).name});
  finish(in);
}

void decoder::emit_indexed_branch() {
  in.what = action::indexed_branch;
  in.counted = instruction_class::control;
  in.run = jump_nowhere;
  src(0, scalar::u32);
  pending_tables_.push_back(
      {static_cast<std::uint32_t>(out_.code.size()), scope_, operands().at(1).name});
  finish(in);
}

void decoder::emit_return() {
  in.counted = instruction_class::control;
  if (active_.size() == 1) {
    in.what = action::exit;
  } else {
    in.what = action::branch;
    returns_.back().push_back(static_cast<std::uint32_t>(out_.code.size()));
  }
  in.run = jump_nowhere;
  finish(in);
}

void decoder::emit_call() {
  std::size_t at = 0;
  std::vector<symbol> results;
  std::vector<symbol> arguments;
  if (operands().at(at).shape == operand::form::list) {
    for (const std::string_view name : operands()[at].elements) results.push_back(symbol_of(name));
    ++at;
  }
  const std::string_view name = operands().at(at++).name;
  if (at < operands().size())
    for (const std::string_view argument : operands()[at].elements)
      arguments.push_back(symbol_of(argument));
  if (in.guard >= 0) throw unknown_form("a guarded call");
  const ptx_function* f = unit_.find_function(name);
  if (name == "__assertfail" && !arguments.empty()) {
    in.what = action::access;
    in.counted = instruction_class::control;
    in.run = fail_assertion;
    in.offset = static_cast<std::int64_t>(arguments[0].value);
    return finish(in);
  }
  if (f == nullptr || f->body.empty())
    throw unknown_form(std::string(name) + " is not defined in this module");
  if (std::find(active_.begin(), active_.end(), f->name) != active_.end())
    throw unknown_form("recursion in " + f->name);
  in.what = action::branch;  // counted like the call it is; goes to the next instruction
  in.counted = instruction_class::control;
  in.run = jump_nowhere;
  in.target = static_cast<std::uint32_t>(out_.code.size()) + 1;
  finish(in);
  expand(*f, results, arguments);
}

void decoder::expand(const ptx_function& f, const std::vector<symbol>& results,
                     const std::vector<symbol>& arguments) {
  const int caller_scope = scope_;
  const statement* const caller_statement = statement_;
  const std::uint32_t caller_location = location_;
  scope_ = open_scope(-1);
  const auto bind = [&](std::string_view text, const std::vector<symbol>& actual) {
    const std::vector<declaration> formal = parse_parameters(text);
    if (formal.size() != actual.size()) throw unknown_form("a call with other arguments");
    for (std::size_t i = 0; i < formal.size(); ++i)
      scopes_[static_cast<std::size_t>(scope_)].names[formal[i].name] = actual[i];
  };
  bind(f.results, results);
  bind(f.parameters, arguments);
  active_.push_back(f.name);
  returns_.emplace_back();
  const std::vector<statement> statements = parse_body(f.body);
  body(statements);
  const auto end = static_cast<std::uint32_t>(out_.code.size());
  for (const std::uint32_t i : returns_.back()) out_.code[i].target = end;
  returns_.pop_back();
  active_.pop_back();
  scope_ = caller_scope;
  statement_ = caller_statement;
  location_ = caller_location;
}

void decoder::resolve_labels() {
  const auto find_label = [&](int from, std::string_view label) -> const std::uint32_t* {
    for (int i = from; i >= 0; i = scopes_[static_cast<std::size_t>(i)].parent) {
      const auto& labels = scopes_[static_cast<std::size_t>(i)].labels;
      if (const auto found = labels.find(label); found != labels.end()) return &found->second;
    }
    return nullptr;
  };
  for (const fixup& f : fixups_) {
    const std::uint32_t* target = find_label(f.scope, f.label);
    if (target == nullptr) throw parse_error("no label " + std::string(f.label));
    out_.code[f.instruction].target = *target;
  }
  for (const pending_table& t : pending_tables_) {
    std::vector<std::uint32_t> table;
    for (int i = t.scope; i >= 0 && table.empty();
         i = scopes_[static_cast<std::size_t>(i)].parent) {
      const auto found = branch_targets_.find({i, t.name});
      if (found == branch_targets_.end()) continue;
      for (const std::string_view label : found->second) {
        const std::uint32_t* target = find_label(t.scope, label);
        if (target == nullptr) throw parse_error("no label " + std::string(label));
        table.push_back(*target);
      }
    }
    out_.code[t.instruction].target = static_cast<std::uint32_t>(out_.branch_tables.size());
    out_.branch_tables.push_back(std::move(table));
  }
}

}  // namespace ptx
