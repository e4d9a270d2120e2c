// Reasons of refusals: whole characters, printable, of bounded length.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

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

}  // namespace
