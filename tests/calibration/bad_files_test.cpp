// Calibration files that cannot be used: each refusal names the file, the key and the value.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"
#include "calibration/schema_check.hpp"

namespace {

using calibration_test::BadFiles;
using calibration_test::dotted;
using calibration_test::error_of;
using calibration_test::good_file;
using calibration_test::json;
using calibration_test::list_paths;

struct spoiled {
  const char* what;
  std::function<void(json&)> spoil;
  const char* message;  ///< after the file's name
  bool schema_refuses;  ///< a schema cannot compare one value with another
};

/// A measurement of which `key` has that value.
json measured(const char* key, const json& value) {
  json result = {{"model", "m"}, {"data", "d"}, {"tokens", 1}, {"date", "d"}, {"command", "c"}};
  result[key] = value;
  return result;
}

TEST_F(BadFiles, AGoodFileIsGood) {
  EXPECT_EQ(refusal(good_file()), "");
}

TEST_F(BadFiles, AreRefusedByKeyAndValue) {
  const spoiled cases[] = {
      {"missing key", [](json& f) { f["gating"].erase("top_k"); },
       "gating.top_k: missing, expected an integer", true},
      {"missing key of a policy", [](json& f) { f["policies"][0].erase("k_values"); },
       "policies[0].k_values: missing, expected an array of ascending integers", true},
      {"missing provenance", [](json& f) { f["policies"][1].erase("provenance"); },
       "policies[1].provenance: missing, expected where the numbers come from", true},
      {"unknown key", [](json& f) { f["gating"]["topk"] = 4; },
       "gating.topk: unknown key (value 4), expected one of kind, num_experts, top_k", true},
      {"unknown key of a policy", [](json& f) { f["policies"][0]["threshold"] = {0.5}; },
       "policies[0].threshold: unknown key (value [0.5]), expected one of", true},
      {"wrong type", [](json& f) { f["gating"]["renormalize"] = 1; },
       "gating.renormalize: 1, expected true or false", true},
      {"a number as text", [](json& f) { f["policies"][0]["thresholds_nats"][1] = "1.2"; },
       "policies[0].thresholds_nats[1]: \"1.2\", expected a number", true},
      {"a fraction for an integer", [](json& f) { f["gating"]["top_k"] = 2.5; },
       "gating.top_k: 2.5, expected an integer in 1..32", true},
      {"an object for an array", [](json& f) { f["policies"] = json::object(); },
       "policies: {}, expected an array of policies", true},
      {"a share that is none",
       [](json& f) { f["policies"][0]["measured"] = measured("expert_savings", 2.0); },
       "policies[0].measured.expert_savings: 2.0, expected a share, 0..1", true},
      {"a mean K that is none",
       [](json& f) { f["policies"][0]["measured"] = measured("mean_k", -1e308); },
       "policies[0].measured.mean_k: -1e+308, expected a number of experts, 0..32", true},
      {"a distance below 0",
       [](json& f) { f["policies"][0]["measured"] = measured("mean_kl", -1.0); },
       "policies[0].measured.mean_kl: -1.0, expected 0 or more", true},
      {"an exponent above 1",
       [](json& f) { f["policies"][0]["measured"] = measured("sensitivity_exponent", 1.5); },
       "policies[0].measured.sensitivity_exponent: 1.5, expected an exponent, 0..1", true},
      {"calibrated on nothing",
       [](json& f) { f["policies"][0]["measured"] = measured("calibrated_on", json::array()); },
       "policies[0].measured.calibrated_on: [], expected an array with one object a text", true},
      {"a domain without a name",
       [](json& f) {
         f["policies"][0]["measured"] =
             measured("calibrated_on", json::parse(R"([{"data": "d", "tokens": 1}])"));
       },
       "policies[0].measured.calibrated_on[0].name: missing, expected a domain's name", true},
      {"a domain without tokens",
       [](json& f) {
         f["policies"][0]["measured"] =
             measured("calibrated_on", json::parse(R"([{"name": "n", "data": "d", "tokens": 0}])"));
       },
       "policies[0].measured.calibrated_on[0].tokens: 0, expected an integer", true},
      {"a domain twice",
       [](json& f) {
         f["policies"][0]["measured"] =
             measured("calibrated_on", json::parse(R"([{"name": "n", "data": "d", "tokens": 1},
                                                       {"name": "n", "data": "e", "tokens": 1}])"));
       },
       "policies[0].measured.calibrated_on[1].name: \"n\", expected a name that no text before",
       false},
      {"null", [](json& f) { f["policies"][0]["thresholds_nats"][0] = nullptr; },
       "policies[0].thresholds_nats[0]: null, expected a number", true},
      {"unknown gating", [](json& f) { f["gating"]["kind"] = "soft"; },
       "gating.kind: \"soft\", expected one of softmax, sigmoid", true},
      {"unknown signal", [](json& f) { f["policies"][0]["signal"] = "entropy"; },
       "policies[0].signal: \"entropy\", expected one of none, softmax_entropy", true},
      {"unknown provenance", [](json& f) { f["policies"][0]["provenance"] = "guessed"; },
       "policies[0].provenance: \"guessed\", expected one of", true},
      {"thresholds descend",
       [](json& f) {
         f["policies"][0]["thresholds_nats"] = {1.2, 0.6};
       },
       "policies[0].thresholds_nats[1]: 0.6 after 1.2, expected strictly ascending", false},
      {"thresholds equal",
       [](json& f) {
         f["policies"][0]["thresholds_nats"] = {0.6, 0.6};
       },
       "policies[0].thresholds_nats[1]: 0.6 after 0.6, expected strictly ascending", false},
      {"too few thresholds", [](json& f) { f["policies"][0]["thresholds_nats"] = {0.6}; },
       "policies[0].thresholds_nats: 1 thresholds for 3 k_values, expected one fewer", false},
      {"too many thresholds",
       [](json& f) {
         f["policies"][0]["thresholds_nats"] = {1, 2, 3};
       },
       "policies[0].thresholds_nats: 3 thresholds for 3 k_values, expected one fewer", false},
      {"thresholds without their unit",
       [](json& f) {
         f["policies"][0]["thresholds"] = f["policies"][0]["thresholds_nats"];
         f["policies"][0].erase("thresholds_nats");
       },
       "policies[0].thresholds: [0.6,1.2], expected thresholds_nats for the signal softmax_entropy",
       false},
      {"beyond float", [](json& f) { f["policies"][0]["thresholds_nats"][1] = 1e39; },
       "policies[0].thresholds_nats[1]: 1e+39, expected a number that a float can hold", false},
      {"K above K0", [](json& f) { f["policies"][0]["k_values"][2] = 5; },
       "policies[0].k_values[2]: 5, expected 3..4 (ascending, at most top_k)", false},
      {"K above any K0", [](json& f) { f["policies"][0]["k_values"][2] = 300; },
       "policies[0].k_values[2]: 300, expected an integer in 1..32", true},
      {"K of 0", [](json& f) { f["policies"][0]["k_values"][0] = 0; },
       "policies[0].k_values[0]: 0, expected an integer in 1..32", true},
      {"K not ascending",
       [](json& f) {
         f["policies"][0]["k_values"] = {2, 1, 4};
       },
       "policies[0].k_values[1]: 1, expected 3..4 (ascending, at most top_k)", false},
      {"K0 above E", [](json& f) { f["gating"]["num_experts"] = 3; },
       "gating.top_k: 4, expected 1..3 for 3 experts", false},
      {"E beyond the library", [](json& f) { f["gating"]["num_experts"] = 1025; },
       "gating.num_experts: 1025, expected an integer in 1..1024", true},
      {"groups that do not divide E", [](json& f) { f["gating"]["n_group"] = 3; },
       "gating.n_group: 3, expected a divisor of num_experts = 16", false},
      {"scale of 0", [](json& f) { f["gating"]["routed_scaling_factor"] = 0; },
       "gating.routed_scaling_factor: 0, expected above 0", true},
      {"sparsemixer renormalised",
       [](json& f) {
         f["gating"]["kind"] = "sparsemixer";
         f["gating"]["top_k"] = 2;
       },
       "gating: sparsemixer takes neither renormalize", false},
      {"exponent above 1", [](json& f) { f["policies"][0]["mass_exponent"] = 1.5; },
       "policies[0].mass_exponent: 1.5, expected 0..1", true},
      {"exponent of -1", [](json& f) { f["policies"][0]["mass_exponent"] = -1; },
       "policies[0].mass_exponent: -1, expected 0..1", true},
      {"k_min above k_max",
       [](json& f) {
         f["policies"][0].update({{"k_min", 3}, {"k_max", 2}});
       },
       "policies[0].k_max: 2, expected k_min = 3 or more", false},
      {"a super expert that is none",
       [](json& f) {
         f["policies"][0]["super_experts"] = {3, 16};
       },
       "policies[0].super_experts[1]: 16, expected an integer in 0..15", false},
      {"a super expert twice",
       [](json& f) {
         f["policies"][0]["super_experts"] = {3, 1, 3};
       },
       "policies[0].super_experts[2]: 3, expected another than [0]", false},
      {"super experts by the dozen",
       [](json& f) { f["policies"][0]["super_experts"] = {0, 1, 2, 3, 4, 5, 6, 7, 0}; },
       "policies[0].super_experts: 9 experts, expected at most 8 a layer", true},
      {"a super expert without a list", [](json& f) { f["policies"][0]["super_experts"] = 3; },
       "policies[0].super_experts: 3, expected an array of ids of experts", true},
      {"a domain without an end",
       [](json& f) {
         f["policies"][0]["domain"] = {{"signal", {1.0}}, {"first_share", {0, 1}}};
       },
       "policies[0].domain.signal: [1.0], expected an array [least, most]", true},
      {"a domain of one range",
       [](json& f) {
         f["policies"][0]["domain"] = {{"signal", {1, 2}}};
       },
       "policies[0].domain.first_share: missing, expected an array [least, most]", true},
      {"a domain of descending bounds",
       [](json& f) {
         f["policies"][0]["domain"] = {{"signal", {2, 1}}, {"first_share", {0, 1}}};
       },
       "policies[0].domain: domain.signal_most is 1, expected signal_least = 2 or more", false},
      {"a share of the domain that is none",
       [](json& f) { f["policies"][0]["measured"] = measured("out_of_domain", 2); },
       "policies[0].measured.out_of_domain: 2, expected a share, 0..1", true},
      {"super experts where none is dropped",
       [](json& f) { f["policies"][1]["super_experts"] = {3}; },
       "policies[1].super_experts: [3], expected no such key with the rule full", false},
      {"key of another rule", [](json& f) { f["policies"][1]["k"] = 2; },
       "policies[1].k: 2, expected no such key with the rule full", false},
      {"published without claims",
       [](json& f) { f["policies"][0]["provenance"] = "published, not reproduced"; },
       "policies[0].source: missing, expected where it was published", true},
      {"measured without measurement", [](json& f) { f["policies"][0]["provenance"] = "measured"; },
       "policies[0].measured: missing, expected how it was measured", true},
      {"own routing that drops experts",
       [](json& f) { f["policies"][0]["provenance"] = "the model's own routing"; },
       "policies[0].provenance: \"the model's own routing\", expected another provenance for the "
       "rule "
       "thresholds",
       false},
      {"wrong schema version", [](json& f) { f["schema_version"] = 2; },
       "schema_version: 2, expected an integer in 1..1", true},
      {"alias twice",
       [](json& f) {
         f["aliases"] = {"a", "b", "A"};
       },
       "aliases[2]: \"A\", expected a name that the file does not have already", false},
      {"alias that is the name", [](json& f) { f["aliases"] = {"Tiny"}; },
       "aliases[0]: \"Tiny\", expected a name that the file does not have already", false},
      {"policy name twice", [](json& f) { f["policies"][1]["name"] = "entropy"; },
       "policies[1].name: \"entropy\", expected a name that no policy before it has", false},
      {"default that does not exist", [](json& f) { f["default_policy"] = "published"; },
       "default_policy: \"published\", expected the name of a policy of this file: entropy, full",
       false},
      {"empty name", [](json& f) { f["name"] = ""; },
       "name: \"\", expected a string that is not empty", true},
      {"one layer short",
       [](json& f) {
         f["policies"][0]["layers"] = {json::object(), json::object()};
       },
       "policies[0].layers: 2 layers, expected 3", false},
  };
  std::ifstream schema_file(calibration_test::shipped_folder() / "schema.json");
  const json schema = json::parse(schema_file);
  const schema_check::checker checker(schema);
  for (const spoiled& c : cases) {
    SCOPED_TRACE(c.what);
    json file = good_file();
    c.spoil(file);
    const std::string message = refusal(file);
    EXPECT_EQ(message.rfind(c.message, 0), 0u) << "got: " << message << "\nnot: " << c.message;
    EXPECT_EQ(!checker.check(file).empty(), c.schema_refuses) << checker.check(file);
  }
}

TEST_F(BadFiles, ErrorsTellFileAndKeySeparately) {
  json file = good_file();
  file["gating"]["top_k"] = 99;
  const auto path = folder_.write("bad.json", file);
  try {
    adaptive_k::load_preset_file(path);
    FAIL() << "not refused";
  } catch (const adaptive_k::preset_error& error) {
    EXPECT_EQ(error.file(), path.string());
    EXPECT_EQ(error.key(), "gating.top_k");
  }
}

TEST_F(BadFiles, SyntaxErrorsTellLineAndColumn) {
  EXPECT_EQ(
      refusal_of_text("{\n  \"name\": \"x\",\n  oops\n}").rfind("name: line 3, column 3 (oops)", 0),
      0u);
  EXPECT_NE(refusal_of_text("").find("line 1, column 1"), std::string::npos);
  EXPECT_NE(refusal_of_text("{\"name\": \"x\"").find("line 1"), std::string::npos);
  EXPECT_NE(refusal_of_text("[]").find("[], expected an object"), std::string::npos);
  EXPECT_NE(refusal_of_text(good_file().dump() + "}").find("line 1"), std::string::npos);
}

TEST_F(BadFiles, NumbersThatAreNotFiniteAreRefused) {
  std::string text = good_file().dump(2);
  const std::size_t at = text.find("1.2");
  for (const char* number : {"NaN", "nan", "Infinity", "-Infinity", "1e999", "-1e999"}) {
    SCOPED_TRACE(number);
    std::string bad = text;
    bad.replace(at, 3, number);
    const std::string message = refusal_of_text(bad);
    EXPECT_EQ(message.rfind("policies[0].thresholds_nats[1]: ", 0), 0u) << message;
    EXPECT_NE(message.find(number), std::string::npos) << message;
    EXPECT_NE(message.find("line "), std::string::npos) << message;
    EXPECT_NE(message.find("finite"), std::string::npos) << message;
  }
}

TEST_F(BadFiles, KeysThatComeTwiceAreRefused) {
  std::string text = good_file().dump();
  text.insert(text.find("\"num_experts\""), "\"num_experts\":8,");
  EXPECT_EQ(refusal_of_text(text), "gating.num_experts: the key comes twice, expected once");
}

TEST_F(BadFiles, FilesThatAreNoneAreRefused) {
  const auto missing = folder_.path() / "none.json";
  EXPECT_EQ(error_of([&] { adaptive_k::load_preset(missing.string()); }),
            missing.string() + ": cannot be read (no such file), expected a file");
  std::filesystem::create_directory(folder_.path() / "folder.json");
  const auto folder = (folder_.path() / "folder.json").string();
  EXPECT_EQ(error_of([&] { adaptive_k::load_preset(folder); }),
            folder + ": cannot be read (a directory), expected a file");
}

/// Every key that a file may have, each in one place or more.
json file_with_everything() {
  json file = good_file();
  file["$schema"] = "schema.json";
  file["unverified"] = {"u"};
  file["notes"] = "n";
  file["gating"].update({{"routed_scaling_factor", 2.5},
                         {"n_group", 2},
                         {"topk_group", 1},
                         {"group_rank", "maximum"},
                         {"jitter_epsilon", 0.5}});
  file["policies"][0].update({{"k_min", 1},
                              {"k_max", 4},
                              {"super_experts", {5, 0}},
                              {"domain", {{"signal", {0, 2}}, {"first_share", {0.1, 0.9}}}}});
  file["policies"].push_back(json::parse(R"({
    "name": "d", "provenance": "measured", "rule": "distortion", "k_max": 3, "k_min": 1,
    "source": "s", "notes": "n", "signal": "margin", "mass_exponent": 0.5,
    "distortion": {"lambda": 1, "coefficients": [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]},
    "layers": [{}, {"distortion": {"sensitivity": 2}}, {"rule": "fixed", "k": 1}],
    "published": {"unit": "bits", "thresholds": [1], "mean_k": 2, "saving": 0.5, "mean_signal": 1,
                  "perplexity": {"dataset": "d", "baseline": 1, "adaptive": 1},
                  "contradictions": ["c"]},
    "measured": {"model": "m", "data": "d", "tokens": 1, "date": "d", "command": "c", "mean_k": 1,
                 "expert_savings": 0.5, "mean_kl": 1, "fixed_k_mean_kl": 1, "perplexity_ratio": 1,
                 "sensitivity_exponent": 0.5, "out_of_domain": 0.02,
                 "calibrated_on": [{"name": "n", "data": "d", "tokens": 1}]}
  })"));
  return file;
}

TEST_F(BadFiles, NoValueAnywhereEscapesAsAnotherException) {
  const json file = file_with_everything();
  ASSERT_EQ(refusal(file), "");
  std::vector<std::string> paths;
  list_paths(file, "", paths);
  const json values = json::parse(
      R"([null, true, 0, -1, 2.5, 1e30, 18446744073709551615, "", "x", [], {}, [[]], [{}]])");
  int refused = 0;
  for (const std::string& path : paths) {
    for (const json& value : values) {
      json changed = file;
      changed[json::json_pointer(path)] = value;
      const auto on_disk = folder_.write("changed.json", changed);
      EXPECT_NO_THROW({
        try {
          const adaptive_k::preset loaded = adaptive_k::load_preset_file(on_disk);
          for (const auto& policy : loaded.policies)
            EXPECT_TRUE(loaded.make_router(policy.name).validity().ok()) << path << " " << value;
        } catch (const adaptive_k::preset_error&) {
          ++refused;
        }
      }) << path
         << " " << value;
    }
  }
  EXPECT_GT(refused, static_cast<int>(paths.size() * values.size() / 2));
}

TEST_F(BadFiles, EveryKeyWithEveryWrongTypeIsNamedWithWhatWasExpected) {
  const auto refusal_at = [&](const json& whole, bool is_policy) {
    std::vector<std::string> paths;
    list_paths(whole, "", paths);
    for (const std::string& path : paths) {
      const json before = whole[json::json_pointer(path)];
      for (const json& value : json::parse(R"([null, true, 5, "text", [1], {"a": 1}])")) {
        if (value.type() == before.type() || (value.is_number() && before.is_number())) continue;
        json changed = whole;
        changed[json::json_pointer(path)] = value;
        const auto file = folder_.write("wrong.json", changed);
        try {
          if (is_policy)
            adaptive_k::parse_policy(file.string(), adaptive_k::load_preset("mixtral").model);
          else
            adaptive_k::load_preset_file(file);
          // "$schema" is for editors.
          EXPECT_EQ(path, "/$schema") << path << " may not be " << value;
        } catch (const adaptive_k::preset_error& error) {
          EXPECT_EQ(error.file(), file.string());
          EXPECT_EQ(error.key(), dotted(path)) << value;
          const std::string message = error.what();
          EXPECT_NE(message.find(": " + error.key() + ": " + value.dump() + ", expected "),
                    std::string::npos)
              << message;
        }
      }
    }
  };
  refusal_at(file_with_everything(), false);
  json policy = good_file()["policies"][0];
  policy["$schema"] = "x";
  policy["schema_version"] = 1;
  policy["k_values"] = {1, 2};
  policy["thresholds_nats"] = {0.5};
  refusal_at(policy, true);
}

/// The keys that the loader says it knows at the place where `unknown` was added.
std::set<std::string> keys_listed(const std::string& message) {
  std::set<std::string> keys;
  std::istringstream list(message.substr(message.rfind("one of ") + 7));
  for (std::string key; std::getline(list, key, ',');)
    keys.insert(key.substr(key.find_first_not_of(' ')));
  return keys;
}

TEST_F(BadFiles, LoaderAndSchemaKnowTheSameKeys) {
  std::ifstream schema_file(calibration_test::shipped_folder() / "schema.json");
  const json defs = json::parse(schema_file)["$defs"];
  const auto of_schema = [](const json& object) {
    std::set<std::string> keys;
    for (const auto& item : object["properties"].items()) keys.insert(item.key());
    return keys;
  };
  json file = good_file();
  file["policies"][0]["layers"] = json::array({json::object(), json::object(), json::object()});
  file["policies"][0]["published"] = {{"unit", "nats"}, {"thresholds", {1}}};
  file["policies"][0]["published"]["perplexity"] = {
      {"dataset", "d"}, {"baseline", 1}, {"adaptive", 1}};
  file["policies"][0]["measured"] = {
      {"model", "m"}, {"data", "d"}, {"tokens", 1}, {"date", "d"}, {"command", "c"}};
  file["policies"][0]["measured"]["calibrated_on"] =
      json::array({{{"name", "n"}, {"data", "d"}, {"tokens", 1}}});
  EXPECT_EQ(refusal(file), "");
  const std::pair<const char*, json> places[] = {
      {"", defs["preset"]},
      {"/gating", defs["gating"]},
      {"/sizes", defs["sizes"]},
      {"/sizes/shared_experts", defs["sizes"]["properties"]["shared_experts"]},
      {"/policies/0", defs["policy"]},
      {"/policies/0/layers/1", defs["layer"]},
      {"/policies/0/published", defs["published"]},
      {"/policies/0/measured/calibrated_on/0", defs["calibrated_text"]},
      {"/policies/0/published/perplexity", defs["published"]["properties"]["perplexity"]},
      {"/policies/0/measured", defs["measured"]},
      {"/policies/1/distortion", defs["distortion"]},
  };
  for (const auto& [place, object] : places) {
    SCOPED_TRACE(place);
    json spoiled_file = file;
    spoiled_file[json::json_pointer(std::string(place) + "/unknown")] = 1;
    EXPECT_EQ(keys_listed(refusal(spoiled_file)), of_schema(object));
  }
}

}  // namespace
