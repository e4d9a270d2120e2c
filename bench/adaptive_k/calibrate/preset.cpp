#include "bench/adaptive_k/calibrate/preset.hpp"

#include <fmt/format.h>
#include <adaptive_k/calibration/format/names.hpp>
#include <adaptive_k/calibration/preset.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <utility>

#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {
namespace {

using nlohmann::ordered_json;

/// Six digits: as a float and as a decimal the same number.
double six_digits(double value) {
  return adaptive_k::detail::rounded(value);
}

ordered_json table_json(const std::vector<float>& values, std::size_t columns) {
  ordered_json rows = ordered_json::array();
  for (std::size_t at = 0; at < values.size(); at += columns) {
    ordered_json row = ordered_json::array();
    for (std::size_t c = 0; c < columns; ++c)
      row.push_back(std::round(static_cast<double>(values[at + c]) * 1e5) / 1e5);
    rows.push_back(std::move(row));
  }
  return rows;
}

ordered_json layer_json(const adaptive_k::k_policy& policy, const adaptive_k::gating& model) {
  ordered_json json;
  json["rule"] = adaptive_k::to_string(policy.rule);
  switch (policy.rule) {
    case adaptive_k::k_rule::full:
      break;
    case adaptive_k::k_rule::fixed:
      json["k"] = policy.k_values[0];
      break;
    case adaptive_k::k_rule::thresholds: {
      json["signal"] = adaptive_k::to_string(policy.signal);
      const bool in_nats = *adaptive_k::unit_of(policy.signal) != '\0';
      const char* key = in_nats ? "thresholds_nats" : "thresholds";
      json["k_values"] = ordered_json::array();
      json[key] = ordered_json::array();
      for (int i = 0; i < policy.num_k_values; ++i) json["k_values"].push_back(policy.k_values[i]);
      for (int i = 0; i + 1 < policy.num_k_values; ++i)
        json[key].push_back(std::stod(adaptive_k::detail::shortest(policy.thresholds[i])));
      break;
    }
    case adaptive_k::k_rule::distortion: {
      const auto rows = static_cast<std::size_t>(model.top_k - 1);
      const auto experts = static_cast<std::size_t>(model.num_experts);
      const auto copy = [&](const float* from, std::size_t columns) {
        return table_json(std::vector<float>(from, from + rows * columns), columns);
      };
      const adaptive_k::distortion_ref& d = policy.distortion;
      json["distortion"] = {
          {"lambda", six_digits(static_cast<double>(d.lambda))},
          {"sensitivity", six_digits(static_cast<double>(d.sensitivity))},
          {"coefficients", copy(d.coefficients, adaptive_k::distortion_ref::num_features)}};
      if (d.first_expert != nullptr)
        json["distortion"]["first_expert"] = copy(d.first_expert, experts);
      if (d.next_expert != nullptr)
        json["distortion"]["next_expert"] = copy(d.next_expert, experts);
      if (d.head != nullptr)
        json["distortion"]["head"] = copy(d.head, static_cast<std::size_t>(d.hidden_size));
      break;
    }
  }
  json["mass_exponent"] = std::stod(adaptive_k::detail::shortest(policy.mass_exponent));
  for (int i = 0; i < policy.num_super_experts; ++i)
    json["super_experts"].push_back(policy.super_experts[i]);
  if (policy.domain.given) {
    const auto range = [](float least, float most) {
      return ordered_json::array(
          {six_digits(static_cast<double>(least)), six_digits(static_cast<double>(most))});
    };
    json["domain"] = {
        {"signal", range(policy.domain.signal_least, policy.domain.signal_most)},
        {"first_share", range(policy.domain.first_share_least, policy.domain.first_share_most)}};
  }
  return json;
}

/// What `rule` came to on the first `count` of the texts together.
adaptive_k::routing_outcome outcome_of(const std::vector<adaptive_k::frontier_point>& points,
                                       adaptive_k::calibration_rule rule,
                                       const std::vector<bound_text>& texts, std::size_t count) {
  std::vector<adaptive_k::routing_outcome> outcomes;
  for (std::size_t i = 0; i < count; ++i)
    for (const adaptive_k::frontier_point& point : points)
      if (point.rule == rule && point.split == texts[i].name) outcomes.push_back(point.outcome);
  return adaptive_k::joined(outcomes);
}

std::string file_and_hash(const dataset& data) {
  return fmt::format("{}, sha256 {}", std::filesystem::path(data.path).filename().string(),
                     data.sha256.substr(0, 16));
}

/// Rule by rule the mean K and KL of one text, as a sentence.
std::string figures_text(const std::vector<adaptive_k::frontier_point>& points,
                         const std::string& split) {
  std::string text;
  for (const adaptive_k::frontier_point& point : points) {
    if (point.split != split) continue;
    const adaptive_k::paired_estimate kl = adaptive_k::kl_difference(point.outcome);
    text += fmt::format("{}{} {} (K {:.3f})", text.empty() ? "" : ", ",
                        adaptive_k::to_string(point.rule), with_se({kl.value, kl.se}, 5),
                        point.outcome.mean_k());
  }
  return text.empty() ? text : fmt::format(" Mean KL on the {} text: {}.", split, text);
}

ordered_json new_file(const loaded_model& model) {
  const moe_engine::model_config& config = model.engine.config();
  const adaptive_k::gating& g = config.gating;
  ordered_json gating = {{"kind", adaptive_k::to_string(g.kind)},
                         {"num_experts", g.num_experts},
                         {"top_k", g.top_k},
                         {"renormalize", g.renormalize},
                         {"selection_bias", g.selection_bias}};
  if (g.routed_scaling_factor != 1.0f) gating["routed_scaling_factor"] = g.routed_scaling_factor;
  if (g.n_group != 1) gating.update({{"n_group", g.n_group}, {"topk_group", g.topk_group}});
  const int shared_width = config.num_shared_experts == 0
                               ? 0
                               : config.shared_intermediate_size / config.num_shared_experts;
  return {{"$schema", "schema.json"},
          {"schema_version", adaptive_k::calibration_schema_version},
          {"name", model.name},
          {"aliases", ordered_json::array()},
          {"gating", std::move(gating)},
          {"sizes",
           {{"num_moe_layers", config.num_moe_layers},
            {"hidden", config.hidden_size},
            {"intermediate", config.intermediate_size},
            {"matrices", 3},
            {"shared_experts",
             {{"count", config.num_shared_experts}, {"intermediate", shared_width}}}}},
          {"sources", {"the model's config.json"}},
          {"policies",
           {{{"name", "full"}, {"provenance", "the model's own routing"}, {"rule", "full"}}}},
          {"default_policy", "full"}};
}

ordered_json without_date(ordered_json policy) {
  if (policy.contains("measured")) policy["measured"].erase("date");
  return policy;
}

}  // namespace

