// Calibration files made to break their reader: deep, large, slow, and full of bytes that no
// message may repeat.
#include <gtest/gtest.h>

#include <ctime>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/preset.hpp"
#include "calibration/files.hpp"

namespace {

using calibration_test::BadFiles;
using calibration_test::dotted;
using calibration_test::error_of;
using calibration_test::good_file;
using calibration_test::json;
using calibration_test::list_paths;

std::string nested(std::size_t depth, const std::string& open, const std::string& shut) {
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += open;
  text += "1";
  for (std::size_t i = 0; i < depth; ++i) text += shut;
  return text;
}

TEST_F(BadFiles, DeepJsonIsRefusedWhereverItStands) {
  std::vector<std::string> paths;
  list_paths(good_file(), "", paths);
  for (const std::size_t depth : {std::size_t{31}, std::size_t{33}, std::size_t{80000}})
    for (const auto& [open, shut] : {std::pair<std::string, std::string>{"[", "]"},
                                     {"{\"a\":", "}"},
                                     {"[[[", ""}})  // not closed
      for (const std::string& path : paths) {
        json changed = good_file();
        changed[json::json_pointer(path)] = "HERE";
        std::string text = changed.dump();
        text.replace(text.find("\"HERE\""), 6, nested(depth, open, shut));
        const std::string message = refusal_of_text(text);
        EXPECT_FALSE(message.empty()) << path;
        EXPECT_LE(message.size(), 1100u);
        if (depth <= 32) continue;
        EXPECT_NE(message.find("deep, expected"), std::string::npos) << message;
        EXPECT_EQ(message.rfind(dotted(path), 0), 0u) << message;
      }
  EXPECT_NE(refusal_of_text(nested(1000000, "[", "]")).find("deep, expected"), std::string::npos);
}

/// 10 MB of `unit`, comma between, between `before` and `after`.
std::string many(const std::string& before, const std::string& unit, const std::string& after) {
  std::string text = before;
  while (text.size() < 10'000'000) text += unit + ",";
  text.back() = ' ';
  return text + after;
}

TEST_F(BadFiles, LargeFilesTakeNoLongerThanTheirSize) {
  // Of the processor, not of the clock: the machine may be busy.
  const auto seconds_of = [&](const std::string& text) {
    const std::clock_t begin = std::clock();
    refusal_of_text(text);
    return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  };
  int i = 0;
  std::string keys = "{";
  while (keys.size() < 10'000'000) keys += "\"" + std::to_string(i++) + "\":0,";
  keys.back() = '}';
  std::string aliases = good_file().dump();
  std::string names;
  for (i = 0; i < 400'000; ++i) names += ",\"alias " + std::to_string(i) + "\"";
  aliases.insert(aliases.find("\"t\"") + 3, names);
  json one = good_file()["policies"][1];
  std::string policies = "{\"policies\":[";
  for (i = 0; i < 100'000; ++i) {
    one["name"] = std::to_string(i);
    policies += one.dump() + ",";
  }
  policies += "1],";
  json rest = good_file();
  rest.erase("policies");
  policies += rest.dump().substr(1);
  // Optimised, each takes some tenths of a second; quadratic ones took minutes and more. The bound
  // is wide for sanitizers.
  // NOLINTBEGIN(bugprone-string-constructor): they are meant to be long
  for (const std::string& text :
       {many("[", "{}", "]"), many("[", "[]", "]"), many("{\"policies\":[", "{\"a\":[]}", "]}"),
        many("[", "1", "]"), many("[", "\"\"", "]"), keys, aliases, policies,
        "\"" + std::string(10'000'000, 'x') + "\"", std::string(10'000'000, '\n') + "x",
        std::string(10'000'000, '9')})  // NOLINTEND(bugprone-string-constructor)
    EXPECT_LT(seconds_of(text), 20.0) << text.substr(0, 40);
}

TEST_F(BadFiles, SizesAreBounded) {
  const auto big = folder_.write("big.json", std::string());
  std::filesystem::resize_file(big, std::uintmax_t{1} << 40);  // a hole: no bytes on the disk
  EXPECT_NE(error_of([&] { adaptive_k::load_preset_file(big); }).find("1099511627776 bytes"),
            std::string::npos);
  const adaptive_k::detail::json_limits limits{100, 3, 5};
  const auto refusal_within = [&](const std::string& text) {
    return error_of([&] { adaptive_k::detail::parse_json_text(text, "f", limits); });
  };
  EXPECT_EQ(refusal_within("[[[1, 2]]]"), "");
  EXPECT_EQ(refusal_within("[[[[]]]]"),
            "f: [0][0][0]: nested more than 3 deep, expected at most that");
  EXPECT_EQ(refusal_within("{\"a\": [1, 2, 3, 4]}"),
            "f: a[3]: more than 5 values, expected at most that");
  EXPECT_EQ(refusal_within(std::string(101, ' ')), "f: 101 bytes of JSON, expected at most 100");
}

TEST_F(BadFiles, MessagesAreShortPrintableUtf8WhateverTheFileHolds) {
  const std::string euro = "\xE2\x82\xAC";
  std::string euros;
  while (euros.size() < 3'000'000) euros += euro;
  std::vector<std::string> texts = {euros,
                                    "\"" + euros,
                                    "{\"" + euros + "\": 1}",
                                    "{\"a\": \"\xFF\xFE\"}",
                                    "\x1B[2J",
                                    "{\"\\u001b[2J\\n\": 1}",
                                    std::string("\0\0\0", 3),
                                    "{\"" + euros + "\": [[",
                                    "[" + euros};
  for (std::size_t shift = 0; shift < 4; ++shift) {
    const std::string text = std::string(shift, 'x') + euros.substr(0, 3000);
    json file = good_file();
    file["gating"]["kind"] = text;
    texts.push_back(file.dump());
    file = good_file();
    file["policies"][1]["name"] = text;
    file["default_policy"] = text + "?";
    texts.push_back(file.dump());
    file = good_file();
    file["gating"][text] = text;
    texts.push_back(file.dump());
    texts.push_back("{\"" + text + "\": nul}");
  }
  for (const std::string& text : texts) {
    const std::string message = refusal_of_text(text);
    EXPECT_FALSE(message.empty());
    EXPECT_LE(message.size(), 1100u);
    EXPECT_EQ(message, adaptive_k::detail::printable(message, 2000)) << "not printable";
  }
  const std::string behind_nul = good_file().dump() + std::string("\0}{", 3);
  EXPECT_NE(refusal_of_text(behind_nul).find("expected no NUL"), std::string::npos);
  const adaptive_k::preset_error long_path(std::string(5000, 'd') + "/name.json", euros, euros);
  EXPECT_LE(std::string(long_path.what()).size(), 1100u);
  EXPECT_NE(std::string(long_path.what()).find("/name.json: "), std::string::npos);
  EXPECT_EQ(long_path.key(), euros);
  const auto given = [](const std::string& spec) {
    return error_of([&] { adaptive_k::parse_policy(spec, adaptive_k::gating{}); });
  };
  for (const std::string& spec :
       {"top_p:" + nested(100000, "[", "]"), euros, "fixed:" + euros, "top_p:0.5,a=" + euros,
        "entropy:1,2@" + std::string(2'000'000, '1')}) {
    EXPECT_NE(given(spec), "");
    EXPECT_LE(given(spec).size(), 1100u);
  }
}

}  // namespace
