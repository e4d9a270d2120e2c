#include "bench/adaptive_k/input/sha256.hpp"

#include <fmt/format.h>

#ifdef ADAPTIVE_K_BENCH_OPENSSL
#include <openssl/evp.h>
#else
#include <picosha2.h>
#endif

#include <adaptive_k/calibration/format/json_parse.hpp>
#include <array>
#include <cstddef>
#include <fstream>
#include <memory>
#include <vector>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

#ifdef ADAPTIVE_K_BENCH_OPENSSL
class sha256 {
 public:
  sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1)
      throw failure("SHA-256 is not available in this OpenSSL");
  }
  void add(std::string_view bytes) {
    if (EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) != 1)
      throw failure("SHA-256 failed in OpenSSL");
  }
  std::array<unsigned char, 32> finish() {
    std::array<unsigned char, 32> digest{};
    if (EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) != 1)
      throw failure("SHA-256 failed in OpenSSL");
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};
#else
class sha256 {
 public:
  void add(std::string_view bytes) { hash_.process(bytes.begin(), bytes.end()); }
  std::array<unsigned char, 32> finish() {
    std::array<unsigned char, 32> digest{};
    hash_.finish();
    hash_.get_hash_bytes(digest.begin(), digest.end());
    return digest;
  }

 private:
  picosha2::hash256_one_by_one hash_;
};
#endif

std::string hex_of(sha256& hash) {
  const std::array<unsigned char, 32> digest = hash.finish();
  std::string text;
  text.reserve(2 * digest.size());
  for (const unsigned char byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace

std::string sha256_hex(std::string_view bytes) {
  sha256 hash;
  hash.add(bytes);
  return hex_of(hash);
}

std::string sha256_of_file(const std::filesystem::path& file) {
  std::error_code error;
  std::ifstream stream;
  if (std::filesystem::is_regular_file(file, error)) stream.open(file, std::ios::binary);
  if (!stream.is_open())
    throw failure(fmt::format("{}: {}", file.string(), adaptive_k::detail::unreadable(file)));
  sha256 hash;
  std::vector<char> block(std::size_t{1} << 20);
  while (stream.read(block.data(), static_cast<std::streamsize>(block.size())) ||
         stream.gcount() > 0)
    hash.add({block.data(), static_cast<std::size_t>(stream.gcount())});
  if (stream.bad()) throw failure(fmt::format("{}: reading failed", file.string()));
  return hex_of(hash);
}

}  // namespace bench
