#include "machine_code.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "../interpreter/scanner.hpp"

namespace ptx {

namespace {

/// Bytes with a bound.
class reader {
 public:
  explicit reader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T at(std::size_t offset) const {
    if (offset > bytes_.size() || bytes_.size() - offset < sizeof(T))
      throw parse_error("a cubin ends early");
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }
  template <class T>
  T next() {
    const T value = at<T>(position);
    position += sizeof(T);
    return value;
  }
  std::uint64_t next_uleb() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = next<std::uint8_t>();
      if (shift < 64) value |= std::uint64_t{byte & 0x7fU} << shift;
      if ((byte & 0x80) == 0) return value;
    }
  }
  std::int64_t next_sleb() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;;) {
      const auto byte = next<std::uint8_t>();
      if (shift < 64) value |= std::uint64_t{byte & 0x7fU} << shift;
      shift += 7;
      if ((byte & 0x80) != 0) continue;
      if ((byte & 0x40) != 0 && shift < 64) value |= ~std::uint64_t{0} << shift;
      return static_cast<std::int64_t>(value);
    }
  }
  std::string_view text(std::size_t offset) const {
    if (offset >= bytes_.size()) throw parse_error("a cubin ends early");
    return bytes_.substr(offset, bytes_.find('\0', offset) - offset);
  }
  std::string_view part(std::size_t offset, std::size_t size) const {
    if (offset > bytes_.size() || bytes_.size() - offset < size)
      throw parse_error("a cubin ends early");
    return bytes_.substr(offset, size);
  }
  std::size_t size() const { return bytes_.size(); }
  std::size_t position = 0;

 private:
  std::string_view bytes_;
};

/// The sections of an ELF file, by name; of several with one name, the first.
class elf {
 public:
  explicit elf(std::string_view bytes) : file_(bytes) {
    if (bytes.substr(0, 4) != "\177ELF") throw parse_error("not a cubin");
    const auto start = file_.at<std::uint64_t>(0x28);
    const auto count = file_.at<std::uint16_t>(0x3c);
    const auto names = file_.at<std::uint16_t>(0x3e);
    const auto header = [&](std::size_t i) { return start + i * 64; };
    const auto names_at = file_.at<std::uint64_t>(header(names) + 24);
    for (std::size_t i = 0; i < count; ++i) {
      constexpr std::uint32_t without_bytes = 8;  // SHT_NOBITS
      if (file_.at<std::uint32_t>(header(i) + 4) == without_bytes) continue;
      const std::string_view name = file_.text(names_at + file_.at<std::uint32_t>(header(i)));
      numbers_.emplace(name, i);
      sections_.emplace(name, file_.part(file_.at<std::uint64_t>(header(i) + 24),
                                         file_.at<std::uint64_t>(header(i) + 32)));
    }
  }
  std::string_view section(std::string_view name) const {
    const auto found = sections_.find(name);
    return found == sections_.end() ? std::string_view() : found->second;
  }
  const std::map<std::string_view, std::string_view>& sections() const { return sections_; }
  std::string_view symbol(std::uint64_t index) const {
    const auto name = reader(section(".symtab")).at<std::uint32_t>(index * symbol_bytes);
    return reader(section(".strtab")).text(name);
  }
  /// Offsets in a section of the symbols whose names hold `word`.
  std::vector<std::uint64_t> offsets_of(std::string_view word, std::string_view in) const {
    std::vector<std::uint64_t> offsets;
    const auto number = numbers_.find(in);
    const reader symbols(section(".symtab"));
    for (std::uint64_t i = 0; number != numbers_.end() && i < symbols.size() / symbol_bytes; ++i)
      if (symbols.at<std::uint16_t>(i * symbol_bytes + 6) == number->second &&
          symbol(i).find(word) != std::string_view::npos)
        offsets.push_back(symbols.at<std::uint64_t>(i * symbol_bytes + 8));
    return offsets;
  }

 private:
  reader file_;
  static constexpr std::uint64_t symbol_bytes = 24;
  std::map<std::string_view, std::string_view> sections_;
  std::map<std::string_view, std::size_t> numbers_;
};

