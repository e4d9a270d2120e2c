// Launches: which block and which warp takes the next turn.
#include <algorithm>
#include <list>

#include "machine.hpp"

namespace ptx {

namespace {

constexpr std::uint64_t long_turn = 4096;

std::uint32_t as_block_number(std::uint64_t i) {
  return static_cast<std::uint32_t>(i);
}

}  // namespace

launch::launch(launch_request request)
    : request_(std::move(request)), epoch_(next_epoch()), random_(request_.order.seed) {}

std::uint64_t launch::next_epoch() {
  static std::uint64_t last = 0;
  return ++last;
}

std::vector<std::uint32_t> launch::start_order() {
  std::vector<std::uint32_t> order(block_count());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = as_block_number(i);
  if (request_.order.seed == 0) return order;
  // Devices start blocks about in order, and code that waits for earlier blocks (CUB's scan)
  // relies on it. A shuffle inside windows no larger than the resident set cannot starve it.
  const std::size_t window =
      request_.order.shuffle_all_blocks ? order.size() : request_.order.resident_blocks;
  for (std::size_t i = 0; i < order.size(); i += window) {
    const auto first = order.begin() + static_cast<std::ptrdiff_t>(i);
    const auto last =
        order.begin() + static_cast<std::ptrdiff_t>(std::min(i + window, order.size()));
    std::shuffle(first, last, random_);
  }
  return order;
}

void launch::run_blocks() {
  const bool shaken = request_.order.seed != 0;
  const std::size_t resident = std::max(1U, request_.order.resident_blocks);
  const std::vector<std::uint32_t> order = start_order();
  std::size_t started = 0;
  std::vector<std::unique_ptr<block>>& running = blocks_;
  std::size_t turn = 0;
  while (started < order.size() || !running.empty()) {
    while (running.size() < resident && started < order.size())
      running.push_back(std::make_unique<block>(*this, order[started++]));
    if (turn >= running.size()) turn = 0;
    const std::size_t which = shaken ? static_cast<std::size_t>(random_() % running.size()) : turn;
    block& b = *running[which];
    std::vector<warp>& warps = b.warps();
    // One turn of a block: every warp in plain order, or a few random warps.
    bool moved = false;
    const std::size_t turns = shaken ? 1 + random_() % (2 * warps.size()) : warps.size();
    for (std::size_t i = 0; i < turns; ++i) {
      warp& w = warps[shaken ? random_() % warps.size() : i];
      running_ = &w;
      const std::uint64_t before = w.instructions();
      const std::uint64_t budget = shaken ? std::uint64_t{1} << (random_() % 12) : long_turn;
      w.run(budget, shaken ? &random_ : nullptr);
      moved = moved || w.instructions() != before;
      if (counts_.warp_instructions > request_.order.launch_budget)
        throw kernel_fault(fault_kind::runaway, -1,
                           "the launch used up its budget of " +
                               std::to_string(request_.order.launch_budget) + " warp instructions");
      if (w.instructions() > request_.order.warp_budget)
        throw kernel_fault(fault_kind::runaway, -1,
                           "a warp used up its budget of " +
                               std::to_string(request_.order.warp_budget) + " instructions");
    }
    if (b.finished()) {
      if (request_.modelled != nullptr) take_times(b);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      if (!moved) b.check_progress();
      ++turn;
    }
  }
}

void launch::take_times(block& b) {
  for (warp& w : b.warps()) {
    const warp_time& time = w.clock()->time();
    times_.blocks[b.number()].push_back(time);
    if (time.ptx_order <= longest_) continue;
    longest_ = time.ptx_order;
    times_.runs_of_line.assign(1, 0);
    const std::vector<std::uint32_t>& runs = w.clock()->runs();
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::uint32_t line = kernel().code[i].line;
      if (line >= times_.runs_of_line.size()) times_.runs_of_line.resize(line + 1, 0);
      if (line != 0) times_.runs_of_line[line] += runs[i];
    }
  }
}

void launch::run() {
  counts_.launches = 1;
  counts_.blocks = block_count();
  if (request_.modelled != nullptr) times_.blocks.resize(block_count());
  try {
    run_blocks();
  } catch (const kernel_fault& what) {
    describe(what, running_);
  }
  times_.sectors =
      counts_.global_load_sectors + counts_.global_store_sectors + counts_.global_atomic_sectors;
}

void launch::describe(const kernel_fault& what, warp* w) {
  const program& p = kernel();
  fault_.kind = what.kind();
  fault_.kernel = p.pretty;
  fault_.message = what.what();
  if (w == nullptr) return;
  const instruction& in = w->current();
  const source_location& where = p.locations[in.location];
  fault_.file = p.files[static_cast<std::size_t>(where.file)];
  fault_.line = where.line;
  fault_.call_path = where.call_path;
  fault_.instruction = p.texts[in.text];
  fault_.block = w->home().position();
  const int lane = what.lane() >= 0     ? what.lane()
                   : w->group() != 0    ? __builtin_ctz(w->group())
                   : w->existing() != 0 ? __builtin_ctz(w->existing())
                                        : 0;
  const unsigned thread = w->thread_of(lane);
  const extent& size = request_.threads;
  fault_.thread = {thread % size[0], thread / size[0] % size[1], thread / (size[0] * size[1])};
}

}  // namespace ptx
