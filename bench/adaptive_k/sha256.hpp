// The SHA-256 of a buffer, so that a figure can name the very bytes it was measured on.
#pragma once

#include <string>
#include <string_view>

namespace bench {

/// 64 lower-case hexadecimal digits.
std::string sha256_hex(std::string_view bytes);

}  // namespace bench
