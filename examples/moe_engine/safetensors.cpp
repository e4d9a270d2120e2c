#include "safetensors.hpp"

#include <adaptive_k/types.hpp>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace moe_engine {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& reason) {
  throw std::runtime_error(file.string() + ": " + reason);
}

std::size_t bytes_per_value(const std::string& dtype) {
  static const std::map<std::string, std::size_t> sizes = {
      {"F64", 8},  {"I64", 8},     {"U64", 8},     {"F32", 4}, {"I32", 4},
      {"U32", 4},  {"F16", 2},     {"I16", 2},     {"U16", 2}, {"BF16", 2},
      {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I8", 1},  {"U8", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape)
    text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
  return text + "]";
}

std::uint64_t little_endian_64(const unsigned char* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

template <class Stored>
std::vector<float> widen(const std::vector<char>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    values[i] = adaptive_k::to_float(stored);
  }
  return values;
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

bool all_counts(const json& values) {
  if (!values.is_array()) return false;
  for (const json& value : values)
    if (!value.is_number_unsigned()) return false;
  return true;
}

/// Reads one entry of the header; offsets count from `data_begin` to `file_size`.
safetensors_file::tensor parse_tensor(const std::filesystem::path& file, const std::string& name,
                                      const json& entry, std::uint64_t data_begin,
                                      std::uint64_t file_size) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !all_counts(entry["shape"]) || !entry.contains("data_offsets") ||
      !all_counts(entry["data_offsets"]) || entry["data_offsets"].size() != 2)
    refuse(file, "tensor \"" + name + "\" is " + entry.dump() +
                     ", expected dtype, shape and data_offsets [begin, end]");
  safetensors_file::tensor tensor;
  tensor.dtype = entry["dtype"].get<std::string>();
  tensor.shape = entry["shape"].get<std::vector<std::int64_t>>();
  const std::size_t unit = bytes_per_value(tensor.dtype);
  if (unit == 0)
    refuse(file, "tensor \"" + name + "\" has the unknown dtype \"" + tensor.dtype + "\"");
  const std::uint64_t available = file_size - data_begin;
  std::uint64_t bytes = unit;
  for (const std::int64_t size : tensor.shape) {
    const auto factor = static_cast<std::uint64_t>(size);
    if (factor != 0 && bytes > (std::uint64_t{1} << 62) / factor)
      refuse(file, "tensor \"" + name + "\" has the impossible shape " + text_of(tensor.shape));
    bytes *= factor;
  }
  const auto begin = entry["data_offsets"][0].get<std::uint64_t>();
  const auto end = entry["data_offsets"][1].get<std::uint64_t>();
  if (end < begin || end - begin != bytes)
    refuse(file, "tensor \"" + name + "\" has data_offsets " + entry["data_offsets"].dump() +
                     ", expected " + std::to_string(bytes) + " bytes for " + tensor.dtype + " " +
                     text_of(tensor.shape));
  if (end > available)
    refuse(file, "truncated: tensor \"" + name + "\" ends at byte " + std::to_string(end) +
                     " of the data, but only " + std::to_string(available) + " are there");
  tensor.begin = data_begin + begin;
  tensor.end = data_begin + end;
  return tensor;
}

json parse_json(const std::filesystem::path& file, const std::string& text, const char* what) {
  json parsed = json::parse(text, nullptr, false);
  if (parsed.is_discarded() || !parsed.is_object())
    refuse(file, std::string("the ") + what + " is not a JSON object");
  return parsed;
}

}  // namespace

safetensors_file::safetensors_file(std::filesystem::path path) : path_(std::move(path)) {
  std::ifstream stream(path_, std::ios::binary | std::ios::ate);
  if (!stream || std::filesystem::is_directory(path_)) refuse(path_, "cannot be opened");
  const auto file_size = static_cast<std::uint64_t>(stream.tellg());
  unsigned char length_bytes[8];
  stream.seekg(0);
  if (!stream.read(reinterpret_cast<char*>(length_bytes), sizeof length_bytes))
    refuse(path_, "truncated: no 8-byte header length");
  const std::uint64_t length = little_endian_64(length_bytes);
  if (length > file_size - 8)
    refuse(path_, "truncated: the header has " + std::to_string(length) + " bytes, but only " +
                      std::to_string(file_size - 8) + " follow");
  std::string text(length, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(length)))
    refuse(path_, "the header cannot be read");
  const json header = parse_json(path_, text, "header");
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      tensors_[name] = parse_tensor(path_, name, entry, 8 + length, file_size);
    } else if (entry.is_object()) {
      for (const auto& [key, value] : entry.items())
        if (value.is_string()) metadata_[key] = value.get<std::string>();
    }
  }
}

