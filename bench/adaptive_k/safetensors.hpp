// The safetensors container: reading its header and single tensors, writing float32 tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace bench {

class safetensors_file {
 public:
  struct tensor {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0;  ///< of its bytes in the file
    std::uint64_t end = 0;
  };

  /// Reads and checks the header. Throws failure naming the file and what is wrong.
  static safetensors_file open(const std::filesystem::path& file);

  const std::filesystem::path& path() const noexcept { return path_; }
  const std::map<std::string, tensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  /// Rows first .. first + rows - 1 of a tensor; its own first extent is the number of rows. Throws
  /// failure unless the tensor is there, is F32, has this shape and these rows.
  std::vector<float> read_floats(const std::string& name, const std::vector<std::int64_t>& shape,
                                 std::int64_t first, std::int64_t rows) const;

 private:
  std::filesystem::path path_;
  std::map<std::string, tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct float_tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

/// Throws failure when the file cannot be written.
void write_safetensors(const std::filesystem::path& file, const std::vector<float_tensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace bench