/// The lines of one kernel, from a line table of DWARF 2 whose only file is the PTX.
class line_table {
 public:
  line_table(const elf& file, std::string_view kernel) {
    const std::string_view table = file.section(".nv_debug_line_sass");
    // Which kernel a sequence is of, its relocation says: offset, then type and symbol; sm_90 has
    // an addend too.
    for (const auto& [name, size] :
         {std::pair(".rel.nv_debug_line_sass", 16U), std::pair(".rela.nv_debug_line_sass", 24U)}) {
      const reader relocations(file.section(name));
      for (std::size_t at = 0; at < relocations.size(); at += size)
        if (file.symbol(relocations.at<std::uint64_t>(at + 8) >> 32) == kernel)
          starts_.push_back(relocations.at<std::uint64_t>(at));
    }
    reader units(table);
    while (units.position < units.size()) {
      const std::size_t start = units.position;
      const std::size_t length = units.next<std::uint32_t>();
      read_unit(reader(table.substr(0, start + 4 + length)), start + 4);
      units.position = start + 4 + length;
    }
    std::sort(rows_.begin(), rows_.end());
  }
  /// Of the instruction at a byte offset; 0 where none is known.
  std::uint32_t line_at(std::uint64_t address) const {
    auto after = std::upper_bound(rows_.begin(), rows_.end(), std::pair(address, ~0U));
    return after == rows_.begin() ? 0 : std::prev(after)->second;
  }

 private:
  void read_unit(reader in, std::size_t start) {
    in.position = start + 2;  // after the version
    const std::size_t header = in.next<std::uint32_t>();
    const std::size_t program = in.position + header;
    const auto minimum = in.next<std::uint8_t>();
    in.next<std::uint8_t>();  // default_is_stmt
    const auto base = in.next<std::int8_t>();
    const auto range = in.next<std::uint8_t>();
    const auto first_special = in.next<std::uint8_t>();
    std::vector<std::uint8_t> operands;
    for (unsigned i = 1; i < first_special; ++i) operands.push_back(in.next<std::uint8_t>());
    if (range == 0) throw parse_error("a line table without a range");
    in.position = program;
    std::uint64_t address = 0;
    std::int64_t line = 1;
    bool wanted = false;
    const auto row = [&] {
      if (wanted) rows_.emplace_back(address, static_cast<std::uint32_t>(line));
    };
    while (in.position < in.size()) {
      const auto code = in.next<std::uint8_t>();
      if (code >= first_special) {
        const unsigned adjusted = code - first_special;
        address += std::uint64_t{adjusted / range} * minimum;
        line += base + static_cast<int>(adjusted % range);
        row();
      } else if (code == 0) {
        const std::uint64_t size = in.next_uleb();
        const std::size_t end = in.position + size;
        const auto extended = in.next<std::uint8_t>();
        if (extended == 2) {  // set_address
          wanted = std::find(starts_.begin(), starts_.end(), in.position) != starts_.end();
          address = in.next<std::uint64_t>();
        } else if (extended == 1) {  // end_sequence
          if (wanted) rows_.emplace_back(address, 0);
          address = 0;
          line = 1;
          wanted = false;
        }
        in.position = end;
      } else if (code == 1) {
        row();
      } else if (code == 2) {
        address += in.next_uleb() * minimum;
      } else if (code == 3) {
        line += in.next_sleb();
      } else if (code == 8) {  // const_add_pc
        address += std::uint64_t{(255U - first_special) / range} * minimum;
      } else if (code == 9) {
        address += in.next<std::uint16_t>();
      } else {
        for (unsigned i = 0; i < operands[code - 1]; ++i) in.next_uleb();
      }
    }
  }

  std::vector<std::uint64_t> starts_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> rows_;
};

namespace op {
constexpr std::uint16_t bsync = 0x941, call_absolute = 0x943, call = 0x944, bssy = 0x945,
                        bra = 0x947, brx = 0x949, nop = 0x918, jmp = 0x94a, exit = 0x94d,
                        ret = 0x950;
}  // namespace op

bool votes_on(const machine_instruction& i) {
  return i.line != 0 && i.opcode != op::bssy && i.opcode != op::bsync && i.opcode != op::call &&
         i.opcode != op::nop;
}

bool ends_block(std::uint16_t opcode) {
  return opcode == op::bra || opcode == op::brx || opcode == op::jmp || opcode == op::exit ||
         opcode == op::ret || opcode == op::call || opcode == op::call_absolute;
}

