// What kind of character a code point is, as the tokenizer's pattern tells them apart.
#pragma once

#include <cstdint>

namespace moe_engine {

enum class character_class : std::uint8_t { letter, number, space, other };

/// \p{L}, \p{N} or \s of Unicode, else other. `c` is a Unicode scalar value.
character_class class_of(char32_t c);

}  // namespace moe_engine
