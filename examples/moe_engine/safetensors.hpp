// Reads tensors from safetensors files: an 8-byte header length, a JSON header, then the data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace moe_engine {

/// One file. The header is read and checked at once, tensors when asked for. Every failure is a
/// std::runtime_error naming the file and, where there is one, the tensor.
class safetensors_file {
 public:
  struct tensor {
    std::string dtype;                // as stored
    std::vector<std::int64_t> shape;  // outermost first
    std::uint64_t begin = 0;          // bytes from the start of the file
    std::uint64_t end = 0;
  };

  explicit safetensors_file(std::filesystem::path path);

  const std::filesystem::path& path() const noexcept { return path_; }
  const std::map<std::string, tensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

  /// The values as float, exactly: dtype F32, F16 or BF16.
  std::vector<float> read(const std::string& name) const;
  /// The same, of this very shape.
  std::vector<float> read(const std::string& name, const std::vector<std::int64_t>& shape) const;
  /// Integers: dtype I64, I32 or U8.
  std::vector<std::int64_t> read_integers(const std::string& name) const;

 private:
  const tensor& find(const std::string& name) const;
  std::vector<char> read_bytes(const std::string& name, const tensor& entry) const;

  std::filesystem::path path_;
  std::map<std::string, tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The weights of a model folder: model.safetensors, or the shards that
/// model.safetensors.index.json lists.
class checkpoint {
 public:
  explicit checkpoint(const std::filesystem::path& folder);

  bool contains(const std::string& name) const { return home_.count(name) != 0; }
  std::vector<float> read(const std::string& name, const std::vector<std::int64_t>& shape) const;

 private:
  std::string source_;  // the file that lists the tensors
  std::vector<safetensors_file> files_;
  std::map<std::string, std::size_t> home_;  // tensor -> index of its file
};

}  // namespace moe_engine
