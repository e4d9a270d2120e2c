// `adaptive-k calibrate`: a K policy for a target, with what it was measured against.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ctime>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/named_text.hpp"
#include "bench/adaptive_k/calibrate/preset.hpp"
#include "bench/adaptive_k/calibrate/setup.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {
namespace {

using adaptive_k::calibration_rule;

struct calibrate_options : calibration_options {
  std::optional<double> target_savings;
  std::optional<double> max_kl;
  std::optional<double> max_perplexity_increase;
  std::string signal = "auto";
  std::string trace;
  std::string output;
  std::string json;
  std::string date;
};

adaptive_k::calibrator calibrator_of(const calibrate_options& options) {
  adaptive_k::calibrator search;
  const int given = (options.target_savings ? 1 : 0) + (options.max_kl ? 1 : 0) +
                    (options.max_perplexity_increase ? 1 : 0);
  if (given != 1)
    throw failure(fmt::format(
        "{} of --target-savings, --max-kl and --max-ppl-increase given, expected one", given));
  if (options.target_savings)
    search.target = adaptive_k::target_savings(*options.target_savings);
  else if (options.max_kl)
    search.target = adaptive_k::max_kl(*options.max_kl);
  else
    search.target = adaptive_k::max_perplexity_increase(*options.max_perplexity_increase);
  const double target = search.target.value;
  if (!(target > 0.0) || !std::isfinite(target) || (options.target_savings && target >= 1.0))
    throw failure(fmt::format("{}: {}, expected above 0{}",
                              options.target_savings ? "--target-savings"
                              : options.max_kl       ? "--max-kl"
                                                     : "--max-ppl-increase",
                              target, options.target_savings ? " and below 1" : ""));
  if (options.head) search.rules.insert(search.rules.begin(), calibration_rule::head);
  if (options.signal == "auto") return search;
  for (const calibration_rule rule : adaptive_k::all_calibration_rules)
    if (options.signal == adaptive_k::to_string(rule) && rule < calibration_rule::random_mix)
      search.rules = {rule};
  if (search.rules.size() != 1)
    throw failure(
        fmt::format("--signal: '{}', expected auto, distortion, head, psi, top_p, skipping, "
                    "score_ratio, entropy, static_per_layer or fixed",
                    options.signal));
  return search;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16] = "";
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

/// `word` as a shell reads it back.
std::string shell_word(const std::string& word) {
  constexpr const char* plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+./,:=@%";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// The command that repeats this, with file names without their folders.
std::string command_of(const calibrate_options& options) {
  const auto name = [](const std::string& path) {
    return std::filesystem::path(path).filename().string();
  };
  std::string command = "adaptive-k calibrate";
  if (!options.model.empty()) command += " --model " + name(options.model);
  const auto named = [&](const std::string& option, const std::vector<std::string>& words) {
    for (const std::string& word : words) {
      const named_text text = parse_named_texts(option, {word}).front();
      const bool has_name = text.file.size() < word.size();
      command += " " + option + " " +
                 shell_word((has_name ? text.name + "=" : std::string()) + name(text.file));
    }
  };
  if (!options.dataset.empty()) command += " --dataset " + name(options.dataset);
  named("--text", options.texts);
  named("--test", options.tests);
  if (!options.other_domain.empty()) command += " --other-domain " + name(options.other_domain);
  if (options.context != 0) command += fmt::format(" --context {}", options.context);
  if (options.fit_tokens != calibration_options().fit_tokens)
    command += fmt::format(" --tokens {}", options.fit_tokens);
  if (options.test_windows != calibration_options().test_windows)
    command += fmt::format(" --test-windows {}", options.test_windows);
  if (options.sensitivity_exponent)
    command += fmt::format(" --sensitivity-exponent {}", *options.sensitivity_exponent);
  if (options.signal != "auto") command += " --signal " + options.signal;
  if (options.head && options.signal != "head") command += " --head";
  if (options.target_savings)
    command += fmt::format(" --target-savings {}", *options.target_savings);
  if (options.max_kl) command += fmt::format(" --max-kl {}", *options.max_kl);
  if (options.max_perplexity_increase)
    command += fmt::format(" --max-ppl-increase {}", *options.max_perplexity_increase);
  if (options.seed != 1) command += fmt::format(" --seed {}", options.seed);
  return command + " -o " + name(options.output);
}

/// At most all experts of a token but one can be saved.
void check_attainable(const calibrate_options& options, int top_k) {
  const double most = 1.0 - 1.0 / top_k;
  if (options.target_savings && *options.target_savings > most + 1e-9)
    throw failure(
        fmt::format("--target-savings: {}, expected at most {:.4g}: one expert of {} a "
                    "token saves no more",
                    *options.target_savings, most, top_k));
}

/// -o must end in .json: any other name would be read as that of a model or policy.
void check_name(const std::string& output) {
  if (is_special(output)) return;
  if (std::filesystem::path(output).extension() != ".json")
    throw failure(fmt::format("-o: {}: expected a name that ends in .json", output));
}

/// `text` as a literal of C++, quotes and all.
std::string literal(const std::string& text) {
  return text_of(nlohmann::json(text));
}

/// Prints how to use the written file.
void print_use(const calibrate_options& options, const std::string& preset) {
  const std::filesystem::path file = std::filesystem::absolute(options.output).lexically_normal();
  const bool is_preset = !preset.empty();
  fmt::print("\nTo use it\n  command line  adaptive-k benchmark{}{} --policy {}\n",
             is_preset ? (options.model.empty() ? "" : " --model " + shell_word(options.model))
                       : " --trace " + shell_word(options.trace),
             // a text that it was not calibrated on
             is_preset && !options.tests.empty()
                 ? " --dataset " +
                       shell_word(parse_named_texts("--test", {options.tests.front()}).front().file)
                 : "",
             shell_word(options.output));
  if (!is_preset) {
    fmt::print(
        "  C++           auto policy = adaptive_k::parse_policy({0}, gating, num_layers);\n"
        "                auto router = adaptive_k::make_router(gating, policy, num_layers);\n"
        "  of a preset   adaptive_k::from_preset(\"NAME\", {0})\n",
        literal(file.string()));
    return;
  }
  fmt::print(
      "  C++           adaptive_k::router router = adaptive_k::from_preset({});\n"
      "  environment   ADAPTIVE_K_CALIBRATIONS={}\n"
      "                makes it the preset that every program finds by the name \"{}\" (with no\n"
      "                other file of that name in the folder)\n",
      literal(file.string()), shell_word(file.parent_path().string()), preset);
}

/// What the policy does on a text that it was not calibrated on.
struct target_outcome {
  double savings = 0.0;
  adaptive_k::paired_estimate kl;
  double perplexity_increase = 0.0;
};

/// Costs one run of full K on that text.
target_outcome outcome_on(const adaptive_k::report_text& text,
                          const adaptive_k::calibration_result& result, int top_k) {
  const adaptive_k::routing_outcome own = text.runner->run(result.policies, text.range);  // known
  const adaptive_k::policy_set full{
      std::vector<adaptive_k::k_policy>(result.policies.layers.size()), nullptr};
  return {1.0 - own.mean_k() / top_k, adaptive_k::kl_difference(own),
          own.perplexity() / text.runner->run(full, text.range).perplexity() - 1.0};
}

/// Says whether that text meets the target, and by how much it misses.
std::string target_sentence(const calibrate_options& options, const std::string& name,
                            const target_outcome& test) {
  const auto against = [&](const char* what, const std::string& is, const std::string& target,
                           bool met) {
    return fmt::format("The {} text {} the target: {} {}, target {}.\n", name,
                       met ? "meets" : "misses", what, is, target);
  };
  if (options.target_savings)
    return against("it saves", percent(test.savings, 2), percent(*options.target_savings, 2),
                   test.savings >= *options.target_savings);
  if (options.max_kl)
    return against("its mean KL is", with_se({test.kl.value, test.kl.se}, 5),
                   fmt::format("at most {}", *options.max_kl), test.kl.value <= *options.max_kl);
  return against("its perplexity rises by", percent(test.perplexity_increase, 3),
                 fmt::format("at most {}", percent(*options.max_perplexity_increase, 3)),
                 test.perplexity_increase <= *options.max_perplexity_increase);
}

/// What the policies keep, and how many tokens look unlike those calibrated on.
std::string watched_text(const adaptive_k::calibration_result& result) {
  std::string text;
  for (const adaptive_k::super_expert& each : result.super_experts)
    text += fmt::format("{}layer {} expert {} ({:.0f} times the median output)",
                        text.empty() ? "" : ", ", each.layer, each.expert, each.of_median);
  return fmt::format("{}\n{:.2f}% of the tokens are out of the domain written to the policy\n",
                     text.empty() ? "No expert's outputs stand out as a super expert's would"
                                  : "Super experts, which no token drops: " + text,
                     100.0 * result.out_of_domain);
}

void run_on_trace(const calibrate_options& options) {
  const adaptive_k::calibrator search = calibrator_of(options);
  if (options.signal != "auto" && options.signal != "top_p")
    throw failure(
        fmt::format("--signal: '{}', expected top_p (or auto) with --trace: what another "
                    "rule costs cannot be seen without a model",
                    options.signal));
  file_roles roles;
  roles.reads("trace", options.trace);
  roles.writes("-o", options.output);
  const trace_reader trace(options.trace);
  const trace_info& info = trace.info();
  check_attainable(options, info.gating.top_k);
  std::vector<adaptive_k::layer_record> records;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    records.emplace_back(info.gating);
    const std::vector<float> bias = trace.selection_bias(layer);
    const std::int64_t rows = std::min<std::int64_t>(info.num_tokens, options.fit_tokens);
    records.back().add_logits(trace.logits(layer, 0, rows).data(), rows,
                              bias.empty() ? nullptr : bias.data());
  }
  const auto result = search.calibrate_trace(records);
  const std::string weights = fmt::format(
      "mass_exponent {0:g}: the weights of the experts that run are multiplied by r^-{0:g}, r the "
      "share that they hold of the top-k's mass (1 restores the full sum, 0 leaves them as they "
      "are); a trace holds no outputs to choose it by, so it is the middle",
      static_cast<double>(result.mass_exponent));
  const std::string name = std::filesystem::path(options.trace).filename().string();
  write_file("-o", options.output, preset_text(trace_policy_json(result, name, weights)));
  if (roles.stdout_is_taken()) return;
  fmt::print("{}: {} for a mean K of {:.3f} of {} (saves {:.1f}%)\n{}\n{}\n", options.output,
             adaptive_k::to_spec(result.policies.layers.front(), info.gating.top_k), result.mean_k,
             info.gating.top_k, 100.0 * result.expert_savings, result.sentence, weights);
  print_use(options, "");
}

void run(calibrate_options& options) {
  options.head = options.head || options.signal == adaptive_k::to_string(calibration_rule::head);
  adaptive_k::calibrator search = calibrator_of(options);
  check_name(options.output);
  if (!options.trace.empty()) {
    run_on_trace(options);
    return;
  }
  check_writable("-o", options.output);
  if (options.journal.empty())
    options.journal =
        is_special(options.output) ? "adaptive-k-calibrate.journal" : options.output + ".journal";
  file_roles roles;
  add_roles(roles, options);
  roles.writes("-o", options.output);
  roles.writes("--json", options.json);
  const bool by_savings = options.target_savings.has_value();
  const auto weighed = static_cast<int>(search.rules.size());
  calibration_setup setup(options, 14 + weighed * (by_savings ? 16 : 30) + 20, roles);
  check_attainable(options, setup.model().engine.config().gating.top_k);
  search.options = setup.study_options();
  const adaptive_k::calibration_study study(setup.calibration_domains(), search.options);
  const int top_k = study.top_k();
  const adaptive_k::calibration_result result = search.choose(study);

  std::vector<adaptive_k::frontier_point> points;
  for (const adaptive_k::report_text& text : setup.report_texts()) {
    for (const calibration_rule rule : adaptive_k::all_calibration_rules)
      if (study.can_set(rule))
        points.push_back({rule, text.split, result.mean_k, result.mass_exponent,
                          rule == result.rule
                              ? text.runner->run(result.policies, text.range)
                              : study.measure(rule, result.mean_k, result.mass_exponent,
                                              *text.runner, text.range)});
  }
  std::string kept;
  for (std::size_t i = 0; i < setup.num_tests(); ++i) {
    const adaptive_k::report_text test = setup.report_texts()[i];
    kept += target_sentence(options, test.split, outcome_on(test, result, top_k));
  }
  const auto preset = preset_json(setup, study, result, points, command_of(options),
                                  options.date.empty() ? today() : options.date);
  write_file("-o", options.output, preset_text(preset));
  write_json("--json", options.json, frontier_json(points, setup.model().name, top_k));
  if (!roles.stdout_is_taken()) {
    fmt::print("{}: rule {}, mass_exponent {:.1f}, mean K {:.3f} of {} (saves {:.1f}%)\n",
               options.output, adaptive_k::to_string(result.rule), result.mass_exponent,
               result.mean_k, top_k, 100.0 * result.expert_savings);
    fmt::print(
        "{}.\nOn {} tokens: mean KL {}, {} against fixed K at equal mean K; perplexity x {:.5f}.\n",
        result.sentence, result.tokens_analyzed,
        with_se({result.mean_kl.value, result.mean_kl.se}, 5),
        with_se({result.against_fixed.value, result.against_fixed.se}, 5, "+"),
        result.perplexity_ratio);
    fmt::print("{}{}\n{}", exponent_text(result.sensitivity_exponent, result.exponent_trials),
               frontier_table(points, top_k), kept);
    fmt::print("\n{}", watched_text(result));
    print_use(options, preset["name"].get<std::string>());
  }
  flush_stdout();
  setup.journal().finish();
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<calibrate_options>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Find a K policy for a target, with its controls");
  const std::vector<CLI::Option*> of_a_model = add_calibration_options(*command, *options);
  command->add_option("--target-savings", options->target_savings,
                      "Share of expert calls to save, against the model's own top-k");
  command->add_option("--max-kl", options->max_kl, "Greatest mean KL to full K, nats");
  command->add_option("--max-ppl-increase", options->max_perplexity_increase,
                      "Greatest relative rise of the perplexity, 0.01 for one percent");
  command->add_option(
      "--signal", options->signal,
      "auto, distortion, head, psi, top_p, skipping, score_ratio, entropy, static_per_layer "
      "or fixed");
  CLI::Option* trace = command->add_option(
      "--trace", options->trace,
      "Recorded router logits instead of a model: top-p by savings, quality unknown");
  command
      ->add_option("-o,--output", options->output,
                   "The calibration file (.json) to write; may be the model's own preset")
      ->required();
  trace->excludes(command->add_option("--json", options->json,
                                      "Write the measured points as JSON ('-': stdout)"));
  trace->excludes(
      command
          ->add_option("--date", options->date, "Date to put on a changed policy (default: today)")
          ->check(calendar_day()));
  for (CLI::Option* option : of_a_model) trace->excludes(option);
  command->callback([options] { run(*options); });
}

}  // namespace bench
