// A strict reader of exposition text, written against the formats and not against the writer.
#pragma once

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

namespace exposition_text {

struct parsed {
  std::map<std::string, double> samples;     ///< by name{labels}, as written
  std::map<std::string, std::string> types;  ///< by family
  std::map<std::string, std::string> units;
  std::set<std::string> helps;
  bool ended = false;  ///< by # EOF
};

inline void require(bool holds, const std::string& line) {
  if (!holds) throw std::runtime_error("not exposition text: " + line);
}

/// Moves `at` past {name="value",...}, where values hold no bare quote, backslash or newline.
inline void skip_labels(const std::string& line, std::size_t& at) {
  std::set<std::string> names;
  do {
    const std::size_t begin = ++at;
    while (std::isalnum(static_cast<unsigned char>(line[at])) || line[at] == '_') ++at;
    require(at > begin && names.insert(line.substr(begin, at - begin)).second, line);
    require(line[at] == '=' && line[at + 1] == '"', line);
    for (at += 2; line.at(at) != '"'; ++at)
      if (line[at] == '\\') {
        ++at;
        require(line.at(at) == '\\' || line[at] == '"' || line[at] == 'n', line);
      }
    ++at;
  } while (line.at(at) == ',');
  require(line[at] == '}', line);
  ++at;
}

/// Throws std::runtime_error naming the first bad line. Families must not be interleaved.
inline parsed parse(const std::string& text) {
  parsed result;
  require(!text.empty() && text.back() == '\n', "no newline at the end");
  std::string family;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    require(!result.ended && !line.empty(), line);
    if (line == "# EOF") {
      result.ended = true;
      continue;
    }
    if (line[0] == '#') {
      require(line.size() > 7, line);
      const std::string keyword = line.substr(2, 4);
      const std::size_t space = line.find(' ', 7);
      require(space != std::string::npos, line);
      const std::string name = line.substr(7, space - 7), rest = line.substr(space + 1);
      if (name != family) require(result.types.count(name) == 0, line);
      family = name;
      if (keyword == "HELP") require(result.helps.insert(name).second, line);
      if (keyword == "TYPE") require(result.types.emplace(name, rest).second, line);
      if (keyword == "UNIT") {
        require(result.units.emplace(name, rest).second, line);
        require(name.size() > rest.size() + 1 &&
                    name.compare(name.size() - rest.size() - 1, std::string::npos, "_" + rest) == 0,
                line);
      }
      continue;
    }
    std::size_t at = 0;
    while (std::isalnum(static_cast<unsigned char>(line[at])) || line[at] == '_') ++at;
    require(line.compare(0, family.size(), family) == 0 && result.types.count(family) != 0, line);
    if (line[at] == '{') skip_labels(line, at);
    require(line.at(at) == ' ', line);
    const std::string name = line.substr(0, at);
    char* after = nullptr;
    const double value = std::strtod(line.c_str() + at + 1, &after);
    require(*after == '\0' && after != line.c_str() + at + 1, line);
    require(result.samples.emplace(name, value).second, line);
  }
  return result;
}

}  // namespace exposition_text
