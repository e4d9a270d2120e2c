// What the fuzz targets share: values drawn from the input's bytes, and a check that ends the run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "adaptive_k/status.hpp"

/// libFuzzer's entry: one input.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

/// Ends the process, under every compiler and build type, with what was expected to hold.
inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what.c_str());
  std::abort();
}

/// Reads an input from its front. Past its end everything is zero, so that no input is too short.
class bytes {
 public:
  bytes(const std::uint8_t* data, std::size_t size) : next_(data), left_(size) {}

  bool empty() const { return left_ == 0; }

  template <class T>
  T raw() {
    T value = {};
    const std::size_t size = sizeof value < left_ ? sizeof value : left_;
    if (size != 0) std::memcpy(&value, next_, size);
    skip(size);
    return value;
  }

  /// low..high, both included: one byte where that is enough.
  int between(int low, int high) {
    const unsigned span = static_cast<unsigned>(high - low) + 1u;
    const unsigned drawn = span <= 256 ? raw<std::uint8_t>() : raw<std::uint16_t>();
    return low + static_cast<int>(drawn % span);
  }

  bool coin() { return (raw<std::uint8_t>() & 1u) != 0; }
  bool chance(int one_in) { return between(0, one_in - 1) == 1; }

  template <class T, std::size_t N>
  const T& pick(const T (&values)[N]) {
    return values[static_cast<std::size_t>(between(0, static_cast<int>(N) - 1))];
  }

  /// Up to `most` bytes behind a byte that says how many.
  std::string text(std::size_t most = 255) {
    std::size_t size = raw<std::uint8_t>();
    if (size > most) size = most;
    if (size > left_) size = left_;
    std::string drawn(reinterpret_cast<const char*>(next_), size);
    skip(size);
    return drawn;
  }

  std::string rest() {
    std::string drawn(reinterpret_cast<const char*>(next_), left_);
    skip(left_);
    return drawn;
  }

  /// Up to the first zero byte, which is taken too, or the end.
  std::string up_to_zero() {
    std::size_t size = 0;
    while (size < left_ && next_[size] != 0) ++size;
    std::string drawn(reinterpret_cast<const char*>(next_), size);
    skip(size < left_ ? size + 1 : size);
    return drawn;
  }

 private:
  void skip(std::size_t size) {
    next_ += size;
    left_ -= size;
  }

  const std::uint8_t* next_;
  std::size_t left_;
};

inline bool is_utf8(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const int length = adaptive_k::detail::utf8_sequence(text.data() + at, text.size() - at);
    if (length < 0) return false;
    at += static_cast<std::size_t>(length);
  }
  return true;
}

/// A refusal is for a person: something, in UTF-8, of a length that can be read.
inline void require_message(const std::string& message) {
  require(!message.empty(), "a refusal says why");
  require(message.size() <= 8192, "a message of " + std::to_string(message.size()) + " bytes");
  require(is_utf8(message), "a message in UTF-8");
}

}  // namespace fuzz
