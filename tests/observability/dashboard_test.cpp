// The shipped dashboard and scrape configuration fit what is exported.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "adaptive_k/observability/prometheus.hpp"
#include "cli/scratch.hpp"
#include "exposition.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)
using nlohmann::json;

const std::string folder = ADAPTIVE_K_SOURCE_DIR "/examples/observability/";

json dashboard() {
  std::ifstream file(folder + "dashboard.json");
  return json::parse(file);
}

/// Names of all samples, without labels, that the recorder writes.
std::set<std::string> exported() {
  prometheus_options options;
  options.expert_load = 2;
  prometheus_recorder recorder(options);
  routing_metrics batch;
  batch.calls = batch.tokens = 1;
  batch.full_expert_calls = batch.expert_calls = 2;
  batch.k_histogram[2] = 1;
  recorder.record({"m", 0, "p"}, batch, 1e-3);
  std::set<std::string> names;
  for (const auto& sample : exposition_text::parse(recorder.render()).samples)
    names.insert(sample.first.substr(0, sample.first.find('{')));
  return names;
}

void collect_strings(const json& value, std::vector<std::string>& to) {
  if (value.is_string()) to.push_back(value);
  if (value.is_structured())
    for (const json& part : value) collect_strings(part, to);
}

std::vector<std::string> queries() {
  std::vector<std::string> all;
  for (const json& panel : dashboard().at("panels"))
    for (const json& target : panel.at("targets")) all.push_back(target.at("expr"));
  return all;
}

TEST(Dashboard, AsksOnlyForWhatIsExported) {
  const std::set<std::string> known = exported();
  std::vector<std::string> texts;
  collect_strings(dashboard(), texts);
  std::set<std::string> used;
  const std::regex name("adaptive_k_[a-z_]+");
  for (const std::string& text : texts)
    for (std::sregex_iterator at(text.begin(), text.end(), name), end; at != end; ++at)
      used.insert(at->str());
  for (const std::string& each : used) EXPECT_EQ(known.count(each), 1U) << each;
  EXPECT_GE(used.size(), 12U) << "the search found them";
}

TEST(Dashboard, HasPanelsThatGrafanaTellsApart) {
  std::set<int> ids;
  std::set<std::string> titles;
  const json panels = dashboard().at("panels");
  for (const json& panel : panels) {
    EXPECT_TRUE(ids.insert(panel.at("id").get<int>()).second);
    EXPECT_TRUE(titles.insert(panel.at("title").get<std::string>()).second);
    EXPECT_FALSE(panel.at("targets").empty());
    for (const char* place : {"x", "y", "w", "h"}) EXPECT_TRUE(panel["gridPos"].contains(place));
  }
  EXPECT_GE(panels.size(), 8U);
}

TEST(Dashboard, QueriesAreValid) {
  if (std::string(ADAPTIVE_K_PROMTOOL).empty())
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus): not checked";
  json rules = json::array();
  for (std::string query : queries()) {
    // What Grafana puts in their place.
    for (const auto& [variable, value] :
         {std::pair<std::string, std::string>{"$__rate_interval", "1m"},
          {"$model", ".*"},
          {"$policy", ".*"}})
      for (std::size_t at; (at = query.find(variable)) != std::string::npos;)
        query.replace(at, variable.size(), value);
    rules.push_back({{"record", "panel:" + std::to_string(rules.size())}, {"expr", query}});
  }
  json group = json::object({{"name", "dashboard"}});
  group["rules"] = rules;
  json file = json::object();
  file["groups"] = json::array({group});
  const scratch_folder scratch;
  const std::string path = scratch.write("rules.yml", file.dump()).string();  // JSON is YAML
  const auto promtool = [&](const std::string& arguments) {
    const std::string said = (scratch.path() / "said").string();
    const std::string command = ADAPTIVE_K_PROMTOOL " check " + arguments + " > " + said + " 2>&1";
    const int result = std::system(command.c_str());
    std::ifstream stream(said);
    const std::string text((std::istreambuf_iterator<char>(stream)), {});
    EXPECT_EQ(result, 0) << text;
    return text;
  };
  const std::string all = "SUCCESS: " + std::to_string(queries().size()) + " rules found";
  const std::string text = promtool("rules " + path);
  EXPECT_NE(text.find(all), std::string::npos) << text;
  promtool("config " + folder + "prometheus.yml");
}

}  // namespace
