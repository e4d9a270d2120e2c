// What a program instantiates of the readers of files and of their words, for the optimiser to see
// whole.
#include "adaptive_k/calibration/preset.hpp"

[[noreturn]] void refuse(const std::string& file, const std::string& key, const std::string& text);
void refuse(const std::string& file, const std::string& key, const std::string& text) {
  throw adaptive_k::file_error(file, key, text);
}

std::string shown(const std::string& text, std::size_t most);
std::string shown(const std::string& text, std::size_t most) {
  using namespace adaptive_k::detail;  // NOLINT(google-build-using-namespace)
  return printable(text, most) + printable_message(text, most) + printable_path(text, most);
}

adaptive_k::router routed(const std::string& name, const std::string& policy);
adaptive_k::router routed(const std::string& name, const std::string& policy) {
  return adaptive_k::from_preset(name, policy);
}
