// kernel_cost: what the routing kernels execute, move and occupy, counted without a GPU.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "measure.hpp"
#include "modelled.hpp"
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

/// Tokens of the launches that have a budget: a decoded token's, and a long one's.
constexpr std::int64_t one_token = 1;
constexpr std::int64_t many_tokens = 16384;

/// Most warp instructions per token with entropy thresholds; 0 where none is set.
int budget_of(const shape& s, logit_type type, std::int64_t num_tokens) {
  struct row {
    shape s;
    std::int64_t num_tokens;
    int bf16, f32;
  };
  constexpr row rows[] = {{{8, 2}, one_token, 240, 250},     {{60, 4}, one_token, 310, 330},
                          {{64, 8}, one_token, 350, 390},    {{128, 8}, one_token, 420, 470},
                          {{256, 8}, one_token, 560, 660},   {{384, 8}, one_token, 720, 880},
                          {{8, 2}, many_tokens, 15, 19},     {{60, 4}, many_tokens, 75, 110},
                          {{64, 8}, many_tokens, 90, 110},   {{128, 8}, many_tokens, 150, 190},
                          {{256, 8}, many_tokens, 310, 380}, {{384, 8}, many_tokens, 420, 530}};
  for (const row& r : rows)
    if (r.s.num_experts == s.num_experts && r.s.top_k == s.top_k && r.num_tokens == num_tokens)
      return type == logit_type::f32 ? r.f32 : r.bf16;
  return 0;
}

/// The same of one token under other gatings, with fp32 logits: sigmoid with a bias, and with
/// groups.
int gating_budget_of(const kernel_cost::routing_case& which) {
  if (which.num_tokens != one_token || which.dtype != logit_type::f32) return 0;
  if (which.gating == "sigmoid" && which.num_experts == 128 && which.top_k == 6) return 560;
  if (which.gating == "groups" && which.num_experts == 256 && which.top_k == 8) return 910;
  return 0;
}

