// `adaptive-k scale`: expert-parallel traffic, loads and modelled step times of recorded routings.
#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/scale/run.hpp"

namespace bench {
namespace {

/// What is given in the units of people.
struct units {
  double link_gbytes = 50.0, latency_us = 20.0, tflops = 400.0, memory_gbytes = 3350.0;
  std::string order = "decode", form = "each_pair";
};

void run(scale_options options, const units& given) {
  options.machine = {given.link_gbytes * 1e9, given.latency_us * 1e-6, given.tflops * 1e12,
                     given.memory_gbytes * 1e9};
  options.order = given.order == "decode" ? token_order::decode : token_order::prefill;
  options.form = given.form == "each_pair" ? expert_parallel::dispatch_form::each_pair
                                           : expert_parallel::dispatch_form::once_a_rank;
  file_roles roles;
  roles.reads("policy", policy_file_of(options.policy));
  roles.reads("trace", options.trace);
  roles.writes("--json", options.json);
  const scale_result result = run_scale(options, roles);
  write_json("--json", options.json, to_json(result, options));
  if (!roles.stdout_is_taken()) print(result, options);
}

}  // namespace

void add_scale_command(CLI::App& app) {
  auto options = std::make_shared<scale_options>();
  auto given = std::make_shared<units>();
  CLI::App* command = app.add_subcommand(
      "scale", "Experts spread over ranks: traffic, loads and modelled step times, from a trace");
  command->add_option("--trace", options->trace, "Recorded router logits, as `record` writes them")
      ->required();
  command->add_option("--policy", options->policy,
                      "As `benchmark` takes it (default: that of the preset of the trace's model)");
  command
      ->add_option("--ranks", options->ranks,
                   "Numbers of ranks (default: 8,16,32,64,128,256, as far as the trace reaches)")
      ->delimiter(',')
      ->check(whole_number(1, adaptive_k::max_experts));
  command->add_option("--tokens", options->tokens_of_rank, "Of a rank, in a step (default: 64)")
      ->check(whole_number(1, 1 << 24));
  command
      ->add_option("--order", given->order,
                   "A step's tokens: one position of all windows (decode, the default), or windows "
                   "in turn (prefill)")
      ->check(CLI::IsMember({"decode", "prefill"}));
  command
      ->add_option("--dispatch", given->form,
                   "What the times are of: a row for each (token, expert), each_pair, the default, "
                   "or for each (token, rank), once_a_rank")
      ->check(CLI::IsMember({"each_pair", "once_a_rank"}));
  command
      ->add_option("--redundant", options->redundant,
                   "Rows with so many copies of experts, placed by the load of the trace's first "
                   "half (default: none)")
      ->check(whole_number(1, adaptive_k::max_experts));
  command
      ->add_option("--budget", options->budget,
                   "Rows where a rank's tokens may touch so many distinct experts (default: none)")
      ->check(one_or_more());
  command->add_option("--hidden", options->hidden, "Model width (default: that of the preset)")
      ->check(whole_number(1, 1 << 24));
  command
      ->add_option("--intermediate", options->intermediate,
                   "Expert width (default: that of the preset)")
      ->check(whole_number(1, 1 << 24));
  command->add_option("--value-bytes", options->bytes_per_value, "Of an activation (default: 2)")
      ->check(whole_number(1, 8));
  command->add_option("--weight-bytes", options->bytes_per_weight, "Of a weight (default: 2)")
      ->check(CLI::Range(0.0625, 8.0));
  const auto add_rate = [&](const char* name, double* value, const char* words) {
    command->add_option(name, *value, words)->check(CLI::Range(1e-6, 1e9));
  };
  add_rate("--link", &given->link_gbytes, "GB/s of a rank to all others, each way (default: 50)");
  add_rate("--latency", &given->latency_us, "Microseconds of an exchange (default: 20)");
  add_rate("--compute", &given->tflops, "TFLOP/s of a rank's experts (default: 400)");
  add_rate("--memory", &given->memory_gbytes, "GB/s of a rank's memory (default: 3350)");
  command->add_option("--json", options->json, "Write the report here ('-': stdout, and no table)");
  command->callback([options, given] { run(*options, *given); });
}

}  // namespace bench
