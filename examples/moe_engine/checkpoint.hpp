// The weights of a model folder.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "safetensors.hpp"

namespace moe_engine {

/// model.safetensors, or the shards that model.safetensors.index.json lists. Knows which tensors
/// were read, so that none is left out unnoticed. Every failure is a std::runtime_error naming the
/// file and the tensor.
class checkpoint {
 public:
  explicit checkpoint(const std::filesystem::path& folder);

  /// The file that lists the tensors.
  const std::string& source() const noexcept { return source_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  /// As stored: "F16", ...
  const std::string& dtype(const std::string& name) const;
  /// May be called from several threads.
  std::vector<float> read(const std::string& name, const std::vector<std::int64_t>& shape) const;

  std::vector<std::string> names() const;
  /// Those that `read` was never asked for.
  std::vector<std::string> unread() const;

 private:
  struct place {
    std::size_t file = 0;
    mutable std::atomic<bool> is_read{false};
  };
  const place& find(const std::string& name, const std::string& expected) const;

  std::string source_;
  std::vector<safetensors_file> files_;
  std::map<std::string, place> tensors_;
};

}  // namespace moe_engine
