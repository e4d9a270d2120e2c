#include "bench/adaptive_k/calibrate/setup.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/sha256.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/version.hpp"

namespace bench {
namespace {

/// Everything that a run's results depend on, including the program, for its arithmetic.
work_identity identity_of(const loaded_model& model, const calibration_options& options, int length,
                          const std::vector<calibration_text>& texts) {
  work_identity identity = {{"program", version()},
                            {"dense algebra", moe_engine::dense::backend()},
                            {"--context", std::to_string(length)},
                            {"--tokens", std::to_string(options.fit_tokens)},
                            {"--test-windows", std::to_string(options.test_windows)},
                            {"--seed", std::to_string(options.seed)}};
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error && std::filesystem::is_regular_file(self, error))
    identity["program"] += ", sha256 " + sha256_of_file(self);
  for (const auto& entry : std::filesystem::directory_iterator(model.folder)) {
    const std::filesystem::path extension = entry.path().extension();
    if (extension == ".safetensors" || extension == ".json")
      identity["the model's " + entry.path().filename().string()] = sha256_of_file(entry.path());
  }
  constexpr const char* names[] = {"the calibration text", "the test text",
                                   "the text of another domain"};
  for (std::size_t i = 0; i < texts.size(); ++i)
    identity[names[i]] = fmt::format("sha256 {}, windows {}+{}", texts[i].data.sha256,
                                     texts[i].first, texts[i].count);
  return identity;
}

}  // namespace

void add_roles(file_roles& roles, const calibration_options& options) {
  add_roles(roles, static_cast<const input_options&>(options));
  roles.reads("test text", options.test);
  roles.reads("text of another domain", options.other_domain);
  roles.writes("--journal", options.journal, true);
}

calibration_setup::calibration_setup(const calibration_options& options, int expected_runs,
                                     file_roles& roles)
    : options_(options), model_(load_model(options.model, roles, "-o")), adapter_(model_.engine) {
  const moe_engine::model_config& config = model_.engine.config();
  const int length = window_length(options.context, config.max_positions);
  dataset data =
      dataset_for(options.dataset, model_.folder, model_.words, length, text_part::calibration);
  const window_plan plan = plan_windows(data, length, 0);
  // Without --dataset also the model's own test text; a data set alone is halved.
  const bool has_test = !options.test.empty() ||
                        (options.dataset.empty() && has_own_text(model_.folder, text_part::test));
  std::vector<calibration_text> texts;
  const std::int64_t half = plan.count / 2;
  if (has_test) {
    texts.push_back({data, 0, plan.count, length});
    dataset other = dataset_for(options.test, model_.folder, model_.words, length);
    const window_plan windows = plan_windows(other, length, options.test_windows);
    texts.push_back({std::move(other), 0, windows.count, length});
  } else {
    if (half < 4)
      throw failure(fmt::format("{}: {} windows of {} tokens, expected 8 or more", data.path,
                                plan.count, length));
    texts.push_back({data, 0, half, length});
    texts.push_back({data, half, std::min(plan.count - half, options.test_windows), length});
  }
  if (!options.other_domain.empty()) {
    dataset other = dataset_for(options.other_domain, model_.folder, model_.words, length);
    const window_plan windows = plan_windows(other, length, options.test_windows);
    texts.push_back({std::move(other), 0, windows.count, length});
  }
  journal_ = std::make_unique<run_journal>(
      options.journal, identity_of(model_, options, length, texts), expected_runs);
  for (calibration_text& text : texts) add_text(std::move(text));
}

void calibration_setup::add_text(calibration_text text) {
  texts_.push_back(std::make_unique<calibration_text>(std::move(text)));
  const calibration_text& kept = *texts_.back();
  runners_.push_back(std::make_unique<adaptive_k::calibration_runner>(
      adaptive_k::bind_source(adapter_, kept,
                              fmt::format("{}@{}", kept.data.sha256.substr(0, 16), kept.first)),
      journal_->memory()));
}

std::vector<adaptive_k::report_text> calibration_setup::report_texts() const {
  constexpr const char* names[] = {"calibration", "test", "other domain"};
  std::vector<adaptive_k::report_text> result;
  for (std::size_t i = 1; i < texts_.size(); ++i)
    result.push_back({names[i], runners_[i].get(), {0, texts_[i]->count}});
  return result;
}

adaptive_k::study_options calibration_setup::study_options() const {
  adaptive_k::study_options result;
  result.fit_tokens = options_.fit_tokens;
  result.choice_tokens = options_.fit_tokens / 2;
  result.sensitivity_tokens = std::min<std::int64_t>(options_.fit_tokens, 4096);
  result.seed = options_.seed;
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
