// The matrix as JSON and as tables.
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstddef>

#include "bench/adaptive_k/calibrate/matrix.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

using adaptive_k::kl_difference;
using adaptive_k::paired_estimate;
using adaptive_k::routing_outcome;
using nlohmann::ordered_json;

/// The rules that others are compared with in their cell; the control comes first.
constexpr const char* controls[] = {"fixed", "static_per_layer", "top_p"};

double to_six_digits(double value) {
  return adaptive_k::detail::rounded(value);
}

ordered_json figures(const routing_outcome& outcome) {
  const paired_estimate kl = kl_difference(outcome);
  return {{"mean_k", to_six_digits(outcome.mean_k())},
          {"mean_kl", to_six_digits(kl.value)},
          {"mean_kl_se", to_six_digits(kl.se)}};
}

ordered_json point_json(const model_matrix& model, const matrix_point& point) {
  ordered_json json = {{"rule", point.rule},
                       {"calibrated_on", point.calibrated_on},
                       {"tested_on", point.tested_on},
                       {"target_mean_k", point.target_mean_k}};
  const routing_outcome& held = point.outcome.held;
  json.update(figures(held));
  json["perplexity"] = to_six_digits(held.perplexity());
  json["top1_agreement"] = to_six_digits(held.mean(&adaptive_k::window_outcome::agreement));
  json["mass_exponent"] = point.mass_exponent;
  for (const char* control : controls) {
    const matrix_point* other =
        model.find(control, point.calibrated_on, point.tested_on, point.target_mean_k);
    if (other == nullptr || point.rule == control) continue;
    const paired_estimate difference = kl_difference(held, &other->outcome.held);
    json[fmt::format("minus_{}", control)] = {to_six_digits(difference.value),
                                              to_six_digits(difference.se)};
  }
  json["as_calibrated"] = figures(point.outcome.as_set);
  return json;
}

ordered_json calibration_json(const matrix_calibration& calibration) {
  ordered_json trials = ordered_json::array();
  for (const adaptive_k::exponent_trial& trial : calibration.trials) {
    trials.push_back({{"exponent", trial.exponent}, {"left_out", trial.held_out}});
    trials.back().update(figures(trial.outcome));
  }
  return {{"calibrated_on", calibration.name},
          {"tokens", calibration.tokens},
          {"sensitivities", calibration.sensitivities},
          {"sensitivity_exponent", calibration.sensitivity_exponent},
          {"exponent_trials", std::move(trials)}};
}

ordered_json model_json(const model_matrix& model) {
  ordered_json json = {{"model", model.model},
                       {"num_experts", model.gating.num_experts},
                       {"top_k", model.gating.top_k},
                       {"gating", adaptive_k::to_string(model.gating.kind)},
                       {"renormalize", model.gating.renormalize},
                       {"selection_bias", model.gating.selection_bias},
                       {"num_moe_layers", model.num_layers},
                       {"context", model.window_length},
                       {"domains", model.domains},
                       {"mean_ks", model.mean_ks}};
  for (const matrix_calibration& calibration : model.calibrations)
    json["calibrations"].push_back(calibration_json(calibration));
  json["points"] = ordered_json::array();
  for (const matrix_point& point : model.points) json["points"].push_back(point_json(model, point));
  json["at_equal_kl"] = ordered_json::array();
  for (const equal_cost& cost : model.at_equal_cost) {
    json["at_equal_kl"].push_back({{"rule", cost.rule},
                                   {"calibrated_on", cost.calibrated_on},
                                   {"tested_on", cost.tested_on},
                                   {"mean_kl", to_six_digits(cost.kl)},
                                   {"expert_savings", nullptr},
                                   {"se", nullptr}});
    if (!cost.savings) continue;
    json["at_equal_kl"].back()["expert_savings"] = to_six_digits(*cost.savings);
    json["at_equal_kl"].back()["se"] = to_six_digits(cost.se);
  }
  return json;
}

