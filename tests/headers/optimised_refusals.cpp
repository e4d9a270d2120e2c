// Refusals as a program's own code makes them, for the optimiser to see whole: few enough callers
// that all of it is inlined.
#include "adaptive_k/calibration/format/json_parse.hpp"

[[noreturn]] void refuse(const std::string& file, const std::string& key, const std::string& text);
void refuse(const std::string& file, const std::string& key, const std::string& text) {
  throw adaptive_k::file_error(file, key, text);
}

std::string shown(const std::string& text, std::size_t most);
std::string shown(const std::string& text, std::size_t most) {
  return adaptive_k::detail::printable_message(text, most) +
         adaptive_k::detail::printable_path(text, most);
}
