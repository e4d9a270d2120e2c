#include "bench/adaptive_k/commands/shared_options.hpp"

#include <string>

#include "bench/adaptive_k/commands/option_checks.hpp"

namespace bench {

CLI::Option* add_model_option(CLI::App& command, input_options& options) {
  return command.add_option("--model", options.model,
                            "Folder with config.json and model.safetensors (default: the "
                            "project's own reference model)");
}

CLI::Option* add_dataset_option(CLI::App& command, input_options& options) {
  return command.add_option("--dataset", options.dataset,
                            "Text to read, or a domain of the texts.json beside the model: novels, "
                            "... (default: the model's heldout_test.txt, or all domains in turn)");
}

CLI::Option* add_policy_option(CLI::App& command, input_options& options) {
  return command.add_option(
      "--policy", options.policy,
      "full, fixed:4, top_p:0.9, entropy:4,6,8@2.5,3.2, ..., a policy of the model's preset, or a "
      ".json file with a policy or a preset (default: that of the model's preset)");
}

CLI::Option* add_context_option(CLI::App& command, input_options& options) {
  return command
      .add_option("--context", options.context,
                  "Tokens of a window (default: the model's own context, at most 512)")
      ->check(one_or_more());
}

CLI::Option* add_windows_option(CLI::App& command, input_options& options) {
  const std::string own = options.windows == 0 ? "all" : std::to_string(options.windows);
  return command
      .add_option("--windows", options.windows,
                  "Stop after this many windows (default: " + own + ")")
      ->check(one_or_more());
}

std::vector<CLI::Option*> add_calibration_options(CLI::App& command, calibration_options& options) {
  std::vector<CLI::Option*> added;
  added.push_back(add_model_option(command, options));
  CLI::Option* dataset =
      command.add_option("--dataset", options.dataset,
                         "Text to calibrate on, or a domain (default: the model's "
                         "heldout_calibration.txt, or all domains in turn)");
  added.push_back(dataset);
  added.push_back(
      command
          .add_option("--text", options.texts,
                      "NAME=FILE, or a domain, given once for each to calibrate on, instead of "
                      "--dataset")
          ->allow_extra_args(false)
          ->excludes(dataset));
  added.push_back(
      command
          .add_option("--test", options.tests,
                      "Text to report on, or a domain, or NAME=FILE for each (default: the second "
                      "half of each --dataset or --text, or the model's own test text)")
          ->allow_extra_args(false));
  added.push_back(command.add_option("--other-domain", options.other_domain,
                                     "Text of another kind, or a domain, reported too"));
  added.push_back(add_context_option(command, options));
  command.add_option("--tokens", options.fit_tokens, "Tokens to fit on (default 16384)")
      ->check(one_or_more());
  added.push_back(command
                      .add_option("--test-windows", options.test_windows,
                                  "Windows of each reported text (default 128)")
                      ->check(one_or_more()));
  added.push_back(command.add_option("--seed", options.seed, "Of random K's (default 1)"));
  added.push_back(
      command
          .add_option("--sensitivity-exponent", options.sensitivity_exponent,
                      "q: layers are weighed by their sensitivity ^ q, 0..1 (default: of several "
                      "domains the one that serves domains left out best, of one 0.5)")
          ->check(share()));
  added.push_back(command.add_flag(
      "--head", options.head,
      "Fit a router head, too: the engine must then give its columns to the routing call"));
  added.push_back(
      command.add_option("--journal", options.journal,
                         "Where results are kept until the end, to go on after an interruption"));
  return added;
}

}  // namespace bench
