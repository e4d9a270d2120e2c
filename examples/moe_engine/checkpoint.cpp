#include "checkpoint.hpp"

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <cmath>

namespace moe_engine {

using adaptive_k::file_error;
using adaptive_k::detail::json_node;

namespace {

/// Of a file in the folder itself.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         std::filesystem::path(name).filename() == name;
}

}  // namespace

checkpoint::checkpoint(const std::filesystem::path& folder) {
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  const std::filesystem::path single = folder / "model.safetensors";
  std::error_code ignored;
  if (!std::filesystem::exists(index, ignored)) {
    files_.emplace_back(single);
    source_ = single.string();
    for (const auto& [name, entry] : files_.front().tensors()) tensors_[name].file = 0;
    return;
  }
  if (std::filesystem::exists(single, ignored))
    throw file_error(index.string(), "",
                     "stands beside model.safetensors, expected one of them: which one holds the "
                     "weights?");
  source_ = index.string();
  const json_node root = adaptive_k::detail::read_json_file(index);
  if (!root.value().is_object()) root.refuse("an object with weight_map");
  const json_node map = root.at("weight_map", "an object: the file of each tensor");
  if (!map.value().is_object()) map.refuse("an object: the file of each tensor");
  std::map<std::string, std::size_t> opened;
  for (const auto& [name, shard] : map.value().items()) {
    if (!shard.is_string() || !is_plain_name(shard.get<std::string>()))
      throw file_error(source_, map.path_of(name),
                       adaptive_k::detail::shown_value(shard) + ", expected a plain file name");
    const auto file = shard.get<std::string>();
    const auto [position, is_new] = opened.emplace(file, files_.size());
    if (is_new) files_.emplace_back(folder / file);
    if (files_[position->second].tensors().count(name) == 0)
      throw file_error(files_[position->second].name(),
                       "tensor \"" + adaptive_k::detail::printable(name, 150) + '"',
                       "missing, although " + source_ + " says that it is here");
    tensors_[name].file = position->second;
  }
  for (std::size_t i = 0; i < files_.size(); ++i)
    for (const auto& [name, entry] : files_[i].tensors()) {
      const auto found = tensors_.find(name);
      if (found == tensors_.end() || found->second.file != i)
        throw file_error(files_[i].name(),
                         "tensor \"" + adaptive_k::detail::printable(name, 150) + '"',
                         "is stored here, but " + source_ +
                             (found == tensors_.end() ? " does not list it"
                                                      : " says that it is in another file"));
    }
}

const checkpoint::place& checkpoint::find(const std::string& name,
                                          const std::string& expected) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw file_error(source_, "tensor \"" + name + '"', "missing, expected " + expected);
  return found->second;
}

const std::string& checkpoint::dtype(const std::string& name) const {
  return files_[find(name, "it").file].tensors().at(name).dtype;
}

std::vector<float> checkpoint::read(const std::string& name,
                                    const std::vector<std::int64_t>& shape) const {
  const place& home = find(name, "one of shape " + text_of(shape));
  home.is_read.store(true, std::memory_order_relaxed);
  std::vector<float> values = files_[home.file].read(name, shape);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw file_error(files_[home.file].name(),
                       "tensor \"" + adaptive_k::detail::printable(name, 150) + '"',
                       "element " + std::to_string(i) + " is " + std::to_string(values[i]) +
                           ", expected finite numbers");
  return values;
}

std::vector<std::string> checkpoint::names() const {
  std::vector<std::string> all;
  for (const auto& [name, home] : tensors_) all.push_back(name);
  return all;
}

std::vector<std::string> checkpoint::unread() const {
  std::vector<std::string> left;
  for (const auto& [name, home] : tensors_)
    if (!home.is_read.load(std::memory_order_relaxed)) left.push_back(name);
  return left;
}

}  // namespace moe_engine
