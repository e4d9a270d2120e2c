// The SHA-256 of a buffer or a file, so that a figure can name the very bytes it was measured on.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace bench {

/// 64 lower-case hexadecimal digits.
std::string sha256_hex(std::string_view bytes);

/// The same of a regular file of any size. Throws failure.
std::string sha256_of_file(const std::filesystem::path& file);

}  // namespace bench
