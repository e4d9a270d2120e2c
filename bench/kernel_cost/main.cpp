// kernel_cost: what the routing kernels execute, move and occupy, counted without a GPU.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/adaptive_k/text_table.hpp"
#include "measure.hpp"
#include "resources.hpp"

namespace {

using kernel_cost::logit_type;

struct shape {
  int num_experts;
  int top_k;
};

constexpr shape known_shapes[] = {{8, 2}, {60, 4}, {64, 8}, {128, 8}, {256, 8}, {384, 8}};

const char* name_of(logit_type type) {
  return type == logit_type::bf16 ? "bf16" : type == logit_type::f16 ? "f16" : "f32";
}

/// Most warp instructions per token at T = 4096 with entropy thresholds; 0 where none is set.
int budget_of(const shape& s, logit_type type) {
  struct row {
    shape s;
    int bf16, f32;
  };
  constexpr row rows[] = {{{8, 2}, 8, 8},       {{60, 4}, 75, 110},   {{64, 8}, 90, 110},
                          {{128, 8}, 150, 190}, {{256, 8}, 310, 380}, {{384, 8}, 420, 530}};
  for (const row& r : rows)
    if (r.s.num_experts == s.num_experts && r.s.top_k == s.top_k)
      return type == logit_type::f32 ? r.f32 : r.bf16;
  return 0;
}

std::vector<shape> parse_shapes(const std::vector<std::string>& texts) {
  if (texts.empty()) return {std::begin(known_shapes), std::end(known_shapes)};
  std::vector<shape> shapes;
  for (const std::string& text : texts) {
    shape s{};
    char rest = 0;
    if (std::sscanf(text.c_str(), "%d/%d%c", &s.num_experts, &s.top_k, &rest) != 2)
      throw std::runtime_error("--shape " + text + ": expected EXPERTS/TOP_K, for example 128/8");
    shapes.push_back(s);
  }
  return shapes;
}

logit_type parse_dtype(const std::string& text) {
  for (const logit_type type : {logit_type::bf16, logit_type::f16, logit_type::f32})
    if (text == name_of(type)) return type;
  throw std::runtime_error("--dtype " + text + ": expected bf16, f16 or f32");
}

int run(int argc, char** argv) {
  CLI::App app("What the routing kernels cost, executed by an interpreter of their PTX.",
               "kernel_cost");
  std::vector<std::string> shapes, dtypes = {"bf16", "f32"}, policies = {"entropy"};
  std::vector<std::int64_t> tokens = {1, 64, 4096};
  std::string json_file, resources_file = KERNEL_RESOURCES, architecture = "sm_80";
  bool with_metrics = false, within_budget = false;
  app.add_option("--shape", shapes, "EXPERTS/TOP_K, any number of them");
  app.add_option("--tokens", tokens, "rows of a launch")->check(CLI::Range(1, 1 << 20));
  app.add_option("--dtype", dtypes, "type of the logits")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  app.add_option("--policy", policies)->check(CLI::IsMember(kernel_cost::policies()));
  app.add_option("--resources", resources_file, "output of nvcc -Xptxas -v for the kernels")
      ->check(CLI::ExistingFile);
  app.add_option("--arch", architecture, "whose registers and memory to report");
  app.add_option("--json", json_file, "write the rows to this file too");
  app.add_flag("--metrics", with_metrics, "accumulate batch metrics in the launch");
  app.add_flag("--check", within_budget, "exit with 1 where a budget is missed");
  CLI11_PARSE(app, argc, argv);

  const auto used = kernel_cost::read_resources(resources_file);
  bench::text_table table({"E/K0", "T", "<dtype", "<policy", "mean K", "warp instr", "budget",
                           "thread instr", "load sectors", "least", "store sectors", "least",
                           "launches", "registers", "spill", "stack", "shared", "occupancy"});
  nlohmann::json rows = nlohmann::json::array();
  bool missed = false;
  for (const shape& s : parse_shapes(shapes)) {
    for (const std::string& dtype : dtypes) {
      for (const std::string& policy : policies) {
        for (const std::int64_t count : tokens) {
          const kernel_cost::routing_case which = {s.num_experts, s.top_k, count,
                                                   parse_dtype(dtype), policy};
          const kernel_cost::cost c = kernel_cost::measure(which, with_metrics);
          const auto entry = used.find({architecture, c.kernel});
          const kernel_cost::resources r =
              entry == used.end() ? kernel_cost::resources{} : entry->second;
          const double occupancy = kernel_cost::theoretical_occupancy(r, architecture, 128);
          const bool budgeted =
              count == 4096 && policy == "entropy" && dtype != "f16" && !with_metrics;
          const int budget = budgeted ? budget_of(s, which.dtype) : 0;
          missed = missed || (budget != 0 && c.warp_instructions_per_token > budget);
          table.add_row({fmt::format("{}/{}", s.num_experts, s.top_k), std::to_string(count), dtype,
                         policy, fmt::format("{:.2f}", c.mean_k),
                         fmt::format("{:.1f}", c.warp_instructions_per_token),
                         budget == 0 ? "" : std::to_string(budget),
                         fmt::format("{:.0f}", c.thread_instructions_per_token),
                         fmt::format("{:.2f}", c.load_sectors_per_token),
                         fmt::format("{:.2f}", c.least_load_sectors_per_token),
                         fmt::format("{:.2f}", c.store_sectors_per_token),
                         fmt::format("{:.2f}", c.least_store_sectors_per_token),
                         std::to_string(c.launches), std::to_string(r.registers),
                         std::to_string(r.spill_bytes), std::to_string(r.stack_bytes),
                         std::to_string(r.shared_bytes),
                         fmt::format("{:.0f}%", 100.0 * occupancy)});
          rows.push_back({{"kernel", c.kernel},
                          {"num_experts", s.num_experts},
                          {"top_k", s.top_k},
                          {"num_tokens", count},
                          {"dtype", dtype},
                          {"policy", policy},
                          {"metrics", with_metrics},
                          {"mean_k", c.mean_k},
                          {"warp_instructions_per_token", c.warp_instructions_per_token},
                          {"thread_instructions_per_token", c.thread_instructions_per_token},
                          {"load_sectors_per_token", c.load_sectors_per_token},
                          {"least_load_sectors_per_token", c.least_load_sectors_per_token},
                          {"store_sectors_per_token", c.store_sectors_per_token},
                          {"least_store_sectors_per_token", c.least_store_sectors_per_token},
                          {"atomic_requests_per_token", c.atomic_requests_per_token},
                          {"shared_bank_conflicts", c.shared_bank_conflicts},
                          {"launches", c.launches},
                          {"architecture", architecture},
                          {"registers", r.registers},
                          {"spill_bytes", r.spill_bytes},
                          {"stack_bytes", r.stack_bytes},
                          {"shared_bytes", r.shared_bytes},
                          {"theoretical_occupancy", occupancy}});
        }
      }
    }
  }
  fmt::print("Per token; warp instructions are PTX's, not the machine's.\n\n{}", table.text());
  if (!json_file.empty()) {
    std::ofstream out(json_file);
    out << rows.dump(2) << '\n';
    if (!out) throw std::runtime_error(json_file + ": cannot be written");
  }
  return missed && within_budget ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& failure) {
    fmt::print(stderr, "kernel_cost: {}\n", failure.what());
    return 2;
  }
}
