// `adaptive-k record`: the router logits of a run under the model's own routing, as a trace.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "bench/adaptive_k/measure/evaluation.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/progress.hpp"
#include "bench/adaptive_k/output/text_table.hpp"

namespace bench {
namespace {

struct record_options : input_options {
  std::string output;
};

trace_values record_logits(moe_engine::engine& model, const dataset& data,
                           const window_plan& plan) {
  const moe_engine::model_config& config = model.config();
  const int at_once = windows_at_once(config, plan.length);
  const auto width = static_cast<std::size_t>(config.gating.num_experts);
  trace_values recorded;
  recorded.logits.resize(static_cast<std::size_t>(config.num_moe_layers));
  recorded.biases.resize(recorded.logits.size());
  for (auto& layer : recorded.logits)
    layer.reserve(static_cast<std::size_t>(plan.count * plan.length) * width);

  const adaptive_k::router router(config.gating, adaptive_k::k_policy::full());
  const auto route = [&](int layer, const adaptive_k::logits_view<float>& logits,
                         const adaptive_k::routing_output<>& output,
                         const adaptive_k::routing_extras& extras) {
    const std::int64_t stride = logits.row_stride != 0 ? logits.row_stride : logits.num_experts;
    auto& rows = recorded.logits[static_cast<std::size_t>(layer)];
    for (std::int64_t t = 0; t < logits.num_tokens; ++t)
      rows.insert(rows.end(), logits.data + t * stride,
                  logits.data + t * stride + logits.num_experts);
    if (extras.routing_bias != nullptr)
      recorded.biases[static_cast<std::size_t>(layer)].assign(
          extras.routing_bias, extras.routing_bias + logits.num_experts);
    return router.route(layer, logits, output, nullptr, extras);
  };
  std::vector<float> outputs(static_cast<std::size_t>(at_once) *
                             static_cast<std::size_t>(plan.length) *
                             static_cast<std::size_t>(config.vocab_size));
  progress line("record", plan.count);
  for (std::int64_t first = 0; first < plan.count; first += at_once) {
    const auto count = static_cast<int>(std::min<std::int64_t>(at_once, plan.count - first));
    model.forward(data.tokens.data() + first * plan.length, count, plan.length, route,
                  outputs.data());
    line.update(first + count);
  }
  return recorded;
}

void run(const record_options& options) {
  if (options.output == "-") throw failure("--output: '-', expected a file");
  file_roles roles;
  add_roles(roles, options);
  roles.writes("--output", options.output);
  model_inputs inputs = load_inputs(options, roles);
  const moe_engine::model_config& config = inputs.model.engine.config();
  const dataset& data = inputs.data;
  const window_plan& plan = inputs.windows;

  trace_info info;
  info.model = inputs.model.name;
  info.num_layers = config.num_moe_layers;
  info.gating = config.gating;
  info.num_tokens = plan.count * plan.length;
  info.window = plan.length;
  info.dataset = std::filesystem::path(data.path).filename().string();
  info.dataset_sha256 = data.sha256;
  write_trace(options.output, info, record_logits(inputs.model.engine, data, plan));
  if (roles.stdout_is_taken()) return;
  fmt::print("{}: {} layers x {} tokens x {} experts, {}\n", options.output, info.num_layers,
             info.num_tokens, config.gating.num_experts,
             bytes_text(4.0 * info.num_layers * static_cast<double>(info.num_tokens) *
                        config.gating.num_experts));
}

}  // namespace

void add_record_command(CLI::App& app) {
  auto options = std::make_shared<record_options>();
  CLI::App* command =
      app.add_subcommand("record", "Record the router logits of a run, for `benchmark --trace`");
  add_model_option(*command, *options);
  add_dataset_option(*command, *options);
  add_context_option(*command, *options);
  add_windows_option(*command, *options);
  command->add_option("-o,--output", options->output, "The safetensors file to write")->required();
  command->callback([options] { run(*options); });
}

}  // namespace bench
