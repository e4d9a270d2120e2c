#include "bench/adaptive_k/trace.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/names.hpp>
#include <charconv>
#include <map>
#include <utility>

#include "bench/adaptive_k/failure.hpp"

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
  explicit metadata_reader(const safetensors_file& file) : file_(file) {}

  const std::string& text(const char* key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end())
      throw failure(fmt::format("{}: metadata {}: missing", file_.path().string(), key));
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

  [[noreturn]] void refuse(const char* key, const std::string& expected) const {
    throw failure(fmt::format("{}: metadata {}: '{}', expected {}", file_.path().string(), key,
                              text(key), expected));
  }

 private:
  const safetensors_file& file_;
};

adaptive_k::gating read_gating(const metadata_reader& metadata, const safetensors_file& file) {
  adaptive_k::gating gating;
  const auto* kind =
      adaptive_k::detail::find_name(adaptive_k::detail::gating_kind_names, metadata.text("gating"));
  if (kind == nullptr)
    metadata.refuse(
        "gating", "one of " + adaptive_k::detail::all_names(adaptive_k::detail::gating_kind_names));
  gating.kind = kind->value;
  gating.num_experts =
      static_cast<int>(metadata.integer("num_experts", 1, adaptive_k::max_experts));
  gating.top_k = static_cast<int>(metadata.integer("top_k", 1, adaptive_k::max_top_k));
  gating.renormalize = metadata.boolean("renormalize");
  gating.selection_bias = file.has(tensor_name(0, "selection_bias"));
  if (metadata.has("num_groups")) {
    gating.n_group = static_cast<int>(metadata.integer("num_groups", 1, adaptive_k::max_experts));
    gating.topk_group =
        static_cast<int>(metadata.integer("groups_kept", 1, adaptive_k::max_experts));
    // DeepSeek-V3 and its kin have a bias and rank groups by their two best; V2 by the best.
    gating.group_rank = gating.selection_bias ? adaptive_k::group_score::top2_sum
                                              : adaptive_k::group_score::maximum;
  }
  const adaptive_k::status fits = adaptive_k::validate(gating);
  if (!fits) throw failure(fmt::format("{}: metadata: {}", file.path().string(), fits.message()));
  return gating;
}

}  // namespace

trace_reader::trace_reader(const std::filesystem::path& file)
    : file_(safetensors_file::open(file)) {
  const metadata_reader metadata(file_);
  if (file_.metadata().count("format") == 0 || metadata.text("format") != format_name)
    throw failure(fmt::format("{}: is not a trace: its metadata have no format '{}'", file.string(),
                              format_name));
  if (metadata.text("version") != format_version)
    metadata.refuse("version", fmt::format("'{}'", format_version));
  info_.model = metadata.text("model");
  info_.num_layers = static_cast<int>(metadata.integer("num_layers", 1, 10000));
  info_.gating = read_gating(metadata, file_);
  info_.window = static_cast<int>(metadata.integer("window", 1, 1 << 30));
  info_.num_tokens = metadata.integer("num_tokens", 1, std::int64_t{1} << 40);
  if (info_.num_tokens % info_.window != 0)
    metadata.refuse("num_tokens", fmt::format("a multiple of window = {}", info_.window));
  info_.dataset = metadata.text("dataset");
  info_.dataset_sha256 = metadata.text("dataset_sha256");
  const std::vector<std::int64_t> shape = {info_.num_tokens, info_.gating.num_experts};
  for (int layer = 0; layer < info_.num_layers; ++layer) {
    const std::string name = tensor_name(layer, "router_logits");
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end())
      throw failure(fmt::format("{}: {}: missing, metadata num_layers is {}", file.string(), name,
                                info_.num_layers));
    if (found->second.dtype != "F32" || found->second.shape != shape)
      throw failure(
          fmt::format("{}: {}: expected F32 [{}, {}]", file.string(), name, shape[0], shape[1]));
  }
}

std::vector<float> trace_reader::logits(int layer, std::int64_t first, std::int64_t rows) const {
  return file_.read_floats(tensor_name(layer, "router_logits"),
                           {info_.num_tokens, info_.gating.num_experts}, first, rows);
}

std::vector<float> trace_reader::selection_bias(int layer) const {
  if (!info_.gating.selection_bias) return {};
  return file_.read_floats(tensor_name(layer, "selection_bias"), {info_.gating.num_experts}, 0,
                           info_.gating.num_experts);
}

void write_trace(const std::filesystem::path& file, const trace_info& info,
                 std::vector<std::vector<float>> logits) {
  const std::map<std::string, std::string> metadata = {
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
  std::vector<float_tensor> tensors;
  for (int layer = 0; layer < info.num_layers; ++layer)
    tensors.push_back({tensor_name(layer, "router_logits"),
                       {info.num_tokens, info.gating.num_experts},
                       std::move(logits[static_cast<std::size_t>(layer)])});
  write_safetensors(file, tensors, metadata);
}

}  // namespace bench
