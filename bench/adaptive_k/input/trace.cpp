#include "bench/adaptive_k/input/trace.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <adaptive_k/calibration/format/json_parse.hpp>
#include <adaptive_k/calibration/format/names.hpp>
#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <map>
#include <set>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/safetensors.hpp"

namespace bench {
namespace {

constexpr const char* format_name = "adaptive_k.trace";
constexpr const char* format_version = "1";

std::string tensor_name(int layer, const char* what) {
  return fmt::format("layer.{}.{}", layer, what);
}

/// The metadata of a file, read with complaints that name file, key and value.
class metadata_reader {
 public:
  explicit metadata_reader(const moe_engine::safetensors_file& file) : file_(file) {}

  const std::string& text(const char* key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end())
      throw failure(fmt::format("{}: metadata {}: missing", file_.name(), key));
    return found->second;
  }

  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const {
    const std::string& value = text(key);
    std::int64_t number = 0;
    const char* end = value.data() + value.size();
    const auto parsed = std::from_chars(value.data(), end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end || number < least || number > most)
      refuse(key, fmt::format("an integer in {}..{}", least, most));
    return number;
  }

  bool boolean(const char* key) const {
    const std::string& value = text(key);
    if (value != "true" && value != "false") refuse(key, "true or false");
    return value == "true";
  }

  bool has(const char* key) const { return file_.metadata().count(key) != 0; }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    throw adaptive_k::file_error(
        file_.name(), "metadata " + key,
        fmt::format("'{}', expected {}",
                    adaptive_k::detail::printable(file_.metadata().at(key), 60), expected));
  }

  /// Refuses unknown keys, as what they mean would be ignored.
  void expect_keys(std::initializer_list<const char*> known) const {
    for (const auto& [key, value] : file_.metadata())
      if (std::find(known.begin(), known.end(), key) == known.end())
        refuse(key, fmt::format("no other keys than {}", fmt::join(known, ", ")));
  }

 private:
  const moe_engine::safetensors_file& file_;
};

adaptive_k::gating read_gating(const metadata_reader& metadata,
                               const moe_engine::safetensors_file& file) {
  adaptive_k::gating gating;
  const auto kind = adaptive_k::detail::find_name<adaptive_k::gating_kind>(metadata.text("gating"));
  if (!kind)
    metadata.refuse("gating", "one of " + adaptive_k::detail::all_names<adaptive_k::gating_kind>());
  gating.kind = *kind;
  gating.num_experts =
      static_cast<int>(metadata.integer("num_experts", 1, adaptive_k::max_experts));
  gating.top_k = static_cast<int>(metadata.integer("top_k", 1, adaptive_k::max_top_k));
  gating.renormalize = metadata.boolean("renormalize");
  gating.selection_bias = file.tensors().count(tensor_name(0, "selection_bias")) != 0;
  if (metadata.has("groups_kept") && !metadata.has("num_groups"))
    metadata.refuse("groups_kept", "num_groups beside it");
  if (metadata.has("num_groups")) {
    gating.n_group = static_cast<int>(metadata.integer("num_groups", 1, adaptive_k::max_experts));
    gating.topk_group =
        static_cast<int>(metadata.integer("groups_kept", 1, adaptive_k::max_experts));
    // DeepSeek-V3 and its kin have a bias and rank groups by their two best; V2 by the best.
    gating.group_rank = gating.selection_bias ? adaptive_k::group_score::top2_sum
                                              : adaptive_k::group_score::maximum;
  }
  const adaptive_k::status fits = adaptive_k::validate(gating);
  if (!fits.ok()) throw failure(fmt::format("{}: metadata: {}", file.name(), fits.message()));
  return gating;
}

}  // namespace

trace_reader::trace_reader(const std::filesystem::path& file)
    : trace_reader(moe_engine::safetensors_file(file)) {}