machine_instruction decode_instruction(std::uint64_t low, std::uint64_t high, std::size_t index,
                                       int sm) {
  machine_instruction i;
  i.opcode = low & 0xfff;
  i.guarded = ((low >> 12) & 7) != 7;
  i.stall = (high >> 41) & 15;
  i.sets = (high >> 46) & 7;
  i.waits_for = (high >> 52) & 63;
  if (i.opcode == op::bra || i.opcode == op::call || i.opcode == op::bssy) {
    // Bits 34 to 81, in units of four bytes, from the next instruction; Hopper's branches and calls
    // have eight more below.
    std::uint64_t offset = (low >> 34) | ((high & 0x3ffff) << 30);
    unsigned bits = 48;
    if (sm >= 90 && i.opcode != op::bssy) {
      offset = (offset << 8) | ((low >> 16) & 0xff);
      bits = 56;
    }
    const auto extended = static_cast<std::int64_t>(offset << (64 - bits)) >> (64 - bits);
    i.target = static_cast<std::int64_t>(index) + 1 + extended / 4;
  }
  return i;
}

struct basic_block {
  std::size_t first = 0, end = 0;
  std::uint64_t runs = 0;
  std::uint64_t voters = 0;    // instructions whose lines say how often they ran
  std::uint64_t agreeing = 0;  // with `runs`
  bool own = false;            // the kernel's, rather than a function's that it calls
};

}  // namespace

bool machine_code::has_lines() const {
  return std::any_of(code.begin(), code.end(),
                     [](const machine_instruction& i) { return i.line != 0; });
}

std::vector<cubin_image> cubins_of(const void* wrapper) {
  const auto* outer = static_cast<const char*>(wrapper);
  const char* binary = nullptr;
  std::memcpy(&binary, outer + 8, sizeof binary);
  std::vector<cubin_image> images;
  const reader head(std::string_view(binary, 16));
  const std::size_t size = head.at<std::uint16_t>(6) + head.at<std::uint64_t>(8);
  const reader all(std::string_view(binary, size));
  for (std::size_t at = head.at<std::uint16_t>(6); at < size;) {
    const std::size_t header = all.at<std::uint32_t>(at + 4);
    const std::size_t bytes = all.at<std::uint64_t>(at + 8);
    constexpr std::uint64_t compressed_flags = 0x2000 | 0x8000;
    if (all.at<std::uint16_t>(at) == 2 && (all.at<std::uint64_t>(at + 40) & compressed_flags) == 0)
      images.push_back({all.at<std::int32_t>(at + 28), all.part(at + header, bytes)});
    at += header + bytes;
  }
  return images;
}

int sm_of_cubin(std::string_view bytes) {
  constexpr std::uint16_t cuda_machine = 190;
  const reader file(bytes);
  if (bytes.substr(0, 4) != "\177ELF" || file.at<std::uint16_t>(18) != cuda_machine)
    throw parse_error("not a cubin");
  return static_cast<int>((file.at<std::uint32_t>(48) >> 8) & 0xff);
}

void check_cubin(std::string_view bytes) {
  const cubin_image cubin = {sm_of_cubin(bytes), bytes};
  constexpr std::string_view prefix = ".text.";
  const elf file(bytes);
  for (const auto& [name, unused] : file.sections())
    if (name.substr(0, prefix.size()) == prefix) machine_code_of(cubin, name.substr(prefix.size()));
}

machine_code machine_code_of(const cubin_image& cubin, std::string_view kernel) {
  const elf file(cubin.bytes);
  const std::string section = ".text." + std::string(kernel);
  const reader text(file.section(section));
  const std::vector<std::uint64_t> slow_paths = file.offsets_of("slowpath", section);
  const line_table lines(file, kernel);
  machine_code made;
  made.sm = cubin.sm;
  for (std::size_t i = 0; i < text.size() / 16; ++i) {
    made.code.push_back(decode_instruction(text.at<std::uint64_t>(16 * i),
                                           text.at<std::uint64_t>(16 * i + 8), i, cubin.sm));
    machine_instruction& last = made.code.back();
    last.line = lines.line_at(16 * i);
    last.rare = last.opcode == op::call &&
                std::find(slow_paths.begin(), slow_paths.end(),
                          static_cast<std::uint64_t>(last.target) * 16) != slow_paths.end();
  }
  return made;
}

