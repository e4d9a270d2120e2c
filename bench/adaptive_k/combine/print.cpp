#include <fmt/format.h>

#include <string>

#include "bench/adaptive_k/combine/run.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

using json = nlohmann::ordered_json;

const char* signal_name(adaptive_k::exit_signal signal) {
  return signal == adaptive_k::exit_signal::entropy ? "entropy" : "max_probability";
}

std::string predicted_text(const std::optional<double>& share) {
  return share ? percent(*share) : "";
}

void add_row(text_table& table, const combined_figures& f, bool is_full) {
  table.add_row(
      {f.name, fmt::format("{:.2f}", f.mean_k), percent(f.calls_left),
       predicted_text(f.predicted_calls_left), percent(f.arithmetic_left),
       predicted_text(f.predicted_arithmetic_left), fmt::format("{:.4f}", f.quality.perplexity),
       is_full ? "" : with_se(f.quality.mean_kl, 5),
       is_full                   ? ""
       : f.fixed_at_equal_mean_k ? fmt::format("{:.5f}", f.fixed_at_equal_mean_k->mean_kl.value)
                                 : "none",
       is_full || !f.kl_above_fixed ? "" : with_se(*f.kl_above_fixed, 5, "+"),
       is_full ? "" : percent(f.quality.top1_agreement.value)});
}

json thresholds_json(const adaptive_k::early_exit_policy& policy) {
  json thresholds = json::array();
  for (int i = 0; i < policy.num_layers; ++i) thresholds.push_back(policy.thresholds[i]);
  return thresholds;
}

json work_json(const moe_engine::work_count& work) {
  return {{"projections", work.projections},
          {"attention", work.attention},
          {"router", work.router},
          {"experts", work.experts},
          {"unrouted_mlps", work.unrouted_mlps},
          {"head", work.head},
          {"exit_heads", work.exit_heads},
          {"matching", work.matching},
          {"total", work.multiply_adds()}};
}

json optional_json(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

json figures_json(const combined_figures& f, const adaptive_k::early_exit_policy& exit) {
  json entry = {
      {"name", f.name},
      {"adaptive_k", f.adapts_k},
      {"early_exit", f.exits_early},
      {"token_merging", f.merges_tokens},
      {"mean_k", f.mean_k},
      {"expert_calls", f.work.expert_calls},
      {"expert_calls_left", f.calls_left},
      {"predicted_expert_calls_left", optional_json(f.predicted_calls_left)},
      {"multiply_adds", work_json(f.work)},
      {"multiply_adds_left", f.arithmetic_left},
      {"predicted_multiply_adds_left", optional_json(f.predicted_arithmetic_left)},
  };
  add_quality(entry, f.quality);
  entry["top1_agreement"] = f.quality.top1_agreement.value;
  entry["top1_agreement_se"] = f.quality.top1_agreement.se;
  entry["fixed_k_at_equal_mean_k"] = nullptr;
  if (f.fixed_at_equal_mean_k) {
    json fixed = json::object();
    add_quality(fixed, *f.fixed_at_equal_mean_k);
    fixed["kl_difference"] = f.kl_above_fixed->value;
    fixed["kl_difference_se"] = f.kl_above_fixed->se;
    entry["fixed_k_at_equal_mean_k"] = std::move(fixed);
  }
  if (f.exits_early) {
    json rates = json::array();
    for (int i = 0; i < exit.num_layers; ++i) rates.push_back(f.exits.exit_rate(i));
    entry["exit_rate_by_layer"] = std::move(rates);
  }
  if (f.merges_tokens) {
    adaptive_k::token_merging_metrics all;
    json shares = json::array();
    for (const adaptive_k::token_merging_metrics& layer : f.merges_by_layer) {
      all += layer;
      shares.push_back(layer.merged_share());
    }
    entry["merged_share"] = all.merged_share();
    entry["merged_share_by_layer"] = std::move(shares);
  }
  return entry;
}

}  // namespace

void print(const combine_result& r) {
  fmt::print("adaptive-k {} combine\n\n", version());
  print_facts(r.model, r.data, r.policy);
  std::string thresholds;
  for (int i = 0; i < r.exit.num_layers; ++i)
    thresholds += fmt::format("{}{:g}", i == 0 ? "" : ", ", r.exit.thresholds[i]);
  const char* const side = r.exit.signal == adaptive_k::exit_signal::entropy ? "below" : "above";
  if (r.exit.num_layers == 0)
    fmt::print("Exit     none: no layer has one behind it\n");
  else
    fmt::print("Exit     {} {} {} behind layers 0 to {}\n", signal_name(r.exit.signal), side,
               thresholds, r.exit.num_layers - 1);
  fmt::print("Merging  cosine of {:g} or more with a token at most {} before\n",
             static_cast<double>(r.merging.min_similarity), r.merging.window);

  text_table table({"<", "mean K", "calls left", "predicted", "arithmetic left", "predicted",
                    "perplexity", "mean KL", "fixed K's", "- fixed K's", "top-1"});
  for (const combined_figures& f : r.combinations) add_row(table, f, &f == &r.combinations.front());
  table.add_row({"controls"});
  for (combined_figures f : r.controls) {
    f.name = "  " + f.name;
    add_row(table, f, false);
  }
  fmt::print(
      "\nAll measured but the columns \"predicted\", the products of what each leaves "
      "alone ({} predictions;\n+- standard error, paired by window)\n{}",
      r.combinations.front().quality.predictions, table.text());

  fmt::print(
      "\nMean K and calls: of experts, by token and layer of the whole text. Arithmetic: all "
      "multiply-adds,\nthose of deciding too. Fixed K's: mean KL of fixed K alone at the "
      "same mean K; none below 1.\n\n");
  text_table costs({"<", "left behind layer", "merged in layer", "deciding"});
  for (const combined_figures& f : r.combinations) {
    if (!f.exits_early && !f.merges_tokens) continue;
    std::string rates;
    for (int i = 0; f.exits_early && i < r.exit.num_layers; ++i)
      rates += fmt::format("{}{}", i == 0 ? "" : " ", percent(f.exits.exit_rate(i)));
    std::string shares;
    for (const adaptive_k::token_merging_metrics& layer : f.merges_by_layer)
      shares += (shares.empty() ? "" : " ") + percent(layer.merged_share());
    costs.add_row({f.name, rates, shares,
                   percent(static_cast<double>(f.work.exit_heads + f.work.matching) /
                           static_cast<double>(f.work.multiply_adds()))});
  }
  fmt::print(
      "Tokens that left, of those asked; tokens that merged; share of arithmetic that "
      "decides both\n{}",
      costs.text());
}

nlohmann::ordered_json to_json(const combine_result& r) {
  json report = report_header("adaptive_k.combine");
  report["model"] = model_json(r.model);
  report["dataset"] = dataset_json(r.data);
  report["dataset"]["predictions"] = r.combinations.front().quality.predictions;
  report["policy"] = policy_json(r.policy, r.model.gating);
  report["early_exit"] = {{"signal", signal_name(r.exit.signal)},
                          {"thresholds", thresholds_json(r.exit)}};
  report["token_merging"] = {{"min_similarity", r.merging.min_similarity},
                             {"window", r.merging.window}};
  report["random_seed"] = r.random_seed;
  report["combinations"] = json::array();
  for (const combined_figures& f : r.combinations)
    report["combinations"].push_back(figures_json(f, r.exit));
  report["controls"] = json::array();
  for (const combined_figures& f : r.controls)
    report["controls"].push_back(figures_json(f, r.exit));
  return report;
}

}  // namespace bench
