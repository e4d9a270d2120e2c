// What a user can put right: a wrong argument or file. main() prints it and returns 2.
#pragma once

#include <adaptive_k/calibration/format/printable.hpp>
#include <stdexcept>
#include <string>

namespace bench {

class failure : public std::runtime_error {
 public:
  /// `what()` is printable UTF-8 of a kilobyte at most, whatever part of an input it quotes.
  explicit failure(const std::string& message)
      : std::runtime_error(adaptive_k::detail::printable_message(message, 1000)) {}
};

}  // namespace bench
