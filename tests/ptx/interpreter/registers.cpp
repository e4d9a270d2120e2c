// Virtual registers to rows. PTX names every value anew, and unrolled code has thousands of them;
// values that are never alive at the same time share a row, which keeps a warp in the cache.
//
// A lane has its own place in every row, so it is enough that one lane's control flow never needs
// both values. Registers that some path reads before it writes them keep a row of their own: they
// must be seen to be undefined.
#include <algorithm>
#include <queue>

#include "decoder.hpp"

namespace ptx {

namespace {

class bit_set {
 public:
  explicit bit_set(std::size_t size) : words_((size + 63) / 64, 0) {}
  void set(std::size_t i) { words_[i / 64] |= std::uint64_t{1} << (i % 64); }
  bool has(std::size_t i) const { return ((words_[i / 64] >> (i % 64)) & 1) != 0; }
  /// this = this or (other and not without); true when something was added.
  bool add(const bit_set& other, const bit_set* without) {
    std::uint64_t added = 0;
    for (std::size_t i = 0; i < words_.size(); ++i) {
      const std::uint64_t more =
          (without != nullptr ? other.words_[i] & ~without->words_[i] : other.words_[i]) &
          ~words_[i];
      words_[i] |= more;
      added |= more;
    }
    return added != 0;
  }
  template <class F>
  void each(F f) const {
    for (std::size_t w = 0; w < words_.size(); ++w)
      for (std::uint64_t rest = words_[w]; rest != 0; rest &= rest - 1)
        f(w * 64 + static_cast<std::size_t>(__builtin_ctzll(rest)));
  }

 private:
  std::vector<std::uint64_t> words_;
};

struct basic_block {
  std::size_t first = 0;
  std::size_t last = 0;
  std::vector<std::size_t> next;
  bit_set written;  // before any read
  bit_set in;
  bit_set out;
  explicit basic_block(std::size_t registers) : written(registers), in(registers), out(registers) {}
};

template <class F>
void each_read(const instruction& i, F f) {
  for (int k = 0; k < i.src_count; ++k)
    if (i.src[k] >= 0) f(static_cast<std::size_t>(i.src[k]));
  // A guard may leave some lanes as they were.
  if (i.guard >= 0)
    for (int k = 0; k < i.dst_count; ++k) f(static_cast<std::size_t>(i.dst[k]));
}

template <class F>
void each_write(const instruction& i, F f) {
  for (int k = 0; k < i.dst_count; ++k) f(static_cast<std::size_t>(i.dst[k]));
}

std::vector<std::size_t> targets_of(const program& p, std::size_t at) {
  const instruction& i = p.code[at];
  std::vector<std::size_t> next;
  if (i.what == action::branch) next.push_back(i.target);
  if (i.what == action::indexed_branch)
    for (const std::uint32_t t : p.branch_tables[i.target]) next.push_back(t);
  const bool leaves =
      i.what == action::branch || i.what == action::indexed_branch || i.what == action::exit;
  if ((!leaves || i.guard >= 0) && at + 1 < p.code.size()) next.push_back(at + 1);
  return next;
}

std::vector<basic_block> blocks_of(const program& p) {
  const std::size_t size = p.code.size();
  std::vector<char> starts(size, 0);
  starts[0] = 1;
  for (std::size_t i = 0; i < size; ++i) {
    const std::vector<std::size_t> next = targets_of(p, i);
    if (next.size() == 1 && next[0] == i + 1) continue;
    for (const std::size_t n : next) starts[n] = 1;
    if (i + 1 < size) starts[i + 1] = 1;
  }
  std::vector<basic_block> blocks;
  std::vector<std::size_t> number(size, 0);
  for (std::size_t i = 0; i < size; ++i) {
    if (starts[i]) {
      blocks.emplace_back(p.registers);
      blocks.back().first = i;
    }
    number[i] = blocks.size() - 1;
    basic_block& b = blocks.back();
    b.last = i;
    each_read(p.code[i], [&](std::size_t r) {
      if (!b.written.has(r)) b.in.set(r);
    });
    each_write(p.code[i], [&](std::size_t r) { b.written.set(r); });
  }
  for (basic_block& b : blocks)
    for (const std::size_t n : targets_of(p, b.last)) b.next.push_back(number[n]);
  return blocks;
}

void find_live(std::vector<basic_block>& blocks) {
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = blocks.size(); i-- > 0;) {
      basic_block& b = blocks[i];
      bool more = false;
      for (const std::size_t n : b.next) more = b.out.add(blocks[n].in, nullptr) || more;
      if (more) changed = b.in.add(b.out, &b.written) || changed;
    }
  }
}

struct lifetime {
  std::size_t start = ~std::size_t{0};
  std::size_t end = 0;
  void cover(std::size_t at) {
    start = std::min(start, at);
    end = std::max(end, at);
  }
};

}  // namespace

void share_rows(program& p) {
  std::vector<basic_block> blocks = blocks_of(p);
  find_live(blocks);

  // Reads happen at even times and writes at odd ones, so that a result may take the row of an
  // operand that ends with it.
  std::vector<lifetime> lives(p.registers);
  for (std::size_t i = 0; i < p.code.size(); ++i) {
    each_read(p.code[i], [&](std::size_t r) { lives[r].cover(2 * i); });
    each_write(p.code[i], [&](std::size_t r) { lives[r].cover(2 * i + 1); });
  }
  for (const basic_block& b : blocks) {
    b.in.each([&](std::size_t r) { lives[r].cover(2 * b.first); });
    b.out.each([&](std::size_t r) { lives[r].cover(2 * b.last + 1); });
  }
  std::vector<std::int32_t> row(p.registers, -1);
  std::int32_t rows = 0;
  for (auto& [what, r] : p.specials) row[static_cast<std::size_t>(r)] = rows++;
  blocks.front().in.each([&](std::size_t r) {
    if (row[r] < 0) row[r] = rows++;
  });

  std::vector<std::size_t> order;
  for (std::size_t r = 0; r < p.registers; ++r)
    if (row[r] < 0 && lives[r].start != ~std::size_t{0}) order.push_back(r);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return lives[a].start < lives[b].start; });
  using busy_row = std::pair<std::size_t, std::int32_t>;  // until when
  std::priority_queue<busy_row, std::vector<busy_row>, std::greater<>> busy;
  std::vector<std::int32_t> free;
  for (const std::size_t r : order) {
    while (!busy.empty() && busy.top().first < lives[r].start) {
      free.push_back(busy.top().second);
      busy.pop();
    }
    if (free.empty()) free.push_back(rows++);
    row[r] = free.back();
    free.pop_back();
    busy.emplace(lives[r].end, row[r]);
  }

  const auto rename = [&](std::int32_t& r) {
    if (r >= 0) r = row[static_cast<std::size_t>(r)];
  };
  for (instruction& i : p.code) {
    for (int k = 0; k < i.src_count; ++k) rename(i.src[k]);
    for (int k = 0; k < i.dst_count; ++k) rename(i.dst[k]);
  }
  for (auto& [what, r] : p.specials) rename(r);
  p.registers = static_cast<std::size_t>(rows);
}

}  // namespace ptx
