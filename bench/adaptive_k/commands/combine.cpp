#include <CLI/CLI.hpp>
#include <memory>

#include "bench/adaptive_k/combine/run.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"

namespace bench {
namespace {

void run(const combine_options& options) {
  file_roles roles;
  add_roles(roles, options);
  roles.writes("--json", options.json);
  const combine_result result = run_combine(options, roles);
  write_json("--json", options.json, to_json(result));
  if (!roles.stdout_is_taken()) print(result);
}

}  // namespace

void add_combine_command(CLI::App& app) {
  auto options = std::make_shared<combine_options>();
  CLI::App* command = app.add_subcommand(
      "combine", "Adaptive K with early exit and token merging: all eight combinations, measured");
  add_model_option(*command, *options);
  add_dataset_option(*command, *options);
  add_policy_option(*command, *options);
  command
      ->add_option("--exit", options->exit,
                   "When a token leaves: entropy:T (nats, below) or max_probability:P (above); one "
                   "for all layers or one for each but the last")
      ->capture_default_str();
  command
      ->add_option("--merge-similarity", options->merge_similarity,
                   "Cosine from which a token takes over an earlier one's expert output")
      ->capture_default_str();
  command->add_option("--merge-window", options->merge_window, "Tokens that it looks back")
      ->capture_default_str()
      ->check(one_or_more());
  add_context_option(*command, *options);
  add_windows_option(*command, *options);
  command->add_option("--seed", options->seed, "Of the random controls (default: 1)");
  command->add_option("--json", options->json, "Write the report here ('-': stdout, and no table)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
