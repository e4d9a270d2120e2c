// Reads tensors from safetensors files: an 8-byte header length, a JSON header, then the data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moe_engine {

/// One file. The header is read and checked at once, tensors when asked for. What the format's own
/// reference refuses is refused: data that no tensor or more than one covers, shapes that do not
/// fit their bytes, headers above 100 MB; and what the format rules out though the reference lets
/// it pass: names that come twice, a header that does not begin with '{'. Nothing is allocated for
/// a size that the file does not have. Every failure is a std::runtime_error naming the file and,
/// where there is one, the tensor.
class safetensors_file {
 public:
  struct tensor {
    std::string dtype;                // as stored
    std::vector<std::int64_t> shape;  // outermost first
    std::uint64_t begin = 0;          // bytes from the start of the file
    std::uint64_t end = 0;
  };

  explicit safetensors_file(const std::filesystem::path& path);
  /// The same of a file's bytes; messages call it `name`.
  safetensors_file(std::string name, std::string bytes);

  /// The path, or the name given.
  const std::string& name() const noexcept { return name_; }
  const std::map<std::string, tensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

  /// The values as float, exactly: dtype F32, F16 or BF16.
  std::vector<float> read(const std::string& tensor_name) const;
  /// The same, of this very shape.
  std::vector<float> read(const std::string& tensor_name,
                          const std::vector<std::int64_t>& shape) const;
  /// Of a tensor of this very shape the rows first .. first + rows - 1, along the first dimension.
  std::vector<float> read_rows(const std::string& tensor_name,
                               const std::vector<std::int64_t>& shape, std::int64_t first,
                               std::int64_t rows) const;
  /// Integers: dtype I64, I32 or U8.
  std::vector<std::int64_t> read_integers(const std::string& tensor_name) const;

 private:
  void parse(const std::string& header, std::uint64_t data_bytes);
  const tensor& find(const std::string& tensor_name) const;
  const tensor& find(const std::string& tensor_name, const std::vector<std::int64_t>& shape) const;
  void copy(const std::string& tensor_name, std::uint64_t begin, void* target,
            std::uint64_t bytes) const;
  std::vector<float> read_range(const std::string& tensor_name, const tensor& entry,
                                std::uint64_t begin, std::uint64_t end) const;

  std::string name_;
  std::filesystem::path path_;
  std::shared_ptr<const std::string> bytes_;  // null: in the file
  std::map<std::string, tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// "[2, 3]"
std::string text_of(const std::vector<std::int64_t>& shape);

}  // namespace moe_engine
