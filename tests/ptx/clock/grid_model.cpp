#include "grid_model.hpp"

#include <algorithm>
#include <stdexcept>

namespace ptx {

namespace {

std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) {
  return (a + b - 1) / b;
}

/// When the last of these blocks ends, `places` at a time, each taking the first place to get free.
std::uint64_t end_of(const std::vector<std::uint64_t>& durations, unsigned places) {
  std::vector<std::uint64_t> free_at(std::min<std::size_t>(places, durations.size()), 0);
  for (const std::uint64_t d : durations) *std::min_element(free_at.begin(), free_at.end()) += d;
  return *std::max_element(free_at.begin(), free_at.end());
}

struct multiprocessor_time {
  std::uint64_t lower = 0, upper = 0, busiest_scheduler = 0;
};

/// Of the multiprocessor that takes block `first` and every `stride`th after it.
multiprocessor_time time_of(const machine& m, const launch_time& launch, std::size_t first,
                            std::size_t stride, unsigned resident) {
  std::vector<busy_cycles> schedulers(static_cast<std::size_t>(m.schedulers));
  std::vector<std::uint64_t> lower, upper;
  busy_cycles all;
  std::size_t slot = 0;
  std::uint64_t lower_sum = 0;
  for (std::size_t b = first; b < launch.blocks.size(); b += stride) {
    lower.push_back(0);
    upper.push_back(0);
    for (const warp_time& w : launch.blocks[b]) {
      lower.back() = std::max(lower.back(), w.lower(m));
      upper.back() = std::max(upper.back(), w.ptx_order);
      schedulers[slot++ % schedulers.size()] += w.busy;
      all += w.busy;
    }
    lower_sum += lower.back();
  }
  multiprocessor_time made;
  for (const busy_cycles& s : schedulers)
    made.busiest_scheduler = std::max(made.busiest_scheduler, s.of_partition(m));
  made.busiest_scheduler = std::max(made.busiest_scheduler, all.shared);
  made.lower = std::max({*std::max_element(lower.begin(), lower.end()), made.busiest_scheduler,
                         lower_sum / resident});
  const std::uint64_t together =  // warps on a scheduler at a time
      divide_up(std::min<std::uint64_t>(resident, lower.size()) * launch.blocks[first].size(),
                schedulers.size());
  made.upper = end_of(upper, resident) + made.busiest_scheduler * (together - 1) / together;
  return made;
}

}  // namespace

unsigned resident_blocks(const machine& m, unsigned registers, std::uint64_t shared_bytes,
                         std::uint64_t threads) {
  constexpr std::uint64_t all_registers = 65536, granularity = 256;
  const auto schedulers = static_cast<std::uint64_t>(m.schedulers);
  const std::uint64_t warps = divide_up(threads, 32);
  const std::uint64_t of_warp =
      divide_up(std::max(registers, 1U) * std::uint64_t{32}, granularity) * granularity;
  const std::uint64_t warps_by_registers = all_registers / schedulers / of_warp * schedulers;
  return static_cast<unsigned>(
      std::min<std::uint64_t>({warps_by_registers / warps,
                               m.shared_kib * std::uint64_t{1024} /
                                   std::max<std::uint64_t>(shared_bytes + m.shared_reserved, 1),
                               m.max_warps / warps, m.max_blocks}));
}

grid_time model_grid(const machine& m, const launch_time& launch, unsigned resident) {
  if (resident == 0)
    throw std::invalid_argument(launch.kernel + ": not even one block fits a multiprocessor");
  if (std::any_of(launch.blocks.begin(), launch.blocks.end(),
                  [](const auto& block) { return block.empty(); }))
    throw std::invalid_argument(launch.kernel + ": the launch did not run to its end");
  grid_time made;
  for (const std::vector<warp_time>& block : launch.blocks)
    for (const warp_time& w : block) {
      made.data_flow = std::max(made.data_flow, w.data_flow);
      made.issue_slots = std::max(made.issue_slots, w.issue_slots(m));
      made.ptx_order = std::max(made.ptx_order, w.ptx_order);
    }
  const auto multiprocessors = static_cast<std::size_t>(m.multiprocessors);
  for (std::size_t i = 0; i < std::min(multiprocessors, launch.blocks.size()); ++i) {
    const multiprocessor_time t = time_of(m, launch, i, multiprocessors, resident);
    made.lower = std::max(made.lower, t.lower);
    made.upper = std::max(made.upper, t.upper);
    made.busiest_scheduler = std::max(made.busiest_scheduler, t.busiest_scheduler);
  }
  made.waves =
      static_cast<unsigned>(divide_up(divide_up(launch.blocks.size(), multiprocessors), resident));
  made.l2 = divide_up(launch.sectors * 32, m.l2_bytes);
  made.lower = std::max(made.lower, made.l2);
  made.upper = std::max(made.upper, made.lower);
  return made;
}

}  // namespace ptx
