// Which text a data set means: a file, a domain of texts.json, or the model's own; and how a model
// with a tokenizer reads it.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/sha256.hpp"
#include "cli/scratch.hpp"

namespace {

namespace fs = std::filesystem;
using bench::dataset;
using bench::text_part;
using bench::vocabulary;
using nlohmann::json;

std::string refusal_of(const std::function<void()>& call) {
  try {
    call();
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

fs::path models() {
  return fs::path(ADAPTIVE_K_SOURCE_DIR) / "bench" / "models";
}

fs::path tokenizer_file() {
  return models() / "tokenizer" / "tokenizer.json";
}

/// A folder of models with texts of two domains, and a model that has losses on them.
class heldout : public testing::Test {
 protected:
  heldout() {
    fs::create_directories(model());
    json domains = json::object();
    for (const char* const domain : {"first", "second"})
      for (const char* const part : {"test", "calibration"}) {
        const std::string file = std::string(domain) + "_" + part + ".txt";
        // 10 and 7 bytes a text: windows of 3 are three and two.
        const std::string text = std::string(domain[0] == 'f' ? "abcdefghij" : "0123456");
        scratch.write(file, text);
        domains[domain][part] = {{"file", file}, {"sha256", bench::sha256_hex(text)}};
        losses["texts"][std::string(domain) + "_" + part] = {{"nats_per_token", 1.0}};
      }
    texts = {{"domains", domains}};
    write();
  }

  fs::path model() const { return scratch.path() / "model"; }
  void write() const {
    scratch.write("texts.json", texts.dump());
    scratch.write("model/expected_loss.json", losses.dump());
  }
  std::string text_of(const dataset& data) const {
    std::string text;
    for (const std::int32_t token : data.tokens) text += static_cast<char>(token);
    return text;
  }
  dataset get(const std::string& asked, text_part part = text_part::test) const {
    return bench::dataset_for(asked, model(), bytes, 3, part);
  }

  scratch_folder scratch;
  vocabulary bytes{256};
  json texts;
  json losses;
};

TEST_F(heldout, a_domain_is_its_text) {
  for (const text_part part : {text_part::test, text_part::calibration}) {
    EXPECT_EQ(text_of(get("first", part)), "abcdefghij");
    EXPECT_EQ(text_of(get("second", part)), "0123456");
  }
  EXPECT_EQ(get("first").path, (scratch.path() / "first_test.txt").string());
  EXPECT_EQ(get("first", text_part::calibration).path,
            (scratch.path() / "first_calibration.txt").string());
}

TEST_F(heldout, without_a_data_set_all_domains_take_turns) {
  const dataset all = get("");
  EXPECT_EQ(text_of(all), "abc012def345ghi");
  EXPECT_EQ(all.path, "first_test, second_test");
  EXPECT_EQ(all.unit, "bytes");
  EXPECT_EQ(all.left_out, 2);
  EXPECT_EQ(all.sha256, bench::sha256_hex("abcdefghij0123456"));
  const bench::window_plan plan = bench::plan_windows(all, 3, 0);
  EXPECT_EQ(plan.count, 5);
  EXPECT_EQ(plan.unused_tokens, 2);
  EXPECT_EQ(bench::plan_windows(all, 3, 2).unused_tokens, 11);
  EXPECT_TRUE(bench::has_own_text(model(), text_part::test));
}

TEST_F(heldout, the_models_own_file_goes_before_the_domains) {
  scratch.write("model/heldout_test.txt", "own text");
  EXPECT_EQ(text_of(get("")), "own text");
  EXPECT_EQ(text_of(get("second")), "0123456");
  EXPECT_EQ(text_of(get("", text_part::calibration)), "abc012def345ghi");
}

TEST_F(heldout, a_file_goes_before_a_domain_and_a_folder_does_not) {
  const fs::path before = fs::current_path();
  fs::current_path(scratch.path());
  fs::create_directory("second");
  scratch.write("first", "a file");
  EXPECT_EQ(text_of(get("first")), "a file");
  EXPECT_EQ(text_of(get("second")), "0123456");
  fs::current_path(before);
}

TEST_F(heldout, what_is_not_there_is_named) {
  const auto refusal = [&](const std::string& asked) {
    return refusal_of([&] { (void)get(asked); });
  };
  EXPECT_NE(
      refusal("third").find("third: is neither a file nor a domain of texts.json: first, second"),
      std::string::npos);
  EXPECT_NE(refusal("third.txt").find("third.txt: "), std::string::npos);
  scratch.write("first_test.txt", "another text");
  const std::string changed = refusal("first");
  EXPECT_NE(changed.find("first_test.txt: sha256 "), std::string::npos) << changed;
  EXPECT_NE(changed.find(bench::sha256_hex("abcdefghij")), std::string::npos) << changed;
  EXPECT_EQ(refusal(""), changed);
  losses["texts"].erase("second_test");
  write();
  EXPECT_NE(refusal("").find("--dataset: missing"), std::string::npos);
  EXPECT_FALSE(bench::has_own_text(model(), text_part::test));
  EXPECT_TRUE(bench::has_own_text(model(), text_part::calibration));
  texts["domains"]["first"]["test"].erase("sha256");
  write();
  EXPECT_NE(refusal("first").find("texts.json: domains.first.test.sha256: missing, expected"),
            std::string::npos);
}

TEST_F(heldout, the_models_of_the_project_have_three_domains) {
  const auto test = bench::domain_texts(models() / "olmoe-64x8", text_part::test);
  ASSERT_EQ(test.size(), 3u);
  for (const bench::domain_text& text : test)
    EXPECT_EQ(bench::sha256_of_file(text.file), text.sha256) << text.domain;
  const dataset code =
      bench::dataset_for("code", models() / "olmoe-64x8", {2048, tokenizer_file()}, 256);
  EXPECT_EQ(code.unit, "tokens");
  EXPECT_EQ(code.path, (models() / "texts" / "code_test.txt").string());
  EXPECT_LT(code.tokens.size(), 60'000u);
}

TEST(Vocabulary, ATokenizerReadsEveryFileButTokenIds) {
  scratch_folder folder;
  const vocabulary words(2048, tokenizer_file());
  const std::string text = "It's 3.14\n";
  const dataset data = bench::read_dataset(folder.write("a.txt", text), words);
  EXPECT_EQ(data.unit, "tokens");
  EXPECT_EQ(data.sha256, bench::sha256_hex(text));
  EXPECT_EQ(data.tokens, words.tokenizer().encode(text));
  EXPECT_EQ(bench::read_dataset(folder.write("code.py", text), words).tokens, data.tokens);
  EXPECT_EQ(bench::dataset_of_text(text, words).tokens, data.tokens);
  EXPECT_EQ(bench::read_dataset(folder.write("ids.json", "[1, 2]"), words).unit, "token ids");
  const std::string bad =
      refusal_of([&] { (void)bench::read_dataset(folder.write("bad.txt", "ab\xff"), words); });
  EXPECT_NE(bad.find("bad.txt: byte 2 begins no character"), std::string::npos) << bad;
  EXPECT_EQ(words.shown(0), "'<|endoftext|>'");
  EXPECT_EQ(words.shown(words.tokenizer().encode("\n")[0]), "'\\n'");
  EXPECT_EQ(words.shown(words.tokenizer().encode(" the")[0]), "' the'");
  EXPECT_EQ(words.shown(words.tokenizer().encode("\x01")[0]), "0x01");
  EXPECT_EQ(vocabulary(256).shown('a'), "'a'");
  EXPECT_EQ(vocabulary(256).shown(200), "0xc8");
  EXPECT_EQ(vocabulary(32000).shown(200), "200");
}

TEST(Vocabulary, ATokenizerOfMoreTokensThanTheModelIsRefused) {
  scratch_folder folder;
  const std::string said = refusal_of([&] {
    (void)bench::read_dataset(folder.write("a.txt", "a"), vocabulary(2047, tokenizer_file()));
  });
  EXPECT_NE(said.find("tokenizer.json: model.vocab: has 2048 tokens, expected at most vocab_size = "
                      "2047"),
            std::string::npos)
      << said;
}

}  // namespace
