// The result of a call that can be refused: a code and a sentence that says why.
#pragma once

#include <cstdarg>
#include <cstdio>

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

/// A code and its reason. Trivially copyable and free of allocation; the text of a success is "".
class status {
 public:
  status() noexcept { message_[0] = '\0'; }

  /// printf-style reason, cut at 223 characters.
  ADAPTIVE_K_PRINTF(2, 3)
  static status error(status_code code, const char* format, ...) noexcept {
    status result;
    result.code_ = code;
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(result.message_, sizeof result.message_, format, arguments);
    va_end(arguments);
    return result;
  }

  bool ok() const noexcept { return code_ == status_code::ok; }
  explicit operator bool() const noexcept { return ok(); }
  status_code code() const noexcept { return code_; }
  const char* message() const noexcept { return message_; }

 private:
  status_code code_ = status_code::ok;
  char message_[224];
};

ADAPTIVE_K_NAMESPACE_END
