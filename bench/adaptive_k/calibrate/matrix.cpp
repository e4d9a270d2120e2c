#include "bench/adaptive_k/calibrate/matrix.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "bench/adaptive_k/calibrate/model.hpp"
#include "bench/adaptive_k/calibrate/named_text.hpp"
#include "bench/adaptive_k/calibrate/run_journal.hpp"
#include "bench/adaptive_k/calibrate/setup.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/sha256.hpp"

namespace bench {
namespace {

using adaptive_k::calibration_rule;
using adaptive_k::calibration_study;
using adaptive_k::report_text;
using adaptive_k::routing_outcome;

/// One a row, in the order of reports. A rule that `calibration_rule` learns is one more line here:
/// what it needs beside a mean K is its own affair.
constexpr calibration_rule matrix_rows[] = {
    calibration_rule::fixed,       calibration_rule::static_per_layer, calibration_rule::entropy,
    calibration_rule::score_ratio, calibration_rule::skipping,         calibration_rule::top_p,
    calibration_rule::psi,         calibration_rule::distortion,       calibration_rule::head,
    calibration_rule::oracle,
};

struct bound_domain {
  bound_text calibration;
  bound_text test;
};

/// Those given, where a domain's name means the project's own text of it; none given, all of those.
std::vector<named_text> texts_of(const matrix_options& options, bool is_test) {
  const std::vector<std::string>& given = is_test ? options.tests : options.texts;
  const char* option = is_test ? "--test" : "--text";
  const std::vector<domain_text> own =
      domain_texts(reference_folder(), is_test ? text_part::test : text_part::calibration);
  std::vector<named_text> texts = parse_named_texts(option, given, "", {all_domains});
  for (named_text& text : texts)
    for (const domain_text& domain : own)
      if (text.file == domain.domain && !std::filesystem::is_regular_file(text.file))
        text.file = domain.file.string();
  if (given.empty())
    for (const domain_text& domain : own) texts.push_back({domain.domain, domain.file.string()});
  if (texts.empty())
    throw failure(fmt::format("{}: missing, and there is no texts.json beside {}", option,
                              reference_folder().string()));
  return texts;
}

/// What a model is calibrated on: each domain by itself and all together.
std::vector<std::string> calibrations_of(std::vector<std::string> domains) {
  if (domains.size() > 1) domains.emplace_back(all_domains);
  return domains;
}

/// Texts to calibrate and to test on of the same domains, in the order of --text.
void check_texts(const matrix_options& options) {
  if (options.texts.empty() != options.tests.empty())
    throw failure(fmt::format("--{}: missing, expected one for each domain of --{}",
                              options.texts.empty() ? "text" : "test",
                              options.texts.empty() ? "test" : "text"));
  const std::vector<named_text> texts = texts_of(options, false), tests = texts_of(options, true);
  const auto check = [](const std::vector<named_text>& of, const std::vector<named_text>& in,
                        const char* option) {
    for (const named_text& text : of)
      if (std::none_of(in.begin(), in.end(),
                       [&](const named_text& other) { return other.name == text.name; }))
        throw failure(fmt::format("{}: none of the domain '{}', expected one for each domain",
                                  option, text.name));
  };
  check(texts, tests, "--test");
  check(tests, texts, "--text");
  std::vector<std::string> names;
  for (const named_text& text : texts) names.push_back(text.name);
  names = calibrations_of(std::move(names));
  for (const std::string& name : options.calibrated_on)
    if (std::find(names.begin(), names.end(), name) == names.end())
      throw failure(
          fmt::format("--calibrated-on: '{}', expected some of {}", name, fmt::join(names, ", ")));
}

/// Fills in one model's matrix.
class matrix_builder {
 public:
  matrix_builder(const matrix_options& options, loaded_model& model, run_journal& journal,
                 const std::vector<named_text>& texts, const std::vector<named_text>& tests)
      : options_(options), adapter_(model.engine) {
    const moe_engine::model_config& config = model.engine.config();
    result_.model = model.name;
    result_.gating = config.gating;
    result_.rules = matrix_rules(options);
    result_.num_layers = adapter_.num_layers();
    result_.window_length = window_length(options.context, config.max_positions);
    const double top_k = config.gating.top_k;
    result_.mean_ks = options.mean_ks;
    if (result_.mean_ks.empty())
      for (const double share : {0.375, 0.5, 0.625})
        result_.mean_ks.push_back(top_k > 2 ? share * top_k : 1.0 + 2.0 * (share - 0.25));
    for (const double mean_k : result_.mean_ks)
      if (!(mean_k >= 1.0 && mean_k < top_k))
        throw failure(fmt::format("--mean-k: {}, expected 1 or more and below {}, the top-k of {}",
                                  mean_k, top_k, model.name));
    const auto bind = [&](const named_text& text, std::int64_t most) {
      dataset data = read_dataset(text.file, model.words);
      const window_plan plan = plan_windows(data, result_.window_length, most);
      return bind_text(adapter_, text.name, {std::move(data), 0, plan.count, result_.window_length},
                       model.name + " ", journal.memory());
    };
    for (const named_text& text : texts) {
      const auto same = [&](const named_text& other) { return other.name == text.name; };
      const named_text& test = *std::find_if(tests.begin(), tests.end(), same);
      domains_.push_back({bind(text, 0), bind(test, options.test_windows)});
      result_.domains.push_back(text.name);
    }
  }