/// The mean of what is added, "-" where that is nothing.
struct running_mean {
  double sum = 0.0;
  int count = 0;
  void add(double value) {
    sum += value;
    ++count;
  }
  double value() const { return sum / count; }
};
using by_transfer = std::array<running_mean, 3>;

std::string ratio_text(const running_mean& log_ratio) {
  return log_ratio.count == 0 ? "-" : fmt::format("{:.3f}", std::exp(log_ratio.value()));
}
std::string savings_text(const running_mean& savings, bool is_whole) {
  return savings.count == 0
             ? "-"
             : fmt::format("{}{:.1f}%", is_whole ? "" : "~", 100.0 * savings.value());
}

/// KL over fixed K's in the same cell, by the geometric mean over cells.
by_transfer kl_ratios(const model_matrix& model, const std::string& rule, double mean_k) {
  by_transfer result;
  for (const matrix_point& point : model.points) {
    if (point.rule != rule || point.target_mean_k != mean_k) continue;
    const matrix_point* fixed =
        model.find(controls[0], point.calibrated_on, point.tested_on, mean_k);
    if (fixed == nullptr) continue;
    const auto at =
        static_cast<std::size_t>(transfer_of(model, point.calibrated_on, point.tested_on));
    result[at].add(std::log(point.outcome.held.mean_kl() / fixed->outcome.held.mean_kl()));
  }
  return result;
}

}  // namespace

transfer transfer_of(const model_matrix& model, const std::string& calibrated_on,
                     const std::string& tested_on) {
  if (calibrated_on == tested_on) return transfer::in_domain;
  return calibrated_on == all_domains && model.domains.size() > 1 ? transfer::every_domain
                                                                  : transfer::out_of_domain;
}

nlohmann::ordered_json to_json(const matrix_options& options,
                               const std::vector<model_matrix>& models) {
  ordered_json json = {{"format", "adaptive_k.matrix"},
                       {"version", version()},
                       {"fit_tokens", options.fit_tokens},
                       {"test_windows", options.test_windows},
                       {"seed", options.seed},
                       {"models", ordered_json::array()}};
  for (const model_matrix& model : models) json["models"].push_back(model_json(model));
  return json;
}

std::string matrix_text(const model_matrix& model) {
  std::string text = fmt::format(
      "\n{}: {} experts of which {}; KL over fixed K's at equal mean K, and calls saved at fixed "
      "K's "
      "KL at mean K {:g}\n",
      model.model, model.gating.num_experts, model.gating.top_k, 0.75 * model.gating.top_k);
  for (const matrix_calibration& calibration : model.calibrations)
    text += fmt::format("  calibrated on {}: {} tokens, layers weighed by sensitivity ^ {:g}\n",
                        calibration.name, calibration.tokens, calibration.sensitivity_exponent);
  std::vector<std::string> heads = {"<rule"};
  for (const double mean_k : model.mean_ks)
    for (const char* where : {"in", "out", "all"})
      heads.push_back(fmt::format("{} K={:g}", where, mean_k));
  for (const char* where : {"in", "out", "all"}) heads.push_back(fmt::format("saved {}", where));
  text_table table(heads);
  for (const matrix_rule& row : model.rules) {
    std::vector<std::string> cells = {row.name};
    for (const double mean_k : model.mean_ks)
      for (const running_mean& ratio : kl_ratios(model, row.name, mean_k))
        cells.push_back(ratio_text(ratio));
    by_transfer saved;
    std::array<bool, 3> is_whole = {true, true, true};
    for (const equal_cost& cost : model.at_equal_cost) {
      if (cost.rule != row.name) continue;
      const auto at =
          static_cast<std::size_t>(transfer_of(model, cost.calibrated_on, cost.tested_on));
      if (cost.savings) saved[at].add(*cost.savings);
      is_whole[at] = is_whole[at] && cost.savings.has_value();
    }
    for (std::size_t at = 0; at < saved.size(); ++at)
      cells.push_back(savings_text(saved[at], is_whole[at]));
    table.add_row(std::move(cells));
  }
  return text + "\n" + table.text() +
         "in: calibrated on the domain tested on; out: on another; all: on all. ~: where known\n";
}

}  // namespace bench
