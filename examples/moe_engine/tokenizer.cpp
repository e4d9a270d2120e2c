#include "tokenizer.hpp"

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <queue>
#include <stdexcept>
#include <tuple>

#include "unicode_classes.hpp"

namespace moe_engine {

using adaptive_k::detail::json;
using adaptive_k::detail::json_node;

namespace {

constexpr adaptive_k::detail::json_limits file_limits{std::size_t{256} << 20, 16,
                                                      std::size_t{16} << 20};

/// The character that stands for a byte in the file: itself where it can be seen, else the next of
/// those from U+0100 on.
const std::array<char32_t, 256>& byte_alphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> made{};
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool is_seen = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
      made[b] = is_seen ? static_cast<char32_t>(b) : next++;
    }
    return made;
  }();
  return alphabet;
}

/// One character and how many bytes it takes; 0 bytes where there is no UTF-8.
struct character {
  char32_t code;
  int bytes;
};

character read_character(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return {first, 1};
  const int bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() - at < static_cast<std::size_t>(bytes))
    return {0, 0};
  char32_t code = first & (0x7Fu >> bytes);
  for (int i = 1; i < bytes; ++i) {
    if ((byte(static_cast<std::size_t>(i)) & 0xC0u) != 0x80u) return {0, 0};
    code = code << 6 | (byte(static_cast<std::size_t>(i)) & 0x3Fu);
  }
  const bool is_short = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (is_short || (code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) return {0, 0};
  return {code, bytes};
}

/// A vocabulary's word as the bytes that it stands for; false where a character is none's.
bool bytes_of_word(const std::string& word, std::string& bytes) {
  static const std::map<char32_t, char> byte_of = [] {
    std::map<char32_t, char> made;
    for (unsigned b = 0; b < 256; ++b) made[byte_alphabet()[b]] = static_cast<char>(b);
    return made;
  }();
  bytes.clear();
  for (std::size_t at = 0; at < word.size();) {
    const character c = read_character(word, at);
    const auto found = byte_of.find(c.code);
    if (c.bytes == 0 || found == byte_of.end()) return false;
    bytes += found->second;
    at += static_cast<std::size_t>(c.bytes);
  }
  return true;
}

/// The characters of a text, each with its class, in front of an end that is a class of its own.
class character_reader {
 public:
  explicit character_reader(std::string_view text) : text_(text) {}

  std::size_t at() const { return at_; }
  bool is_end() const { return at_ == text_.size(); }
  char32_t code() const { return peek().code; }
  bool is(character_class c) const { return !is_end() && class_of(peek().code) == c; }
  void step() { at_ += static_cast<std::size_t>(peek().bytes); }
  void go_to(std::size_t at) { at_ = at; }
  std::string_view rest() const { return text_.substr(at_); }

