// Where presets are looked for last: the folder of the installed package, known at run time alone.
// Included before the library's headers by the compiler's -include.
#pragma once

#include <filesystem>

namespace adaptive_k_python {

/// Set by the package when it is imported; empty before.
inline std::filesystem::path& calibrations_folder() {
  static std::filesystem::path folder;
  return folder;
}

}  // namespace adaptive_k_python

#define ADAPTIVE_K_CALIBRATION_DIR ::adaptive_k_python::calibrations_folder()
