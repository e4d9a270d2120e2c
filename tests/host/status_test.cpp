// Reasons of refusals: whole characters, printable, of bounded length; the field they are about.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <type_traits>

#include "adaptive_k/status.hpp"

namespace {

using adaptive_k::status;
using adaptive_k::status_code;

std::string message_of(const std::string& text) {
  return status::error(status_code::invalid_argument, "%s", text.c_str()).message();
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const int length = adaptive_k::detail::utf8_sequence(text.data(), text.size());
    if (length < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(length));
  }
  return true;
}

TEST(Status, ShowsPrintableTextAsItIs) {
  const std::string text = "K is 9, \xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80 \\x";
  EXPECT_EQ(message_of(text), text);
  EXPECT_EQ(message_of(""), "");
}

TEST(Status, IsCutBetweenCharactersWhereverTheyLie) {
  for (const std::string character : {"a", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"})
    for (std::size_t shift = 0; shift < 5; ++shift) {
      std::string text(shift, '-');
      while (text.size() < 400) text += character;
      const std::string message = message_of(text);
      EXPECT_TRUE(is_utf8(message)) << message;
      EXPECT_EQ(text.rfind(message, 0), 0u);
      EXPECT_LE(message.size(), 223u);
      EXPECT_GT(message.size() + character.size(), 223u) << "cut more than was needed";
    }
}

TEST(Status, EscapesWhatIsNoPrintableUtf8) {
  EXPECT_EQ(message_of("a\xFFz"), "a\\xFFz");
  EXPECT_EQ(message_of("\xC3("), "\\xC3(");
  EXPECT_EQ(message_of("\xE2\x82"), "\\xE2\\x82") << "a sequence that the text itself cuts off";
  EXPECT_EQ(message_of("\xED\xA0\x80"), "\\xED\\xA0\\x80") << "a surrogate";
  EXPECT_EQ(message_of("\xC0\xAF"), "\\xC0\\xAF") << "an overlong form";
  EXPECT_EQ(message_of("\xC2\x9B"
                       "2J\xC2\xA0"),
            "\\xC2\\x9B2J\xC2\xA0")
      << "nor a control of two bytes";
  EXPECT_EQ(message_of("\u202Efdp.exe"), "\\xE2\\x80\\xAEfdp.exe") << "nor what turns it around";
  for (const char* mark : {"\u061C", "\u200E", "\u200F", "\u2028", "\u202A", "\u2066", "\u2069"})
    EXPECT_EQ(message_of(mark).rfind("\\x", 0), 0u) << message_of(mark);
  for (const char* letter : {"\u061B", "\u200D", "\u2010", "\u2027", "\u202F", "\u2065", "\u206A"})
    EXPECT_EQ(message_of(letter), letter);
  EXPECT_EQ(message_of("\033[2J\n\x7F"), "\\x1B[2J\\x0A\\x7F") << "a terminal obeys nothing";
  EXPECT_LE(message_of(std::string(300, '\xFF')).size(), 223u);
}

TEST(Status, WholeCharactersKeepTheRest) {
  const std::string text = "a\xE2\x82\xAC";
  EXPECT_EQ(adaptive_k::detail::whole_characters(text.data(), 4, 4), 4u);
  EXPECT_EQ(adaptive_k::detail::whole_characters(text.data(), 4, 3), 1u);
  EXPECT_EQ(adaptive_k::detail::whole_characters(text.data(), 4, 1), 1u);
  EXPECT_EQ(adaptive_k::detail::whole_characters(text.data(), 4, 0), 0u);
}

static_assert(std::is_trivially_copyable_v<status>, "");
static_assert(sizeof(status) <= 232, "it is passed by value");

constexpr auto invalid = status_code::invalid_argument;

/// A name wherever a status says it is, and nowhere else.
void expect_field(const status& result, std::string_view field, std::string_view message) {
  EXPECT_EQ(result.field(), field);
  EXPECT_EQ(result.message(), message);
  const auto begin = result.field().data() - result.message();
  EXPECT_GE(begin, 0) << message;
  EXPECT_LE(static_cast<std::size_t>(begin) + result.field().size(), message.size()) << message;
}

TEST(Status, KnowsTheFieldThatItsFormatMarks) {
  expect_field(status::error(invalid, "`k_min` is %d, expected 1..%d", 9, 4), "k_min",
               "k_min is 9, expected 1..4");
  expect_field(status::error(invalid, "`given.topk_ids[%lld, %d]` is %d", 7LL, 1, -3),
               "given.topk_ids[7, 1]", "given.topk_ids[7, 1] is -3");
  expect_field(status::error(invalid, "%s: `%s` is null", "params", "logits"), "logits",
               "params: logits is null");
  expect_field(status::error(invalid, "%s: `k` is 0", "\xFF\n"), "k", "\\xFF\\x0A: k is 0");
  expect_field(status::error(invalid, "%d variants", 1), "", "1 variants");
  expect_field(status(), "", "");
}

TEST(Status, MarksAreOfTheFormatAlone) {
  expect_field(status::error(invalid, "%s", "a `b` c"), "", "a `b` c");
  expect_field(status::error(invalid, "`path` is '%s'", "`x` `"), "path", "path is '`x` `'");
}

TEST(Status, ACopyHasAFieldOfItsOwn) {
  status copy;
  {
    const status result = status::error(invalid, "`top_k` is %d", 40);
    copy = result;
  }
  expect_field(copy, "top_k", "top_k is 40");
}

TEST(Status, WithinKeepsCodeAndField) {
  const status inner = status::error(status_code::unsupported, "`top_k` is %d", 3);
  const status outer = inner.within("layer %d: ", 12);
  EXPECT_EQ(outer.code(), status_code::unsupported);
  expect_field(outer, "top_k", "layer 12: top_k is 3");
  expect_field(outer.within("%s: ", "\xFF"), "top_k", "\\xFF: layer 12: top_k is 3");
  expect_field(status::error(invalid, "none").within("layer %d: ", 1), "", "layer 1: none");
  expect_field(status().within("layer %d: ", 1), "", "");
  EXPECT_TRUE(status().within("layer %d: ", 1).ok());
}

TEST(Status, AFieldIsWholeOrNone) {
  const std::string name = "distortion.lambda";
  for (std::size_t before = 0; before < 240; ++before) {
    const std::string prefix(before, '-');
    const std::string whole = prefix + name + " is 1";
    const bool fits = before + name.size() <= 223;
    const status once = status::error(invalid, "%s`%s` is 1", prefix.c_str(), name.c_str());
    expect_field(once, fits ? name : "", whole.substr(0, 223));
    const status inner = status::error(invalid, "`%s` is 1", name.c_str());
    expect_field(inner.within("%s", prefix.c_str()), fits ? name : "", whole.substr(0, 223));
  }
}

}  // namespace
