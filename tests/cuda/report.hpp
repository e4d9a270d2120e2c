// What a program of tests did, for the line at its end.
#pragma once

namespace report {

/// Values of the device that were compared with the host's, over the whole program.
inline long& comparisons() {
  static long count = 0;
  return count;
}

}  // namespace report
