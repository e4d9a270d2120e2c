#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/measure/facts.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/speed/run.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

constexpr const char* label = "speed only, random weights";

std::string milliseconds(const quartiles& seconds) {
  return fmt::format("{:.2f} ({:.2f}..{:.2f})", 1e3 * seconds.median, 1e3 * seconds.low,
                     1e3 * seconds.high);
}

void print(const speed_result& result) {
  const adaptive_k::preset& shape = result.shape;
  fmt::print("adaptive-k {} speed: {}\n\n", version(), label);
  fmt::print("Shape    {}: {} MoE layers, {} experts of which {}, {} x {}\n", shape.name,
             result.layers, shape.model.num_experts, shape.model.top_k, shape.sizes.hidden,
             shape.sizes.intermediate);
  fmt::print("         experts {} each, {} in all, float32\n", bytes_text(result.expert_bytes),
             bytes_text(result.all_bytes));
  if (shape.shared_experts.count > 0)
    fmt::print("         without its shared experts, whose work no router can save\n");
  fmt::print("Engine   {}, {} threads\n", result.backend, result.threads);
  for (const batch_figures& batch : result.batches) {
    const bound_by bound = bound_at(batch.batch);
    fmt::print("\nBatch {}, {} interleaved repeats\n", batch.batch, batch.repeats);
    text_table table({"<", "mean K", "distinct experts", "ms, median (quartiles)", "speed-up",
                      bound == bound_by::compute ? "" : "ideal by bytes",
                      bound == bound_by::bytes ? "" : "ideal by rows", "realised"});
    for (std::size_t i = 0; i < batch.routings.size(); ++i) {
      const speed_figures& f = batch.routings[i];
      std::string realised;
      if (bound != bound_by::compute) realised = percent(f.speedup / f.ideal_bytes, 0);
      if (bound == bound_by::either) realised += " / ";
      if (bound != bound_by::bytes) realised += percent(f.speedup / f.ideal_rows, 0);
      table.add_row(
          {f.name, fmt::format("{:.2f}", f.mean_k), fmt::format("{:.1f}", f.distinct_experts),
           milliseconds(f.seconds), i == 0 ? "" : fmt::format("{:.2f}", f.speedup),
           i == 0 || bound == bound_by::compute ? "" : fmt::format("{:.2f}", f.ideal_bytes),
           i == 0 || bound == bound_by::bytes ? "" : fmt::format("{:.2f}", f.ideal_rows),
           i == 0 ? "" : realised});
    }
    fmt::print("{}", table.text());
  }
  fmt::print(
      "\nIdeal: full K's work / this routing's. By bytes: distinct experts read, which binds at "
      "batch 1;\nby rows: tokens x experts multiplied, which binds from batch 512 on; between them "
      "neither alone.\nRealised: speed-up / ideal. Quality is not measured here; random weights "
      "have none.\n");
}

nlohmann::ordered_json figures_json(const speed_figures& f, bound_by bound) {
  nlohmann::ordered_json json = {
      {"name", f.name},
      {"mean_k", f.mean_k},
      {"distinct_experts", f.distinct_experts},
      {"expert_rows", f.expert_rows},
      {"seconds", f.seconds.median},
      {"seconds_q1", f.seconds.low},
      {"seconds_q3", f.seconds.high},
      {"speedup", f.speedup},
      {"ideal_bytes", f.ideal_bytes},
      {"ideal_rows", f.ideal_rows},
      {"realised_of_bytes", f.speedup / f.ideal_bytes},
      {"realised_of_rows", f.speedup / f.ideal_rows},
  };
  json["realised"] = bound == bound_by::bytes     ? json["realised_of_bytes"]
                     : bound == bound_by::compute ? json["realised_of_rows"]
                                                  : nlohmann::ordered_json(nullptr);
  return json;
}

nlohmann::ordered_json to_json(const speed_result& result) {
  const adaptive_k::preset& shape = result.shape;
  nlohmann::ordered_json report = report_header("adaptive_k.speed");
  report["label"] = label;
  report["shape"] = {{"name", shape.name},
                     {"layers", result.layers},
                     {"num_experts", shape.model.num_experts},
                     {"top_k", shape.model.top_k},
                     {"hidden_size", shape.sizes.hidden},
                     {"intermediate_size", shape.sizes.intermediate},
                     {"expert_bytes", result.expert_bytes},
                     {"all_expert_bytes", result.all_bytes}};
  report["engine"] = {{"backend", result.backend}, {"threads", result.threads}};
  report["seed"] = result.seed;
  report["batches"] = nlohmann::ordered_json::array();
  for (const batch_figures& batch : result.batches) {
    const bound_by bound = bound_at(batch.batch);
    nlohmann::ordered_json entry = {
        {"batch", batch.batch}, {"repeats", batch.repeats}, {"bound", to_string(bound)}};
    for (const speed_figures& f : batch.routings)
      entry["routings"].push_back(figures_json(f, bound));
    report["batches"].push_back(std::move(entry));
  }
  return report;
}

void run(const speed_options& options) {
  file_roles roles;
  roles.reads("policy", policy_file_of(options.policy));
  const adaptive_k::preset shape = adaptive_k::load_preset(options.shape);
  roles.reads("shape", shape.file);
  roles.writes("--json", options.json);
  const speed_result result = run_speed(options, shape);
  write_json("--json", options.json, to_json(result));
  if (!roles.stdout_is_taken()) print(result);
}

}  // namespace

void add_speed_command(CLI::App& app) {
  auto options = std::make_shared<speed_options>();
  CLI::App* command = app.add_subcommand(
      "speed", "Time of whole MoE layers of a model's shape, random weights: full K against less");
  command->add_option("--shape", options->shape, "Name or .json file of a preset (see `presets`)")
      ->required();
  command->add_option("--layers", options->layers, "MoE layers (default: 2)")->check(one_or_more());
  command->add_option("--policy", options->policy,
                      "Compare this one too (as in `benchmark`); random logits decide its K");
  command->add_option("--batch", options->batches, "Tokens of a call (default: 1,16,64,512)")
      ->delimiter(',')
      ->check(whole_number(1, 65536));
  command->add_option("--repeats", options->repeats, "Rounds a batch (default: about 10 seconds)")
      ->check(one_or_more());
  command->add_option("--seed", options->seed, "Of weights and inputs (default: 1)");
  command->add_option("--json", options->json, "Write the report here ('-': stdout, and no table)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
