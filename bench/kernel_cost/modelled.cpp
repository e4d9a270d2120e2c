#include "modelled.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace kernel_cost {
namespace {

double microseconds(std::uint64_t cycles, const modelled_device& device) {
  return static_cast<double>(cycles) / (1e3 * device.clock_ghz);
}

}  // namespace

modelled_time model(const cost& measured, const modelled_device& device, const resource_map& used,
                    const std::string& architecture) {
  const std::string own = fmt::format("sm_{}", device.limits.sm);
  modelled_time made;
  for (const ptx::launch_time& launch : measured.times) {
    made.architecture = own;
    auto found = used.find({own, launch.kernel});
    if (found == used.end()) {
      made.architecture = architecture;
      found = used.find({architecture, launch.kernel});
    }
    if (found == used.end())
      throw std::runtime_error("ptxas said nothing of " + launch.kernel + " for " + own + " or " +
                               architecture);
    const unsigned resident =
        ptx::resident_blocks(device.limits, static_cast<unsigned>(found->second.registers),
                             launch.shared_bytes, launch.threads);
    const ptx::grid_time t = ptx::model_grid(device.limits, launch, resident);
    ptx::grid_time& sum = made.cycles;
    const bool longest = t.lower > sum.lower;
    if (longest) {
      made.resident = resident;
      sum.waves = t.waves;
    }
    sum.data_flow += t.data_flow;
    sum.issue_slots += t.issue_slots;
    sum.ptx_order += t.ptx_order;
    sum.lower += t.lower;
    sum.upper += t.upper;
    sum.busiest_scheduler += t.busiest_scheduler;
    sum.l2 += t.l2;
    const ptx::machine_schedule& code = launch.schedule;
    ptx::machine_schedule& all = made.machine;
    const bool first = &launch == &measured.times.front();
    all.known = code.known && (first || all.known);
    all.agreement = first ? code.agreement : std::min(all.agreement, code.agreement);
    all.unexplained = std::max(all.unexplained, code.unexplained);
    all.instructions += code.instructions;
    all.stalls += code.stalls;
    all.waits += code.waits;
  }
  return made;
}

bench::text_table modelled_table() {
  return bench::text_table({"<operation", "E/K0", "T", "<dtype", "data flow", "issue slots",
                            "PTX order", "blocks/SM", "waves", "busiest scheduler", "L2", "lower",
                            "upper", "lower us", "upper us", "machine instr", "stalls", "waits",
                            "agreement"});
}

void add_modelled_row(bench::text_table& table, const routing_case& which, const char* dtype,
                      const modelled_time& time, const modelled_device& device) {
  const ptx::grid_time& c = time.cycles;
  const ptx::machine_schedule& code = time.machine;
  const auto if_known = [&](std::uint64_t count) {
    return code.known ? std::to_string(count) : std::string("-");
  };
  table.add_row({which.operation, fmt::format("{}/{}", which.num_experts, which.top_k),
                 std::to_string(which.num_tokens), dtype, std::to_string(c.data_flow),
                 std::to_string(c.issue_slots), std::to_string(c.ptx_order),
                 std::to_string(time.resident), std::to_string(c.waves),
                 std::to_string(c.busiest_scheduler), std::to_string(c.l2), std::to_string(c.lower),
                 std::to_string(c.upper), fmt::format("{:.2f}", microseconds(c.lower, device)),
                 fmt::format("{:.2f}", microseconds(c.upper, device)), if_known(code.instructions),
                 if_known(code.stalls), if_known(code.waits),
                 code.known ? fmt::format("{:.0f}%", 100.0 * code.agreement) : "-"});
}

nlohmann::ordered_json to_json(const modelled_time& time, const modelled_device& device) {
  const ptx::grid_time& c = time.cycles;
  nlohmann::ordered_json made = {{"sm", device.limits.sm},
                                 {"multiprocessors", device.limits.multiprocessors},
                                 {"clock_ghz", device.clock_ghz},
                                 {"loads_from", ptx::name_of(device.limits.memory)},
                                 {"registers_of", time.architecture},
                                 {"resident_blocks", time.resident},
                                 {"waves", c.waves},
                                 {"data_flow_cycles", c.data_flow},
                                 {"issue_slot_cycles", c.issue_slots},
                                 {"ptx_order_cycles", c.ptx_order},
                                 {"busiest_scheduler_cycles", c.busiest_scheduler},
                                 {"l2_cycles", c.l2},
                                 {"lower_cycles", c.lower},
                                 {"upper_cycles", c.upper},
                                 {"lower_us", microseconds(c.lower, device)},
                                 {"upper_us", microseconds(c.upper, device)},
                                 {"machine_code", nullptr}};
  if (time.machine.known)
    made["machine_code"] = {{"instructions", time.machine.instructions},
                            {"stall_cycles", time.machine.stalls},
                            {"waits", time.machine.waits},
                            {"agreement", time.machine.agreement},
                            {"unexplained", time.machine.unexplained}};
  return made;
}

std::string assumptions(const modelled_device& device) {
  return fmt::format(
      "Modelled, in cycles; nothing was timed. sm_{}, {} multiprocessors, {:.3f} GHz for "
      "microseconds; loads answered by {}.\n"
      "Data flow, issue slots and PTX order are those of the longest warp; lower and upper bound "
      "the "
      "launch, if a\nmachine instruction stands for each of PTX (machine code has fewer for bf16). "
      "Left out: the launch itself,\ncold instruction and constant caches, blocks that wait for "
      "one "
      "another.\nFigures: {}.\n",
      device.limits.sm, device.limits.multiprocessors, device.clock_ghz,
      ptx::name_of(device.limits.memory), ptx::timing_sources());
}

}  // namespace kernel_cost