machine_schedule schedule_of(const machine_code& code, const std::vector<std::uint32_t>& runs) {
  machine_schedule made;
  made.known = code.has_lines();
  if (!made.known) return made;
  const std::vector<machine_instruction>& all = code.code;

  std::vector<char> starts(all.size() + 1, 0);
  starts[0] = 1;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (ends_block(all[i].opcode)) starts[i + 1] = 1;
    if (all[i].target >= 0 && static_cast<std::size_t>(all[i].target) < all.size())
      starts[static_cast<std::size_t>(all[i].target)] = 1;
  }
  std::vector<basic_block> blocks;
  std::vector<std::size_t> block_of(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (starts[i]) blocks.push_back({i, i, 0, 0, 0, false});
    blocks.back().end = i + 1;
    block_of[i] = blocks.size() - 1;
  }
  // Where a block's end leads, calls apart.
  const auto each_next = [&](std::size_t n, auto&& f) {
    const machine_instruction& last = all[blocks[n].end - 1];
    const bool stops = !last.guarded && (last.opcode == op::bra || last.opcode == op::exit ||
                                         last.opcode == op::ret || last.opcode == op::jmp);
    if (!stops && n + 1 < blocks.size()) f(n + 1);
    if (last.opcode == op::bra && last.target >= 0 &&
        static_cast<std::size_t>(last.target) < all.size())
      f(block_of[static_cast<std::size_t>(last.target)]);
  };
  // Past the kernel's own blocks lie the functions that it calls, and padding: the line table says
  // nothing of them, though its last line seems to go on.
  std::vector<std::size_t> to_visit = {0};
  while (!to_visit.empty() && !blocks.empty()) {
    const std::size_t n = to_visit.back();
    to_visit.pop_back();
    if (blocks[n].own) continue;
    blocks[n].own = true;
    each_next(n, [&](std::size_t next) { to_visit.push_back(next); });
  }
  for (basic_block& b : blocks) {
    if (!b.own || all[b.end - 1].rare) continue;
    std::map<std::uint64_t, std::uint64_t> votes;
    for (std::size_t i = b.first; i < b.end; ++i)
      if (votes_on(all[i]) && all[i].line < runs.size()) {
        ++votes[runs[all[i].line]];
        ++b.voters;
      }
    // Of even sides the one that ran oftener: ptxas lifts code out of branches rather than into
    // them.
    for (const auto& [count, votes_for] : votes)
      if (votes_for >= b.agreeing) {
        b.agreeing = votes_for;
        b.runs = count;
      }
  }
  // What only marks where lanes part and meet runs as often as the block that leads to it oftenest.
  for (std::size_t n = 0; n < blocks.size(); ++n)
    each_next(n, [&](std::size_t next) {
      if (blocks[next].own && blocks[next].voters == 0 && !all[blocks[next].end - 1].rare)
        blocks[next].runs = std::max(blocks[next].runs, blocks[n].runs);
    });
  // A function runs as often as it is called, straight on to where it returns.
  for (const basic_block& b : blocks) {
    const machine_instruction& last = all[b.end - 1];
    if (last.opcode != op::call || !b.own || b.runs == 0 || last.guarded || last.target < 0)
      continue;
    for (auto c = static_cast<std::size_t>(last.target); c < all.size();) {
      basic_block& callee = blocks[block_of[c]];
      if (callee.own) break;
      callee.runs += b.runs;
      const machine_instruction& end = all[callee.end - 1];
      if (end.opcode == op::ret && !end.guarded) break;
      c = callee.end;
    }
  }
  std::vector<std::uint64_t> entered(blocks.size(), 0);
  if (!blocks.empty()) entered[0] = 1;
  for (std::size_t n = 0; n < blocks.size(); ++n)
    each_next(n, [&](std::size_t next) { entered[next] += blocks[n].runs; });
  std::uint64_t voters = 0, agreeing = 0, unexplained = 0;
  for (std::size_t n = 0; n < blocks.size(); ++n) {
    const basic_block& b = blocks[n];
    const std::uint64_t size = b.end - b.first;
    made.instructions += b.runs * size;
    voters += b.runs * b.voters;
    agreeing += b.runs * b.agreeing;
    if (b.own && b.runs > entered[n]) unexplained += (b.runs - entered[n]) * size;
    for (std::size_t i = b.first; i < b.end; ++i) {
      made.stalls += b.runs * std::max<std::uint64_t>(all[i].stall, 1);
      if (all[i].waits_for != 0) made.waits += b.runs;
    }
  }
  const auto share = [](std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  made.agreement = share(agreeing, voters);
  made.unexplained = share(unexplained, made.instructions);
  return made;
}

}  // namespace ptx
