// `adaptive-k budget`: what a decode batch loses when it may touch only so many distinct experts.
#include <fmt/format.h>
#include <adaptive_k/calibration/format/printable.hpp>
#include <adaptive_k/control/expert_budget.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/adaptive_k/calibrate/model.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/measure/evaluation.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/output/text_table.hpp"

namespace bench {
namespace {

struct budget_options : input_options {
  budget_options() { windows = 64; }

  std::string json;
  int k_min = 1;
  std::vector<int> batches;  ///< empty: those of 1, 16 and 64 that the windows fill
  std::vector<int> budgets;
};

/// Restricts each decode step: the tokens at one position of `batch` windows. A call has a whole
/// number of batches, so that no step is of a smaller one.
class budget_route {
 public:
  budget_route(const adaptive_k::router& router, int batch, int length, int budget, int k_min,
               adaptive_k::admission order)
      : router_(router),
        batch_(batch),
        length_(length),
        budget_(budget),
        k_min_(k_min),
        order_(order),
        mass_(static_cast<std::size_t>(router.model().num_experts)),
        admitted_(mass_.size()) {}

  adaptive_k::status operator()(int layer, const adaptive_k::logits_view<float>& logits,
                                const adaptive_k::routing_output<>& output,
                                const adaptive_k::routing_extras& extras) {
    const adaptive_k::status routed = router_.route(layer, logits, output, nullptr, extras);
    if (!routed.ok()) return routed;
    const std::int64_t windows = logits.num_tokens / length_;
    for (std::int64_t first = 0; first < windows; first += batch_)
      for (int position = 0; position < length_; ++position) {
        const auto result = restrict_step(output, first, position);
        if (!result.ok()) return result;
      }
    return routed;
  }

  double distinct_experts() const { return static_cast<double>(distinct_) / steps_; }
  double mean_k() const { return static_cast<double>(calls_) / tokens_; }

 private:
  adaptive_k::status restrict_step(const adaptive_k::routing_output<>& output, std::int64_t first,
                                   int position) {
    const int top_k = router_.model().top_k;
    const std::int64_t count = batch_;
    const auto slots = static_cast<std::size_t>(count * top_k);
    ids_.resize(slots);
    weights_.resize(slots);
    counts_.resize(static_cast<std::size_t>(count));
    const auto token = [&](std::int64_t i) { return (first + i) * length_ + position; };
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(output.topk_ids + token(i) * top_k, top_k, ids_.data() + i * top_k);
      std::copy_n(output.topk_weights + token(i) * top_k, top_k, weights_.data() + i * top_k);
      counts_[static_cast<std::size_t>(i)] = output.topk_counts[token(i)];
    }
    int distinct = 0;
    const auto result = adaptive_k::restrict_to_budget(
        ids_.data(), weights_.data(), counts_.data(), count, top_k, router_.model().num_experts,
        k_min_, budget_, {mass_.data(), admitted_.data()}, order_, &distinct);
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(ids_.data() + i * top_k, top_k, output.topk_ids + token(i) * top_k);
      std::copy_n(weights_.data() + i * top_k, top_k, output.topk_weights + token(i) * top_k);
      output.topk_counts[token(i)] = counts_[static_cast<std::size_t>(i)];
      calls_ += counts_[static_cast<std::size_t>(i)];
    }
    distinct_ += distinct;
    steps_ += 1.0;
    tokens_ += static_cast<double>(count);
    return result;
  }

  const adaptive_k::router& router_;
  int batch_;
  int length_;
  int budget_;
  int k_min_;
  adaptive_k::admission order_;
  std::vector<std::uint64_t> mass_;
  std::vector<std::uint8_t> admitted_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<std::int32_t> counts_;
  std::int64_t distinct_ = 0;
  std::int64_t calls_ = 0;
  double steps_ = 0.0;
  double tokens_ = 0.0;
};

/// Those asked for, which must all fit; else those of the usual ones that do.
std::vector<int> batches_for(const budget_options& options, std::int64_t windows) {
  std::vector<int> batches = options.batches;
  if (batches.empty())
    for (const int usual : {1, 16, 64})
      if (usual <= windows) batches.push_back(usual);
  for (const int batch : batches)
    if (batch > windows)
      throw failure(
          fmt::format("--batch: {}, expected at most {}, the number of windows", batch, windows));
  return batches;
}

