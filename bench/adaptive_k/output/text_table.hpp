// A table for people: columns as wide as they must be, numbers flush right.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

namespace bench {

class text_table {
 public:
  /// A heading that starts with '<' makes its column flush left.
  explicit text_table(const std::vector<std::string>& headings);
  text_table(std::initializer_list<const char*> headings)
      : text_table(std::vector<std::string>(headings.begin(), headings.end())) {}

  void add_row(std::vector<std::string> cells);
  std::string text(int indent = 2) const;

 private:
  std::vector<bool> left_;
  std::vector<std::vector<std::string>> rows_;  // the first holds the headings
};

/// "1.23 GB", "45.6 MB", ...: decimal units.
std::string bytes_text(double bytes);

}  // namespace bench