/// What a cost breaks of what is promised; empty where nothing.
std::string breach_of(const kernel_cost::routing_case& which, const kernel_cost::cost& c,
                      int most_instructions) {
  const double sectors = c.load_sectors_per_token + c.store_sectors_per_token;
  const double least = c.least_load_sectors_per_token + c.least_store_sectors_per_token;
  const int launches = which.operation == "route_permute" && which.num_tokens > 256 ? 2 : 1;
  if (most_instructions != 0 && c.warp_instructions_per_token > most_instructions)
    return fmt::format("{:.2f} warp instructions, allowed {}", c.warp_instructions_per_token,
                       most_instructions);
  // Of a short launch the way of one token is the time, and not what it moves.
  if (which.operation == "route" && which.policy != "distortion" && which.policy != "head" &&
      which.num_tokens >= many_tokens && sectors > 1.1 * least)
    return fmt::format("{:.2f} sectors, allowed 1.1 times {:.2f}", sectors, least);
  if (c.launches > launches) return fmt::format("{} launches, allowed {}", c.launches, launches);
  return "";
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

struct options {
  std::vector<std::string> shapes, dtypes = {"bf16", "f32"}, policies = {"entropy"},
                                   operations = {"route"}, gatings = {"softmax"};
  std::vector<std::string> cubins;
  std::vector<std::int64_t> tokens = {one_token, 8, 64, 512, 2048, 4096, many_tokens};
  std::string json_file, resources_file = KERNEL_RESOURCES, library_file = KERNEL_LIBRARY,
                         architecture = "sm_80", memory = "L2";
  int modelled_sm = 90, multiprocessors = 0;
  double clock_ghz = 1.755;
  bool with_metrics = false, within_budget = false;
};

void add_options(CLI::App& app, options& o) {
  app.add_option("--shape", o.shapes, "EXPERTS/TOP_K, any number of them");
  app.add_option("--tokens", o.tokens, "rows of a launch")->check(CLI::Range(1, 1 << 20));
  app.add_option("--dtype", o.dtypes, "type of the logits")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  app.add_option("--policy", o.policies)->check(CLI::IsMember(kernel_cost::policies()));
  app.add_option("--operation", o.operations)->check(CLI::IsMember(kernel_cost::operations()));
  app.add_option("--gating", o.gatings, "softmax, sigmoid (with a bias) or groups (that, 4 of 8)")
      ->check(CLI::IsMember(kernel_cost::gatings()));
  app.add_option("--resources", o.resources_file, "output of nvcc -Xptxas -v for the kernels")
      ->check(CLI::ExistingFile);
  app.add_option("--library", o.library_file, "the kernels, to report its size");
  app.add_option("--arch", o.architecture, "whose registers and memory to report");
  app.add_option("--model", o.modelled_sm, "whose times to model: 80 (A100) or 90 (H100, H200)")
      ->check(CLI::IsMember({80, 90}));
  app.add_option("--multiprocessors", o.multiprocessors, "of the modelled device (108, 132)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--cubin", o.cubins,
                 "machine code for --model that ptxas -lineinfo made of this program's PTX")
      ->check(CLI::ExistingFile);
  app.add_option("--clock-ghz", o.clock_ghz, "to turn modelled cycles into microseconds")
      ->check(CLI::Range(0.1, 10.0));
  app.add_option("--memory", o.memory, "which answers the modelled loads: L1, L2 or DRAM")
      ->check(CLI::IsMember({"L1", "L2", "DRAM"}));
  app.add_option("--json", o.json_file, "write the rows here ('-': stdout, and no table)");
  app.add_flag("--metrics", o.with_metrics, "accumulate batch metrics in the launch");
  app.add_flag("--check", o.within_budget,
               "exit with 1 where instructions, sectors or launches are more than allowed");
}

std::vector<kernel_cost::routing_case> cases_of(const options& o, int multiprocessors) {
  std::vector<kernel_cost::routing_case> cases;
  for (const std::string& operation : o.operations)
    for (const shape& s : parse_shapes(o.shapes))
      for (const std::string& dtype : o.dtypes)
        for (const std::string& policy : o.policies)
          for (const std::string& gating : o.gatings)
            for (const std::int64_t count : o.tokens)
              cases.push_back({s.num_experts, s.top_k, count, parse_dtype(dtype), policy, operation,
                               multiprocessors, gating});
  return cases;
}

ptx::memory_level parse_memory(const std::string& text) {
  for (const ptx::memory_level level : {ptx::memory_level::l1, ptx::memory_level::dram})
    if (text == ptx::name_of(level)) return level;
  return ptx::memory_level::l2;
}

kernel_cost::modelled_device device_of(const options& o) {
  kernel_cost::modelled_device device;
  device.limits = ptx::machine_of(o.modelled_sm, parse_memory(o.memory));
  if (o.multiprocessors != 0) device.limits.multiprocessors = o.multiprocessors;
  device.clock_ghz = o.clock_ghz;
  return device;
}

int run(int argc, char** argv) {
  CLI::App app("What the routing kernels cost, executed by an interpreter of their PTX.",
               "kernel_cost");
  options o;
  add_options(app, o);
  CLI11_PARSE(app, argc, argv);
  bench::file_roles roles;
  roles.writes("--json", o.json_file);

  const auto used = kernel_cost::read_resources(o.resources_file);
  const kernel_cost::modelled_device device = device_of(o);
  if (std::getenv("PTX_SM") == nullptr) ptx::set_compute_capability(o.modelled_sm);
  for (const std::string& cubin : o.cubins) ptx::add_cubin(cubin);
  bench::text_table modelled = kernel_cost::modelled_table();
  bench::text_table table({"<operation",   "<gating", "E/K0",          "T",      "<dtype",
                           "<policy",      "mean K",  "warp instr",    "budget", "thread instr",
                           "load sectors", "least",   "store sectors", "least",  "launches",
                           "registers",    "spill",   "stack",         "shared", "occupancy"});
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::vector<std::string> breaches;
  for (const kernel_cost::routing_case& which : cases_of(o, device.limits.multiprocessors)) {
    const kernel_cost::cost c =
        kernel_cost::measure(which, o.with_metrics, {device.limits.sm, device.limits.memory});
    const auto entry = used.find({o.architecture, c.kernel});
    if (entry == used.end())
      throw std::runtime_error(o.resources_file + ": nothing of " + c.kernel + " for " +
                               o.architecture);
    const kernel_cost::resources& r = entry->second;
    const double occupancy = kernel_cost::theoretical_occupancy(
        r, o.architecture, c.threads_per_block, c.dynamic_shared_bytes);
    const bool budgeted = which.policy == "entropy" && which.dtype != logit_type::f16 &&
                          which.operation == "route" && !o.with_metrics;
    int most_instructions = 0;
    if (budgeted)
      most_instructions = which.gating == "softmax" ? budget_of({which.num_experts, which.top_k},
                                                                which.dtype, which.num_tokens)
                                                    : gating_budget_of(which);
    const char* const dtype = name_of(which.dtype);
    const std::string breach = breach_of(which, c, most_instructions);
    if (!breach.empty())
      breaches.push_back(fmt::format("{} {}/{} {} T = {}: {}", which.operation, which.num_experts,
                                     which.top_k, dtype, which.num_tokens, breach));
    const kernel_cost::modelled_time time = kernel_cost::model(c, device, used, o.architecture);
    kernel_cost::add_modelled_row(modelled, which, dtype, time, device);
    table.add_row({which.operation,
                   which.gating,
                   fmt::format("{}/{}", which.num_experts, which.top_k),
                   std::to_string(which.num_tokens),
                   dtype,
                   which.policy,
                   fmt::format("{:.2f}", c.mean_k),
                   fmt::format("{:.1f}", c.warp_instructions_per_token),
                   most_instructions == 0 ? "" : std::to_string(most_instructions),
                   fmt::format("{:.0f}", c.thread_instructions_per_token),
                   fmt::format("{:.2f}", c.load_sectors_per_token),
                   fmt::format("{:.2f}", c.least_load_sectors_per_token),
                   fmt::format("{:.2f}", c.store_sectors_per_token),
                   fmt::format("{:.2f}", c.least_store_sectors_per_token),
                   std::to_string(c.launches),
                   std::to_string(r.registers),
                   std::to_string(r.spill_bytes),
                   std::to_string(r.stack_bytes),
                   std::to_string(r.shared_bytes + c.dynamic_shared_bytes),
                   fmt::format("{:.0f}%", 100.0 * occupancy)});
    rows.push_back({{"kernel", c.kernel},
                    {"operation", which.operation},
                    {"gating", which.gating},
                    {"num_experts", which.num_experts},
                    {"top_k", which.top_k},
                    {"num_tokens", which.num_tokens},
                    {"dtype", dtype},
                    {"policy", which.policy},
                    {"metrics", o.with_metrics},
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
                    {"architecture", o.architecture},
                    {"registers", r.registers},
                    {"spill_bytes", r.spill_bytes},
                    {"stack_bytes", r.stack_bytes},
                    {"shared_bytes", r.shared_bytes + c.dynamic_shared_bytes},
                    {"theoretical_occupancy", occupancy},
                    {"modelled", kernel_cost::to_json(time, device)}});
  }
  bench::write_json("--json", o.json_file, rows);
  for (const std::string& breach : breaches) fmt::print(stderr, "Missed: {}\n", breach);
  const int status = !breaches.empty() && o.within_budget ? 1 : 0;
  if (roles.stdout_is_taken()) return status;
  fmt::print("Per token; warp instructions are PTX's, not the machine's.\n\n{}", table.text());
  fmt::print("\n{}\n{}", kernel_cost::assumptions(device), modelled.text());
  std::error_code no_file;
  const auto bytes = std::filesystem::file_size(o.library_file, no_file);
  if (!no_file)
    fmt::print("\n{} compiled kernels, all architectures together; their library: {}\n",
               used.size(), bench::bytes_text(static_cast<double>(bytes)));
  return status;
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
