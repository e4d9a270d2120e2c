// What a model's tokens stand for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <moe_engine/tokenizer.hpp>
#include <string>

namespace bench {

/// A model with a tokenizer.json in its folder reads text by it, one of 256 tokens without one
/// reads bytes, and any other token ids alone.
class vocabulary {
 public:
  /// A size alone is a vocabulary without a tokenizer.
  // NOLINTNEXTLINE(google-explicit-constructor)
  vocabulary(int size, std::filesystem::path tokenizer_file = {});

  int size() const noexcept { return size_; }
  bool is_bytes() const noexcept { return file_.empty() && size_ == 256; }
  bool has_tokenizer() const noexcept { return !file_.empty(); }

  /// Of a model that has one; read when first asked for. Throws std::runtime_error naming file, key
  /// and value, also where it has tokens that the model does not.
  const moe_engine::tokenizer& tokenizer() const;

  /// A token as people read it, in one line: its text or byte between quotes, else its number.
  std::string shown(std::int32_t token) const;

 private:
  int size_;
  std::filesystem::path file_;
  mutable std::shared_ptr<const moe_engine::tokenizer> tokenizer_;
};

}  // namespace bench