ordered_json preset_json(calibration_setup& setup, const adaptive_k::calibration_study& study,
                         const adaptive_k::calibration_result& result,
                         const std::vector<adaptive_k::frontier_point>& points,
                         const std::string& command, const std::string& date) {
  const loaded_model& model = setup.model();
  const adaptive_k::gating& gating = model.engine.config().gating;
  ordered_json file = new_file(model);
  if (model.preset) file = ordered_json::parse(read_file(model.preset->file));

  ordered_json policy = {{"name", calibrated_policy}, {"provenance", "measured"}};
  std::string calibrated_on;
  ordered_json domains = ordered_json::array();
  for (std::size_t i = 0; i < setup.domains().size(); ++i) {
    const bound_text& domain = setup.domains()[i];
    const std::filesystem::path path = domain.text->data.path;
    const std::int64_t tokens = study.tokens_by_domain()[i];
    domains.push_back({{"name", domain.name.empty() ? path.stem().string() : domain.name},
                       {"data", file_and_hash(domain.text->data)},
                       {"tokens", tokens}});
    calibrated_on += fmt::format("{}{}, {} tokens", calibrated_on.empty() ? "" : "; ",
                                 path.filename().string(), tokens);
  }
  std::string notes = result.sentence + "; calibrated on " + calibrated_on + ".";
  std::string data;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < setup.reported().size(); ++i) {
    const bound_text& text = setup.reported()[i];
    notes += figures_text(points, text.name);
    if (i >= setup.num_tests()) continue;
    data += (data.empty() ? "" : "; ") + file_and_hash(text.text->data);
    tokens += text.text->count * text.text->length;
  }
  policy["notes"] = std::move(notes);
  const auto own = outcome_of(points, result.rule, setup.reported(), setup.num_tests());
  const auto fixed =
      outcome_of(points, adaptive_k::calibration_rule::fixed, setup.reported(), setup.num_tests());
  ordered_json measured = {{"model", model.name},
                           {"data", data},
                           {"tokens", tokens},
                           {"date", date},
                           {"command", command},
                           {"mean_k", six_digits(own.mean_k())},
                           {"expert_savings", six_digits(1.0 - own.mean_k() / gating.top_k)},
                           {"mean_kl", six_digits(own.mean_kl())},
                           {"fixed_k_mean_kl", six_digits(fixed.mean_kl())},
                           {"calibrated_on", std::move(domains)}};
  if (result.rule == adaptive_k::calibration_rule::distortion ||
      result.rule == adaptive_k::calibration_rule::head ||
      result.rule == adaptive_k::calibration_rule::psi)
    measured["sensitivity_exponent"] = six_digits(result.sensitivity_exponent);
  measured["out_of_domain"] = six_digits(result.out_of_domain);
  policy["measured"] = std::move(measured);
  for (const adaptive_k::k_policy& layer : result.policies.layers)
    policy["layers"].push_back(layer_json(layer, gating));

  ordered_json policies = ordered_json::array();
  for (const ordered_json& old : file["policies"]) {
    if (old["name"] != calibrated_policy) continue;
    if (without_date(old) == without_date(policy)) policy = old;
  }
  policies.push_back(std::move(policy));
  for (const ordered_json& old : file["policies"])
    if (old["name"] != calibrated_policy) policies.push_back(old);
  file["policies"] = std::move(policies);
  file["default_policy"] = calibrated_policy;
  return file;
}

