#include "bench/adaptive_k/input/heldout.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <algorithm>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/sha256.hpp"

namespace bench {

namespace fs = std::filesystem;
using adaptive_k::detail::json_node;

namespace {

const char* name_of(text_part part) {
  return part == text_part::test ? "test" : "calibration";
}

fs::path own_file(const fs::path& folder, text_part part) {
  return folder / fmt::format("heldout_{}.txt", name_of(part));
}

/// Whether expected_loss.json has losses on the domains' texts.
bool records_domains(const fs::path& folder, const std::vector<domain_text>& texts,
                     text_part part) {
  const fs::path file = folder / "expected_loss.json";
  if (texts.empty() || !fs::exists(file)) return false;
  const json_node recorded =
      adaptive_k::detail::read_json_file(file).at("texts", "an object: the loss on each text");
  return std::all_of(texts.begin(), texts.end(), [&](const domain_text& text) {
    return recorded.find(fmt::format("{}_{}", text.domain, name_of(part)).c_str()).has_value();
  });
}

dataset read_domain(const domain_text& text, const vocabulary& words) {
  dataset data = read_dataset(text.file, words);
  if (data.sha256 != text.sha256)
    throw failure(fmt::format("{}: sha256 {}, expected {}, as texts.json has it",
                              text.file.string(), data.sha256, text.sha256));
  return data;
}

/// One window of each in turn, until all are used up.
dataset in_turn(const std::vector<domain_text>& texts, const vocabulary& words, int length,
                text_part part) {
  dataset all;
  std::vector<dataset> each;
  std::string bytes;
  std::size_t most = 0;
  for (const domain_text& text : texts) {
    each.push_back(read_domain(text, words));
    bytes += read_file(text.file);
    all.path += fmt::format("{}{}_{}", all.path.empty() ? "" : ", ", text.domain, name_of(part));
    all.unit = each.back().unit;
    most = std::max(most, each.back().tokens.size());
  }
  all.sha256 = sha256_hex(bytes);
  const auto size = static_cast<std::size_t>(length);
  for (std::size_t at = 0; at + size <= most; at += size)
    for (const dataset& one : each)
      if (at + size <= one.tokens.size()) {
        const auto from = one.tokens.begin() + static_cast<std::ptrdiff_t>(at);
        all.tokens.insert(all.tokens.end(), from, from + length);
      }
  for (const dataset& one : each)
    all.left_out += static_cast<std::int64_t>(one.tokens.size() % size);
  return all;
}

}  // namespace

std::vector<domain_text> domain_texts(const fs::path& model_folder, text_part part) {
  const fs::path file = fs::weakly_canonical(model_folder).parent_path() / "texts.json";
  std::vector<domain_text> texts;
  if (!fs::exists(file)) return texts;
  const json_node root = adaptive_k::detail::read_json_file(file);
  const json_node domains = root.at("domains", "an object: the texts of each domain");
  for (const auto& [domain, entry] : domains.value().items()) {
    const json_node own = domains.at(domain.c_str(), "").at(name_of(part), "its text");
    const std::string path = own.at("file", "a path from the folder of texts.json").as_string();
    texts.push_back(
        {domain, file.parent_path() / path, own.at("sha256", "the text's sha256").as_string()});
  }
  return texts;
}

bool has_own_text(const fs::path& model_folder, text_part part) {
  return fs::exists(own_file(model_folder, part)) ||
         records_domains(model_folder, domain_texts(model_folder, part), part);
}

dataset dataset_for(const std::string& asked, const fs::path& model_folder, const vocabulary& words,
                    int length, text_part part) {
  const fs::path own = own_file(model_folder, part);
  std::error_code error;
  if (!asked.empty() && fs::exists(asked, error) && !fs::is_directory(asked, error))
    return read_dataset(asked, words);
  if (asked.empty() && fs::exists(own)) return read_dataset(own, words);
  const std::vector<domain_text> texts = domain_texts(model_folder, part);
  if (asked.empty() && records_domains(model_folder, texts, part))
    return in_turn(texts, words, length, part);
  if (asked.empty())
    throw failure(fmt::format("--dataset: missing, and the model has no {}", own.string()));
  std::string known;
  for (const domain_text& text : texts) {
    if (text.domain == asked) return read_domain(text, words);
    known += (known.empty() ? "" : ", ") + text.domain;
  }
  if (!known.empty() && asked.find_first_of("/.") == std::string::npos)
    throw failure(
        fmt::format("{}: is neither a file nor a domain of texts.json: {}", asked, known));
  return read_dataset(asked, words);  // says why it cannot
}

}  // namespace bench
