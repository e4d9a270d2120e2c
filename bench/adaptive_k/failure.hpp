// What a user can put right: a wrong argument or file. main() prints it and returns 2.
#pragma once

#include <stdexcept>

namespace bench {

class failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace bench