const safetensors_file::tensor& safetensors_file::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) refuse(path_, "no tensor \"" + name + "\"");
  return found->second;
}

std::vector<char> safetensors_file::read_bytes(const std::string& name, const tensor& entry) const {
  std::vector<char> bytes(entry.end - entry.begin);
  std::ifstream stream(path_, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(entry.begin));
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
    refuse(path_, "tensor \"" + name + "\" cannot be read");
  return bytes;
}

std::vector<float> safetensors_file::read(const std::string& name) const {
  const tensor& entry = find(name);
  if (entry.dtype == "F32") return widen<float>(read_bytes(name, entry));
  if (entry.dtype == "F16") return widen<adaptive_k::float16>(read_bytes(name, entry));
  if (entry.dtype == "BF16") return widen<adaptive_k::bfloat16>(read_bytes(name, entry));
  refuse(path_, "tensor \"" + name + "\" has dtype " + entry.dtype + ", expected F32, F16 or BF16");
}

std::vector<float> safetensors_file::read(const std::string& name,
                                          const std::vector<std::int64_t>& shape) const {
  const tensor& entry = find(name);
  if (entry.shape != shape)
    refuse(path_, "tensor \"" + name + "\" has shape " + text_of(entry.shape) + ", expected " +
                      text_of(shape));
  return read(name);
}

std::vector<std::int64_t> safetensors_file::read_integers(const std::string& name) const {
  const tensor& entry = find(name);
  if (entry.dtype == "I64") return widen_integers<std::int64_t>(read_bytes(name, entry));
  if (entry.dtype == "I32") return widen_integers<std::int32_t>(read_bytes(name, entry));
  if (entry.dtype == "U8") return widen_integers<std::uint8_t>(read_bytes(name, entry));
  refuse(path_, "tensor \"" + name + "\" has dtype " + entry.dtype + ", expected I64, I32 or U8");
}

checkpoint::checkpoint(const std::filesystem::path& folder) {
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(index)) {
    files_.emplace_back(folder / "model.safetensors");
    source_ = files_.front().path().string();
    for (const auto& [name, entry] : files_.front().tensors()) home_[name] = 0;
    return;
  }
  source_ = index.string();
  std::ifstream stream(index);
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  const json parsed = parse_json(index, text, "file");
  if (!parsed.contains("weight_map") || !parsed["weight_map"].is_object())
    refuse(index, "no object \"weight_map\"");
  std::map<std::string, std::size_t> opened;
  for (const auto& [name, shard] : parsed["weight_map"].items()) {
    if (!shard.is_string())
      refuse(index, "tensor \"" + name + "\" is in " + shard.dump() + ", expected a file name");
    const auto file = shard.get<std::string>();
    if (std::filesystem::path(file).filename() != std::filesystem::path(file))
      refuse(index, "tensor \"" + name + "\" is in \"" + file + "\", expected a plain file name");
    const auto [position, is_new] = opened.emplace(file, files_.size());
    if (is_new) files_.emplace_back(folder / file);
    if (files_[position->second].tensors().count(name) == 0)
      refuse(files_[position->second].path(),
             "no tensor \"" + name + "\", although " + index.string() + " says so");
    home_[name] = position->second;
  }
}

std::vector<float> checkpoint::read(const std::string& name,
                                    const std::vector<std::int64_t>& shape) const {
  const auto found = home_.find(name);
  if (found == home_.end())
    throw std::runtime_error(source_ + ": no tensor \"" + name + "\", expected one of shape " +
                             text_of(shape));
  return files_[found->second].read(name, shape);
}

}  // namespace moe_engine