ordered_json trace_policy_json(const adaptive_k::calibration_result& result,
                               const std::string& trace, const std::string& remark) {
  adaptive_k::gating unused;
  ordered_json json = layer_json(result.policies.layers.front(), unused);
  ordered_json policy = {
      {"schema_version", adaptive_k::calibration_schema_version},
      {"name", "from_trace"},
      {"provenance", "hand-set"},
      {"notes",
       fmt::format("{}. Set on {} tokens of {} to a saving of {:.1f}%. {}.", result.sentence,
                   result.tokens_analyzed, trace, 100.0 * result.expert_savings, remark)}};
  policy.update(json);
  return policy;
}

namespace {

void write(const ordered_json& json, int indent, std::string& text) {
  const std::string space(static_cast<std::size_t>(indent) + 2, ' ');
  const bool is_flat = json.is_array() && std::all_of(json.begin(), json.end(),
                                                      [](const auto& v) { return v.is_number(); });
  if (is_flat) {
    text += '[';
    for (std::size_t i = 0; i < json.size(); ++i) text += (i != 0 ? ", " : "") + text_of(json[i]);
    text += ']';
  } else if (json.is_structured()) {
    const bool is_object = json.is_object();
    text += is_object ? '{' : '[';
    bool first = true;
    for (const auto& [key, value] : json.items()) {
      text += (first ? "\n" : ",\n") + space;
      if (is_object) text += text_of(ordered_json(key)) + ": ";
      write(value, indent + 2, text);
      first = false;
    }
    text += "\n" + std::string(static_cast<std::size_t>(indent), ' ') + (is_object ? '}' : ']');
  } else {
    text += text_of(json);
  }
}

}  // namespace

std::string preset_text(const ordered_json& json) {
  std::string text;
  write(json, 0, text);
  return text + "\n";
}

}  // namespace bench
