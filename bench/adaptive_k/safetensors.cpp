#include "bench/adaptive_k/safetensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output.hpp"

namespace bench {
namespace {

using json = nlohmann::ordered_json;

constexpr std::uint64_t length_bytes = 8;

bool is_little_endian() {
  const std::uint16_t one = 1;
  unsigned char first = 0;
  std::memcpy(&first, &one, 1);
  return first == 1;
}

safetensors_file::tensor read_entry(const std::string& file, const std::string& name,
                                    const json& entry, std::uint64_t data_begin,
                                    std::uint64_t file_size) {
  safetensors_file::tensor result;
  try {
    result.dtype = entry.at("dtype").get<std::string>();
    result.shape = entry.at("shape").get<std::vector<std::int64_t>>();
    const auto offsets = entry.at("data_offsets").get<std::vector<std::uint64_t>>();
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > file_size - data_begin)
      throw failure(fmt::format("{}: {}: data_offsets are {}, the file has {} bytes of data", file,
                                name, entry.at("data_offsets").dump(), file_size - data_begin));
    result.begin = data_begin + offsets[0];
    result.end = data_begin + offsets[1];
  } catch (const json::exception&) {
    throw failure(fmt::format("{}: {}: expected dtype, shape and data_offsets, found {:.80}", file,
                              name, entry.dump()));
  }
  return result;
}

}  // namespace

safetensors_file safetensors_file::open(const std::filesystem::path& file) {
  safetensors_file result;
  result.path_ = file;
  const std::string name = file.string();
  std::error_code error;
  const std::uint64_t size =
      std::filesystem::is_regular_file(file, error) ? std::filesystem::file_size(file, error) : 0;
  std::ifstream stream;
  if (std::filesystem::is_regular_file(file, error)) stream.open(file, std::ios::binary);
  if (!stream.is_open() || error)
    throw failure(fmt::format("{}: cannot be read, expected a file", name));
  unsigned char raw[length_bytes] = {};
  stream.read(reinterpret_cast<char*>(raw), sizeof raw);
  std::uint64_t header_size = 0;
  for (std::size_t i = length_bytes; i-- > 0;) header_size = header_size << 8 | raw[i];
  if (!stream || size < length_bytes || header_size > size - length_bytes)
    throw failure(fmt::format("{}: not a safetensors file, or cut short", name));
  std::string text(static_cast<std::size_t>(header_size), '\0');
  stream.read(text.data(), static_cast<std::streamsize>(header_size));
  const json header = json::parse(text, nullptr, false);
  if (!stream || !header.is_object())
    throw failure(fmt::format("{}: its header is not a JSON object", name));
  for (const auto& [key, value] : header.items()) {
    if (key != "__metadata__") {
      result.tensors_[key] = read_entry(name, key, value, length_bytes + header_size, size);
      continue;
    }
    for (const auto& [word, said] : value.items())
      result.metadata_[word] = said.is_string() ? said.get<std::string>() : said.dump();
  }
  return result;
}

std::vector<float> safetensors_file::read_floats(const std::string& name,
                                                 const std::vector<std::int64_t>& shape,
                                                 std::int64_t first, std::int64_t rows) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw failure(fmt::format("{}: {}: missing", path_.string(), name));
  const tensor& entry = found->second;
  if (entry.dtype != "F32" || entry.shape != shape)
    throw failure(fmt::format("{}: {}: is {} [{}], expected F32 [{}]", path_.string(), name,
                              entry.dtype, fmt::join(entry.shape, ", "), fmt::join(shape, ", ")));
  std::uint64_t row_bytes = sizeof(float);
  for (std::size_t i = 1; i < shape.size(); ++i) row_bytes *= static_cast<std::uint64_t>(shape[i]);
  const std::uint64_t expected = row_bytes * static_cast<std::uint64_t>(shape[0]);
  if (entry.end - entry.begin != expected)
    throw failure(fmt::format("{}: {}: has {} bytes, expected {}", path_.string(), name,
                              entry.end - entry.begin, expected));
  if (first < 0 || rows < 0 || rows > shape[0] - first)
    throw failure(
        fmt::format("{}: {}: has no rows {}..{}", path_.string(), name, first, first + rows - 1));
  if (!is_little_endian()) throw failure("safetensors: only little-endian machines are supported");
  const std::uint64_t bytes = row_bytes * static_cast<std::uint64_t>(rows);
  std::vector<float> values(static_cast<std::size_t>(bytes / sizeof(float)));
  std::ifstream stream(path_, std::ios::binary);
  stream.seekg(
      static_cast<std::streamoff>(entry.begin + row_bytes * static_cast<std::uint64_t>(first)));
  stream.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes));
  if (!stream) throw failure(fmt::format("{}: {}: reading failed", path_.string(), name));
  return values;
}

void write_safetensors(const std::filesystem::path& file, const std::vector<float_tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  if (!is_little_endian()) throw failure("safetensors: only little-endian machines are supported");
  json header;
  header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const float_tensor& tensor : tensors) {
    const std::uint64_t end = offset + tensor.values.size() * sizeof(float);
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  unsigned char raw[length_bytes] = {};
  for (std::size_t i = 0; i < length_bytes; ++i)
    raw[i] = static_cast<unsigned char>(text.size() >> (8 * i));

  output_file output("--output", file);
  output.write({reinterpret_cast<const char*>(raw), sizeof raw});
  output.write(text);
  for (const float_tensor& tensor : tensors)
    output.write({reinterpret_cast<const char*>(tensor.values.data()),
                  tensor.values.size() * sizeof(float)});
  output.commit();
}

}  // namespace bench
