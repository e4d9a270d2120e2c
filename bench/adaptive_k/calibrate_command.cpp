// `adaptive-k calibrate`: a K policy for a target, with what it was measured against.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "bench/adaptive_k/benchmark_result.hpp"
#include "bench/adaptive_k/calibration_preset.hpp"
#include "bench/adaptive_k/calibration_setup.hpp"
#include "bench/adaptive_k/commands.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/trace.hpp"

namespace bench {
namespace {

using adaptive_k::calibration_rule;

struct calibrate_options : calibration_options {
  double target_savings = 0.0;
  double max_kl = 0.0;
  double max_perplexity_increase = 0.0;
  std::string signal = "auto";
  std::string trace;
  std::string output;
  std::string json;
  std::string date;
};

adaptive_k::calibrator calibrator_of(const calibrate_options& options) {
  adaptive_k::calibrator search;
  const int given = (options.target_savings != 0.0 ? 1 : 0) + (options.max_kl != 0.0 ? 1 : 0) +
                    (options.max_perplexity_increase != 0.0 ? 1 : 0);
  if (given != 1)
    throw failure("expected one of --target-savings, --max-kl and --max-ppl-increase");
  if (options.target_savings != 0.0)
    search.target = adaptive_k::target_savings(options.target_savings);
  else if (options.max_kl != 0.0)
    search.target = adaptive_k::max_kl(options.max_kl);
  else
    search.target = adaptive_k::max_perplexity_increase(options.max_perplexity_increase);
  if (options.signal == "auto") return search;
  for (const calibration_rule rule : adaptive_k::all_calibration_rules)
    if (options.signal == adaptive_k::to_string(rule) && rule < calibration_rule::random_mix)
      search.rules = {rule};
  if (search.rules.size() != 1)
    throw failure(
        fmt::format("--signal: '{}', expected auto, distortion, top_p, score_ratio, "
                    "entropy, static_per_layer or fixed",
                    options.signal));
  return search;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16] = "";
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

/// The command that does this again; file names without their folders.
std::string command_of(const calibrate_options& options) {
  const auto name = [](const std::string& path) {
    return std::filesystem::path(path).filename().string();
  };
  std::string command = "adaptive-k calibrate";
  if (!options.model.empty()) command += " --model " + name(options.model);
  if (!options.dataset.empty()) command += " --dataset " + name(options.dataset);
  if (!options.test.empty()) command += " --test " + name(options.test);
  if (!options.other_domain.empty()) command += " --other-domain " + name(options.other_domain);
  if (options.context != 0) command += fmt::format(" --context {}", options.context);
  if (options.fit_tokens != calibration_options().fit_tokens)
    command += fmt::format(" --tokens {}", options.fit_tokens);
  if (options.test_windows != calibration_options().test_windows)
    command += fmt::format(" --test-windows {}", options.test_windows);
  if (options.signal != "auto") command += " --signal " + options.signal;
  if (options.target_savings != 0.0)
    command += fmt::format(" --target-savings {}", options.target_savings);
  if (options.max_kl != 0.0) command += fmt::format(" --max-kl {}", options.max_kl);
  if (options.max_perplexity_increase != 0.0)
    command += fmt::format(" --max-ppl-increase {}", options.max_perplexity_increase);
  if (options.seed != 1) command += fmt::format(" --seed {}", options.seed);
  return command + " -o " + name(options.output);
}

void write_text(const std::string& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream << text;
  stream.flush();
  if (!stream) throw failure(fmt::format("-o: {}: cannot be written", file));
}

void run_on_trace(const calibrate_options& options) {
  const trace_reader trace(options.trace);
  const trace_info& info = trace.info();
  std::vector<adaptive_k::layer_record> records;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    records.emplace_back(info.gating);
    const std::vector<float> bias = trace.selection_bias(layer);
    const std::int64_t rows = std::min<std::int64_t>(info.num_tokens, options.fit_tokens);
    records.back().add_logits(trace.logits(layer, 0, rows).data(), rows,
                              bias.empty() ? nullptr : bias.data());
  }
  const auto result = calibrator_of(options).calibrate_trace(records);
  write_text(options.output,
             preset_text(trace_policy_json(
                 result, std::filesystem::path(options.trace).filename().string())));
  fmt::print("{}: {} for a mean K of {:.3f} of {} (saves {:.1f}%)\n{}\n", options.output,
             adaptive_k::to_spec(result.policies.layers.front(), info.gating.top_k), result.mean_k,
             info.gating.top_k, 100.0 * result.expert_savings, result.sentence);
}

void run(calibrate_options& options) {
  adaptive_k::calibrator search = calibrator_of(options);
  if (!options.trace.empty()) {
    run_on_trace(options);
    return;
  }
  if (options.journal.empty()) options.journal = options.output + ".journal";
  const bool by_savings = options.target_savings != 0.0;
  const auto weighed = static_cast<int>(search.rules.size());
  calibration_setup setup(options, 14 + weighed * (by_savings ? 16 : 30) + 20);
  search.options = setup.study_options();
  const adaptive_k::calibration_study study(setup.runner(), search.options);
  const int top_k = study.top_k();
  const adaptive_k::calibration_result result = search.choose(study);

  std::vector<adaptive_k::frontier_point> points;
  for (const adaptive_k::report_text& text : setup.report_texts()) {
    for (const calibration_rule rule : adaptive_k::all_calibration_rules)
      points.push_back({rule, text.split, result.mean_k, result.mass_exponent,
                        rule == result.rule
                            ? text.runner->run(result.policies, text.range)
                            : study.measure(rule, result.mean_k, result.mass_exponent, *text.runner,
                                            text.range)});
  }
  const auto preset = preset_json(setup, result, points, command_of(options),
                                  options.date.empty() ? today() : options.date);
  write_text(options.output, preset_text(preset));
  if (!options.json.empty()) write_json(options.json, frontier_json(points));
  if (options.json != "-") {
    fmt::print("{}: rule {}, mass_exponent {:.1f}, mean K {:.3f} of {} (saves {:.1f}%)\n",
               options.output, adaptive_k::to_string(result.rule), result.mass_exponent,
               result.mean_k, top_k, 100.0 * result.expert_savings);
    fmt::print(
        "{}.\nOn {} tokens: mean KL {:.5f} +- {:.5f}, {:+.5f} +- {:.5f} against fixed K at "
        "equal mean K; perplexity x {:.5f}.\n",
        result.sentence, result.tokens_analyzed, result.mean_kl.value, result.mean_kl.se,
        result.against_fixed.value, result.against_fixed.se, result.perplexity_ratio);
    fmt::print("{}", frontier_table(points, top_k));
  }
  setup.journal().discard();
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<calibrate_options>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Find a K policy for a target, with its controls");
  add_options(*command, *options);
  command->add_option("--target-savings", options->target_savings,
                      "Share of expert calls to save, against the model's own top-k");
  command->add_option("--max-kl", options->max_kl, "Greatest mean KL to full K, nats");
  command->add_option("--max-ppl-increase", options->max_perplexity_increase,
                      "Greatest relative rise of the perplexity, 0.01 for one percent");
  command->add_option("--signal", options->signal,
                      "auto, distortion, top_p, score_ratio, entropy, static_per_layer or fixed");
  command->add_option(
      "--trace", options->trace,
      "Recorded router logits instead of a model: top-p by savings, quality unknown");
  command->add_option("-o,--output", options->output, "The calibration file to write")->required();
  command->add_option("--json", options->json, "Write the measured points as JSON ('-': stdout)");
  command->add_option("--date", options->date, "Date to put on a changed policy (default: today)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
