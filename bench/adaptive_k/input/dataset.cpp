#include "bench/adaptive_k/input/dataset.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <algorithm>
#include <stdexcept>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/sha256.hpp"

namespace bench {
namespace {

std::vector<std::int32_t> tokens_of_bytes(const std::string& bytes) {
  std::vector<std::int32_t> tokens(bytes.size());
  std::transform(bytes.begin(), bytes.end(), tokens.begin(), [](char byte) {
    return static_cast<std::int32_t>(static_cast<unsigned char>(byte));
  });
  return tokens;
}

std::vector<std::int32_t> tokens_of_json(const std::string& path, const std::string& bytes) {
  // Beyond these, .bin takes a quarter of the file and a fraction of the memory.
  constexpr adaptive_k::detail::json_limits limits{std::size_t{256} << 20, 2,
                                                   std::size_t{16} << 20};
  const auto root = adaptive_k::detail::parse_json(bytes, path, limits);
  const std::size_t count = root.expect_array("an array of token ids");
  std::vector<std::int32_t> tokens;
  tokens.reserve(count);
  for (const auto& value : root.value()) {
    if (!value.is_number_integer()) root.at(tokens.size()).refuse("an integer");
    const auto id = value.get<std::int64_t>();
    // Out of the range of int32 is out of any vocabulary; -1 says so further down.
    tokens.push_back(id < 0 || id > 0x7FFFFFFF ? -1 : static_cast<std::int32_t>(id));
  }
  return tokens;
}

std::vector<std::int32_t> tokens_of_binary(const std::string& path, const std::string& bytes) {
  if (bytes.size() % 4 != 0)
    throw failure(
        fmt::format("{}: {} bytes are no whole number of int32 token ids", path, bytes.size()));
  std::vector<std::int32_t> tokens(bytes.size() / 4);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::uint32_t value = 0;
    for (std::size_t b = 4; b-- > 0;)
      value = value << 8 | static_cast<unsigned char>(bytes[4 * i + b]);
    tokens[i] = static_cast<std::int32_t>(value);
  }
  return tokens;
}

std::vector<std::int32_t> tokens_of_text(const std::string& path, const std::string& bytes,
                                         const vocabulary& words) {
  const moe_engine::tokenizer& tokenizer = words.tokenizer();
  try {
    return tokenizer.encode(bytes);
  } catch (const std::runtime_error& error) {
    throw failure(fmt::format("{}: {}", path, error.what()));
  }
}

}  // namespace

dataset read_dataset(const std::filesystem::path& file, const vocabulary& words) {
  const std::string bytes = read_file(file);
  dataset data;
  data.path = file.string();
  data.sha256 = sha256_hex(bytes);
  if (words.is_bytes()) {
    data.unit = "bytes";
    data.tokens = tokens_of_bytes(bytes);
    return data;
  }
  data.unit = "token ids";
  if (file.extension() == ".json") {
    data.tokens = tokens_of_json(data.path, bytes);
  } else if (file.extension() == ".bin") {
    data.tokens = tokens_of_binary(data.path, bytes);
  } else if (words.has_tokenizer()) {
    data.unit = "tokens";
    data.tokens = tokens_of_text(data.path, bytes, words);
  } else {
    throw failure(fmt::format(
        "{}: the model has a vocabulary of {} and no tokenizer.json, so it reads neither "
        "bytes nor text: give its token ids, as a .json array or a .bin of "
        "little-endian int32",
        data.path, words.size()));
  }
  for (std::size_t i = 0; i < data.tokens.size(); ++i)
    if (data.tokens[i] < 0 || data.tokens[i] >= words.size())
      throw failure(fmt::format("{}: the value at index {} is outside the vocabulary's ids 0..{}",
                                data.path, i, words.size() - 1));
  return data;
}

dataset dataset_of_text(const std::string& text, const vocabulary& words) {
  dataset data;
  data.path = "--text";
  data.sha256 = sha256_hex(text);
  data.unit = words.is_bytes() ? "bytes" : "tokens";
  if (!words.is_bytes() && !words.has_tokenizer())
    throw failure(
        fmt::format("--text: the model has a vocabulary of {} and no tokenizer.json; give "
                    "token ids with --dataset",
                    words.size()));
  data.tokens = words.is_bytes() ? tokens_of_bytes(text) : tokens_of_text(data.path, text, words);
  return data;
}

}  // namespace bench
