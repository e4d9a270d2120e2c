#include <CLI/CLI.hpp>
#include <memory>

#include "bench/adaptive_k/benchmark/run.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"

namespace bench {
namespace {

template <class Result>
void report(const Result& result, const benchmark_options& options, const file_roles& roles) {
  write_json("--json", options.json, to_json(result));
  if (!roles.stdout_is_taken()) print(result);
}

void run(const benchmark_options& options) {
  file_roles roles;
  if (options.trace.empty())
    add_roles(roles, options);
  else
    roles.reads("policy", policy_file_of(options.policy));
  roles.reads("trace", options.trace);
  roles.writes("--json", options.json);
  roles.writes("--log", options.live.log, true);
  live_view live(options.live);
  if (options.trace.empty()) {
    report(run_benchmark(options, live, roles), options, roles);
  } else {
    report(run_trace_benchmark(options, live, roles), options, roles);
  }
  live.finish();  // a log that could not be written does not cost the report
}

}  // namespace

void add_benchmark_command(CLI::App& app) {
  auto options = std::make_shared<benchmark_options>();
  CLI::App* command = app.add_subcommand(
      "benchmark", "What a policy saves on a model and what it costs, next to its controls");
  CLI::Option* model = add_model_option(*command, *options);
  CLI::Option* data = add_dataset_option(*command, *options);
  add_policy_option(*command, *options);
  CLI::Option* context = add_context_option(*command, *options);
  command->add_option("--layers", options->layers,
                      "Layers with adaptive K, such as 0,2-3 (default: all); the others stay full");
  add_windows_option(*command, *options);
  CLI::Option* seed =
      command->add_option("--seed", options->seed, "Of the random control (default: 1)");
  CLI::Option* prompts =
      command
          ->add_option("--prompts", options->prompts,
                       "Windows whose first 64 tokens are gone on from, greedily, for 128 tokens "
                       "(default: 64; 0: none)")
          ->check(whole_number(0, 1 << 20));
  command->add_option("--json", options->json, "Write the report here ('-': stdout, and no table)");
  command
      ->add_option("--metrics-port", options->live.metrics_port,
                   "While it runs, serve metrics for Prometheus on this port of 127.0.0.1 (0: a "
                   "free one)")
      ->check(whole_number(0, 65535));
  CLI::Option* log = command->add_option(
      "--log", options->live.log,
      "Append one JSON line a routing call to this file ('-': stdout, and no table)");
  command
      ->add_option("--log-fields", options->live.log_fields,
                   "Names of its fields: ecs (Elastic, default) or datadog")
      ->check(CLI::IsMember({"ecs", "datadog"}))
      ->needs(log);
  command
      ->add_option("--trace", options->trace,
                   "Recorded router logits in place of a model: savings only, quality unknown")
      ->excludes(model)
      ->excludes(data)
      ->excludes(context)
      ->excludes(seed)
      ->excludes(prompts);
  command->callback([options] { run(*options); });
}

}  // namespace bench
