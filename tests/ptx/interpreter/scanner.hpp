// PTX text to tokens.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ptx {

/// Text that is not PTX as this parser knows it.
class parse_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A cursor over text that outlives it. A token is a word (letters, digits, _ $ % . and ::), a
/// quoted string or one character; "" is the end.
class scanner {
 public:
  explicit scanner(std::string_view text) : text_(text) {}

  std::string_view next();
  std::string_view peek();
  /// Takes the next token if it is `token`.
  bool accept(std::string_view token);
  void expect(std::string_view token);
  /// The text between the brace just taken and its partner, which is taken too.
  std::string_view rest_of_braces();
  /// The text up to `end`, which is taken too.
  std::string_view until(char end);
  std::size_t position() const { return at_; }
  std::string_view text() const { return text_; }

 private:
  void skip_blanks();

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace ptx