trace_reader::trace_reader(moe_engine::safetensors_file opened) : file_(std::move(opened)) {
  const std::string& file = file_.name();
  const metadata_reader metadata(file_);
  if (file_.metadata().count("format") == 0 || metadata.text("format") != format_name)
    throw failure(
        fmt::format("{}: is not a trace: its metadata have no format '{}'", file, format_name));
  if (metadata.text("version") != format_version)
    metadata.refuse("version", fmt::format("'{}'", format_version));
  metadata.expect_keys({"format", "version", "model", "num_layers", "num_experts", "top_k",
                        "gating", "renormalize", "num_tokens", "window", "dataset",
                        "dataset_sha256", "num_groups", "groups_kept"});
  info_.model = metadata.text("model");
  info_.num_layers = static_cast<int>(metadata.integer("num_layers", 1, 10000));
  info_.gating = read_gating(metadata, file_);
  info_.window = static_cast<int>(metadata.integer("window", 1, 1 << 30));
  info_.num_tokens = metadata.integer("num_tokens", 1, std::int64_t{1} << 40);
  if (info_.num_tokens % info_.window != 0)
    metadata.refuse("num_tokens", fmt::format("a multiple of window = {}", info_.window));
  info_.dataset = metadata.text("dataset");
  info_.dataset_sha256 = metadata.text("dataset_sha256");
  std::set<std::string> known;
  const auto expect_floats = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end())
      throw failure(
          fmt::format("{}: {}: missing, metadata num_layers is {}", file, name, info_.num_layers));
    if (found->second.dtype != "F32" || found->second.shape != shape)
      throw failure(fmt::format("{}: {}: is {} {}, expected F32 {}", file, name,
                                found->second.dtype, moe_engine::text_of(found->second.shape),
                                moe_engine::text_of(shape)));
    known.insert(name);
  };
  for (int layer = 0; layer < info_.num_layers; ++layer) {
    expect_floats(tensor_name(layer, "router_logits"),
                  {info_.num_tokens, info_.gating.num_experts});
    if (info_.gating.selection_bias)
      expect_floats(tensor_name(layer, "selection_bias"), {info_.gating.num_experts});
  }
  for (const auto& [name, tensor] : file_.tensors())
    if (known.count(name) == 0)
      throw failure(fmt::format("{}: {}: unknown tensor, expected router_logits of {} layers{}",
                                file, adaptive_k::detail::printable(name, 150), info_.num_layers,
                                info_.gating.selection_bias ? " and their selection_bias" : ""));
}

std::vector<float> trace_reader::logits(int layer, std::int64_t first, std::int64_t rows) const {
  return file_.read_rows(tensor_name(layer, "router_logits"),
                         {info_.num_tokens, info_.gating.num_experts}, first, rows);
}

std::vector<float> trace_reader::selection_bias(int layer) const {
  if (!info_.gating.selection_bias) return {};
  return file_.read(tensor_name(layer, "selection_bias"), {info_.gating.num_experts});
}

void write_trace(const std::filesystem::path& file, const trace_info& info, trace_values values) {
  std::map<std::string, std::string> metadata = {
      {"format", format_name},
      {"version", format_version},
      {"model", info.model},
      {"num_layers", std::to_string(info.num_layers)},
      {"num_experts", std::to_string(info.gating.num_experts)},
      {"top_k", std::to_string(info.gating.top_k)},
      {"gating", adaptive_k::to_string(info.gating.kind)},
      {"renormalize", info.gating.renormalize ? "true" : "false"},
      {"num_tokens", std::to_string(info.num_tokens)},
      {"window", std::to_string(info.window)},
      {"dataset", info.dataset},
      {"dataset_sha256", info.dataset_sha256},
  };
  if (info.gating.n_group > 1) {
    metadata["num_groups"] = std::to_string(info.gating.n_group);
    metadata["groups_kept"] = std::to_string(info.gating.topk_group);
  }
  std::vector<float_tensor> tensors;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    const auto l = static_cast<std::size_t>(layer);
    tensors.push_back({tensor_name(layer, "router_logits"),
                       {info.num_tokens, info.gating.num_experts},
                       std::move(values.logits[l])});
    if (info.gating.selection_bias)
      tensors.push_back({tensor_name(layer, "selection_bias"),
                         {info.gating.num_experts},
                         std::move(values.biases[l])});
  }
  write_safetensors(file, tensors, metadata);
}

}  // namespace bench
