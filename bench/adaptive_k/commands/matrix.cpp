// `adaptive-k matrix`: every rule on every model, calibrated on each domain and tested on each.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "bench/adaptive_k/calibrate/matrix.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"

namespace bench {
namespace {

void run(matrix_options& options) {
  if (options.journal.empty()) options.journal = "adaptive-k-matrix.journal";
  file_roles roles;
  roles.writes("--journal", options.journal, true);
  roles.writes("--json", options.json);
  const matrix_result result = run_matrix(options, roles);
  write_json("--json", options.json, to_json(options, result.models));
  if (!roles.stdout_is_taken())
    for (const model_matrix& model : result.models) fmt::print("{}", matrix_text(model));
  flush_stdout();
  result.journal->finish();
}

}  // namespace

void add_matrix_command(CLI::App& app) {
  auto options = std::make_shared<matrix_options>();
  CLI::App* command = app.add_subcommand(
      "matrix", "Every rule calibrated on each domain and tested on each; hours, resumable");
  command
      ->add_option("--model", options->models,
                   "Folder of a model, given once for each (default: the project's own)")
      ->allow_extra_args(false);
  command
      ->add_option("--text", options->texts,
                   "NAME=FILE of each domain, to calibrate on, or the name of one of the "
                   "project's (default: its three)")
      ->allow_extra_args(false);
  command
      ->add_option("--test", options->tests, "NAME=FILE or names of the same domains, to test on")
      ->allow_extra_args(false);
  command
      ->add_option("--calibrated-on", options->calibrated_on,
                   "Only calibrations on these domains, or 'all' of them together, comma separated")
      ->delimiter(',');
  command->add_option("--rules", options->rules, "Only these, comma separated")->delimiter(',');
  command
      ->add_option("--mean-k", options->mean_ks,
                   "Mean K's, comma separated (default: 3/8, 1/2 and 5/8 of the top-k)")
      ->delimiter(',');
  command
      ->add_option(
          "--sensitivity-exponents", options->sensitivity_exponents,
          "Also distortion with layers weighed by their sensitivity ^ q, for each of these")
      ->delimiter(',')
      ->check(share());
  command
      ->add_option("--mass-exponents", options->mass_exponents,
                   "Of which each rule gets its best on the calibration text (default: 0.5)")
      ->delimiter(',')
      ->check(share());
  command
      ->add_option("--context", options->context, "Tokens of a window (default: the model's own)")
      ->check(one_or_more());
  command->add_option("--tokens", options->fit_tokens, "Tokens to fit on (default 16384)")
      ->check(one_or_more());
  command->add_option("--test-windows", options->test_windows, "Windows of each test (default 64)")
      ->check(one_or_more());
  command->add_option("--seed", options->seed, "Of random K's (default 1)");
  command->add_option("--journal", options->journal,
                      "Where results are kept until the end, to go on after an interruption");
  command->add_option("--json", options->json, "Write the matrix as JSON ('-': stdout)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
