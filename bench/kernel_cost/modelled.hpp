// Modelled times of what `measure` ran, from the interpreter's clock and what ptxas said of the
// kernels. Nothing here was timed.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/output/text_table.hpp"
#include "measure.hpp"
#include "resources.hpp"

namespace kernel_cost {

/// The device whose times are modelled.
struct modelled_device {
  ptx::machine limits;
  double clock_ghz = 1.755;  ///< to turn cycles into microseconds
};

/// One launch or two, one after the other; cycles.
struct modelled_time {
  ptx::grid_time cycles;  ///< sums; `waves` and the longest warp of the launch that takes longest
  unsigned resident = 0;  ///< blocks on a multiprocessor at a time, of that launch
  ptx::machine_schedule machine;  ///< of the longest warp: sums, and the worst of the shares
  std::string architecture;       ///< whose registers decide that
};

/// `architecture`: whose registers are taken where nothing was compiled for the device itself.
/// Throws std::runtime_error where ptxas said nothing of a kernel.
modelled_time model(const cost& measured, const modelled_device& device, const resource_map& used,
                    const std::string& architecture);

/// The columns that add_modelled_row() fills.
bench::text_table modelled_table();
void add_modelled_row(bench::text_table& table, const routing_case& which, const char* dtype,
                      const modelled_time& time, const modelled_device& device);
nlohmann::ordered_json to_json(const modelled_time& time, const modelled_device& device);

/// What the times assume, as a paragraph.
std::string assumptions(const modelled_device& device);

}  // namespace kernel_cost
