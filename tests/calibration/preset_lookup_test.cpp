// Finding presets by name, alias and path, and routing with them.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"

namespace {

using adaptive_k::load_preset;
using calibration_test::error_of;
using calibration_test::good_file;
using calibration_test::json;
using calibration_test::search_path;
using calibration_test::shipped_folder;
using calibration_test::temporary_folder;

TEST(PresetLookup, TakesNamesAliasesAndPaths) {
  for (const char* name : {"mixtral-8x7b", "mixtral", "mistralai/Mixtral-8x7B-v0.1", "MIXTRAL-8x7B",
                           "mistralai/mixtral-8x7b-instruct-V0.1"})
    EXPECT_EQ(load_preset(name).name, "mixtral-8x7b") << name;
  const auto path = shipped_folder() / "olmoe-1b-7b.json";
  EXPECT_EQ(load_preset(path.string()).name, "olmoe-1b-7b");
  EXPECT_EQ(load_preset(path.string()).file, path);
  EXPECT_EQ(load_preset("deepseek-r1").name, "deepseek-v3");
}

TEST(PresetLookup, UnknownNamesListWhatIsKnownAndWhereItLooked) {
  const std::string message = error_of([] { load_preset("mixtral-9x9b"); });
  const std::string start =
      "preset 'mixtral-9x9b': unknown in " + shipped_folder().string() + ", expected one of ";
  EXPECT_EQ(message.rfind(start, 0), 0u) << message;
  EXPECT_NE(message.find("mixtral-8x7b"), std::string::npos);
}

TEST(PresetLookup, TheEnvironmentComesFirst) {
  const temporary_folder first, second;
  json file = good_file();
  first.write("tiny.json", file);
  file["gating"]["num_experts"] = 99;
  second.write("tiny.json", file);
  file["name"] = "other";
  file["aliases"] = {"mixtral-8x7b"};
  second.write("other.json", file);
  const std::string both = first.path().string() + ":" + second.path().string();
  const search_path path("::" + both + ":" + both + "/.:" + shipped_folder().string());
  EXPECT_EQ(adaptive_k::calibration_path().size(), 3u) << "each folder once";
  EXPECT_EQ(load_preset("ORG/tiny").model.num_experts, 16);
  EXPECT_EQ(load_preset("other").model.num_experts, 99);
  EXPECT_EQ(load_preset("mixtral-8x7b").name, "other") << "own files override the library's";
  EXPECT_EQ(load_preset("olmoe").name, "olmoe-1b-7b") << "the library's own stay known";
}

TEST(PresetLookup, AFolderThatIsNotThereIsRefused) {
  const temporary_folder folder;
  const std::string missing = (folder.path() / "missing").string();
  const search_path path(folder.path().string() + ":" + missing);
  for (const std::string& message : {error_of([] { load_preset("mixtral-8x7b"); }),
                                     error_of([] { adaptive_k::list_presets(); })})
    EXPECT_EQ(message, "ADAPTIVE_K_CALIBRATIONS: '" + missing + "', expected a folder");
}

TEST(PresetLookup, ANameIsTakenOnceInAFolder) {
  const temporary_folder folder;
  json file = good_file();
  folder.write("a.json", file);
  folder.write("z.json", file);
  file["name"] = "another";
  file["aliases"] = {"org/tiny"};
  folder.write("by_alias.json", file);
  const search_path path(folder.path().string());
  const std::string refused =
      "z.json: name: 'tiny' is also that of a.json, expected each name once";
  EXPECT_NE(error_of([] { load_preset("tiny"); }).find(refused), std::string::npos)
      << error_of([] { load_preset("tiny"); });
  EXPECT_NE(error_of([] { load_preset("org/TINY"); }).find("also that of a.json"),
            std::string::npos);
  EXPECT_EQ(load_preset((folder.path() / "z.json").string()).name, "tiny") << "by path it is plain";
  std::vector<adaptive_k::preset_error> unusable;
  adaptive_k::list_presets(&unusable);
  ASSERT_EQ(unusable.size(), 1u);
  EXPECT_NE(std::string(unusable[0].what()).find(refused), std::string::npos);
}

TEST(PresetLookup, ABadFileDoesNotHideTheOthers) {
  const temporary_folder folder;
  folder.write("broken.json", std::string("{"));
  folder.write("tiny.json", good_file());
  const search_path path(folder.path().string());
  EXPECT_EQ(load_preset("tiny").name, "tiny");
  EXPECT_NE(error_of([] { load_preset("broken"); }).find("broken.json: line 1"), std::string::npos);
  EXPECT_NE(error_of([] { load_preset("none"); }).find("unusable: "), std::string::npos);
  std::vector<adaptive_k::preset_error> unusable;
  const auto listed = adaptive_k::list_presets(&unusable);
  EXPECT_TRUE(
      std::any_of(listed.begin(), listed.end(), [](const auto& p) { return p.name == "tiny"; }));
  ASSERT_EQ(unusable.size(), 1u);
  EXPECT_NE(std::string(unusable[0].what()).find("broken.json: line 1"), std::string::npos);
  EXPECT_EQ(adaptive_k::list_presets().size(), listed.size());
}

TEST(PresetLookup, NoFileOfTheFolderEndsTheProcess) {
  const temporary_folder folder;
  folder.write("deep.json", "{\"top_k\":" + std::string(100000, '['));
  folder.write("wide.json", std::string("[{}"));
  for (int i = 0; i < 20; ++i)
    folder.write("bad" + std::to_string(i) + ".json", std::string(2000, '{'));
  folder.write("tiny.json", good_file());
  const search_path path(folder.path().string());
  EXPECT_EQ(load_preset("tiny").name, "tiny");
  const std::string message = error_of([] { load_preset("none"); });
  EXPECT_NE(message.find("unusable: "), std::string::npos);
  EXPECT_NE(message.find("mixtral-8x7b"), std::string::npos);
  EXPECT_LE(message.size(), 1100u);
}

TEST(PresetLookup, ListsEachNameOnceInOrder) {
  const temporary_folder folder;
  json file = good_file();
  file["name"] = "Mixtral-8x7B";
  folder.write("own.json", file);
  const std::size_t shipped = adaptive_k::list_presets().size();
  const search_path path(folder.path().string());
  const std::vector<adaptive_k::preset> presets = adaptive_k::list_presets();
  EXPECT_EQ(presets.size(), shipped);
  EXPECT_TRUE(std::is_sorted(presets.begin(), presets.end(),
                             [](const auto& a, const auto& b) { return a.name < b.name; }));
  EXPECT_EQ(presets.front().name, "Mixtral-8x7B");
}

TEST(FromPreset, RoutesTheDefaultPolicyOfThePublishedModels) {
  const adaptive_k::router router = adaptive_k::from_preset("mixtral-8x7b");
  const float sure[8] = {9, 0, 0, 0, 0, 0, 0, 0};
  const float unsure[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  adaptive_k::routing_metrics metrics;
  EXPECT_EQ(router.route(0, adaptive_k::logits_view<>{sure, 1, 8}, &metrics).topk_counts[0], 1);
  EXPECT_EQ(router.route(31, adaptive_k::logits_view<>{unsure, 1, 8}, &metrics).topk_counts[0], 2);
  EXPECT_DOUBLE_EQ(metrics.expert_savings(), 0.25);
}

TEST(FromPreset, KeepsFullKUnlessAsked) {
  std::vector<float> sure(128, 0.0f);
  sure[5] = 30.0f;
  const adaptive_k::logits_view<> logits{sure.data(), 1, 128};
  EXPECT_EQ(adaptive_k::from_preset("qwen3-30b-a3b").route(0, logits).topk_counts[0], 8);
  EXPECT_EQ(adaptive_k::from_preset("qwen3-30b-a3b", "top_p:0.9").route(0, logits).topk_counts[0],
            1);
}

TEST(FromPreset, RefusesLogitsOfAnotherModel) {
  const adaptive_k::router router = adaptive_k::from_preset("mixtral-8x7b");
  const std::vector<float> logits(60, 0.0f);
  const auto routed = router.route(0, adaptive_k::logits_view<>{logits.data(), 1, 60});
  EXPECT_EQ(routed.result.code(), adaptive_k::status_code::shape_mismatch);
  EXPECT_STREQ(routed.result.message(), "logits have num_experts = 60, expected the gating's 8");
}

TEST(FromPreset, TakesOptionsAndNamesOfPolicies) {
  adaptive_k::router_options options;
  options.fill = adaptive_k::fill_id::num_experts;
  const float sure[8] = {0, 0, 9, 0, 0, 0, 0, 0};
  const adaptive_k::logits_view<> logits{sure, 1, 8};
  const auto routed = adaptive_k::from_preset("mixtral", "published", options).route(0, logits);
  EXPECT_EQ(routed.topk_ids, (std::vector<std::int32_t>{2, 8}));
  EXPECT_EQ(adaptive_k::from_preset("mixtral", "full").route(0, logits).topk_counts[0], 2);
  const std::string message = error_of([] { adaptive_k::from_preset("mixtral", "fast"); });
  EXPECT_EQ(message.rfind("policy 'fast': unknown policy, expected published, full", 0), 0u)
      << message;
}

TEST(Preset, GivesPoliciesByName) {
  const adaptive_k::preset mixtral = load_preset("mixtral");
  EXPECT_EQ(mixtral.policy().name, "published");
  EXPECT_EQ(mixtral.policy("full").name, "full");
  const std::string message = error_of([&] { mixtral.policy("fast"); });
  EXPECT_NE(message.find("mixtral-8x7b.json: policies: no policy 'fast', expected one of "
                         "published, full"),
            std::string::npos)
      << message;
}

TEST(PresetLookup, APresetsFileOfAnotherVersionIsNoPolicyEither) {
  const temporary_folder folder;
  json file = good_file();
  const adaptive_k::preset tiny = load_preset(folder.write("tiny.json", file).string());
  EXPECT_TRUE(tiny.make_router(tiny.file.string()).validity().ok());
  file["schema_version"] = 2;
  const std::string newer = folder.write("newer.json", file).string();
  EXPECT_NE(error_of([&] { tiny.make_router(newer); }).find("newer.json: schema_version: 2"),
            std::string::npos);
  file.erase("schema_version");
  folder.write("newer.json", file);
  EXPECT_NE(error_of([&] { tiny.make_router(newer); }).find("schema_version"), std::string::npos);
}

TEST(PresetLookup, APolicysFileIsToldFromAPresets) {
  const temporary_folder folder;
  const std::string file =
      folder
          .write("policy.json",
                 std::string(R"({"name": "p", "provenance": "hand-set", "rule": "fixed", "k": 2})"))
          .string();
  EXPECT_EQ(
      error_of([&] { load_preset(file); }).rfind(file + ": is a policy, expected a preset", 0), 0u);
  EXPECT_EQ(adaptive_k::from_preset("mixtral-8x7b", file).policy(0).k_values[0], 2);
}

}  // namespace
