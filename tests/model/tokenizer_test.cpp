// The engine's tokenizer against what HuggingFace's tokenizers recorded, and what it refuses.
#include <gtest/gtest.h>
#include <moe_engine/tokenizer.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using moe_engine::tokenizer;
using nlohmann::json;

const fs::path source = ADAPTIVE_K_SOURCE_DIR;

std::string bytes_of(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  EXPECT_TRUE(stream) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

const json& recorded() {
  static const json tokens = json::parse(bytes_of(source / "tests/model/fixtures/tokens.json"));
  return tokens;
}

const std::string& file_text() {
  static const std::string text = bytes_of(source / "bench/models/tokenizer/tokenizer.json");
  return text;
}

const tokenizer& coder() {
  static const tokenizer made(source / "bench/models/tokenizer/tokenizer.json");
  return made;
}

/// FNV-1a, an id at a time, as make_tokens.py has it.
std::string digest(const std::vector<std::int32_t>& ids) {
  std::uint64_t value = 14695981039346656037u;
  for (const std::int32_t id : ids)
    value = (value ^ static_cast<std::uint64_t>(id)) * 1099511628211u;
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[value >> shift & 15u];
  return text;
}

std::string text_of(const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += coder().bytes_of(id);
  return text;
}

std::string utf8(std::uint32_t c) {
  const auto byte = [](std::uint32_t value) { return static_cast<char>(value); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
  if (c < 0x10000)
    return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 0x3F)), byte(0x80 | (c >> 6 & 0x3F)),
          byte(0x80 | (c & 0x3F))};
}

TEST(tokenizer, gives_the_recorded_tokens_of_the_held_out_texts) {
  EXPECT_EQ(recorded().at("texts").size(), 6u);
  for (const auto& [file, expected] : recorded().at("texts").items()) {
    const std::string text = bytes_of(source / "bench/models" / file);
    const auto ids = coder().encode(text);
    EXPECT_EQ(ids.size(), expected.at("tokens").get<std::size_t>()) << file;
    EXPECT_EQ(digest(ids), expected.at("digest")) << file;
    EXPECT_EQ(text_of(ids), text) << file;
  }
}

TEST(tokenizer, gives_the_recorded_tokens_of_texts_that_are_hard_to_split) {
  for (const json& entry : recorded().at("short")) {
    const auto text = entry.at("text").get<std::string>();
    const auto ids = coder().encode(text);
    EXPECT_EQ(ids, entry.at("tokens").get<std::vector<std::int32_t>>()) << entry.at("text");
    EXPECT_EQ(text_of(ids), text);
  }
}

TEST(tokenizer, gives_the_recorded_tokens_of_every_character) {
  for (const auto& [key, behind] : {std::pair<const char*, std::string>{"every_character", ""},
                                    {"every_character_apart", " 'sx1\n"}}) {
    std::vector<std::int32_t> all;
    for (std::uint32_t first = 0; first < 0x110000; first += 4096) {
      std::string text;
      for (std::uint32_t c = first; c < first + 4096; ++c) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        text += utf8(c);
        if (!behind.empty()) text += behind[c % 6];
      }
      const auto ids = coder().encode(text);
      all.insert(all.end(), ids.begin(), ids.end());
    }
    EXPECT_EQ(digest(all), recorded().at(key)) << key;
  }
}

TEST(tokenizer, knows_its_size_and_every_tokens_bytes) {
  EXPECT_EQ(coder().vocab_size(), 2048);
  EXPECT_EQ(coder().bytes_of(0), "<|endoftext|>");
  EXPECT_EQ(coder().bytes_of(-1), "");
  EXPECT_EQ(coder().bytes_of(2048), "");
  for (std::int32_t id = 0; id < 2048; ++id) EXPECT_FALSE(coder().bytes_of(id).empty()) << id;
}

