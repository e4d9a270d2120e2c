// `adaptive-k frontier`: quality against mean K of every rule, its controls and its ceiling.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/setup.hpp"
#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/shared_options.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/figure_text.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {
namespace {

using adaptive_k::calibration_rule;
using adaptive_k::frontier_point;

struct frontier_options : calibration_options {
  std::vector<double> mean_ks;
  std::string json;
};

/// The mean K at which a rule's curve (ln KL linear between its points) crosses `kl`; 0 where the
/// points do not enclose it.
double mean_k_at_kl(const std::vector<frontier_point>& points, const std::string& split,
                    calibration_rule rule, double kl) {
  const frontier_point* before = nullptr;
  for (const frontier_point& point : points) {
    if (point.split != split || point.rule != rule) continue;
    if (before != nullptr) {
      const double a = before->outcome.mean_kl(), b = point.outcome.mean_kl();
      if (a >= kl && b <= kl && a > b && b > 0.0) {
        const double share = (std::log(a) - std::log(kl)) / (std::log(a) - std::log(b));
        return before->outcome.mean_k() +
               share * (point.outcome.mean_k() - before->outcome.mean_k());
      }
    }
    before = &point;
  }
  return 0.0;
}

const frontier_point* find(const std::vector<frontier_point>& points, const std::string& split,
                           calibration_rule rule, double target) {
  for (const frontier_point& point : points)
    if (point.split == split && point.rule == rule && point.target_mean_k == target) return &point;
  return nullptr;
}

void print_summary(const std::vector<frontier_point>& points, const std::vector<double>& mean_ks,
                   const std::string& split, calibration_rule rule, int top_k) {
  fmt::print("\nOn the {} text, {} against\n", split, adaptive_k::to_string(rule));
  for (const double mean_k : mean_ks) {
    const auto* own = find(points, split, rule, mean_k);
    const auto* fixed = find(points, split, calibration_rule::fixed, mean_k);
    const auto* top_p = find(points, split, calibration_rule::top_p, mean_k);
    const auto* oracle = find(points, split, calibration_rule::oracle, mean_k);
    const auto gain = adaptive_k::kl_difference(own->outcome, &top_p->outcome);
    const double gap = fixed->outcome.mean_kl() - oracle->outcome.mean_kl();
    fmt::print(
        "  mean K {:.2f}: {:.2f} of fixed K's KL; top-p's {}{}; {:.0f}% of the gap from fixed K to "
        "the oracle\n",
        mean_k, own->outcome.mean_kl() / fixed->outcome.mean_kl(),
        with_se({gain.value, gain.se}, 5, "+"),
        std::isnan(gain.se) ? std::string()
                            : fmt::format(" ({:.1f} standard errors)", -gain.value / gain.se),
        gap > 0.0 ? 100.0 * (fixed->outcome.mean_kl() - own->outcome.mean_kl()) / gap : 0.0);
  }
  for (const double kl : {0.005, 0.02}) {
    fmt::print("  at a mean KL of {}:", kl);
    for (const auto each :
         {calibration_rule::fixed, calibration_rule::top_p, rule, calibration_rule::oracle}) {
      const double k = mean_k_at_kl(points, split, each, kl);
      fmt::print(" {} {}", adaptive_k::to_string(each),
                 k > 0.0 ? fmt::format("{:.1f}%", 100.0 * (1.0 - k / top_k)) : std::string("-"));
    }
    fmt::print(" of expert calls saved\n");
  }
}

void run(frontier_options& options) {
  if (options.journal.empty()) options.journal = "adaptive-k-frontier.journal";
  file_roles roles;
  add_roles(roles, options);
  roles.writes("--json", options.json);
  constexpr int runs_per_point = 12;
  calibration_setup setup(options, 14 + 5 * (runs_per_point + 9 * 2), roles);
  const int top_k = setup.model().engine.config().gating.top_k;
  if (top_k < 2) throw failure("the model runs one expert a token: there is nothing to choose");
  std::vector<double> mean_ks = options.mean_ks;
  if (mean_ks.empty())
    for (const double share : {0.25, 0.375, 0.5, 0.625, 0.75})
      if (share * top_k >= 1.0) mean_ks.push_back(share * top_k);
  for (const double mean_k : mean_ks)
    if (!(mean_k >= 1.0 && mean_k < top_k))
      throw failure(fmt::format("--mean-k: {}, expected 1 or more and below {}", mean_k, top_k));
  const adaptive_k::calibration_study study(setup.calibration_domains(), setup.study_options());
  const std::vector<calibration_rule> rules(std::begin(adaptive_k::all_calibration_rules),
                                            std::end(adaptive_k::all_calibration_rules));
  const auto points = study.frontier(rules, mean_ks, setup.report_texts());
  write_json("--json", options.json, frontier_json(points, setup.model().name, top_k));
  if (!roles.stdout_is_taken()) {
    fmt::print("{}: {} experts of which {}; calibrated on {} tokens of {}\n{}", setup.model().name,
               setup.model().engine.config().gating.num_experts, top_k, study.tokens_analyzed(),
               setup.domains_text(),
               exponent_text(study.sensitivity_exponent(), study.exponent_trials()));
    fmt::print("{}", frontier_table(points, top_k));
    for (const adaptive_k::report_text& text : setup.report_texts())
      for (const calibration_rule rule : {calibration_rule::distortion, calibration_rule::head})
        if (study.can_set(rule)) print_summary(points, mean_ks, text.split, rule, top_k);
  }
  flush_stdout();
  setup.journal().finish();
}

}  // namespace

void add_frontier_command(CLI::App& app) {
  auto options = std::make_shared<frontier_options>();
  CLI::App* command = app.add_subcommand(
      "frontier", "Quality against mean K: the calibrated rule, its controls and the oracle");
  add_calibration_options(*command, *options);
  command->add_option("--mean-k", options->mean_ks, "Mean K's, comma separated")->delimiter(',');
  command->add_option("--json", options->json, "Write the points as JSON ('-': stdout)");
  command->callback([options] { run(*options); });
}

}  // namespace bench