std::vector<int> budgets_for(const budget_options& options, const adaptive_k::gating& gating) {
  if (options.k_min > gating.top_k)
    throw failure(
        fmt::format("--k-min: {}, expected 1..{}, the model's top-k", options.k_min, gating.top_k));
  std::vector<int> budgets = options.budgets;
  if (budgets.empty())
    for (const int eighths : {2, 4, 6}) budgets.push_back(gating.num_experts * eighths / 8);
  for (const int budget : budgets)
    if (budget > gating.num_experts)
      throw failure(fmt::format("--budget: {}, expected 1..{}, the model's experts", budget,
                                gating.num_experts));
  return budgets;
}

void run(const budget_options& options) {
  file_roles roles;
  add_roles(roles, options);
  roles.writes("--json", options.json);
  model_inputs inputs = load_inputs(options, roles);
  loaded_model& model = inputs.model;
  const moe_engine::model_config& config = model.engine.config();
  const calibration_text text = {std::move(inputs.data), 0, inputs.windows.count,
                                 inputs.windows.length};
  const policy_choice choice = choose_policy(options.policy, model);
  const adaptive_k::router router =
      adaptive_k::make_router(config.gating, choice.policy, config.num_moe_layers);
  const std::vector<int> batches = batches_for(options, text.count);
  const std::vector<int> budgets = budgets_for(options, config.gating);

  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  text_table table({"batch", "budget", "<admitted by", "distinct experts", "mean K", "mean KL",
                    "+-", "windows"});
  for (const int batch : batches) {
    const int usual = windows_at_once(config, text.length);
    calibration_model adapter(model.engine, batch * std::max(1, usual / batch));
    const std::int64_t whole = text.count / batch * batch;
    const auto measure = [&](int budget, adaptive_k::admission order, const std::string& name) {
      budget_route route(router, batch, text.length, budget, options.k_min, order);
      adaptive_k::routing_outcome outcome;
      outcome.windows =
          adapter.run(text, {0, whole},
                      [&](int layer, const auto& logits, const auto& output, const auto& extras) {
                        return route(layer, logits, output, extras);
                      },
                      {});
      const auto kl = adaptive_k::kl_difference(outcome);
      const bool is_all = budget == config.gating.num_experts;
      table.add_row({std::to_string(batch), is_all ? "-" : std::to_string(budget), name,
                     fmt::format("{:.2f}", route.distinct_experts()),
                     fmt::format("{:.3f}", route.mean_k()), fmt::format("{:.5f}", kl.value),
                     std::isnan(kl.se) ? std::string("-") : fmt::format("{:.5f}", kl.se),
                     std::to_string(whole)});
      rows.push_back({{"batch", batch},
                      {"windows", whole},
                      {"budget", budget},
                      {"admission", name},
                      {"distinct_experts", route.distinct_experts()},
                      {"mean_k", route.mean_k()},
                      {"mean_kl", kl.value},
                      {"mean_kl_se", kl.se},
                      {"perplexity", outcome.perplexity()}});
    };
    measure(config.gating.num_experts, adaptive_k::admission::gate_mass, "all");
    for (const int budget : budgets) {
      measure(budget, adaptive_k::admission::gate_mass, "summed weight");
      measure(budget, adaptive_k::admission::index, "index (control)");
    }
  }
  write_json("--json", options.json, rows);
  if (roles.stdout_is_taken()) return;
  fmt::print(
      "{}, policy {}: windows of {} tokens; a step is one position of a batch of windows\n\n",
      adaptive_k::detail::printable(model.name, 200), choice.policy.name, text.length);
  fmt::print("{}", table.text());
}

}  // namespace

void add_budget_command(CLI::App& app) {
  auto options = std::make_shared<budget_options>();
  CLI::App* command = app.add_subcommand(
      "budget", "Decode batches held to a budget of distinct experts: bytes against quality");
  add_model_option(*command, *options);
  add_dataset_option(*command, *options);
  add_policy_option(*command, *options);
  add_context_option(*command, *options);
  add_windows_option(*command, *options);
  command->add_option("--k-min", options->k_min, "Experts of each token that always run")
      ->check(one_or_more());
  command
      ->add_option("--batch", options->batches,
                   "Batch sizes, at most the windows (default: 1,16,64)")
      ->delimiter(',')
      ->check(one_or_more());
  command->add_option("--budget", options->budgets, "Distinct experts (default 1/4, 1/2, 3/4 of E)")
      ->delimiter(',')
      ->check(one_or_more());
  command->add_option("--json", options->json, "Write the rows as JSON ('-': stdout)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
