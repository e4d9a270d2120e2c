// Rounding modes of the host, for as long as one instruction needs them.
#pragma once

#include <cfenv>
#include <cstdint>

#include "program.hpp"

namespace ptx {

class rounding_scope {
 public:
  explicit rounding_scope(std::uint32_t flags) : changed_(mode_of(flags) != FE_TONEAREST) {
    if (changed_) std::fesetround(mode_of(flags));
  }
  ~rounding_scope() {
    if (changed_) std::fesetround(FE_TONEAREST);
  }
  rounding_scope(const rounding_scope&) = delete;
  rounding_scope& operator=(const rounding_scope&) = delete;

 private:
  static int mode_of(std::uint32_t flags) {
    return (flags & round_zero) != 0   ? FE_TOWARDZERO
           : (flags & round_down) != 0 ? FE_DOWNWARD
           : (flags & round_up) != 0   ? FE_UPWARD
                                       : FE_TONEAREST;
  }
  bool changed_;
};

}  // namespace ptx
