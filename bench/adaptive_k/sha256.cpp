#include "bench/adaptive_k/sha256.hpp"

#ifdef ADAPTIVE_K_BENCH_OPENSSL
#include <openssl/evp.h>
#else
#include <picosha2.h>
#endif

#include <array>

#include "bench/adaptive_k/failure.hpp"

namespace bench {

std::string sha256_hex(std::string_view bytes) {
  std::array<unsigned char, 32> digest{};
#ifdef ADAPTIVE_K_BENCH_OPENSSL
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1)
    throw failure("SHA-256 is not available in this OpenSSL");
#else
  picosha2::hash256(bytes.begin(), bytes.end(), digest.begin(), digest.end());
#endif
  std::string text;
  text.reserve(2 * digest.size());
  for (const unsigned char byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace bench
