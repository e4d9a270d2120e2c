#include "bench/adaptive_k/input/vocabulary.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/printable.hpp>
#include <utility>

#include "bench/adaptive_k/failure.hpp"

namespace bench {

vocabulary::vocabulary(int size, std::filesystem::path tokenizer_file)
    : size_(size), file_(std::move(tokenizer_file)) {}

const moe_engine::tokenizer& vocabulary::tokenizer() const {
  if (!tokenizer_) {
    auto read = std::make_shared<const moe_engine::tokenizer>(file_);
    if (read->vocab_size() > size_)
      throw failure(
          fmt::format("{}: model.vocab: has {} tokens, expected at most vocab_size = {} "
                      "of the model's config.json",
                      file_.string(), read->vocab_size(), size_));
    tokenizer_ = std::move(read);
  }
  return *tokenizer_;
}

std::string vocabulary::shown(std::int32_t token) const {
  if (!is_bytes() && !has_tokenizer()) return fmt::format("{}", token);
  const std::string bytes =
      has_tokenizer() ? tokenizer().bytes_of(token) : std::string(1, static_cast<char>(token));
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      text += "\\n";
    else if (byte >= 32 && byte <= 126)
      text += c;
    else if (bytes.size() == 1)
      return fmt::format("0x{:02x}", byte);
    else
      text += fmt::format("\\x{:02x}", byte);
  }
  return '\'' + text + '\'';
}

}  // namespace bench
