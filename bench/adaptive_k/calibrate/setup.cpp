#include "bench/adaptive_k/calibrate/setup.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <utility>

#include "bench/adaptive_k/calibrate/named_text.hpp"
#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/sha256.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

constexpr const char* other_domain_name = "other domain";

/// Two of them where the second is the rest of the first's file.
struct text_pair {
  std::string name;
  calibration_text first;
  std::optional<calibration_text> rest;
};

text_pair split_text(std::string name, dataset data, int length, bool is_halved,
                     std::int64_t most_rest) {
  const window_plan plan = plan_windows(data, length, 0);
  if (!is_halved) return {std::move(name), {std::move(data), 0, plan.count, length}, {}};
  const std::int64_t half = plan.count / 2;
  if (half < 4)
    throw failure(fmt::format("{}: {} windows of {} tokens, expected 8 or more", data.path,
                              plan.count, length));
  const std::int64_t rest = std::min(plan.count - half, most_rest);
  return {std::move(name), {data, 0, half, length}, calibration_text{data, half, rest, length}};
}

calibration_text whole_text(dataset data, int length, std::int64_t most) {
  const window_plan windows = plan_windows(data, length, most);
  return {std::move(data), 0, windows.count, length};
}

/// One alone is "test" unless it has a name.
std::vector<named_text> tests_of(const std::vector<std::string>& given) {
  return parse_named_texts("--test", given, given.size() == 1 ? "test" : "",
                           {"calibration", other_domain_name});
}
std::vector<named_text> domains_of(const calibration_options& options) {
  return parse_named_texts("--text", options.texts, "", {"calibration", "test", other_domain_name});
}

}  // namespace

void add_roles(file_roles& roles, const calibration_options& options) {
  add_roles(roles, static_cast<const input_options&>(options));
  for (const named_text& text : domains_of(options)) roles.reads("calibration text", text.file);
  for (const named_text& text : tests_of(options.tests)) roles.reads("test text", text.file);
  roles.reads("text of another domain", options.other_domain);
  roles.writes("--journal", options.journal, true);
}

bound_text bind_text(calibration_model& model, std::string name, calibration_text text,
                     const std::string& prefix, adaptive_k::run_memory memory) {
  bound_text bound;
  bound.name = std::move(name);
  bound.text = std::make_unique<calibration_text>(std::move(text));
  bound.runner = std::make_unique<adaptive_k::calibration_runner>(
      adaptive_k::bind_source(
          model, *bound.text,
          fmt::format("{}{}@{}", prefix, bound.text->data.sha256.substr(0, 16), bound.text->first)),
      std::move(memory));
  return bound;
}

work_identity program_identity() {
  work_identity identity = {{"program", version()},
                            {"dense algebra", moe_engine::dense::backend()}};
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error && std::filesystem::is_regular_file(self, error))
    identity["program"] += ", sha256 " + sha256_of_file(self);
  return identity;
}

void add_identity(work_identity& identity, const std::string& prefix, const loaded_model& model) {
  for (const auto& entry : std::filesystem::directory_iterator(model.folder)) {
    const std::filesystem::path extension = entry.path().extension();
    if (extension == ".safetensors" || extension == ".json")
      identity[prefix + entry.path().filename().string()] = sha256_of_file(entry.path());
  }
}

std::string identity_of(const calibration_text& text) {
  return fmt::format("sha256 {}, windows {}+{}", text.data.sha256, text.first, text.count);
}

calibration_setup::calibration_setup(const calibration_options& options, int expected_runs,
                                     file_roles& roles)
    : options_(options), model_(load_model(options.model, roles, "-o")), adapter_(model_.engine) {
  if (options.head && !moe_engine::engine::takes_router_heads())
    throw failure("--head: this engine gives no columns of a router head");
  const moe_engine::model_config& config = model_.engine.config();
  const int length = window_length(options.context, config.max_positions);
  const auto read = [&](const std::string& asked, text_part part) {
    return dataset_for(asked, model_.folder, model_.words, length, part);
  };
  std::vector<named_text> tests = tests_of(options.tests);
  // Without --dataset and --text also the model's own test text; a text alone is halved.
  if (tests.empty() && options.dataset.empty() && options.texts.empty() &&
      has_own_text(model_.folder, text_part::test))
    tests.push_back({"test", ""});
  const bool is_halved = tests.empty();
  std::vector<text_pair> domains;
  for (const named_text& text : domains_of(options))
    domains.push_back(split_text(text.name, read(text.file, text_part::calibration), length,
                                 is_halved, options.test_windows));
  if (domains.empty())
    domains.push_back(split_text("", read(options.dataset, text_part::calibration), length,
                                 is_halved, options.test_windows));
  std::vector<std::pair<std::string, calibration_text>> reported;
  for (const text_pair& domain : domains)
    if (domain.rest)
      reported.emplace_back(domain.name.empty() ? "test" : domain.name, *domain.rest);
  for (const named_text& text : tests)
    reported.emplace_back(
        text.name, whole_text(read(text.file, text_part::test), length, options.test_windows));
  num_tests_ = reported.size();
  if (!options.other_domain.empty())
    reported.emplace_back(other_domain_name, whole_text(read(options.other_domain, text_part::test),
                                                        length, options.test_windows));

  work_identity identity = program_identity();
  add_identity(identity, "the model's ", model_);
  identity["--context"] = std::to_string(length);
  identity["--tokens"] = std::to_string(options.fit_tokens);
  identity["--test-windows"] = std::to_string(options.test_windows);
  identity["--seed"] = std::to_string(options.seed);
  for (const text_pair& domain : domains)
    identity["the calibration text" + (domain.name.empty() ? "" : " " + domain.name)] =
        identity_of(domain.first);
  for (const auto& [name, text] : reported) identity["the " + name + " text"] = identity_of(text);
  journal_ = std::make_unique<run_journal>(options.journal, std::move(identity), expected_runs);
  for (text_pair& domain : domains)
    domains_.push_back(
        bind_text(adapter_, domain.name, std::move(domain.first), "", journal_->memory()));
  for (auto& [name, text] : reported)
    reported_.push_back(bind_text(adapter_, name, std::move(text), "", journal_->memory()));
}