  model_matrix run() {
    const bool has_oracle =
        std::any_of(result_.rules.begin(), result_.rules.end(),
                    [](const matrix_rule& row) { return row.rule == calibration_rule::oracle; });
    for (const std::string& name : calibrations_of(result_.domains)) {
      const bool is_wanted = options_.calibrated_on.empty() ||
                             std::find(options_.calibrated_on.begin(), options_.calibrated_on.end(),
                                       name) != options_.calibrated_on.end();
      if (is_wanted || (has_oracle && name != all_domains)) add_study(name);
      if (is_wanted) add_calibration(name);
    }
    for (const matrix_calibration& calibration : result_.calibrations)
      for (const double mean_k : result_.mean_ks) add_points(calibration.name, mean_k);
    for (const matrix_calibration& calibration : result_.calibrations)
      add_equal_cost(calibration.name);
    return std::move(result_);
  }

 private:
  void add_study(const std::string& name) {
    std::vector<adaptive_k::calibration_domain> domains;
    for (const bound_domain& domain : domains_)
      if (name == all_domains || name == domain.calibration.name)
        domains.push_back({domain.calibration.name, domain.calibration.runner.get()});
    adaptive_k::study_options settings = study_options_for(options_.fit_tokens, options_.seed);
    settings.mass_exponents = options_.mass_exponents;
    settings.head =
        std::any_of(result_.rules.begin(), result_.rules.end(),
                    [](const matrix_rule& row) { return row.rule == calibration_rule::head; });
    studies_[name] = std::make_unique<calibration_study>(domains, settings);
  }

  void add_calibration(const std::string& name) {
    const calibration_study& study = *studies_[name];
    result_.calibrations.push_back({name, study.tokens_analyzed(), study.sensitivities(),
                                    study.sensitivity_exponent(), study.exponent_trials()});
  }

  report_text test_of(std::size_t domain) const {
    const bound_text& test = domains_[domain].test;
    return {test.name, test.runner.get(), {0, test.text->count}};
  }

  /// Of every rule on every domain.
  void add_points(const std::string& calibrated_on, double mean_k) {
    for (std::size_t domain = 0; domain < domains_.size(); ++domain)
      for (const matrix_rule& row : result_.rules) add_point(calibrated_on, domain, row, mean_k);
  }

  void add_point(const std::string& calibrated_on, std::size_t domain, const matrix_rule& row,
                 double mean_k) {
    const std::string& tested_on = result_.domains[domain];
    if (result_.find(row.name, calibrated_on, tested_on, mean_k) != nullptr) return;
    const std::string& from = row.rule == calibration_rule::oracle ? tested_on : calibrated_on;
    calibration_study& study = *studies_.at(from);
    const double own = study.sensitivity_exponent();
    if (row.sensitivity_exponent) study.set_sensitivity_exponent(*row.sensitivity_exponent);
    // Each rule has its own: one that suits another rule would make it worse than it is.
    const auto [known, is_new] = mass_exponents_.try_emplace({from, row.name, mean_k}, 0.0);
    if (is_new) known->second = study.best_mass_exponent(row.rule, mean_k);
    result_.points.push_back(
        {row.name, calibrated_on, tested_on, mean_k, known->second,
         study.measure_held(row.rule, mean_k, known->second, {test_of(domain)})});
    study.set_sensitivity_exponent(own);
  }

