#include "bench/adaptive_k/measure/facts.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/printable.hpp>
#include <adaptive_k/core/choose_k.hpp>
#include <algorithm>
#include <cstddef>

#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {

using json = nlohmann::ordered_json;

namespace {

float mass_exponent_of(const adaptive_k::k_policy& policy, const adaptive_k::gating& model) {
  return adaptive_k::make_plan(model, policy).mass_exponent;
}

json layer_json(const adaptive_k::k_policy& policy, const adaptive_k::gating& model) {
  json result = {
      {"rule", adaptive_k::to_string(policy.rule)},
      {"spec", adaptive_k::to_spec(policy)},
      {"signal", adaptive_k::to_string(policy.signal)},
      {"k_min", policy.k_min},
      {"k_max", std::min<int>(policy.k_max, model.top_k)},
      {"mass_exponent", mass_exponent_of(policy, model)},
  };
  if (policy.rule == adaptive_k::k_rule::distortion) {
    const auto count =
        static_cast<std::ptrdiff_t>(model.top_k - 1) * adaptive_k::distortion_ref::num_features;
    result["lambda"] = policy.distortion.lambda;
    result["sensitivity"] = policy.distortion.sensitivity;
    result["coefficients"] =
        std::vector<float>(policy.distortion.coefficients, policy.distortion.coefficients + count);
    result["first_expert_table"] = policy.distortion.first_expert != nullptr;
    result["next_expert_table"] = policy.distortion.next_expert != nullptr;
    result["router_head"] = policy.distortion.head != nullptr;
  }
  return result;
}

}  // namespace

model_facts facts_of(const loaded_model& model, const std::string& policy) {
  model_facts facts;
  facts.name = model.name;
  facts.path = model.folder.string();
  facts.num_layers = model.engine.config().num_moe_layers;
  facts.gating = model.engine.config().gating;
  facts.sizes = model.sizes;
  facts.shared_intermediate = model.engine.config().shared_intermediate_size;
  facts.weight_dtype = model.weight_dtype;
  if (policy.empty() && !model.preset) facts.preset_note = model.preset_note;
  return facts;
}

data_facts facts_of(const dataset& data, const window_plan& windows) {
  return {data.path, data.sha256, data.unit, windows};
}

json report_header(const char* kind) {
  return {{"format", kind}, {"schema_version", 1}, {"version", version()}};
}

json model_json(const model_facts& model) {
  json result = {
      {"name", model.name},
      {"path", model.path},
      {"num_layers", model.num_layers},
      {"num_experts", model.gating.num_experts},
      {"top_k", model.gating.top_k},
      {"gating", adaptive_k::to_string(model.gating.kind)},
      {"renormalize", model.gating.renormalize},
  };
  if (model.sizes.hidden > 0) {
    result["hidden_size"] = model.sizes.hidden;
    result["intermediate_size"] = model.sizes.intermediate;
    result["weight_dtype"] = model.weight_dtype;
    result["expert_bytes"] = model.sizes.expert_bytes();
    result["shared_intermediate_size"] = model.shared_intermediate;
  }
  return result;
}

json dataset_json(const data_facts& data) {
  return {
      {"path", data.path},
      {"sha256", data.sha256},
      {"unit", data.unit},
      {"tokens", data.windows.count * data.windows.length},
      {"unused_tokens", data.windows.unused_tokens},
      {"windows", data.windows.count},
      {"window", data.windows.length},
  };
}

json policy_json(const policy_facts& policy, const adaptive_k::gating& model) {
  const policy_choice& choice = policy.choice;
  json result = {{"name", choice.policy.name},
                 {"origin", choice.origin},
                 {"provenance", choice.policy.provenance}};
  if (!choice.policy.source.empty()) result["source"] = choice.policy.source;
  for (const adaptive_k::k_policy& layer : policy.layers)
    result["layers"].push_back(layer_json(layer, model));
  return result;
}

void add_quality(json& target, const quality_summary& quality) {
  target["perplexity"] = quality.perplexity;
  target["perplexity_difference"] = quality.perplexity_difference.value;
  target["perplexity_difference_se"] = quality.perplexity_difference.se;
  target["perplexity_ratio"] = quality.perplexity_ratio.value;
  target["perplexity_ratio_se"] = quality.perplexity_ratio.se;
  target["mean_nll"] = quality.mean_nll;
  target["mean_kl"] = quality.mean_kl.value;
  target["mean_kl_se"] = quality.mean_kl.se;
  target["copy_accuracy"] = quality.copy_accuracy.value;
  target["copy_accuracy_se"] = quality.copy_accuracy.se;
}

void print_facts(const model_facts& model, const data_facts& data, const policy_facts& policy) {
  const adaptive_k::gating& g = model.gating;
  fmt::print("Model    {}: {} MoE layers, {} experts of which {}, {}{}\n",
             adaptive_k::detail::printable(model.name, 200), model.num_layers, g.num_experts,
             g.top_k, adaptive_k::to_string(g.kind), g.renormalize ? ", renormalised" : "");
  if (model.sizes.hidden > 0)
    fmt::print("         experts {} x {} in {}, {} each\n", model.sizes.hidden,
               model.sizes.intermediate, model.weight_dtype,
               bytes_text(model.sizes.expert_bytes()));
  if (model.shared_intermediate > 0) {
    const double routed =
        static_cast<double>(g.top_k) * static_cast<double>(model.sizes.intermediate);
    fmt::print(
        "         shared experts {} wide run for every token and are in no saving: of the experts' "
        "arithmetic\n         at full K the routed ones have {:.1f}%\n",
        model.shared_intermediate, 100.0 * routed / (routed + model.shared_intermediate));
  }
  fmt::print("Data     {}\n         sha256 {}\n", data.path, data.sha256);
  fmt::print("         {} windows of {} {}", data.windows.count, data.windows.length, data.unit);
  if (data.windows.unused_tokens > 0)
    fmt::print("; {} behind them not used", data.windows.unused_tokens);
  fmt::print("\nPolicy   {} ({})\n", policy.choice.policy.name, policy.choice.origin);
  if (!model.preset_note.empty()) fmt::print("         {}\n", model.preset_note);
  if (std::all_of(
          policy.layers.begin(), policy.layers.end(),
          [](const adaptive_k::k_policy& layer) { return layer.rule == adaptive_k::k_rule::full; }))
    fmt::print(
        "         which is the model's own routing and saves nothing: another is `--policy "
        "top_p:0.9`,\n         or one that `adaptive-k calibrate` finds for a target\n");
  fmt::print("         mass_exponent {:g}; every control has the same\n",
             static_cast<double>(mass_exponent_of(policy.layers.front(), g)));
  if (std::count(policy.is_adaptive.begin(), policy.is_adaptive.end(), false) > 0) {
    std::string layers;
    for (std::size_t layer = 0; layer < policy.is_adaptive.size(); ++layer)
      if (policy.is_adaptive[layer]) layers += (layers.empty() ? "" : ", ") + std::to_string(layer);
    fmt::print("         on layers {}; the others, also of the controls, at full K\n", layers);
  }
}

}  // namespace bench