 private:
  character peek() const { return read_character(text_, at_); }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// Moves past the next match of GPT-2's pattern,
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void next_word(character_reader& reader) {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (reader.rest().substr(0, ending.size()) == ending)
      return reader.go_to(reader.at() + ending.size());
  const std::size_t start = reader.at();
  if (reader.code() == U' ') reader.step();
  for (const character_class c :
       {character_class::letter, character_class::number, character_class::other}) {
    if (!reader.is(c)) continue;
    while (reader.is(c)) reader.step();
    return;
  }
  reader.go_to(start);
  std::size_t last = start;
  while (reader.is(character_class::space)) {
    last = reader.at();
    reader.step();
  }
  // In front of a word the last space is left to it.
  if (!reader.is_end() && last != start) reader.go_to(last);
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// Refuses whatever would change the tokens and is not computed.
void expect(const json_node& parent, const char* key, const char* value) {
  const auto found = parent.find(key);
  const json given = found ? found->value() : json(nullptr);
  if (given == json::parse(value)) return;
  parent.at(key, value).refuse(std::string(value) + ": anything else is not implemented");
}

const json_node expect_object(const json_node& node) {
  if (!node.value().is_object()) node.refuse("an object");
  return node;
}

void check_settings(const json_node& root) {
  root.expect_keys({"version", "truncation", "padding", "added_tokens", "normalizer",
                    "pre_tokenizer", "post_processor", "decoder", "model"});
  for (const char* key : {"truncation", "padding", "normalizer", "post_processor"})
    expect(root, key, "null");
  const json_node pre = expect_object(root.at("pre_tokenizer", "an object of type \"ByteLevel\""));
  expect(pre, "type", "\"ByteLevel\"");
  pre.expect_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  expect(pre, "add_prefix_space", "false");
  expect(pre, "use_regex", "true");
  const json_node model = expect_object(root.at("model", "an object of type \"BPE\""));
  expect(model, "type", "\"BPE\"");
  model.expect_keys({"type", "dropout", "unk_token", "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
                     "merges"});
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    expect(model, key, "null");
  for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"})
    expect(model, key, "false");
}

/// The two words of a merge: an array of them, or one string with a space between.
std::pair<std::string, std::string> words_of_merge(const json_node& node) {
  const char* const expected = "two words";
  if (node.value().is_string()) {
    const auto text = node.value().get<std::string>();
    const std::size_t space = text.find(' ');
    if (space == std::string::npos) node.refuse(expected);
    return {text.substr(0, space), text.substr(space + 1)};
  }
  if (node.expect_array(expected) != 2) node.refuse(expected);
  return {node.at(std::size_t{0}).as_string(), node.at(std::size_t{1}).as_string()};
}

}  // namespace

tokenizer::tokenizer(const std::filesystem::path& file)
    : tokenizer(adaptive_k::detail::read_bounded_file(file, file_limits.bytes), file.string()) {}

tokenizer::tokenizer(std::string_view text, const std::string& file) {
  const json_node root = adaptive_k::detail::parse_json(text, file, file_limits);
  expect_object(root);
  check_settings(root);

  const json_node model = root.at("model", "");
  const json_node vocab = expect_object(model.at("vocab", "an object: the id of each token"));
  const auto added = root.find("added_tokens");
  // Ids have no gaps, so that a file cannot ask for more room than it fills.
  const std::size_t num_words =
      vocab.value().size() + (added ? added->expect_array("an array of tokens") : 0);
  const auto most_id = static_cast<int>(num_words) - 1;
  const auto place = [&](std::int64_t id) -> std::string& {
    if (bytes_of_.size() <= static_cast<std::size_t>(id))
      bytes_of_.resize(static_cast<std::size_t>(id) + 1);
    return bytes_of_[static_cast<std::size_t>(id)];
  };
  std::map<std::string, std::int32_t> special_ids;
  if (added) {
    for (std::size_t i = 0; i < added->value().size(); ++i) {
      const json_node token = expect_object(added->at(i));
      for (const char* key : {"single_word", "lstrip", "rstrip"}) expect(token, key, "false");
      const std::string content = token.at("content", "a string").as_string();
      const auto id = token.at("id", "an integer").as_int(0, most_id);
      specials_.emplace_back(content, id);
      special_ids[content] = id;
      if (!place(id).empty()) token.at("id", "").refuse("an id that no other token has");
      place(id) = content;
    }
  }
  std::sort(specials_.begin(), specials_.end(),
            [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });

  std::fill(std::begin(token_of_byte_), std::end(token_of_byte_), -1);
  std::map<std::string, std::int32_t> ids;  // by the word as written
  std::string bytes;
  for (const auto& item : vocab.value().items()) {
    const std::string& word = item.key();
    const auto& value = item.value();
    const auto refuse = [&](const std::string& expected) {
      throw adaptive_k::file_error(
          file, vocab.path_of(word),
          adaptive_k::detail::shown_value(value) + ", expected " + expected);
    };
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= num_words)
      refuse("an integer in 0.." + std::to_string(most_id));
    const auto id = static_cast<std::int32_t>(value.get<std::uint64_t>());
    if (const auto special = special_ids.find(word); special != special_ids.end()) {
      if (special->second != id) refuse(std::to_string(special->second) + ", as in added_tokens");
      continue;
    }
    if (!bytes_of_word(word, bytes) || bytes.empty())
      refuse("no such token: its characters are not of the byte alphabet");
    std::string& own = place(id);
    if (!own.empty()) refuse("an id that no other token has");
    own = bytes;
    ids[word] = id;
    if (bytes.size() == 1) token_of_byte_[static_cast<unsigned char>(bytes[0])] = id;
  }
  for (unsigned b = 0; b < 256; ++b)
    if (token_of_byte_[b] < 0)
      throw adaptive_k::file_error(
          file, vocab.path(),
          "no token for byte " + std::to_string(b) + ", expected one for each of the 256");

