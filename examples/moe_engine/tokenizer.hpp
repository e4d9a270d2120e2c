// Text to tokens and back: byte-level byte-pair encoding, as a HuggingFace tokenizer.json stores
// it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace moe_engine {

/// Gives the tokens that HuggingFace's tokenizers gives, for files of one kind: model "BPE" over
/// the byte alphabet, pre-tokenizer "ByteLevel" with its own pattern (GPT-2's), no normalizer, no
/// post-processing. Every other setting is refused. Immutable.
class tokenizer {
 public:
  /// Throws std::runtime_error naming file, key, value and what was expected.
  explicit tokenizer(const std::filesystem::path& file);
  /// The same of the file's text; messages call it `file`.
  tokenizer(std::string_view json, const std::string& file);

  /// The largest id and 1.
  int vocab_size() const noexcept { return static_cast<int>(bytes_of_.size()); }

  /// Any UTF-8 text has tokens. Throws std::runtime_error naming the byte where it is not UTF-8.
  /// Time O(n log n).
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// The bytes of a token, which alone need not be UTF-8; "" for an id that no token has.
  const std::string& bytes_of(std::int32_t token) const;

 private:
  struct merge {
    std::int32_t rank;
    std::int32_t merged;
  };

  void encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const;

  std::vector<std::string> bytes_of_;                           // [vocab_size]
  std::int32_t token_of_byte_[256];                             // the alphabet
  std::unordered_map<std::uint64_t, merge> merges_;             // by left << 32 | right
  std::vector<std::pair<std::string, std::int32_t>> specials_;  // the longest first
};

}  // namespace moe_engine
