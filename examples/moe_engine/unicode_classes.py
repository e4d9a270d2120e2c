#!/usr/bin/env python3
"""Write unicode_classes.cpp: which characters are letters, numbers and spaces to tokenizers' own patterns.

    pip install tokenizers==0.23.3
    python unicode_classes.py

The tables come from the library's engine of regular expressions, so that a text is split where it splits it.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, __version__, pre_tokenizers

CLASSES = {"letter": r"\p{L}", "number": r"\p{N}", "space": r"\s"}
HEAD = """// Written by unicode_classes.py from tokenizers {version}.
#include "unicode_classes.hpp"

#include <algorithm>
#include <iterator>

namespace moe_engine {{
namespace {{

struct range {{
  char32_t first, last;
}};

// clang-format off
"""
TAIL = """
// clang-format on

template <std::size_t N>
bool is_in(const range (&ranges)[N], char32_t c) {
  const auto found =
      std::upper_bound(std::begin(ranges), std::end(ranges), c,
                       [](char32_t value, const range& r) { return value < r.first; });
  return found != std::begin(ranges) && c <= std::prev(found)->last;
}

}  // namespace

character_class class_of(char32_t c) {
  if (is_in(letters, c)) return character_class::letter;
  if (is_in(numbers, c)) return character_class::number;
  if (is_in(spaces, c)) return character_class::space;
  return character_class::other;
}

}  // namespace moe_engine
"""


def ranges(pattern: str) -> list[list[int]]:
    """The characters that match, as runs of neighbours."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    found: list[int] = []
    for start in range(0, len(every), 4096):
        for text, _ in split.pre_tokenize_str("".join(every[start : start + 4096])):
            found += map(ord, text)
    runs: list[list[int]] = []
    for c in found:
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return runs


def main() -> None:
    """Write the file."""
    text = HEAD.format(version=__version__)
    for name, pattern in CLASSES.items():
        text += f"\nconstexpr range {name}s[] = {{\n"
        line = "   "
        for first, last in ranges(pattern):
            item = f" {{0x{first:X}, 0x{last:X}}},"
            if len(line + item) > 100:
                text += line + "\n"
                line = "   "
            line += item
        text += line + "\n};\n"
    Path(__file__).with_name("unicode_classes.cpp").write_text(text + TAIL)


if __name__ == "__main__":
    main()
