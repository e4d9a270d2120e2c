// The result of a call that can be refused: a code, a sentence that says why, and the
// field that is at fault.
#pragma once

#include <clocale>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string_view>

#if defined(__APPLE__)
#include <xlocale.h>
#endif

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What kind of refusal; values are stable across versions (the C ABI returns them).
enum class status_code : int {
  ok = 0,
  invalid_argument = 1,  ///< a value outside its documented range
  shape_mismatch = 2,    ///< sizes that do not fit one another
  unsupported = 3,       ///< well formed, but this build cannot do it
  cuda_error = 4,        ///< reported by the CUDA runtime
};

namespace detail {

/// While it lives, printf on this thread writes numbers as in the C locale. Outside POSIX the
/// locale's decimal point stays.
class numbers_of_c {
#if defined(LC_ALL_MASK)
 public:
  numbers_of_c() noexcept : c_(newlocale(LC_ALL_MASK, "C", locale_t{})), before_(uselocale(c_)) {}
  numbers_of_c(const numbers_of_c&) = delete;
  numbers_of_c& operator=(const numbers_of_c&) = delete;
  ~numbers_of_c() {
    uselocale(before_);
    if (c_ != locale_t{}) freelocale(c_);
  }

 private:
  locale_t c_;
  locale_t before_;
#endif
};

/// Bytes of the well-formed UTF-8 sequence at the front of `text` [size] (1 to 4), or, negated,
/// bytes of the broken one that one U+FFFD replaces (its longest valid beginning, at least 1), as
/// Unicode recommends. `size` is 1 or more.
inline int utf8_sequence(const char* text, std::size_t size) noexcept {
  const auto byte = [&](int i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  unsigned lowest = 0x80, highest = 0xBF;
  if (lead == 0xE0) lowest = 0xA0;
  if (lead == 0xED) highest = 0x9F;
  if (lead == 0xF0) lowest = 0x90;
  if (lead == 0xF4) highest = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (static_cast<std::size_t>(i) >= size || byte(i) < lowest || byte(i) > highest) return -i;
    lowest = 0x80;
    highest = 0xBF;
  }
  return length;
}

/// Bytes of the longest beginning of `text` [size] that has at most `most` bytes and does not end
/// inside a character.
inline std::size_t whole_characters(const char* text, std::size_t size, std::size_t most) noexcept {
  if (size <= most) return size;
  std::size_t end = 0;
  while (end < most) {
    const int length = utf8_sequence(text + end, size - end);
    const auto next = end + static_cast<std::size_t>(length < 0 ? 1 : length);
    if (next > most) break;
    end = next;
  }
  return end;
}

/// Whether a terminal acts upon the well-formed character at the front of `text` [length] rather
/// than show it: controls, and what ends a line or turns its direction (U+061C, 200E, 200F, 2028 to
/// 202E, 2066 to 2069).
inline bool is_obeyed(const char* text, int length) noexcept {
  const auto byte = [&](int i) { return static_cast<unsigned char>(text[i]); };
  if (length == 1) return byte(0) < 0x20 || byte(0) == 0x7F;
  if (length == 2)
    return (byte(0) == 0xC2 && byte(1) < 0xA0) || (byte(0) == 0xD8 && byte(1) == 0x9C);
  if (length != 3 || byte(0) != 0xE2) return false;
  const auto within = [&](int least, int most) { return byte(2) >= least && byte(2) <= most; };
  return (byte(1) == 0x80 && (within(0x8E, 0x8F) || within(0xA8, 0xAE))) ||
         (byte(1) == 0x81 && within(0xA6, 0xA9));
}

/// Writes the character at the front of `text` [size] as messages show it: printable UTF-8 as it
/// is, of anything else one byte as \xNN. Returns the bytes written, 1 to 4; `used` those read.
inline int show_character(const char* text, std::size_t size, char (&shown)[4],
                          int& used) noexcept {
  const auto lead = static_cast<unsigned char>(text[0]);
  const int length = utf8_sequence(text, size);
  if (length < 0 || is_obeyed(text, length)) {
    constexpr char digits[] = "0123456789ABCDEF";
    shown[0] = '\\';
    shown[1] = 'x';
    shown[2] = digits[lead >> 4];
    shown[3] = digits[lead & 15];
    used = 1;
    return 4;
  }
  for (int i = 0; i < 4 && i < length; ++i) shown[i] = text[i];  // g++ 12 does not see the 4
  used = length;
  return length;
}

}  // namespace detail

