// Texts by the name of their domain, as options give them: NAME=FILE, or the domain alone.
#pragma once

#include <string>
#include <vector>

namespace bench {

struct named_text {
  std::string name;
  std::string file;  ///< or a domain of texts.json
};

/// "NAME=FILE", or FILE alone, whose name is `unnamed` or, where that is "", its stem. What stands
/// before the first '=' is a name unless it holds a '/'; "./a=b.txt" is a file. Names differ, are
/// of 1 to 40 letters, digits, ' ', '_', '-' and '.', and none of `taken`. Throws failure naming
/// `option`.
std::vector<named_text> parse_named_texts(const std::string& option,
                                          const std::vector<std::string>& given,
                                          const std::string& unnamed = {},
                                          const std::vector<std::string>& taken = {});

}  // namespace bench