  /// Points at 3/4 of K0 as well, and for a rule until they enclose fixed K's KL there: closer to
  /// K0 where it is worse than fixed K, closer to 1 where it is better with the fewest experts so
  /// far.
  void add_equal_cost(const std::string& calibrated_on) {
    const double top_k = result_.gating.top_k;
    const std::string control = adaptive_k::to_string(calibration_rule::fixed);
    const auto fixed = std::find_if(result_.rules.begin(), result_.rules.end(),
                                    [&](const matrix_rule& row) { return row.name == control; });
    if (fixed == result_.rules.end()) return;
    const double at = 0.75 * top_k;
    add_points(calibrated_on, at);
    for (std::size_t domain = 0; domain < domains_.size(); ++domain)
      for (const matrix_rule& row : result_.rules) {
        const std::string& tested_on = result_.domains[domain];
        const double kl =
            result_.find(control, calibrated_on, tested_on, at)->outcome.held.mean_kl();
        const auto kl_at = [&](double mean_k) {
          return result_.find(row.name, calibrated_on, tested_on, mean_k)->outcome.held.mean_kl();
        };
        const auto add_beside_control = [&](double mean_k) {
          add_point(calibrated_on, domain, *fixed, mean_k);
          add_point(calibrated_on, domain, row, mean_k);
        };
        if (kl_at(at) > kl) add_beside_control(0.875 * top_k);
        double low =
            (std::min)(at, *std::min_element(result_.mean_ks.begin(), result_.mean_ks.end()));
        while (kl_at(low) < kl && low > 1.0) {
          low = low > 1.25 ? 0.5 * (1.0 + low) : 1.0;
          add_beside_control(low);
        }
        result_.at_equal_cost.push_back(cost_of(row.name, calibrated_on, tested_on, at));
      }
  }

  /// ln KL is linear between neighbouring points.
  equal_cost cost_of(const std::string& rule, const std::string& calibrated_on,
                     const std::string& tested_on, double at) const {
    const std::string control = adaptive_k::to_string(calibration_rule::fixed);
    const routing_outcome& fixed =
        result_.find(control, calibrated_on, tested_on, at)->outcome.held;
    const double kl = fixed.mean_kl();
    equal_cost cost = {rule, calibrated_on, tested_on, kl, {}, 0.0};
    std::vector<const routing_outcome*> curve;
    for (const matrix_point& point : result_.points)
      if (point.rule == rule && point.calibrated_on == calibrated_on &&
          point.tested_on == tested_on)
        curve.push_back(&point.outcome.held);
    std::sort(curve.begin(), curve.end(), [](const routing_outcome* a, const routing_outcome* b) {
      return a->mean_k() < b->mean_k();
    });
    for (std::size_t i = 0; i + 1 < curve.size(); ++i) {
      const double a = curve[i]->mean_kl(), b = curve[i + 1]->mean_kl();
      const double width = curve[i + 1]->mean_k() - curve[i]->mean_k();
      if (!(a >= kl && b <= kl && a > b && b > 0.0 && width > 0.0)) continue;
      const double slope = std::log(a / b) / width;
      const double mean_k = curve[i]->mean_k() + std::log(a / kl) / slope;
      const routing_outcome between =
          adaptive_k::mixed(*curve[i], *curve[i + 1], (mean_k - curve[i]->mean_k()) / width);
      cost.savings = 1.0 - mean_k / result_.gating.top_k;
      cost.se = adaptive_k::kl_difference(between, &fixed).se / (kl * slope * result_.gating.top_k);
      if (rule == control) cost.se = 0.0;
      break;
    }
    return cost;
  }

