// The text that a model reads: a file of bytes, or of token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/vocabulary.hpp"

namespace bench {

struct dataset {
  std::string path;    ///< as given; of several texts, their names
  std::string sha256;  ///< of the file; of several, of one behind the other
  std::string unit;    ///< "bytes", "tokens" of a text, or "token ids"
  std::vector<std::int32_t> tokens;
  std::int64_t left_out = 0;  ///< tokens that were cut off already
};

/// The whole file. Throws failure naming it when it cannot be read.
std::string read_file(const std::filesystem::path& file);

/// A model of bytes reads the file's bytes. Any other reads token ids: `.json`, an array of
/// integers, or `.bin`, little-endian int32; one with a tokenizer reads every other file as text.
/// Ids outside 0..vocab_size-1 are refused.
dataset read_dataset(const std::filesystem::path& file, const vocabulary& words);

/// The same of a text typed on the command line; its path is "--text".
dataset dataset_of_text(const std::string& text, const vocabulary& words);

/// Non-overlapping windows of `length` tokens from the start; what does not fill one is left out.
struct window_plan {
  int length = 0;
  std::int64_t count = 0;
  std::int64_t unused_tokens = 0;  ///< behind the last window
};

/// `asked` or, for 0, the model's own context, at most 512. Throws failure unless
/// in 2..max_positions.
int window_length(int asked, int max_positions);

/// `most` of 0 means all. Throws failure when there is not one whole window.
window_plan plan_windows(const dataset& data, int length, std::int64_t most);

}  // namespace bench