std::vector<adaptive_k::calibration_domain> calibration_setup::calibration_domains() const {
  std::vector<adaptive_k::calibration_domain> result;
  for (const bound_text& domain : domains_) result.push_back({domain.name, domain.runner.get()});
  return result;
}

std::vector<adaptive_k::report_text> calibration_setup::report_texts() const {
  std::vector<adaptive_k::report_text> result;
  for (const bound_text& text : reported_)
    result.push_back({text.name, text.runner.get(), {0, text.text->count}});
  return result;
}

std::string calibration_setup::domains_text() const {
  std::string text;
  for (const bound_text& domain : domains_)
    text += (text.empty() ? "" : ", ") + (domain.name.empty() ? "" : domain.name + ": ") +
            domain.text->data.path;
  return text;
}

adaptive_k::study_options calibration_setup::study_options() const {
  adaptive_k::study_options result = study_options_for(options_.fit_tokens, options_.seed);
  result.sensitivity_exponent = options_.sensitivity_exponent;
  result.head = options_.head;
  return result;
}

adaptive_k::study_options study_options_for(std::int64_t fit_tokens, std::uint64_t seed) {
  adaptive_k::study_options result;
  result.fit_tokens = fit_tokens;
  result.choice_tokens = fit_tokens / 2;
  result.sensitivity_tokens = std::min<std::int64_t>(fit_tokens, 4096);
  result.seed = seed;
  return result;
}

nlohmann::ordered_json frontier_json(const std::vector<adaptive_k::frontier_point>& points,
                                     const std::string& model, int top_k) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const adaptive_k::frontier_point& point : points)
    rows.push_back({{"rule", adaptive_k::to_string(point.rule)},
                    {"mean_k", point.outcome.mean_k()},
                    {"mean_kl", point.outcome.mean_kl()},
                    {"mean_kl_se", adaptive_k::kl_difference(point.outcome).se},
                    {"perplexity", point.outcome.perplexity()},
                    {"top1_agreement", point.outcome.mean(&adaptive_k::window_outcome::agreement)},
                    {"split", point.split},
                    {"mass_exponent", point.mass_exponent},
                    {"target_mean_k", point.target_mean_k},
                    {"model", model},
                    {"top_k", top_k}});
  return rows;
}

std::string exponent_text(double exponent, const std::vector<adaptive_k::exponent_trial>& trials) {
  std::string text = fmt::format("Layers are weighed by their sensitivity ^ {:g}", exponent);
  if (trials.empty()) return text + ".\n";
  text += ": calibrated on the other domains, mean KL on the one left out\n\n";
  text_table table({"exponent", "<left out", "mean K", "mean KL", "+-"});
  for (const adaptive_k::exponent_trial& trial : trials) {
    const adaptive_k::paired_estimate kl = adaptive_k::kl_difference(trial.outcome);
    table.add_row({fmt::format("{:g}", trial.exponent), trial.held_out,
                   fmt::format("{:.3f}", trial.outcome.mean_k()), fmt::format("{:.5f}", kl.value),
                   fmt::format("{:.5f}", kl.se)});
  }
  return text + table.text();
}

std::string frontier_table(const std::vector<adaptive_k::frontier_point>& points, int top_k) {
  std::string text;
  std::vector<std::string> splits;
  for (const adaptive_k::frontier_point& point : points)
    if (std::find(splits.begin(), splits.end(), point.split) == splits.end())
      splits.push_back(point.split);
  for (const std::string& split : splits) {
    text_table table(
        {"<rule", "a", "mean K", "saved", "mean KL", "+-", "of fixed", "perplexity", "top-1"});
    double fixed_kl = 0.0;
    for (const adaptive_k::frontier_point& point : points) {
      if (point.split != split) continue;
      const adaptive_k::routing_outcome& outcome = point.outcome;
      if (point.rule == adaptive_k::calibration_rule::fixed) fixed_kl = outcome.mean_kl();
      table.add_row(
          {adaptive_k::to_string(point.rule), fmt::format("{:.1f}", point.mass_exponent),
           fmt::format("{:.3f}", outcome.mean_k()),
           fmt::format("{:.1f}%", 100.0 * (1.0 - outcome.mean_k() / top_k)),
           fmt::format("{:.5f}", outcome.mean_kl()),
           fmt::format("{:.5f}", adaptive_k::kl_difference(outcome).se),
           fixed_kl > 0.0 ? fmt::format("{:.2f}", outcome.mean_kl() / fixed_kl) : "-",
           fmt::format("{:.4f}", outcome.perplexity()),
           fmt::format("{:.1f}%", 100.0 * outcome.mean(&adaptive_k::window_outcome::agreement))});
    }
    text += fmt::format("\nOn the {} text:\n\n{}", split, table.text());
  }
  return text;
}

}  // namespace bench