  const json_node merges = model.at("merges", "an array of merges");
  const std::size_t count = merges.expect_array("an array of merges");
  for (std::size_t i = 0; i < count; ++i) {
    const json_node node = merges.at(i);
    const auto [left, right] = words_of_merge(node);
    const auto a = ids.find(left);
    const auto b = ids.find(right);
    const auto merged = ids.find(left + right);
    if (a == ids.end() || b == ids.end() || merged == ids.end())
      node.refuse("two tokens of the vocabulary that make a third");
    const bool is_new = merges_
                            .emplace(pair_of(a->second, b->second),
                                     merge{static_cast<std::int32_t>(i), merged->second})
                            .second;
    if (!is_new) node.refuse("a pair that is not merged before");
  }
}

const std::string& tokenizer::bytes_of(std::int32_t token) const {
  static const std::string none;
  return token < 0 || token >= vocab_size() ? none : bytes_of_[static_cast<std::size_t>(token)];
}

std::vector<std::int32_t> tokenizer::encode(std::string_view text) const {
  for (std::size_t at = 0; at < text.size();) {
    const int bytes = read_character(text, at).bytes;
    if (bytes == 0)
      throw std::runtime_error("byte " + std::to_string(at) +
                               " begins no character of UTF-8, which the model's tokenizer reads");
    at += static_cast<std::size_t>(bytes);
  }
  std::vector<std::int32_t> tokens;
  const auto encode_plain = [&](std::string_view part) {
    character_reader reader(part);
    while (!reader.is_end()) {
      const std::size_t start = reader.at();
      next_word(reader);
      encode_word(part.substr(start, reader.at() - start), tokens);
    }
  };
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto special =
        std::find_if(specials_.begin(), specials_.end(), [&](const auto& candidate) {
          return text.substr(at, candidate.first.size()) == candidate.first;
        });
    if (special == specials_.end()) {
      ++at;
      continue;
    }
    encode_plain(text.substr(begin, at - begin));
    tokens.push_back(special->second);
    begin = at += special->first.size();
  }
  encode_plain(text.substr(begin));
  return tokens;
}

// The pair of the lowest rank is merged first, the leftmost of several, until none is left.
void tokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const {
  struct part {
    std::int32_t token;  // -1: merged into the one before
    std::ptrdiff_t before, behind;
  };
  const auto size = static_cast<std::ptrdiff_t>(word.size());
  std::vector<part> parts;
  for (std::ptrdiff_t i = 0; i < size; ++i)
    parts.push_back({token_of_byte_[static_cast<unsigned char>(word[static_cast<std::size_t>(i)])],
                     i - 1, i + 1});
  const auto at = [&](std::ptrdiff_t i) -> part& { return parts[static_cast<std::size_t>(i)]; };
  struct candidate {
    std::int32_t rank;
    std::ptrdiff_t left;
    std::uint64_t pair;
    std::int32_t merged;
    bool operator>(const candidate& other) const {
      return std::tie(rank, left) > std::tie(other.rank, other.left);
    }
  };
  std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
  const auto consider = [&](std::ptrdiff_t left) {
    if (left < 0 || at(left).behind >= size) return;
    const std::uint64_t pair = pair_of(at(left).token, at(at(left).behind).token);
    const auto found = merges_.find(pair);
    if (found != merges_.end()) queue.push({found->second.rank, left, pair, found->second.merged});
  };
  for (std::ptrdiff_t i = 0; i + 1 < size; ++i) consider(i);
  while (!queue.empty()) {
    const candidate best = queue.top();
    queue.pop();
    part& left = at(best.left);
    if (left.token < 0 || left.behind >= size ||
        pair_of(left.token, at(left.behind).token) != best.pair)
      continue;  // what it was made of is gone
    part& right = at(left.behind);
    left.token = best.merged;
    left.behind = right.behind;
    right.token = -1;
    if (left.behind < size) at(left.behind).before = best.left;
    consider(left.before);
    consider(best.left);
  }
  for (std::ptrdiff_t i = 0; i < size; i = at(i).behind) tokens.push_back(at(i).token);
}

}  // namespace moe_engine
