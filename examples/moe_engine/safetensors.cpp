#include "safetensors.hpp"

#include <adaptive_k/calibration/format/json_parse.hpp>
#include <adaptive_k/types.hpp>
#include <algorithm>
#include <cstring>
#include <fstream>
#include <utility>

namespace moe_engine {
namespace {

using adaptive_k::detail::json;

constexpr std::uint64_t length_bytes = 8;
constexpr std::uint64_t longest_header = 100'000'000;  // the format's own limit

[[noreturn]] void refuse(const std::string& file, const std::string& reason) {
  throw adaptive_k::file_error(file, "", reason);
}

/// Of a tensor: its name is the key.
[[noreturn]] void refuse(const std::string& file, const std::string& tensor,
                         const std::string& reason) {
  throw adaptive_k::file_error(file, "tensor \"" + adaptive_k::detail::printable(tensor, 150) + '"',
                               reason);
}

/// 0 where the format knows no such type.
std::uint64_t bits_per_value(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> sizes = {
      {"F64", 64},    {"I64", 64},    {"U64", 64},        {"C64", 64},        {"F32", 32},
      {"I32", 32},    {"U32", 32},    {"F16", 16},        {"BF16", 16},       {"I16", 16},
      {"U16", 16},    {"F8_E4M3", 8}, {"F8_E5M2", 8},     {"F8_E8M0", 8},     {"I8", 8},
      {"U8", 8},      {"BOOL", 8},    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
      {"F6_E3M2", 6}, {"F4", 4}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

std::uint64_t little_endian_64(const unsigned char* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

bool is_little_endian() {
  const std::uint16_t one = 1;
  unsigned char first = 0;
  std::memcpy(&first, &one, 1);
  return first == 1;
}

/// The length of the header of a file of `file_bytes` that begins with `start`.
std::uint64_t header_length(const std::string& file, const unsigned char* start,
                            std::uint64_t file_bytes) {
  const std::uint64_t length = little_endian_64(start);
  if (length > longest_header)
    refuse(file, "not a safetensors file: its header would have " + std::to_string(length) +
                     " bytes, expected at most " + std::to_string(longest_header));
  if (length > file_bytes - length_bytes)
    refuse(file, "truncated: the header has " + std::to_string(length) + " bytes, but only " +
                     std::to_string(file_bytes - length_bytes) + " follow");
  return length;
}

template <class Stored>
std::vector<std::int64_t> widen_integers(const std::vector<char>& bytes) {
  std::vector<std::int64_t> values(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    values[i] = static_cast<std::int64_t>(stored);
  }
  return values;
}

/// An array of integers from 0 to 2^63 - 1.
bool all_counts(const json& values) {
  return values.is_array() && std::all_of(values.begin(), values.end(), [](const json& value) {
           return value.is_number_unsigned() && value.get<std::uint64_t>() <= INT64_MAX;
         });
}

const json& field(const std::string& file, const std::string& name, const json& entry,
                  const char* key, const char* expected, bool (*fits)(const json&)) {
  const auto found = entry.find(key);
  if (found == entry.end())
    refuse(file, name, std::string(key) + ": missing, expected " + expected);
  if (!fits(*found))
    refuse(file, name,
           std::string(key) + ": " + adaptive_k::detail::shown_value(*found) + ", expected " +
               expected);
  return *found;
}

/// One entry of the header; its offsets count from the header's end to `data_bytes` behind it.
safetensors_file::tensor parse_tensor(const std::string& file, const std::string& name,
                                      const json& entry, std::uint64_t data_bytes) {
  if (!entry.is_object())
    refuse(file, name,
           adaptive_k::detail::shown_value(entry) + ", expected dtype, shape and data_offsets");
  safetensors_file::tensor tensor;
  tensor.dtype = field(file, name, entry, "dtype", "the name of a type, such as \"F32\"",
                       [](const json& value) { return value.is_string(); })
                     .get<std::string>();
  tensor.shape = field(file, name, entry, "shape", "an array of integers of 0 or more", all_counts)
                     .get<std::vector<std::int64_t>>();
  const json& offsets =
      field(file, name, entry, "data_offsets", "[begin, end]",
            [](const json& value) { return all_counts(value) && value.size() == 2; });
  const std::uint64_t bits_of_one = bits_per_value(tensor.dtype);
  if (bits_of_one == 0)
    refuse(file, name,
           "the unknown dtype \"" + adaptive_k::detail::printable(tensor.dtype, 60) + "\"");
  std::uint64_t count = 1;
  bool is_possible = true;
  for (const std::int64_t size : tensor.shape) {
    const auto factor = static_cast<std::uint64_t>(size);
    is_possible = is_possible && (factor == 0 || count <= UINT64_MAX / factor);
    count *= factor;
  }
  if (!is_possible || count > UINT64_MAX / bits_of_one)
    refuse(file, name, "the impossible shape " + text_of(tensor.shape));
  if (count * bits_of_one % 8 != 0)
    refuse(file, name,
           tensor.dtype + " " + text_of(tensor.shape) + " does not end at a byte's end");
  const std::uint64_t bytes = count * bits_of_one / 8;
  tensor.begin = offsets[0].get<std::uint64_t>();
  tensor.end = offsets[1].get<std::uint64_t>();
  if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes)
    refuse(file, name,
           "data_offsets: " + adaptive_k::detail::shown_value(offsets) + ", expected " +
               std::to_string(bytes) + " bytes for " + tensor.dtype + " " + text_of(tensor.shape));
  if (tensor.end > data_bytes)
    refuse(file, name,
           "truncated: it ends at byte " + std::to_string(tensor.end) + " of the data, but only " +
               std::to_string(data_bytes) + " are there");
  return tensor;
}

/// Every byte of the data belongs to one tensor.
void check_cover(const std::string& file,
                 const std::map<std::string, safetensors_file::tensor>& tensors,
                 std::uint64_t data_bytes) {
  using entry = std::pair<const std::string, safetensors_file::tensor>;
  std::vector<const entry*> order;
  order.reserve(tensors.size());
  for (const entry& e : tensors) order.push_back(&e);
  std::sort(order.begin(), order.end(), [](const entry* a, const entry* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t covered = 0;
  const entry* before = nullptr;
  for (const entry* e : order) {
    const std::uint64_t begin = e->second.begin;
    if (begin < covered)
      refuse(file, e->first,
             "it begins at byte " + std::to_string(begin) + ", within the tensor \"" +
                 adaptive_k::detail::printable(before->first, 150) +
                 "\", expected data of its own from byte " + std::to_string(covered) + " on");
    if (begin > covered)
      refuse(file, e->first,
             "it begins at byte " + std::to_string(begin) + ", expected " +
                 std::to_string(covered) + ": no tensor has the bytes between");
    covered = e->second.end;
    before = e;
  }
  if (covered != data_bytes)
    refuse(file, std::to_string(data_bytes) + " bytes of data, expected " +
                     std::to_string(covered) + ": no tensor has the rest");
}

}  // namespace

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) {
    text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
    if (text.size() > 200) return text + ", ...]";
  }
  return text + "]";
}

safetensors_file::safetensors_file(const std::filesystem::path& path)
    : name_(path.string()), path_(path) {
  std::error_code error;
  std::ifstream stream;
  std::uint64_t file_bytes = 0;
  if (std::filesystem::is_regular_file(path_, error)) {
    file_bytes = std::filesystem::file_size(path_, error);
    stream.open(path_, std::ios::binary);
  }
  if (error || !stream.is_open()) refuse(name_, adaptive_k::detail::unreadable(path_));
  unsigned char start[length_bytes];
  if (!stream.read(reinterpret_cast<char*>(start), sizeof start))
    refuse(name_, "truncated: no 8-byte header length");
  const std::uint64_t length = header_length(name_, start, file_bytes);
  std::string header(static_cast<std::size_t>(length), '\0');
  if (!stream.read(header.data(), static_cast<std::streamsize>(length)))
    refuse(name_, "the header cannot be read");
  parse(header, file_bytes - length_bytes - length);
}

safetensors_file::safetensors_file(std::string name, std::string bytes)
    : name_(std::move(name)), bytes_(std::make_shared<const std::string>(std::move(bytes))) {
  if (bytes_->size() < length_bytes) refuse(name_, "truncated: no 8-byte header length");
  const std::uint64_t length =
      header_length(name_, reinterpret_cast<const unsigned char*>(bytes_->data()), bytes_->size());
  parse(bytes_->substr(length_bytes, static_cast<std::size_t>(length)),
        bytes_->size() - length_bytes - length);
}

void safetensors_file::parse(const std::string& header, std::uint64_t data_bytes) {
  if (!is_little_endian()) refuse(name_, "only little-endian machines can read safetensors");
  if (header.empty() || header.front() != '{')
    refuse(name_, "not a safetensors file: its header is not a JSON object");
  adaptive_k::detail::json_limits limits;
  limits.bytes = longest_header;
  limits.values = std::size_t{4} << 20;
  const json root = adaptive_k::detail::parse_json_text(header, name_, limits);
  for (const auto& [name, entry] : root.items()) {
    if (name != "__metadata__") {
      tensors_[name] = parse_tensor(name_, name, entry, data_bytes);
      continue;
    }
    if (!entry.is_object() && !entry.is_null())
      throw adaptive_k::file_error(
          name_, name, adaptive_k::detail::shown_value(entry) + ", expected an object of strings");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        throw adaptive_k::file_error(
            name_, name + "." + key,
            adaptive_k::detail::shown_value(value) + ", expected a string");
      metadata_[key] = value.get<std::string>();
    }
  }
  check_cover(name_, tensors_, data_bytes);
  for (auto& [name, entry] : tensors_) {
    entry.begin += length_bytes + header.size();
    entry.end += length_bytes + header.size();
  }
}

const safetensors_file::tensor& safetensors_file::find(const std::string& tensor_name) const {
  const auto found = tensors_.find(tensor_name);
  if (found == tensors_.end()) refuse(name_, tensor_name, "missing");
  return found->second;
}

const safetensors_file::tensor& safetensors_file::find(
    const std::string& tensor_name, const std::vector<std::int64_t>& shape) const {
  const tensor& entry = find(tensor_name);
  if (entry.shape != shape)
    refuse(name_, tensor_name, "shape: " + text_of(entry.shape) + ", expected " + text_of(shape));
  return entry;
}

void safetensors_file::copy(const std::string& tensor_name, std::uint64_t begin, void* target,
                            std::uint64_t bytes) const {
  if (bytes == 0) return;
  if (bytes_ != nullptr) {
    std::memcpy(target, bytes_->data() + begin, static_cast<std::size_t>(bytes));
    return;
  }
  std::ifstream stream(path_, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(begin));
  if (!stream.read(static_cast<char*>(target), static_cast<std::streamsize>(bytes)))
    refuse(name_, tensor_name, "cannot be read");
}

std::vector<float> safetensors_file::read_range(const std::string& tensor_name, const tensor& entry,
                                                std::uint64_t begin, std::uint64_t end) const {
  const auto as_stored = [&](auto stored) {
    std::vector<decltype(stored)> values(static_cast<std::size_t>((end - begin) / sizeof stored));
    copy(tensor_name, begin, values.data(), end - begin);
    return values;
  };
  const auto widened = [&](auto stored) {
    const auto values = as_stored(stored);
    std::vector<float> floats(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) floats[i] = adaptive_k::to_float(values[i]);
    return floats;
  };
  if (entry.dtype == "F32") return as_stored(float{});
  if (entry.dtype == "F16") return widened(adaptive_k::float16{});
  if (entry.dtype == "BF16") return widened(adaptive_k::bfloat16{});
  refuse(name_, tensor_name, "dtype: " + entry.dtype + ", expected F32, F16 or BF16");
}

std::vector<float> safetensors_file::read(const std::string& tensor_name) const {
  const tensor& entry = find(tensor_name);
  return read_range(tensor_name, entry, entry.begin, entry.end);
}

std::vector<float> safetensors_file::read(const std::string& tensor_name,
                                          const std::vector<std::int64_t>& shape) const {
  const tensor& entry = find(tensor_name, shape);
  return read_range(tensor_name, entry, entry.begin, entry.end);
}

std::vector<float> safetensors_file::read_rows(const std::string& tensor_name,
                                               const std::vector<std::int64_t>& shape,
                                               std::int64_t first, std::int64_t rows) const {
  const tensor& entry = find(tensor_name, shape);
  if (shape.empty() || first < 0 || rows < 0 || first > shape[0] || rows > shape[0] - first)
    refuse(name_, tensor_name,
           "no rows " + std::to_string(first) + ".." + std::to_string(first + rows - 1));
  if (rows == 0) return {};
  const std::uint64_t row_bytes = (entry.end - entry.begin) / static_cast<std::uint64_t>(shape[0]);
  const std::uint64_t begin = entry.begin + row_bytes * static_cast<std::uint64_t>(first);
  return read_range(tensor_name, entry, begin,
                    begin + row_bytes * static_cast<std::uint64_t>(rows));
}

std::vector<std::int64_t> safetensors_file::read_integers(const std::string& tensor_name) const {
  const tensor& entry = find(tensor_name);
  const auto bytes = [&] {
    std::vector<char> stored(static_cast<std::size_t>(entry.end - entry.begin));
    copy(tensor_name, entry.begin, stored.data(), stored.size());
    return stored;
  };
  if (entry.dtype == "I64") return widen_integers<std::int64_t>(bytes());
  if (entry.dtype == "I32") return widen_integers<std::int32_t>(bytes());
  if (entry.dtype == "U8") return widen_integers<std::uint8_t>(bytes());
  refuse(name_, tensor_name, "dtype: " + entry.dtype + ", expected I64, I32 or U8");
}

}  // namespace moe_engine
