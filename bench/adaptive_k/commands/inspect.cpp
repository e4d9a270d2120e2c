// `adaptive-k inspect`: token by token, layer by layer, how sure the router is and what it gets.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <adaptive_k/calibration/format/printable.hpp>
#include <adaptive_k/calibration/search/k_assignment.hpp>
#include <adaptive_k/observability/trace_view.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/measure/controls.hpp"
#include "bench/adaptive_k/measure/variant.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/signal_text.hpp"
#include "bench/adaptive_k/output/text_table.hpp"

namespace bench {
namespace {

struct inspect_options : input_options {
  std::string text;
  std::int64_t offset = 0;
  std::int64_t tokens = 12;
  std::string perfetto;
};

/// The tokens to look at.
std::vector<std::int32_t> choose_tokens(const inspect_options& options, const loaded_model& model) {
  const moe_engine::model_config& config = model.engine.config();
  const bool is_text = !options.text.empty();
  const dataset data =
      is_text ? dataset_of_text(options.text, model.words)
              : dataset_for(options.dataset, model.folder, model.words, config.max_positions);
  const auto total = static_cast<std::int64_t>(data.tokens.size());
  const std::int64_t count = is_text ? total : std::min(options.tokens, total - options.offset);
  if (count < 1)
    throw failure(
        fmt::format("--offset: {}, but {} has {} {}", options.offset, data.path, total, data.unit));
  if (count > config.max_positions)
    throw failure(fmt::format("{}: {} tokens, the model's context is {}",
                              is_text ? "--text" : "--tokens", count, config.max_positions));
  const auto first = data.tokens.begin() + options.offset;
  return {first, first + count};
}

void print_tokens(const std::vector<std::int32_t>& tokens, const variant& routing, int num_layers,
                  const vocabulary& words) {
  const bool color = adaptive_k::color_wanted(isatty(STDOUT_FILENO) != 0);
  const adaptive_k::gating& gating = routing.router().model();
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    fmt::print("\nToken {} {}\n", t, words.shown(tokens[t]));
    for (int layer = 0; layer < num_layers; ++layer) {
      const adaptive_k::signal_kind kind = routing.router().policy(layer).signal;
      fmt::print("{}\n", inspect_line(layer, kind, routing.signal(layer)[t],
                                      routing.counts(layer)[t], gating, color));
    }
  }
}

void print_summary(const variant& routing, int num_layers) {
  text_table table({"layer", "mean K", "saving", "mean signal", "min", "max", "<"});
  for (int layer = 0; layer < num_layers; ++layer) {
    const adaptive_k::routing_metrics& m = routing.layers()[static_cast<std::size_t>(layer)];
    table.add_row({std::to_string(layer), fmt::format("{:.2f}", m.mean_k()),
                   fmt::format("{:.1f}%", 100.0 * m.expert_savings()),
                   fmt::format("{:.3f}", m.mean_signal()),
                   fmt::format("{:.3f}", static_cast<double>(m.signal_lowest)),
                   fmt::format("{:.3f}", static_cast<double>(m.signal_highest)),
                   adaptive_k::to_string(routing.router().policy(layer).signal)});
  }
  fmt::print("\nBy layer\n{}", table.text());
}

/// Adds each call of `routing` to the timeline, which must outlive it.
void follow(variant& routing, adaptive_k::perfetto_trace& timeline) {
  const auto start = std::chrono::steady_clock::now();
  routing.observe([start, &timeline](const observed_call& call) {
    const std::chrono::duration<double> now = std::chrono::steady_clock::now() - start;
    timeline.add({call.layer, call.num_tokens, call.signal, call.counts,
                  (now.count() - call.seconds) * 1e6, call.seconds * 1e6});
  });
}

void check_entropy(const std::vector<adaptive_k::k_policy>& policies) {
  for (const adaptive_k::k_policy& policy : policies)
    if (policy.signal != adaptive_k::signal_kind::softmax_entropy &&
        policy.signal != adaptive_k::signal_kind::topk_entropy)
      throw failure(
          fmt::format("--perfetto: shows entropies in nats, and the policy's signal is {}",
                      adaptive_k::to_string(policy.signal)));
}

void run(const inspect_options& options) {
  if (options.perfetto == "-") throw failure("--perfetto: '-', expected a file");
  file_roles roles;
  add_roles(roles, options);
  roles.writes("--perfetto", options.perfetto);
  loaded_model model = load_model(options.model, roles);
  const moe_engine::model_config& config = model.engine.config();
  const policy_choice choice = choose_policy(options.policy, model);
  const std::vector<adaptive_k::k_policy> policies =
      layer_policies(choice.policy, config.num_moe_layers);
  const std::vector<std::int32_t> tokens = choose_tokens(options, model);
  const auto length = static_cast<int>(tokens.size());

  variant routing("policy", adaptive_k::router(config.gating, policies, {}, choice.policy.tables),
                  adaptive_k::router(config.gating, adaptive_k::full_like(policies)));
  routing.prepare(config.num_moe_layers, length);
  adaptive_k::perfetto_trace timeline(model.name);
  if (!options.perfetto.empty()) {
    check_entropy(policies);
    follow(routing, timeline);
  }
  std::vector<float> logits(tokens.size() * static_cast<std::size_t>(config.vocab_size));
  model.engine.forward(
      tokens.data(), 1, length,
      [&](int layer, const adaptive_k::logits_view<float>& router_logits,
          const adaptive_k::routing_output<>& output, const adaptive_k::routing_extras& extras) {
        return routing.route(layer, router_logits, output, extras);
      },
      logits.data());
  if (!options.perfetto.empty()) write_file("--perfetto", options.perfetto, timeline.json());
  if (roles.stdout_is_taken()) return;

  fmt::print("Model    {}: {} layers, {} experts of which {}\nPolicy   {} ({})\nSignal   {}\n",
             adaptive_k::detail::printable(model.name, 200), config.num_moe_layers,
             config.gating.num_experts, config.gating.top_k, choice.policy.name, choice.origin,
             describe_signal(policies.front().signal, config.gating));
  print_tokens(tokens, routing, config.num_moe_layers, model.words);
  print_summary(routing, config.num_moe_layers);
  const adaptive_k::routing_metrics total = routing.total();
  fmt::print(
      "\nMean K {:.2f} of {}, {:.1f}% of expert calls saved; what that costs, `adaptive-k "
      "benchmark` measures.\n",
      total.mean_k(), config.gating.top_k, 100.0 * total.expert_savings());
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto options = std::make_shared<inspect_options>();
  CLI::App* command =
      app.add_subcommand("inspect", "Signal and K of single tokens, layer by layer, as bars");
  add_model_option(*command, *options);
  CLI::Option* text = command->add_option("--text", options->text, "Text to look at");
  CLI::Option* data = add_dataset_option(*command, *options);
  CLI::Option* offset = command->add_option("--offset", options->offset, "First token (default: 0)")
                            ->check(whole_number(0));
  CLI::Option* tokens = command->add_option("--tokens", options->tokens, "How many (default: 12)")
                            ->check(one_or_more());
  text->excludes(data)->excludes(offset)->excludes(tokens);
  add_policy_option(*command, *options);
  command->add_option("--perfetto", options->perfetto,
                      "Also write the calls as a timeline that ui.perfetto.dev opens");
  command->callback([options] { run(*options); });
}

}  // namespace bench
