// `adaptive-k presets`: what is known about models, and where each number comes from.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <adaptive_k/calibration/preset.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"
#include "bench/adaptive_k/output/text_table.hpp"

namespace bench {
namespace {

void list() {
  std::vector<adaptive_k::preset_error> unusable;
  const std::vector<adaptive_k::preset> presets = adaptive_k::list_presets(&unusable);
  for (const adaptive_k::preset_error& error : unusable)
    fmt::print(stderr, "adaptive-k: warning: {}\n", error.what());
  if (presets.empty())
    throw failure("no presets found; ADAPTIVE_K_CALIBRATIONS names their folders");
  text_table table({"<name", "experts", "<gating", "<default policy", "<its numbers are"});
  for (const adaptive_k::preset& preset : presets)
    table.add_row({preset.name, fmt::format("{}/{}", preset.model.num_experts, preset.model.top_k),
                   std::string(adaptive_k::to_string(preset.model.kind)) +
                       (preset.model.selection_bias ? " + bias" : "") +
                       (preset.model.renormalize ? ", renormalised" : ""),
                   preset.default_policy, preset.policy().provenance});
  fmt::print("{}\n`adaptive-k presets NAME` shows one with its sources.\n", table.text(0));
}

std::string number(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : std::string("not given");
}

void show_claims(const adaptive_k::published_claims& claims) {
  fmt::print("    claimed, not reproduced here:\n");
  fmt::print("      thresholds     {} {}\n", fmt::join(claims.thresholds, ", "), claims.unit);
  fmt::print("      mean K         {}\n", number(claims.mean_k, "{:.2f}"));
  fmt::print("      saving         {}\n",
             claims.saving ? fmt::format("{:.1f}%", 100.0 * *claims.saving) : "not given");
  fmt::print("      mean signal    {} {}\n", number(claims.mean_signal, "{:.3g}"),
             claims.mean_signal ? claims.unit : "");
  if (claims.baseline_perplexity)
    fmt::print("      perplexity     {} -> {} on {}\n",
               number(claims.baseline_perplexity, "{:.2f}"),
               number(claims.adaptive_perplexity, "{:.2f}"), claims.dataset);
  for (const std::string& contradiction : claims.contradictions)
    fmt::print("      contradiction  {}\n", contradiction);
}

void show_measurement(const adaptive_k::policy_measurement& m) {
  fmt::print("    measured on {}, {}, {} tokens, {}\n", m.model, m.data, m.tokens, m.date);
  fmt::print("      command        {}\n", m.command);
  fmt::print("      mean K         {}\n", number(m.mean_k, "{:.2f}"));
  fmt::print("      saving         {}\n",
             m.expert_savings ? fmt::format("{:.1f}%", 100.0 * *m.expert_savings) : "not given");
  fmt::print("      mean KL        {} nats; fixed K at equal mean K: {}\n",
             number(m.mean_kl, "{:.4g}"), number(m.fixed_k_mean_kl, "{:.4g}"));
  fmt::print("      perplexity     x {}\n", number(m.perplexity_ratio, "{:.4f}"));
  for (const adaptive_k::calibrated_text& text : m.calibrated_on)
    fmt::print("      calibrated on  {}: {}, {} tokens\n", text.name, text.data, text.tokens);
  if (m.sensitivity_exponent)
    fmt::print("      layers weigh   their sensitivities ^ {:g}\n", *m.sensitivity_exponent);
}

void show_policy(const adaptive_k::preset_policy& policy, bool is_default) {
  fmt::print("  {}{}: {}\n", policy.name, is_default ? " (default)" : "", policy.provenance);
  if (policy.layers.size() == 1) {
    fmt::print("    {}\n", adaptive_k::to_spec(policy.layers.front()));
  } else {
    for (std::size_t layer = 0; layer < policy.layers.size(); ++layer)
      fmt::print("    layer {:<3} {}\n", layer, adaptive_k::to_spec(policy.layers[layer]));
  }
  if (!policy.source.empty()) fmt::print("    source: {}\n", policy.source);
  if (!policy.notes.empty()) fmt::print("    {}\n", policy.notes);
  if (policy.published) show_claims(*policy.published);
  if (policy.measured) show_measurement(*policy.measured);
}

/// A gating that fits every policy of the file: the tables give the model's sizes, which without
/// tables are the largest allowed.
adaptive_k::gating router_of_tables(const nlohmann::json& policy) {
  adaptive_k::gating gating;
  gating.num_experts = adaptive_k::max_experts;
  gating.top_k = adaptive_k::max_top_k;
  std::vector<const nlohmann::json*> places = {&policy};
  if (const auto layers = policy.find("layers"); layers != policy.end() && layers->is_array())
    for (const nlohmann::json& layer : *layers) places.push_back(&layer);
  for (const nlohmann::json* place : places) {
    const auto tables = place->find("distortion");
    if (tables == place->end()) continue;
    const auto rows = tables->find("coefficients");
    if (rows != tables->end() && rows->is_array() && rows->size() < adaptive_k::max_top_k)
      gating.top_k = static_cast<int>(rows->size()) + 1;
    const auto experts = tables->find("first_expert");
    if (experts != tables->end() && experts->is_array() && !experts->empty() &&
        experts->front().is_array() && experts->front().size() <= adaptive_k::max_experts)
      gating.num_experts = static_cast<int>(experts->front().size());
  }
  return gating;
}

/// Shows the file if it holds a policy alone; else false.
bool show_policy_file(const std::string& name) {
  if (policy_file_of(name) != name) return false;
  const auto root = adaptive_k::detail::read_json_file(name);
  if (!root.value().is_object() || root.find("policies") || root.find("gating")) return false;
  const adaptive_k::preset_policy policy =
      adaptive_k::detail::read_policy(root, router_of_tables(root.value()), 0);
  fmt::print("{}\n  a policy without a model; `--policy {}` takes it\n\nPolicy\n", policy.name,
             name);
  show_policy(policy, false);
  return true;
}

void show(const std::string& name) {
  if (show_policy_file(name)) return;
  const adaptive_k::preset preset = adaptive_k::load_preset(name);
  const adaptive_k::gating& g = preset.model;
  fmt::print("{}\n", preset.name);
  if (!preset.aliases.empty()) fmt::print("  also called: {}\n", fmt::join(preset.aliases, ", "));
  fmt::print("  router: {} experts of which {}, {}{}{}", g.num_experts, g.top_k,
             adaptive_k::to_string(g.kind), g.selection_bias ? " + selection bias" : "",
             g.renormalize ? ", renormalised" : ", not renormalised");
  if (g.routed_scaling_factor != 1.0f)
    fmt::print(", scale {:g}", static_cast<double>(g.routed_scaling_factor));
  if (g.n_group > 1) fmt::print(", {} groups of which {}", g.n_group, g.topk_group);
  fmt::print("\n  sizes: {} MoE layers, experts {} x {}, {} matrices", preset.num_moe_layers,
             preset.sizes.hidden, preset.sizes.intermediate, preset.sizes.matrices);
  if (preset.shared_experts.count > 0)
    fmt::print("; shared experts: {}, {} wide", preset.shared_experts.count,
               preset.shared_experts.intermediate);
  fmt::print("\n");
  if (!preset.notes.empty()) fmt::print("  {}\n", preset.notes);
  for (const std::string& source : preset.sources) fmt::print("  source: {}\n", source);
  for (const std::string& what : preset.unverified) fmt::print("  not verified: {}\n", what);
  fmt::print("  file: {}\n\nPolicies\n", preset.file.string());
  for (const adaptive_k::preset_policy& policy : preset.policies)
    show_policy(policy, policy.name == preset.default_policy);
}

}  // namespace

void add_presets_command(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "presets", "List the models known by name, or show one with the source of its numbers");
  command->add_option("name", *name,
                      "Name, alias or .json file of a preset, or the file of a policy");
  command->callback([name] { name->empty() ? list() : show(*name); });
}

}  // namespace bench
