#include <fmt/format.h>

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <fstream>
#include <iterator>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/dataset.hpp"

namespace bench {

std::string read_file(const std::filesystem::path& file) {
  std::error_code error;
  std::ifstream stream;
  if (std::filesystem::is_regular_file(file, error)) stream.open(file, std::ios::binary);
  if (!stream.is_open())
    throw failure(fmt::format("{}: {}", file.string(), adaptive_k::detail::unreadable(file)));
  std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (stream.bad()) throw failure(fmt::format("{}: reading failed", file.string()));
  return bytes;
}

}  // namespace bench