std::string refusal_of(const std::string& text) {
  try {
    coder().encode(text);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

TEST(tokenizer, names_the_byte_that_is_not_utf8) {
  for (const std::string& bad :
       {std::string("\x80"), std::string("\xC0\xAF"), std::string("\xC3"),
        std::string("\xE0\x80\x80"), std::string("\xED\xA0\x80"), std::string("\xF4\x90\x80\x80"),
        std::string("\xF5\x80\x80\x80"), std::string("\xE2\x82"), std::string("\xF0\x9F\x98"),
        std::string("\xFF")})
    EXPECT_EQ(refusal_of("ab " + bad).rfind("byte 3 begins no character", 0), 0u) << bad.size();
}

// Quadratic work would take minutes.
TEST(tokenizer, long_words_take_no_time) {
  const auto begin = std::chrono::steady_clock::now();
  for (const char c : {'a', ' ', '-', '\n'}) {
    const std::string text(500'000, c);
    EXPECT_EQ(text_of(coder().encode(text)), text);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 60.0);
}

std::string verdict(const json& values) {
  try {
    tokenizer(values.dump(), "tokenizer.json");
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

TEST(tokenizer, refuses_settings_that_it_does_not_compute) {
  const json good = json::parse(file_text());
  EXPECT_EQ(verdict(good), "");
  const auto refuses = [&](const std::string& pointer, const json& value, const std::string& said) {
    json values = good;
    values[json::json_pointer(pointer)] = value;
    const std::string text = verdict(values);
    EXPECT_EQ(text.rfind("tokenizer.json: " + said, 0), 0u) << text;
    EXPECT_NE(text.find("expected"), std::string::npos) << text;
  };
  refuses("/normalizer", {{"type", "NFC"}}, "normalizer: {");
  refuses("/truncation", {{"max_length", 5}}, "truncation: {");
  refuses("/padding", {{"strategy", "x"}}, "padding: {");
  refuses("/post_processor", {{"type", "TemplateProcessing"}}, "post_processor: {");
  refuses("/pre_tokenizer", nullptr, "pre_tokenizer: null, expected an object");
  refuses("/pre_tokenizer/type", "Metaspace", "pre_tokenizer.type: \"Metaspace\"");
  refuses("/pre_tokenizer/add_prefix_space", true, "pre_tokenizer.add_prefix_space: true");
  refuses("/pre_tokenizer/use_regex", false, "pre_tokenizer.use_regex: false");
  refuses("/pre_tokenizer/pattern", "x", "pre_tokenizer.pattern: unknown key");
  refuses("/model/type", "Unigram", "model.type: \"Unigram\"");
  refuses("/model/dropout", 0.1, "model.dropout: 0.1");
  refuses("/model/unk_token", "?", "model.unk_token: \"?\"");
  refuses("/model/byte_fallback", true, "model.byte_fallback: true");
  refuses("/model/ignore_merges", true, "model.ignore_merges: true");
  refuses("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix: \"</w>\"");
  refuses("/model/vocab", 5, "model.vocab: 5");
  refuses("/model/vocab/!", 2, "model.vocab.");
  refuses("/model/vocab/!", 5000, "model.vocab.!: 5000");
  refuses("/model/vocab/!", -1, "model.vocab.!: -1");
  refuses("/model/vocab/日", 2049, "model.vocab.");
  refuses("/model/merges", 5, "model.merges: 5");
  refuses("/model/merges/3", "noSpace", "model.merges[3]: \"noSpace\"");
  refuses("/model/merges/3", {"a"}, "model.merges[3]: [\"a\"]");
  refuses("/model/merges/3", {"q", "q"}, "model.merges[3]: [\"q\",\"q\"]");
  refuses("/model/merges/3", good.at(json::json_pointer("/model/merges/2")), "model.merges[3]: ");
  refuses("/added_tokens/0/lstrip", true, "added_tokens[0].lstrip: true");
  refuses("/added_tokens/0/id", 7, "model.vocab.");
  json twice = good.at("added_tokens").at(0);
  twice["content"] = "<another>";
  refuses("/added_tokens/1", twice, "added_tokens[1].id: 0, expected an id that no other");
  refuses("/added_tokens/0/id", 1 << 30, "added_tokens[0].id: 1073741824");
  refuses("/a_setting_of_tomorrow", 1, "a_setting_of_tomorrow: unknown key");
  json without_byte = good;
  without_byte["model"]["vocab"].erase("!");
  without_byte["model"]["merges"] = json::array();
  EXPECT_NE(verdict(without_byte).find("no token for byte 33"), std::string::npos);
}

TEST(tokenizer, reads_merges_as_older_files_have_them) {
  json values = json::parse(file_text());
  for (json& merge : values["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const tokenizer old(values.dump(), "tokenizer.json");
  const std::string text = bytes_of(source / "bench/models/texts/code_test.txt");
  EXPECT_EQ(old.encode(text), coder().encode(text));
}

}  // namespace