  const matrix_options& options_;
  calibration_model adapter_;
  std::vector<bound_domain> domains_;
  std::map<std::string, std::unique_ptr<calibration_study>> studies_;  // by what they calibrate on
  std::map<std::tuple<std::string, std::string, double>, double>
      mass_exponents_;  // by that, rule and mean K
  model_matrix result_;
};

/// About as many runs as it takes, for the time left.
int expected_runs(const matrix_options& options, std::size_t domains, std::size_t rules) {
  const std::size_t models = std::max<std::size_t>(options.models.size(), 1);
  const std::size_t studies = !options.calibrated_on.empty() ? options.calibrated_on.size()
                              : domains > 1                  ? domains + 1
                                                             : 1;
  const std::size_t mean_ks = (options.mean_ks.empty() ? 3 : options.mean_ks.size()) + 1;
  const std::size_t per_mean_k = rules * 7 + domains * rules * 2;
  return static_cast<int>(models * studies * (14 * domains + mean_ks * per_mean_k));
}

}  // namespace

const matrix_point* model_matrix::find(const std::string& rule, const std::string& calibrated_on,
                                       const std::string& tested_on, double target_mean_k) const {
  for (const matrix_point& point : points)
    if (point.rule == rule && point.calibrated_on == calibrated_on &&
        point.tested_on == tested_on && point.target_mean_k == target_mean_k)
      return &point;
  return nullptr;
}

std::vector<matrix_rule> matrix_rules(const matrix_options& options) {
  std::vector<matrix_rule> all;
  for (const calibration_rule rule : matrix_rows) {
    if (rule == calibration_rule::head && !moe_engine::engine::takes_router_heads()) continue;
    all.push_back({adaptive_k::to_string(rule), rule, {}});
    if (rule != calibration_rule::distortion) continue;
    for (const double exponent : options.sensitivity_exponents)
      all.push_back(
          {fmt::format("{}, q={:g}", adaptive_k::to_string(rule), exponent), rule, exponent});
  }
  if (options.rules.empty()) return all;
  std::vector<matrix_rule> chosen;
  for (const std::string& name : options.rules) {
    const auto is_it = [&](const matrix_rule& row) {
      return adaptive_k::to_string(row.rule) == name;
    };
    if (std::none_of(all.begin(), all.end(), is_it)) {
      std::string known;
      for (const calibration_rule rule : matrix_rows)
        known += (known.empty() ? "" : ", ") + std::string(adaptive_k::to_string(rule));
      throw failure(fmt::format("--rules: '{}', expected some of {}", name, known));
    }
    for (const matrix_rule& row : all)
      if (is_it(row) && std::none_of(chosen.begin(), chosen.end(), [&](const matrix_rule& other) {
            return other.name == row.name;
          }))
        chosen.push_back(row);
  }
  return chosen;
}

matrix_result run_matrix(const matrix_options& options, file_roles& roles) {
  check_texts(options);
  const std::vector<named_text> texts = texts_of(options, false), tests = texts_of(options, true);
  for (const named_text& text : texts) roles.reads("calibration text", text.file);
  for (const named_text& text : tests) roles.reads("test text", text.file);
  std::vector<loaded_model> models;
  std::vector<std::string> folders = options.models;
  if (folders.empty()) folders.push_back("");
  work_identity identity = program_identity();
  for (const std::string& folder : folders) {
    roles.reads("model", folder.empty() ? reference_folder().string() : folder);
    models.push_back(load_model(folder, roles));
    for (std::size_t i = 0; i + 1 < models.size(); ++i)
      if (models[i].name == models.back().name)
        throw failure(fmt::format("--model: two are called '{}', expected names that differ",
                                  models.back().name));
    add_identity(identity, models.back().name + "'s ", models.back());
  }
  for (const named_text& text : texts)
    identity["the calibration text " + text.name] = sha256_of_file(text.file);
  for (const named_text& text : tests)
    identity["the test text " + text.name] = sha256_of_file(text.file);
  identity["--context"] = std::to_string(options.context);
  identity["--tokens"] = std::to_string(options.fit_tokens);
  identity["--test-windows"] = std::to_string(options.test_windows);
  identity["--seed"] = std::to_string(options.seed);
  matrix_result result;
  result.journal = std::make_unique<run_journal>(
      options.journal, identity,
      expected_runs(options, texts.size(), matrix_rules(options).size()));
  for (loaded_model& model : models)
    result.models.push_back(matrix_builder(options, model, *result.journal, texts, tests).run());
  return result;
}

}  // namespace bench
