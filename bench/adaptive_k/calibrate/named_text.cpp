#include "bench/adaptive_k/calibrate/named_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

constexpr std::size_t longest_name = 40;

bool is_name(const std::string& text) {
  constexpr const char* allowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.";
  return !text.empty() && text.size() <= longest_name &&
         text.find_first_not_of(allowed) == std::string::npos;
}

}  // namespace

std::vector<named_text> parse_named_texts(const std::string& option,
                                          const std::vector<std::string>& given,
                                          const std::string& unnamed,
                                          const std::vector<std::string>& taken) {
  std::vector<named_text> texts;
  for (const std::string& word : given) {
    const std::size_t at = word.find('=');
    named_text text;
    if (at != std::string::npos && word.find('/') > at) {
      text = {word.substr(0, at), word.substr(at + 1)};
    } else {
      text.file = word;
      text.name = unnamed.empty() ? std::filesystem::path(word).stem().string() : unnamed;
    }
    if (!is_name(text.name))
      throw failure(
          fmt::format("{}: the name '{}' in '{}', expected 1..{} letters, digits, spaces "
                      "and _-., as in novels=FILE",
                      option, text.name, word, longest_name));
    if (text.file.empty())
      throw failure(fmt::format("{}: '{}', expected a file behind the name", option, word));
    const auto is_same = [&](const named_text& other) { return other.name == text.name; };
    if (std::any_of(texts.begin(), texts.end(), is_same))
      throw failure(
          fmt::format("{}: the name '{}' twice, expected another for each text (NAME=FILE)", option,
                      text.name));
    if (std::find(taken.begin(), taken.end(), text.name) != taken.end())
      throw failure(fmt::format("{}: the name '{}' means something else, expected another", option,
                                text.name));
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace bench