/// A code and its reason. Trivially copyable and free of allocation; the text of a success is "".
class [[nodiscard]] status {
 public:
  status() noexcept { message_[0] = '\0'; }

  /// printf-style reason, numbers with a point in every locale. Two backticks in `format` mark the
  /// field that is at fault, as in "`k_min` is %d, expected 1 or more"; the message is without
  /// them. Text that may hold backticks of its own must stand behind them. Bytes that are not
  /// printable UTF-8 come out as `\xNN`; a message of more than 223 bytes is cut between two
  /// characters.
  ADAPTIVE_K_PRINTF(2, 3)
  static status error(status_code code, const char* format, ...) noexcept {
    status result;
    result.code_ = code;
    std::va_list arguments;
    va_start(arguments, format);
    result.print(format, arguments);
    va_end(arguments);
    return result;
  }

  /// The same refusal of one among several: what `format` prints, such as "layer %d: ", goes before
  /// its message; its field is unchanged. A success stays one.
  ADAPTIVE_K_PRINTF(2, 3)
  status within(const char* format, ...) const noexcept {
    if (ok()) return *this;
    status result;
    result.code_ = code_;
    std::va_list arguments;
    va_start(arguments, format);
    result.print(format, arguments);
    va_end(arguments);
    const std::size_t before = std::strlen(result.message_);
    result.append(message_, std::strlen(message_), false);
    if (before + field_begin_ + field_size_ <= std::strlen(result.message_))
      result.set_field(before + field_begin_, field_size_);
    return result;
  }

  /// Whether nothing was refused.
  [[nodiscard]] bool ok() const noexcept { return code_ == status_code::ok; }
  /// The same as ok().
  [[deprecated("use ok()")]] explicit operator bool() const noexcept { return ok(); }
  /// What kind of refusal; status_code::ok where there is none.
  [[nodiscard]] status_code code() const noexcept { return code_; }
  /// Printable UTF-8 that names the field, its value and what was expected; "" where nothing was
  /// refused. Lives as long as the status.
  [[nodiscard]] const char* message() const noexcept { return message_; }

  /// The name of the field at fault as the message has it, such as "k_min", "thresholds[2]" or
  /// "distortion.lambda": a part of message(), which lives as long as this status. Empty where no
  /// single field is at fault, or its name was cut.
  [[nodiscard]] std::string_view field() const noexcept {
    return {message_ + field_begin_, field_size_};
  }

 private:
  void print(const char* format, std::va_list arguments) noexcept {
    char text[sizeof message_ + 5];  // two marks, and a last character that begins within whole
    [[maybe_unused]] const detail::numbers_of_c numbers;
    const int length = std::vsnprintf(text, sizeof text, format, arguments);
    const auto size = static_cast<std::size_t>(length < 0 ? 0 : length);
    append(text, size < sizeof text ? size : sizeof text - 1, std::strchr(format, mark) != nullptr);
  }

  void append(const char* text, std::size_t size, bool marks_field) noexcept {
    std::size_t length = std::strlen(message_);
    std::size_t field = length;
    int marks = marks_field ? 2 : 0;  // to come
    for (std::size_t at = 0; at < size;) {
      if (marks > 0 && text[at] == mark) {
        if (marks == 2) field = length;
        if (marks == 1) set_field(field, length - field);
        --marks;
        ++at;
        continue;
      }
      char shown[4];
      int used = 0;
      const int bytes = detail::show_character(text + at, size - at, shown, used);
      if (length + static_cast<std::size_t>(bytes) >= sizeof message_) break;
      for (int i = 0; i < bytes; ++i) message_[length++] = shown[i];
      at += static_cast<std::size_t>(used);
    }
    message_[length] = '\0';
  }

  void set_field(std::size_t begin, std::size_t size) noexcept {
    field_begin_ = static_cast<unsigned char>(begin);
    field_size_ = static_cast<unsigned char>(size);
  }

  static constexpr char mark = '`';

  status_code code_ = status_code::ok;
  char message_[224];
  unsigned char field_begin_ = 0;  // within message_
  unsigned char field_size_ = 0;
};

ADAPTIVE_K_NAMESPACE_END
